"""The start of a broker: what the journal says is brought in line with how its predecessor ended."""

from __future__ import annotations

from collections.abc import Iterable

from taskq.core import Core
from taskq.counters import FlightRecord
from taskq.effects import Effects
from taskq.handover import hand_over
from taskq.store import Kept, Store


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
        if stored is not None and stored.kept == Kept.QUEUED and stored.row.attempts == attempt - 1:
            core.lost(stored.row)
    effects = core.take_effects()
    if effects:
        store.settle(effects.ended, effects.rescheduled, wall)
        store.totals.crashed += effects.crashed
    ends = {**dict(store.left_waiting()), **{row.id: kept for row, kept, _ in effects.ended}}
    while ends:
        handed = hand_over(store, ends, wall)
        effects.ended += handed.ended
        effects.notes += handed.notes
        ends = handed.left
    store.commit()
    core.bands.restore_rates(store.rates(wall), now, wall)
    for band, waiting, first_seq in store.waiting():
        core.found(band, waiting, first_seq)
    for row in store.retried_in_order():
        core.bands.under_way(row)
    return effects
