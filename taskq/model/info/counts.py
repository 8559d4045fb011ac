"""What happened to the jobs of each task and queue: counts and times, by minutes of the last hour and since the fleet
began.

Each event is counted once, in the minute in which it is reported. A minute that is over is packed, and an hour later
added to everything before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

import msgpack

from taskq.model.info.histogram import Histogram

#: How many minutes are kept one by one.
MINUTES: Final = 60
#: How many pairs of a task and a queue are counted apart. The others are counted together, with empty names.
MAX_PAIRS: Final = 1_000
_BEFORE = 0  # in place of a minute: everything before the last hour


@dataclass(slots=True)
class Counts:
    """What happened to jobs.

    Attributes:
        enqueued: jobs that were taken in.
        started: attempts that ran, counted when they ended.
        succeeded, failed, cancelled, expired: jobs that ended, by their state.
        retried: failed attempts that are followed by another.
        crashed: attempts whose process died.
        timed_out: attempts that ran for too long.
        failed_by_crash: crashed attempts that were the last: their jobs failed for good.
        wait: from when a job could have started to when it did, so without a delay that was asked for. Of many jobs
            that succeed at once, a sample stands for all.
        run: how long attempts ran.
    """

    enqueued: int = 0
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    retried: int = 0
    crashed: int = 0
    timed_out: int = 0
    failed_by_crash: int = 0
    wait: Histogram = field(default_factory=Histogram)
    run: Histogram = field(default_factory=Histogram)

    def merge(self, other: Counts) -> None:
        """Adds other counts to these."""
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wait.merge(other.wait)
        self.run.merge(other.run)

    def pack(self) -> bytes:
        """Returns the counts as they travel and are stored. New fields go to the end."""
        numbers = [getattr(self, name) for name in NUMBERS]
        packed: bytes = msgpack.packb([self.wait.to_wire(), self.run.to_wire(), *numbers])
        return packed

    @property
    def came_and_ended(self) -> tuple[int, int]:
        """How many jobs were taken in, and how many ended."""
        return self.enqueued, self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def again(self) -> int:
        """How many attempts were followed by another."""
        return self.retried + self.crashed - self.failed_by_crash

    @classmethod
    def unpack(cls, packed: bytes) -> Counts:
        """Reads what `pack` has written, even in another version of taskq."""
        wait, run, *numbers = msgpack.unpackb(packed)
        counts = cls(**dict(zip(NUMBERS, numbers, strict=False)))
        counts.wait, counts.run = Histogram.from_wire(wait), Histogram.from_wire(run)
        return counts

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts by name, for people and programs: times in seconds, as percentiles."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {**numbers, "wait_s": _times(self.wait), "run_s": _times(self.run)}


NUMBERS: Final = tuple(each.name for each in fields(Counts) if each.name not in ("wait", "run"))


def _times(histogram: Histogram) -> dict[str, float | None]:
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
    times_us = {"mean": histogram.mean_us, **{name: histogram.percentile_us(share) for name, share in shares.items()}}
    times_us["longest"] = histogram.longest_us if histogram.seen else None
    return {name: None if time_us is None else round(time_us / 1e6, 6) for name, time_us in times_us.items()}


class CountsRow(NamedTuple):
    """Counts as they are stored: of one task in one queue, in one minute since 1970, or before the last hour if the
    minute is 0. `packed` is None if there are none any more."""

    task: str
    queue: str
    minute: int
    packed: bytes | None


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """What happened to the jobs of one task in one queue.

    Attributes:
        task, queue: their names; both are empty for all that are not counted apart.
        total: the counts since the queue's directory was made.
        last_hour: the counts of the last 60 minutes.
        minutes: the counts of each of these minutes in which something happened, by minutes since 1970.
    """

    task: str
    queue: str
    total: Counts
    last_hour: Counts
    minutes: dict[int, Counts]

    @classmethod
    def of(cls, task: str, queue: str, packed: Iterable[tuple[int, bytes]]) -> TaskCounts:
        """Makes one from what `PairCounts.packed` has returned."""
        minutes = {minute: Counts.unpack(own) for minute, own in packed}
        total, last_hour = minutes.pop(_BEFORE, Counts()), Counts()
        for counts in minutes.values():
            last_hour.merge(counts)
        total.merge(last_hour)
        return cls(task, queue, total, last_hour, minutes)

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts by name, for programs, without the single minutes."""
        return {
            "task": self.task,
            "queue": self.queue,
            "total": self.total.as_dict(),
            "last_hour": self.last_hour.as_dict(),
        }


