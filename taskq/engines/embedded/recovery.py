"""Recovery: when a broker starts, the journal is brought in line with how the broker before it ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from taskq.engines.embedded.dependencies import release_dependents
from taskq.engines.embedded.journal.store import Store
from taskq.model.effects import Effects
from taskq.model.stored import StoredState
from taskq.protocol.link.flight_recorder import FlightRecord

if TYPE_CHECKING:  # the fleet half hands itself in: nothing of it is imported
    from taskq.broker.core.core import Core


def recover(store: Store, core: Core, running: Iterable[FlightRecord], now: float, wall: float) -> Effects:
    """At the start: charges the jobs that were running when a whole fleet died; then counts what waits.

    Args:
        running: what the flight recorder says.
        now, wall: monotonic seconds, and seconds since 1970.

    Returns:
        What was decided, committed; it is still to be told.
    """
    for job_id, attempt in running:
        stored = store.read(job_id)
        # an attempt that is counted was settled before the fleet died
        if stored is not None and stored.kept == StoredState.QUEUED and stored.row.attempts == attempt - 1:
            core.lost(stored.row)
    effects = core.take_effects()
    if effects:
        store.settle(effects.ended, effects.rescheduled, wall)
        store.totals.crashed += effects.crashed
    ends = {**dict(store.unfinished_releases()), **{row.id: kept for row, kept, _ in effects.ended}}
    while ends:
        handed = release_dependents(store, ends, wall)
        effects.ended += handed.ended
        effects.notes += handed.notes
        ends = handed.left
    store.commit()
    core.ready.restore_rates(store.rates(wall), now, wall)
    for partition, waiting, first_seq in store.waiting():
        core.found(partition, waiting, first_seq)
    for row in store.retried_in_order():
        core.ready.under_way(row)
    return effects
