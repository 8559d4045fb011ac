"""The limits that a job passes before it runs, and their states. Pure.

    concurrency  at most n jobs of a task, or of one of its keys, at once in the fleet
    rate         at most n starts in any span of a length
    order        one at a time, and the next one only when the previous one has ended for good
    resource     a share of what the fleet has (gpu=1)

Jobs of one queue with the same priority and the same limits wait together, in a partition
(`taskq.broker.core.ready`). So a closed limit holds up whole partitions, and no other job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, Protocol

from taskq.model.job import JobRow
from taskq.model.partition import Limit, Starts

#: A state as plain values; which, only the limiter of its kind knows.
Packed = tuple[Any, ...]
#: More than are ever sent at once.
UNLIMITED: Final = 1 << 30


#: A rate's span is counted in this many slots, each of which is forgotten when all of it is a span ago. So a rate
#: takes little memory, whatever its count, and a start is held back by at most a hundredth of the span. If it allows no
#: more starts than that, each start may have a slot of its own: then a slot is no longer than a second.
_SLOTS: Final = 100
_SHORT_SLOT_S: Final = 1.0
#: How long a start may take that was counted before, for several fleets: a part of the rate's time.
_STARTS_WITHIN: Final = 0.1
_STARTS_WITHIN_S: Final = (0.02, 0.3)


class Release(Enum):
    """How a job leaves its limits."""

    ENDED = 1  #: it will not run again
    AGAIN = 2  #: it will run again, later
    UNSTARTED = 3  #: it comes back as if it had not been sent


class Limiter(Protocol):
    """The state of one limit. Consumers are identified by their keys; times are monotonic seconds.

    Attributes:
        granted: how much of the limit this fleet may use now, if it shares the limit with others; None: all of it. It
            may change at any time. If it shrinks, what was sent already is not stopped, and nothing more is sent.
    """

    granted: int | None

    def room(self, limit: Limit, key: int, head: JobRow, now: float) -> int:
        """How many jobs of a partition, `head` the first of them, may be sent to a consumer now."""

    def enter(self, limit: Limit, key: int, rows: Sequence[JobRow], now: float) -> None:
        """Notes that jobs are sent to a consumer."""

    def leave(self, limit: Limit, key: int, rows: Sequence[JobRow], leaving: Release) -> None:
        """Notes that jobs that were sent have left their consumer."""

    def usage(self, limit: Limit) -> tuple[int, int]:
        """How much of it is taken, and how much of it there is, for whoever asks why a job waits."""

    @property
    def is_idle(self) -> bool:
        """Whether its state does not matter: it may be made anew when it is needed."""

    def pack(self) -> Packed:
        """Returns the state, without what is granted, as plain values: `unpack` makes the same state of them."""


class Concurrency:
    """Counts how many of the jobs that they were sent consumers can run at once: a consumer with one slot runs one,
    however many wait there. So small jobs travel in batches under a limit, too."""

    def __init__(self, slots: int) -> None:
        self.granted: int | None = None
        self._slots = slots
        self._sent: dict[int, int] = {}
        self._used = 0

    def room(self, limit: Limit, key: int, head: JobRow, now: float) -> int:
        free = _amount(limit, self.granted) - self._used
        if free < 0:
            return 0  # also behind a job that runs: it would start while others are too many still
        unused_slots = self._slots - self._sent.get(key, 0)
        return UNLIMITED if unused_slots <= 0 or free >= unused_slots else max(0, free)

    def enter(self, limit: Limit, key: int, rows: Sequence[JobRow], now: float) -> None:
        self._count(key, len(rows))

    def leave(self, limit: Limit, key: int, rows: Sequence[JobRow], leaving: Release) -> None:
        self._count(key, -len(rows))

    def _count(self, key: int, more: int) -> None:
        before = self._sent.get(key, 0)
        after = self._sent[key] = before + more
        self._used += min(after, self._slots) - min(before, self._slots)
        if after == 0:
            del self._sent[key]

    def usage(self, limit: Limit) -> tuple[int, int]:
        return self._used, _amount(limit, self.granted)

    @property
    def is_idle(self) -> bool:
        return not self._sent

    def pack(self) -> Packed:
        return self._slots, tuple(self._sent.items())

    @classmethod
    def unpack(cls, slots: int, sent: Sequence[tuple[int, int]]) -> Concurrency:
        """Makes the state that `pack` returned."""
        state = cls(slots)
        for key, count in sent:
            state._count(key, count)
        return state


class Rate:
    """Counts the starts of the last span.

    It counts jobs that are sent. So that this is also their start, a job with a rate goes to a free slot only (see
    `taskq.broker.core.ready`). It cannot see two kinds of starts: a job whose process was suspended starts later, and
    jobs that were sent in the last second before the broker was killed may not be recorded yet.

    Attributes:
        allowed: how many jobs may start now, if starts are counted elsewhere, for several fleets; None: they are
            counted here.
    """

    def __init__(self, slots: Starts = (), slot_of: Sequence[tuple[int, float]] = ()) -> None:
        self.granted: int | None = None
        self.allowed: int | None = None
        self._slots = deque(slots)  # (when it begins, starts), ascending
        self._starts = sum(starts for _, starts in slots)
        self._slot_of: dict[int, float] = dict(slot_of)  # by seq, of the jobs that consumers have

    def room(self, limit: Limit, key: int, head: JobRow, now: float) -> int:
        return self.free(limit, now) if self.allowed is None else self.allowed

    def free(self, limit: Limit, now: float) -> int:
        """How many more starts may be counted now."""
        self.forget(limit, now)
        return max(0, _amount(limit, self.granted) - self._starts)

    def forget(self, limit: Limit, now: float) -> None:
        """Forgets the starts that are a span ago."""
        while self._slots and self._forgotten_at(limit) <= now:
            self._starts -= self._slots.popleft()[1]

    def _forgotten_at(self, limit: Limit) -> float:
        return self._slots[0][0] + limit.period_s * (1 + 1 / _SLOTS)

    def opens_at(self, limit: Limit) -> float:
        """When there may be room again."""
        return self._forgotten_at(limit) if self._slots else 0.0

    def enter(self, limit: Limit, key: int, rows: Sequence[JobRow], now: float) -> None:
        if self.allowed is not None:
            self.allowed -= len(rows)
            return
        begins = self.count(limit, len(rows), now)
        self._slot_of.update((row.seq, begins) for row in rows)

    def count(self, limit: Limit, starts: int, now: float) -> float:
        """Counts starts. Returns when the slot began in which they are counted: a slot that is shorter than others
        begins later, so that it ends when it should."""
        slot_s = limit.period_s / _SLOTS
        own_s = slot_s if limit.amount > _SLOTS else min(slot_s, _SHORT_SLOT_S)
        begins = (now // own_s + 1) * own_s - slot_s
        if self._slots and self._slots[-1][0] >= begins:  # a restored one may be younger
            begins, before = self._slots.pop()
            self._slots.append((begins, before + starts))
        else:
            self._slots.append((begins, starts))
        self._starts += starts
        return begins

    def leave(self, limit: Limit, key: int, rows: Sequence[JobRow], leaving: Release) -> None:
        for row in rows:
            sent_at = self._slot_of.pop(row.seq, None)
            if leaving is Release.UNSTARTED and sent_at is not None:
                self.take_out(sent_at)

    def take_out(self, counted_in: float, starts: int = 1) -> None:
        """Counts starts no more that were not made.

        Args:
            counted_in: when the slot began in which they were counted.
        """
        for index in range(len(self._slots) - 1, -1, -1):  # none other than its own: that may be forgotten already
            begins, counted = self._slots[index]
            if begins == counted_in:
                self._slots[index] = begins, counted - starts
                self._starts -= starts
                return

    def usage(self, limit: Limit) -> tuple[int, int]:
        return self._starts, _amount(limit, self.granted)

    @property
    def is_idle(self) -> bool:
        return not self._slots

    def pack(self) -> Packed:
        return tuple(self._slots), tuple(self._slot_of.items())


class Order:
    """Remembers which job is with a consumer, and which ones were and will run again: no younger job goes before those,
    even if they wait in another partition, that of their `crash_queue`."""

    def __init__(self, sent: int | None = None, again: Sequence[int] = ()) -> None:
        self.granted: int | None = None
        self._sent = sent
        self._again = set(again)

    def room(self, limit: Limit, key: int, head: JobRow, now: float) -> int:
        return int(self.granted != 0 and self.lets_pass(head.seq))

    def lets_pass(self, seq: int) -> bool:
        """Whether it is the turn of a job."""
        return self._sent is None and (not self._again or seq <= min(self._again))

    def enter(self, limit: Limit, key: int, rows: Sequence[JobRow], now: float) -> None:
        [row] = rows
        self._sent = row.seq
        self._again.discard(row.seq)

    def leave(self, limit: Limit, key: int, rows: Sequence[JobRow], leaving: Release) -> None:
        for row in rows:
            if self._sent == row.seq:
                self._sent = None
            if leaving is Release.AGAIN or (leaving is Release.UNSTARTED and row.attempts):
                self._again.add(row.seq)
            else:
                self._again.discard(row.seq)

    @property
    def first(self) -> int | None:
        """The sequence number of the job that the others of its key wait for."""
        return self._sent if self._sent is not None else min(self._again, default=None)

    def usage(self, limit: Limit) -> tuple[int, int]:
        return int(not self.is_idle), _amount(limit, self.granted)

    @property
    def is_idle(self) -> bool:
        return self._sent is None and not self._again

    def pack(self) -> Packed:
        return self._sent, tuple(sorted(self._again))


class Resource:
    """Counts how much of one of the fleet's capacities is taken."""

    def __init__(self, capacity: int, used: int = 0) -> None:
        self.granted: int | None = None
        self._capacity = capacity
        self._used = used

    def room(self, limit: Limit, key: int, head: JobRow, now: float) -> int:
        return max(0, self._granted_capacity - self._used) // limit.amount

    @property
    def _granted_capacity(self) -> int:
        return self._capacity if self.granted is None else min(self._capacity, self.granted)

    def usage(self, limit: Limit) -> tuple[int, int]:
        return self._used, self._granted_capacity

    def enter(self, limit: Limit, key: int, rows: Sequence[JobRow], now: float) -> None:
        self._used += limit.amount * len(rows)

    def leave(self, limit: Limit, key: int, rows: Sequence[JobRow], leaving: Release) -> None:
        self._used -= limit.amount * len(rows)

    @property
    def is_idle(self) -> bool:
        return self._used == 0

    def pack(self) -> Packed:
        return self._capacity, self._used


