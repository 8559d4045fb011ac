"""What a PostgreSQL fleet counts: how jobs went here, and what others have noted in `tallies`, which are jobs that came
in, and those that ended without a fleet. What waits in the database is told by clients, which ask that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import inf

from taskq.engines.contract import Vitals
from taskq.engines.counting import JobCounting, RecentRates
from taskq.engines.postgres import statements
from taskq.engines.postgres.link.link import Exchange
from taskq.model.effects import Effects
from taskq.model.info.counts import CountsRow
from taskq.model.job import JobRow
from taskq.model.partition import Partition
from taskq.model.stored import StoredState
from taskq.protocol.postgres.kinds import read_spec
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.submitting import TALLIED
from taskq.system.clock import Clock

#: Tallies that one statement takes.
_TALLIES_AT_ONCE = 5_000


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
        self.counting = JobCounting()
        self._rates: RecentRates | None = None
        self._paused: frozenset[str] = frozenset()
        self._tallies_since: float | None = None  # there are some

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
        return Vitals()

    def resume(self, kept: Iterable[CountsRow]) -> None:
        """Takes over the counts that an earlier broker has stored."""
        self.counting = JobCounting(kept)
        self._rates = RecentRates(self.counting.counts, self._clock.monotonic())

    # -- what others have noted

    @property
    def has_tallies(self) -> bool:
        """Whether there is something to be asked of the database."""
        return self._tallies_since is not None

    def look(self, has_tallies: bool, since: float) -> None:
        """Takes whether a look has found tallies.

        Args:
            since: where it began, in seconds since 1970.
        """
        if has_tallies:
            self._tallies_since = min(since, inf if self._tallies_since is None else self._tallies_since)

    def next_exchange(self) -> TakeTallies | None:
        """What is to be asked of the database now."""
        since, self._tallies_since = self._tallies_since, None
        return None if since is None else TakeTallies(since)

    def taken(self, exchange: TakeTallies) -> None:
        """Counts the jobs of tallies, which are gone from the database."""
        tallies, wall = exchange.value or [], self._clock.time()
        for what, fields, jobs, _ in tallies:
            name = TALLIED[what]
            self.counting.add(read_spec(bytes(fields)), name, jobs, wall)
            setattr(self.totals, name, getattr(self.totals, name) + jobs)
        if sum(rows for *_, rows in tallies) >= _TALLIES_AT_ONCE:
            self._tallies_since = exchange.since

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


class TakeTallies(Exchange[Rows]):
    """Takes tallies out of the database: the caller counts them. A broker that dies then loses them, as it does its own
    counts of the last second."""

    def __init__(self, since: float) -> None:
        """
        Args:
            since: where to begin, in seconds since 1970, by the database's clock.
        """
        super().__init__(self._plan)
        self.since = since

    def _plan(self) -> Plan[Rows]:
        [rows] = yield Step(Query(statements.TAKE_TALLIES, (self.since, _TALLIES_AT_ONCE)), commits=True)
        return rows
