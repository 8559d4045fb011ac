"""Recovery: when a broker starts, the journal is brought in line with how the previous broker ended."""

from __future__ import annotations

from collections.abc import Iterable

from taskq.engines.contract import Jobs
from taskq.engines.embedded.dependencies import release_dependents
from taskq.engines.embedded.journal.store import Store
from taskq.model.effects import Effects
from taskq.model.stored import StoredState
from taskq.protocol.link.flight_recorder import FlightRecord


def recover(store: Store, jobs: Jobs, running: Iterable[FlightRecord], now: float, wall: float) -> Effects:
    """Charges, at the start, the jobs that were running when a whole fleet died; then counts what waits.

    Args:
        running: the attempts in the flight recorder.
        now, wall: monotonic seconds, and seconds since 1970.

    Returns:
        What was decided. The caller commits it, and then reports it.
    """
    for job_id, attempt, consumer in running:
        stored = store.read(job_id)
        # an attempt that is counted was settled before the fleet died
        if stored is not None and stored.kept == StoredState.QUEUED and stored.row.attempts == attempt - 1:
            jobs.lost(stored.row, consumer)
    effects = Effects()
    effects.add(jobs.take_effects())
    if effects:
        store.settle(effects.ended, effects.rescheduled, wall)
        store.totals.crashed += effects.crashed
    ends = {**dict(store.unfinished_releases()), **{row.id: kept for row, kept, _ in effects.ended}}
    while ends:
        handed = release_dependents(store, ends, wall)
        effects.ended += handed.ended
        effects.notes += handed.notes
        ends = handed.left
    jobs.restore_limits(store.rates(wall), store.retried_in_order(), now, wall)
    for partition, waiting, first_seq in store.waiting():
        jobs.found(partition, waiting, first_seq)
    return effects
