"""What a PostgreSQL fleet counts by itself: what has happened here since it started. What waits in the database is told
by clients, which ask that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from taskq.engines.contract import Vitals
from taskq.engines.counting import JobCounting
from taskq.model.effects import Effects
from taskq.model.info.counts import CountsRow
from taskq.model.job import JobRow
from taskq.model.partition import Partition
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
        #: What has happened to the jobs of each task and queue.
        self.counting = JobCounting()
        self._paused: frozenset[str] = frozenset()

    def paused(self) -> frozenset[str]:
        return self._paused

    def set_paused(self, paused: frozenset[str]) -> None:
        """Notes the queues that are paused."""
        self._paused = paused

    def counts(self, _kept: StoredState, /) -> dict[str, int]:
        return {}

    def rates(self) -> dict[str, tuple[float, float]]:
        return {}  # a job counts as enqueued when it has ended

    def first_queued(self, _partition: Partition, _after: int, /) -> JobRow | None:
        return None

    def vitals(self) -> Vitals:
        return Vitals()

    def resume(self, kept: Iterable[CountsRow]) -> None:
        """Takes over the counts that an earlier broker has stored."""
        self.counting = JobCounting(kept)

    def count(self, effects: Effects, wall: float) -> None:
        """Counts what has become durable. A job counts as enqueued when it has ended: those that live are counted where
        they wait.

        Args:
            wall: seconds since 1970.
        """
        self.counting.happened(effects, wall)
        self.counting.enqueued([row for row, _, _ in effects.ended], wall)
        totals = self.totals
        totals.enqueued += len(effects.ended)
        totals.succeeded += len(effects.done)
        totals.retried += effects.retried
        totals.crashed += effects.crashed
        if len(effects.ended) > len(effects.done):
            states = [state for _, state, _ in effects.ended]
            totals.failed += states.count(StoredState.FAILED)
            totals.cancelled += states.count(StoredState.CANCELLED)
            totals.expired += states.count(StoredState.EXPIRED)