def starts_within_s(limit: Limit) -> float:
    """In how many seconds a start is to be made that was counted for several fleets."""
    shortest, longest = _STARTS_WITHIN_S
    return min(longest, max(shortest, limit.period_s * _STARTS_WITHIN))


def with_slack(limit: Limit) -> Limit:
    """A rate whose starts count for longer, by as much as they may be late: so no span has too many of them."""
    return limit._replace(period_s=limit.period_s + starts_within_s(limit))


def _amount(limit: Limit, granted: int | None) -> int:
    """Returns how much of a limit may be used now."""
    return limit.amount if granted is None else min(limit.amount, granted)


def new_state(limit: Limit, slots: int, capacities: Mapping[str, int]) -> Limiter:
    """Returns the state of a limit that no job has passed yet."""
    match limit.kind:
        case "concurrency":
            return Concurrency(slots)
        case "rate":
            return Rate()
        case "order":
            return Order()
        case "resource":
            return Resource(capacities.get(limit.name, 0))
    raise ValueError(f"unknown kind of limit: {limit.kind}")


def unpack(kind: str, packed: Packed) -> Limiter:
    """Makes the state of a limit of a kind that `Limiter.pack` returned."""
    match kind:
        case "concurrency":
            return Concurrency.unpack(*packed)
        case "rate":
            return Rate(*packed)
        case "order":
            return Order(*packed)
        case "resource":
            return Resource(*packed)
    raise ValueError(f"unknown kind of limit: {kind}")
