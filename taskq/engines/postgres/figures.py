"""What a PostgreSQL fleet counts: how attempts went here, and what was noted in `tallies`, by the statements with which
jobs came in and ended. What waits in the database is told by clients, which ask that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import inf
from typing import Final
from uuid import UUID

from taskq.engines.contract import Vitals
from taskq.engines.counting import JobCounting, RecentRates
from taskq.engines.postgres.exchanges import KeepCounts, WasKept
from taskq.engines.postgres.link.link import Exchange
from taskq.model.effects import Effects
from taskq.model.info.counts import CountsRow
from taskq.model.job import JobRow
from taskq.model.partition import Partition
from taskq.model.stored import StoredState
from taskq.protocol.postgres.submitting import TALLIED, TALLIED_BY_FLEETS
from taskq.system.clock import Clock
from taskq.system.turns import RecentTimes

#: How often counts are stored.
_KEEP_EVERY_S: Final = 1.0


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

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.totals = Totals()
        #: What has happened to the jobs of each task and queue.
        self.counting = JobCounting(counts_ends=False)
        #: From the statements to the confirmed commit; noted by the engine.
        self.rounds = RecentTimes()
        self._rates: RecentRates | None = None
        self._paused: frozenset[str] = frozenset()
        self._tallies_since: float | None = None  # there are some
        self._keep_at = -inf
        self._keeping: KeepCounts | None = None  # under way
        self._doubt: KeepCounts | None = None  # its commit was not answered

    def paused(self) -> frozenset[str]:
        return self._paused

    def set_paused(self, paused: frozenset[str]) -> None:
        """Notes the queues that are paused."""
        self._paused = paused

    def counts(self, _kept: StoredState, /) -> dict[str, int]:
        return {}

    def rates(self) -> dict[str, tuple[float, float]]:
        return {} if self._rates is None else self._rates.rates(self._clock.monotonic())

    def first_queued(self, _partition: Partition, _after: int, /) -> JobRow | None:
        return None

    def vitals(self) -> Vitals:
        now = self._clock.monotonic()
        mean_s = self.rounds.mean(now)
        if mean_s is None:
            return Vitals()
        return Vitals(commit_mean_s=round(mean_s, 6), commit_longest_s=round(self.rounds.longest(now), 6))

    def resume(self, machine: UUID, kept: Iterable[CountsRow]) -> None:
        """Takes over the counts that an earlier broker of this machine has stored."""
        self._machine = machine
        self.counting = JobCounting(kept, counts_ends=False)
        self._rates = RecentRates(self.counting.counts, self._clock.monotonic())

    # -- what is stored, and what was noted in tallies

    def look(self, has_tallies: bool, since: float) -> None:
        """Takes whether a look has found tallies.

        Args:
            since: where it began, in seconds since 1970.
        """
        if has_tallies:
            self._tallies_since = min(since, inf if self._tallies_since is None else self._tallies_since)
            self._keep_at = -inf

    @property
    def is_keeping(self) -> bool:
        """Whether counts are being stored."""
        return self._keeping is not None

    @property
    def keep_at(self) -> float:
        """When there is something to be asked of the database (monotonic)."""
        has_some = self.counting.is_changed or self._tallies_since is not None or self._doubt is not None
        return self._keep_at if has_some and self._keeping is None else inf

    def next_exchange(self, fleet: int, now: float) -> Exchange[bool] | None:
        """What is to be asked now; None: nothing.

        Args:
            fleet: its number.
        """
        if now < self.keep_at or self.keep_at == inf:
            return None
        self._keep_at = now + _KEEP_EVERY_S
        if self._doubt is not None:
            return self._doubt.was_kept()
        since, self._tallies_since = self._tallies_since, None
        self._keeping = KeepCounts(fleet, self._machine, self.counting, self._clock, since)
        return self._keeping

    def finish(self, exchange: KeepCounts | WasKept, now: float) -> None:
        """Takes how an exchange went. If nobody knows whether its commit has happened, it is asked before anything else
        is stored."""
        self._keeping = None
        if isinstance(exchange, WasKept):
            if self._doubt is not None and exchange.value is not None:
                keeping, self._doubt = self._doubt, None
                self._finish(keeping, exchange.value, now)
        elif exchange.error is not None and exchange.error.is_unknown and exchange.taken:
            self._doubt, self._keep_at = exchange, now
        else:
            self._finish(exchange, bool(exchange.value), now)

    def _finish(self, exchange: KeepCounts, is_kept: bool, now: float) -> None:
        if not is_kept:
            exchange.undo()
        for _, what, jobs in exchange.taken:
            if what not in TALLIED_BY_FLEETS:
                name = TALLIED[what]
                setattr(self.totals, name, getattr(self.totals, name) + jobs)
        if exchange.since is not None and not (is_kept and exchange.is_through):
            self.look(True, exchange.since)
            self._keep_at = now if is_kept else now + _KEEP_EVERY_S

    # -- how jobs went here

    def count(self, effects: Effects, wall: float) -> None:
        """Counts what has become durable.

        Args:
            wall: seconds since 1970.
        """
        self.counting.happened(effects, wall)
        totals = self.totals
        totals.succeeded += len(effects.done)
        totals.retried += effects.retried
        totals.crashed += effects.crashed
        if len(effects.ended) > len(effects.done):
            states = [state for _, state, _ in effects.ended]
            totals.failed += states.count(StoredState.FAILED)
            totals.cancelled += states.count(StoredState.CANCELLED)
            totals.expired += states.count(StoredState.EXPIRED)
