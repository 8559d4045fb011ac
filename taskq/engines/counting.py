"""Counts what happens to jobs, for each task and queue, whatever the engine is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from taskq.model.attempt import read_outcome, started_at_of
from taskq.model.effects import Effects, Success
from taskq.model.info.counts import Counts, CountsRow, FleetCounts
from taskq.model.job import JobRow, enqueued_at
from taskq.model.spec import Spec
from taskq.model.stored import Ended, StoredState

#: For how many successes of one commit the wait is measured, which takes a microsecond each; of more, a sample stands
#: for all.
_MOST_WAITS = 64
#: Rates are told of a time that is at least this long, in seconds; samples are taken half as often.
_RATES_OF_S = 20.0
_TIMED_OUT = frozenset({"TimedOut", "CpuTimeout"})


class JobCounting:
    """Used by the broker's loop alone."""

    def __init__(self, kept: Iterable[CountsRow] = (), *, counts_ends: bool = True) -> None:
        """
        Args:
            kept: the counts that an earlier broker has stored.
            counts_ends: whether `happened` counts how jobs ended. An engine that notes this with their end adds it
                later.
        """
        self.counts = FleetCounts(kept)
        self._counts_ends = counts_ends
        self._minute = 0
        self._spec: Spec | None = None  # the last one of which something was counted, in this minute,
        self._cell = Counts()  # and its counts: found once for all that comes in a row

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to store."""
        return self.counts.is_changed

    def take_changed(self, most_pairs: int) -> list[CountsRow]:
        """Returns the rows to store, of at most this many pairs of a task and a queue."""
        self._spec = None  # what is counted from now on has changed again
        return self.counts.take_changed(most_pairs)

    def put_back(self, rows: Iterable[CountsRow]) -> None:
        """Notes that rows which `take_changed` returned were not stored."""
        self.counts.put_back(rows)

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

    def add(self, spec: Spec, name: str, jobs: int, wall: float) -> None:
        """Adds jobs to the count of a name: what others have seen of them."""
        self._turn_to(wall)
        counts = self._of(spec)
        setattr(counts, name, getattr(counts, name) + jobs)

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
                counts = self._of(note.fields["row"].spec)
                counts.crashed += 1
                counts.failed_by_crash += not note.fields["runs_again"]

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
            counts.succeeded += self._counts_ends
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
            if self._counts_ends:
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
        if self._counts_ends:
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


def _waited_us(row: JobRow, started_at: float) -> int:
    return int((started_at - (enqueued_at(row.id) if row.ready_at is None else row.ready_at)) * 1e6)


class RecentRates:
    """How many jobs came and ended a second lately."""

    def __init__(self, counts: FleetCounts, now: float) -> None:
        """
        Args:
            now: monotonic seconds.
        """
        self._counts = counts
        self._samples = deque([(now, counts.came_and_ended())], maxlen=4)

    def sample(self, now: float) -> None:
        """Notes what was counted, now and then. An idle broker need not call it: nothing changes."""
        if now >= self._samples[-1][0] + _RATES_OF_S / 2:
            self._samples.append((now, self._counts.came_and_ended()))

    def rates(self, now: float) -> dict[str, tuple[float, float]]:
        """Returns how many jobs came and how many ended a second, by queue, if any did."""
        at, before = next((each for each in reversed(self._samples) if now - each[0] >= _RATES_OF_S), self._samples[0])
        seconds = max(now - at, 1.0)
        found: dict[str, tuple[float, float]] = {}
        for queue, (came, ended) in self._counts.came_and_ended().items():
            came_before, ended_before = before.get(queue, (0, 0))
            if came > came_before or ended > ended_before:
                found[queue] = (came - came_before) / seconds, (ended - ended_before) / seconds
        self.sample(now)
        return found
