"""The jobs that this fleet has leased and that have not ended, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from taskq.model.job import JobRow
from taskq.model.partition import partition_of

#: The kind and the name of a limit.
LimitKey = tuple[str, str]


class Held(NamedTuple):
    """A job that the fleet has.

    Attributes:
        row: the job.
        queue: the one from which it was leased.
        at: when that was (monotonic).
        limits: those that it has.
    """

    row: JobRow
    queue: str
    at: float
    limits: tuple[LimitKey, ...] = ()

    @property
    def is_exclusive(self) -> bool:
        """Whether it promises to be alone, or one of few."""
        return any(kind in ("order", "concurrency") for kind, _ in self.limits)


class HeldJobs:
    """Used by the engine alone."""

    def __init__(self) -> None:
        self._by_seq: dict[int, Held] = {}
        #: How many there are of each queue.
        self.of_queue: dict[str, int] = {}
        #: How many there are of each limit, and the limits of which there are fewer than before, or may be.
        self.of_limit: dict[LimitKey, int] = {}
        #: How much of each resource they take together.
        self.units: dict[str, int] = {}
        self.shrunk: set[LimitKey] = set()
        #: Those of which a job has gone since somebody looked here.
        self.freed: set[LimitKey] = set()
        #: Those that ran when an earlier fleet died: no consumer has them, they only wait to be charged.
        self.orphans: set[int] = set()

    def __contains__(self, seq: object) -> bool:
        return seq in self._by_seq

    def __len__(self) -> int:
        return len(self._by_seq)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._by_seq.values())

    def get(self, seq: int) -> JobRow | None:
        """A job, if the fleet has it."""
        held = self._by_seq.get(seq)
        return None if held is None else held.row

    def orders(self, seq: int) -> list[LimitKey]:
        """The orders in which a job is; none if the fleet does not have it."""
        held = self._by_seq.get(seq)
        return [] if held is None else keys_of_orders(held.limits)

    def add(self, rows: Iterable[JobRow], now: float) -> None:
        """Adds jobs that were leased."""
        by_seq, of_queue = self._by_seq, self.of_queue
        for row in rows:
            queue = row.spec.queue
            limits: tuple[LimitKey, ...] = ()
            if row.spec.is_limited or (row.constraints is not None and row.constraints.is_keyed):
                limits = tuple([limit[:2] for limit in partition_of(row.spec, row.constraints).limits])
                for key in limits:
                    self.of_limit[key] = self.of_limit.get(key, 0) + 1
                self._count_units(row, 1)
            by_seq[row.seq] = Held(row, queue, now, limits)
            of_queue[queue] = of_queue.get(queue, 0) + 1

    def remove(self, seq: int) -> str | None:
        """Removes a job. Returns the queue from which it was leased; None if the fleet does not have it."""
        held = self._by_seq.pop(seq, None)
        self.orphans.discard(seq)
        if held is None:
            return None
        for key in held.limits:
            self.shrunk.add(key)
            self.freed.add(key)
            if self.of_limit[key] > 1:
                self.of_limit[key] -= 1
            else:
                del self.of_limit[key]
        if held.limits:
            self._count_units(held.row, -1)
        queue = held.queue
        if self.of_queue[queue] > 1:
            self.of_queue[queue] -= 1
        else:
            del self.of_queue[queue]
        return queue

    def _count_units(self, row: JobRow, sign: int) -> None:
        for name, amount in row.spec.resources:
            self.units[name] = self.units.get(name, 0) + sign * amount

    def older_than(self, at: float) -> list[Held]:
        """Those that were leased before a moment."""
        older: list[Held] = []
        for held in self._by_seq.values():
            if held.at > at:
                break
            older.append(held)
        return older


def keys_of_orders(limits: Iterable[LimitKey]) -> list[LimitKey]:
    """Those of some limits that are orders."""
    return [key for key in limits if key[0] == "order"]
