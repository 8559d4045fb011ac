"""Counts what happens to jobs, for each task and queue, and stores the counts with commits that happen anyway."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from os import uname

from taskq.engines.contract import Events
from taskq.engines.embedded.journal.store import Store
from taskq.model.attempt import read_outcome, started_at_of
from taskq.model.effects import Effects, Success
from taskq.model.info.counts import Counts, CountsRow, FleetCounts
from taskq.model.job import JobRow, enqueued_at
from taskq.model.spec import Spec
from taskq.model.stored import Ended, StoredState
from taskq.system.clock import Clock

#: How often counts are stored, while there are commits. A broker that is killed loses the counts of this time.
STORE_EVERY_S = 1.0
#: For how many tasks and queues one commit stores counts: it takes a millisecond.
_MOST_PAIRS = 100
#: For how many successes of one commit the wait is measured, which takes a microsecond each; of more, a sample stands
#: for all.
_MOST_WAITS = 64
_TIMED_OUT = frozenset({"TimedOut", "CpuTimeout"})


class Counting:
    """Used by the broker's loop alone."""

    def __init__(self, store: Store, wall: float = 0.0) -> None:
        """Reads the counts that an earlier broker has stored.

        Args:
            wall: since when this one runs, in seconds since 1970.
        """
        self._store = store
        self.counts = FleetCounts(store.kept_counts())
        self._minute = 0
        self._spec: Spec | None = None  # the last one of which something was counted, in this minute,
        self._cell = Counts()  # and its counts: found once for all that comes in a row
        self._store_at = 0.0  # monotonic
        self._machine: tuple[str, float] | None = (uname().nodename, wall)  # still to be noted, and since when
        self._is_noted = False  # with the commit that is under way
        self._written: list[CountsRow] = []  # with the commit that is under way

    # -- what happens

    def enqueued(self, rows: Sequence[JobRow], wall: float) -> None:
        """Jobs were taken in."""
        self._turn_to(wall)
        spec, first = None, 0
        for place, row in enumerate(rows):
            if row.spec is not spec:
                if spec is not None:
                    self._of(spec).enqueued += place - first
                spec, first = row.spec, place
        if spec is not None:
            self._of(spec).enqueued += len(rows) - first

    def happened(self, effects: Effects, wall: float) -> None:
        """Effects are committed. They are counted before the rows of jobs that run again are changed."""
        self._turn_to(wall)
        if effects.done:
            self._succeeded(effects.done)
            self._waited(effects.ended)
        if len(effects.ended) > len(effects.done):
            for row, kept, outcome in effects.ended:
                if kept is not StoredState.SUCCEEDED:
                    self._ended(row, kept, outcome)
        for change in effects.rescheduled:
            if change.outcome:
                self._attempted(self._of(change.row.spec), change.row, change.outcome)
        for note in effects.notes:
            if note.event == "job.retrying":
                self._of(note.fields["row"].spec).retried += 1
            elif note.event == "job.crashed":
                self._of(note.fields["row"].spec).crashed += 1

    def _turn_to(self, wall: float) -> None:
        minute = int(wall // 60)
        if minute != self._minute:
            self._minute, self._spec = minute, None

    def _of(self, spec: Spec) -> Counts:
        if spec is not self._spec:
            self._spec, self._cell = spec, self.counts.of(spec.task, spec.queue, self._minute)
        return self._cell

    def _succeeded(self, done: Sequence[Success]) -> None:
        if len(done) == 1:
            [(row, _, duration_us)] = done
            counts = self._of(row.spec)
            counts.started += 1
            counts.succeeded += 1
            counts.run.add(duration_us)
            return
        spec, durations_us = None, list[int]()
        by_spec: dict[int, tuple[Spec, list[int]]] = {}
        for row, _, duration_us in done:
            if row.spec is not spec:
                spec = row.spec
                _, durations_us = by_spec.setdefault(id(spec), (spec, []))
            durations_us.append(duration_us)
        for own, durations_us in by_spec.values():
            counts = self._of(own)
            counts.started += len(durations_us)
            counts.succeeded += len(durations_us)
            counts.run.add_all(durations_us)

    def _waited(self, ended: Sequence[Ended]) -> None:
        step = -(-len(ended) // _MOST_WAITS)
        for row, kept, outcome in islice(ended, 0, None, step):
            started_at = started_at_of(outcome) if kept is StoredState.SUCCEEDED else None
            if started_at is not None:
                self._of(row.spec).wait.add(_waited_us(row, started_at), step)

    def _ended(self, row: JobRow, kept: StoredState, outcome: bytes) -> None:
        counts = self._of(row.spec)
        counts.failed += kept is StoredState.FAILED
        counts.cancelled += kept is StoredState.CANCELLED
        counts.expired += kept is StoredState.EXPIRED
        self._attempted(counts, row, outcome)

    def _attempted(self, counts: Counts, row: JobRow, outcome: bytes) -> None:
        """Counts an attempt that did not succeed; nothing, if the job ended before it started."""
        started_at = started_at_of(outcome)
        if started_at is None:
            return
        _, duration_s, _, error, *_ = read_outcome(outcome)
        if error is not None and error.type in _TIMED_OUT:
            counts.timed_out += 1
        counts.started += 1
        counts.wait.add(_waited_us(row, started_at))
        if duration_s is not None:
            counts.run.add(int(duration_s * 1e6))

    # -- storing

    def store(self, now: float) -> None:
        """Stores counts with the commit that is under way, if they are due; with the first one, the machine."""
        if self._machine is not None:
            self._store.note_machine(*self._machine)
            self._is_noted = True
        if now >= self._store_at and self.counts.is_changed:
            self._written = self._take_changed(_MOST_PAIRS)
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
        self.counts.put_back(written)

    def store_all(self) -> None:
        """Stores all counts, with the last commit."""
        self._store.keep_counts(self._take_changed(1 << 30))

    def _take_changed(self, most_pairs: int) -> list[CountsRow]:
        self._spec = None  # what is counted from now on has changed again
        return self.counts.take_changed(most_pairs)


def _waited_us(row: JobRow, started_at: float) -> int:
    return int((started_at - (enqueued_at(row.id) if row.ready_at is None else row.ready_at)) * 1e6)


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
