"""What a PostgreSQL fleet counts by itself: what has happened here since it started. What waits in the database is told
by clients, which ask that."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from taskq.model.effects import Effects
from taskq.model.stored import StoredState


@dataclass(slots=True)
class Totals:
    """See `taskq.engines.contract.Totals`."""

    enqueued: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    crashed: int = 0
    cancelled: int = 0
    expired: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


class PostgresFigures:
    """See `taskq.engines.contract.Figures`."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._paused: frozenset[str] = frozenset()

    def paused(self) -> frozenset[str]:
        return self._paused

    def set_paused(self, paused: frozenset[str]) -> None:
        """Notes the queues that are paused."""
        self._paused = paused

    def counts(self, _kept: StoredState, /) -> dict[str, int]:
        return {}

    def count(self, effects: Effects) -> None:
        """Counts what has become durable."""
        totals = self.totals
        totals.succeeded += len(effects.done)
        totals.retried += effects.retried
        totals.crashed += effects.crashed
        if len(effects.ended) > len(effects.done):
            states = [state for _, state, _ in effects.ended]
            totals.failed += states.count(StoredState.FAILED)
            totals.cancelled += states.count(StoredState.CANCELLED)
            totals.expired += states.count(StoredState.EXPIRED)
