"""Stores the counts of what happens to jobs, with commits that happen anyway; the record of what is durable; and what
the engine counts, for the status of the fleet."""

from __future__ import annotations

from collections.abc import Iterable
from os import uname

from taskq.engines.contract import Events, Totals, Vitals
from taskq.engines.counting import JobCounting, RecentRates
from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.ports import Clients
from taskq.model.effects import Effects
from taskq.model.info.counts import CountsRow
from taskq.model.job import JobRow
from taskq.model.partition import Partition
from taskq.model.stored import StoredState
from taskq.system.clock import Clock
from taskq.system.turns import RecentTimes

#: How often counts are stored, while there are commits. A broker that is killed loses the counts of this time.
STORE_EVERY_S = 1.0
#: For how many tasks and queues one commit stores counts: it takes a millisecond.
_MOST_PAIRS = 100


class Counting(JobCounting):
    """Used by the broker's loop alone."""

    def __init__(self, store: Store, wall: float = 0.0) -> None:
        """Reads the counts that an earlier broker has stored.

        Args:
            wall: since when this one runs, in seconds since 1970.
        """
        super().__init__(store.kept_counts())
        self._store = store
        self._store_at = 0.0  # monotonic
        self._machine: tuple[str, float] | None = (uname().nodename, wall)  # still to be noted, and since when
        self._is_noted = False  # with the commit that is under way
        self._written: list[CountsRow] = []  # with the commit that is under way

    # -- storing

    def store(self, now: float) -> None:
        """Stores counts with the commit that is under way, if they are due; with the first one, the machine."""
        if self._machine is not None:
            self._store.note_machine(*self._machine)
            self._is_noted = True
        if now >= self._store_at and self.is_changed:
            self._written = self.take_changed(_MOST_PAIRS)
            self._store.keep_counts(self._written)

    def stored(self, now: float) -> None:
        """Notes that the commit is done."""
        if self._is_noted:  # the first commit may have had nothing to write
            self._machine = None
        if self._written:
            self._written, self._store_at = [], now + STORE_EVERY_S

    def not_stored(self) -> None:
        """Notes that the commit has failed."""
        self._is_noted = False
        written, self._written = self._written, []
        self.put_back(written)

    def store_all(self) -> None:
        """Stores all counts, with the last commit."""
        self._store.keep_counts(self.take_changed(1 << 30))


class Record:
    """The record of what has become durable: counts, and lines of the log, made when nobody waits for that. Used by the
    committer alone."""

    def __init__(self, counting: Counting, events: Events, clock: Clock) -> None:
        self._counting, self._events, self._clock = counting, events, clock
        self._told: list[Effects] = []  # durable, and not in the record yet

    def note(self, told: Iterable[Effects]) -> None:
        """Takes what is durable, and what clients know by now."""
        self._told += told

    def write(self, now: float) -> None:
        """Counts what was noted, and writes it to the log."""
        told, self._told = self._told, []
        for effects in told:
            wall = self._clock.time()
            self._counting.happened(effects, wall)
            for change in effects.rescheduled:
                change.row.ready_at = wall if change.due_at is None else change.due_at
            self._events.notes(effects.notes)
            self._events.successes(effects.done, now)


class EmbeddedFigures:
    """What the engine counts: see `taskq.engines.contract.Figures`. Before the engine has started, they
    are those of the journal alone."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        #: Noted by the committer.
        self.commits = RecentTimes()
        self._rates: RecentRates | None = None
        self._clients: Clients | None = None

    def started(self, counting: Counting, clients: Clients) -> None:
        """The engine serves these clients from now on."""
        self._rates, self._clients = RecentRates(counting.counts, self._clock.monotonic()), clients

    @property
    def totals(self) -> Totals:
        return self._store.totals

    def paused(self) -> frozenset[str]:
        return self._store.paused()

    def counts(self, kept: StoredState, /) -> dict[str, int]:
        return self._store.counts(kept)

    def rates(self) -> dict[str, tuple[float, float]]:
        return {} if self._rates is None else self._rates.rates(self._clock.monotonic())

    def sample(self, now: float) -> None:
        """Notes now and then what was counted, before more is."""
        if self._rates is not None:
            self._rates.sample(now)

    def first_queued(self, partition: Partition, after: int, /) -> JobRow | None:
        rows, _ = self._store.lease(partition, after, 1, 1)
        return rows[0] if rows else None

    def vitals(self) -> Vitals:
        now = self._clock.monotonic()
        mean_s = self.commits.mean(now)
        longest_s = None if mean_s is None else round(self.commits.longest(now), 6)
        connected, rejected = (None, None) if self._clients is None else self._clients.counted()
        return Vitals(None if mean_s is None else round(mean_s, 6), longest_s, self._store.size(), connected, rejected)
