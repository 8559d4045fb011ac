"""Stores the counts of what happens to jobs, with commits that happen anyway; and the record of what is durable."""

from __future__ import annotations

from collections.abc import Iterable
from os import uname

from taskq.engines.contract import Events
from taskq.engines.counting import JobCounting
from taskq.engines.embedded.journal.store import Store
from taskq.model.effects import Effects
from taskq.model.info.counts import CountsRow
from taskq.system.clock import Clock

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