class PairCounts:
    """The counts of one task in one queue."""

    __slots__ = ("_closed", "_counted", "_dirty", "_minute", "_now", "before")

    def __init__(self) -> None:
        self.before = Counts()  # the last hour
        self._closed: dict[int, bytes] = {}  # the minutes of the last hour that are over
        self._minute = 0
        self._now = Counts()  # of this minute
        self._dirty: set[int] = set()  # the minutes that are not stored as they are
        self._counted = 0, 0  # what is counted besides `_now`: the jobs that came, and those that ended

    def at(self, minute: int) -> Counts:
        """Returns the counts of a minute since 1970, for the caller to change now. Minutes go forward, unless somebody
        sets the clock back."""
        if minute != self._minute:
            self._turn_to(minute)
        self._dirty.add(minute)
        return self._now

    def _turn_to(self, minute: int) -> None:
        if self._minute:
            self._closed[self._minute] = self._now.pack()
        for other in [other for other in self._closed if not minute - MINUTES < other <= minute]:
            self.before.merge(Counts.unpack(self._closed.pop(other)))
            self._dirty |= {other, _BEFORE}
        came, ended = self.came_and_ended
        self._minute = minute
        self._now = Counts.unpack(self._closed.pop(minute)) if minute in self._closed else Counts()
        known_came, known_ended = self._now.came_and_ended  # it goes on in a minute that was counted before
        self._counted = came - known_came, ended - known_ended

    def load(self, minute: int, packed: bytes) -> None:
        """Takes over what was stored."""
        if minute == _BEFORE:
            self.before = Counts.unpack(packed)
        else:
            self._closed[minute] = packed

    @property
    def came_and_ended(self) -> tuple[int, int]:
        """How many jobs were taken in, and how many ended, since this was made; what was loaded does not count."""
        (came, ended), (now_came, now_ended) = self._counted, self._now.came_and_ended
        return came + now_came, ended + now_ended

    def packed(self) -> list[tuple[int, bytes]]:
        """Returns all counts, by minutes; 0 stands for everything before the last hour."""
        now = [(self._minute, self._now.pack())] if self._minute else []
        return [(_BEFORE, self.before.pack()), *sorted(self._closed.items()), *now]

    def take_changed(self) -> list[tuple[int, bytes | None]]:
        """Returns the minutes that changed since the last call, as they are stored."""
        dirty, self._dirty = self._dirty, set()
        return [(minute, self._packed(minute)) for minute in sorted(dirty)]

    def _packed(self, minute: int) -> bytes | None:
        if minute == _BEFORE:
            return self.before.pack()
        return self._now.pack() if minute == self._minute else self._closed.get(minute)

    def put_back(self, minutes: Iterable[int]) -> None:
        """Notes that what `take_changed` returned was not stored."""
        self._dirty.update(minutes)


class FleetCounts:
    """The counts of all tasks and queues."""

    def __init__(self, rows: Iterable[CountsRow] = ()) -> None:
        """
        Args:
            rows: the counts as they were stored.
        """
        self._pairs: dict[tuple[str, str], PairCounts] = {}
        self._changed: dict[tuple[str, str], None] = {}
        for task, queue, minute, packed in rows:
            if packed is not None:
                self._pairs.setdefault((task, queue), PairCounts()).load(minute, packed)

    def of(self, task: str, queue: str, minute: int) -> Counts:
        """Returns the counts of a task in a queue in a minute since 1970, for the caller to change now."""
        key = task, queue
        pair = self._pairs.get(key)
        if pair is None:
            if len(self._pairs) >= MAX_PAIRS:
                key = "", ""
            pair = self._pairs.setdefault(key, PairCounts())
        self._changed[key] = None
        return pair.at(minute)

    def came_and_ended(self) -> dict[str, tuple[int, int]]:
        """How many jobs came and ended in each queue since these counts were made, by `PairCounts.came_and_ended`."""
        sums: dict[str, tuple[int, int]] = {}
        for (_, queue), pair in self._pairs.items():
            (came, ended), (all_came, all_ended) = pair.came_and_ended, sums.get(queue, (0, 0))
            sums[queue] = all_came + came, all_ended + ended
        return sums

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to store."""
        return bool(self._changed)

    def take_changed(self, most_pairs: int) -> list[CountsRow]:
        """Returns the rows to store of at most this many pairs: those that have waited longest."""
        rows: list[CountsRow] = []
        for task, queue in list(self._changed)[:most_pairs]:
            del self._changed[task, queue]
            changed = self._pairs[task, queue].take_changed()
            rows += [CountsRow(task, queue, minute, packed) for minute, packed in changed]
        return rows

    def put_back(self, rows: Iterable[CountsRow]) -> None:
        """Notes that rows which `take_changed` returned were not stored."""
        for task, queue, minute, _ in rows:
            self._pairs[task, queue].put_back([minute])
            self._changed[task, queue] = None

    def __iter__(self) -> Iterator[tuple[str, str, PairCounts]]:
        """Yields the pairs of a task and a queue, by name."""
        return ((task, queue, self._pairs[task, queue]) for task, queue in sorted(self._pairs))
