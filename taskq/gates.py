"""Limits: the gates that a job passes before it runs, and their states. Pure.

    concurrency  so many of a task, or of one of its keys, at once in the fleet
    rate         so many starts in a time, never more in any such span
    order        one at a time, and the next only when the one before has ended for good
    resource     a share of what the fleet has (gpu=1)

Jobs of one queue with the same priority and the same gates wait together, in a band (`taskq.bands`): so a closed gate
holds up whole bands, and no other job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from taskq.model import JobRow, Spec, Terms

#: More than are ever sent at once.
UNLIMITED: Final = 1 << 30
#: A rate's span is counted in so many slots, each forgotten when the whole of it is a span ago. So what is kept of a
#: rate is small whatever its count, and a start is held back by a hundredth of the span at the most.
_SLOTS: Final = 100


class Gate(NamedTuple):
    """A limit, as jobs name it. `kind` and `name` tell which one; the amount is that of the job that asks."""

    kind: str
    name: str
    amount: int
    period_s: float = 0.0


class Band(NamedTuple):
    """What jobs that wait together have in common."""

    queue: str
    priority: int = 0
    gates: tuple[Gate, ...] = ()

    @property
    def is_keyed(self) -> bool:
        """Whether it is that of a key: neither tasks nor resources have a space in their names."""
        return any(" " in gate.name for gate in self.gates)


def band_of(spec: Spec, terms: Terms | None) -> Band:
    """The band of a job."""
    if terms is None or not terms.is_keyed:
        return _band(spec, None, None)
    return _band(spec, terms.limit_key, terms.order_key)


@lru_cache(maxsize=4_096)
def _band(spec: Spec, limit_key: str | None, order_key: str | None) -> Band:
    subject = spec.task if limit_key is None else f"{spec.task} {limit_key}"
    gates = []
    if order_key is not None:
        gates.append(Gate("order", f"{spec.task} {order_key}", 1))
    if spec.concurrency is not None:
        gates.append(Gate("concurrency", subject, spec.concurrency))
    if spec.rate is not None:
        gates.append(Gate("rate", subject, *spec.rate))
    gates += [Gate("resource", name, amount) for name, amount in spec.resources]
    return Band(spec.queue, spec.priority, tuple(gates))


class Leaving(Enum):
    """How a job leaves its gates."""

    ENDED = 1  #: it will not run again
    AGAIN = 2  #: it is to run again, later
    UNSTARTED = 3  #: it comes back as if it had not been sent


class GateState(Protocol):
    """What is known of one gate. Consumers are known by their keys; times are monotonic seconds."""

    def room(self, gate: Gate, key: int, head: JobRow, now: float) -> int:
        """How many jobs of a band, `head` the first of them, may be sent to a consumer now."""

    def enter(self, gate: Gate, key: int, rows: Sequence[JobRow], now: float) -> None:
        """Jobs are sent to a consumer."""

    def leave(self, gate: Gate, key: int, row: JobRow, leaving: Leaving) -> None:
        """A job that was sent is with its consumer no more."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing need be known of it: it may be made anew when it is needed."""


class Concurrency:
    """Counts what consumers can run at once of the jobs that they were sent: a consumer with one seat runs one, however
    many wait at it. So small jobs travel in batches also under a limit."""

    def __init__(self, seats: int) -> None:
        self._seats = seats
        self._sent: dict[int, int] = {}
        self._used = 0

    def room(self, gate: Gate, key: int, head: JobRow, now: float) -> int:
        free = gate.amount - self._used
        unused_seats = self._seats - self._sent.get(key, 0)
        return UNLIMITED if unused_seats <= 0 or free >= unused_seats else max(0, free)

    def enter(self, gate: Gate, key: int, rows: Sequence[JobRow], now: float) -> None:
        self._count(key, len(rows))

    def leave(self, gate: Gate, key: int, row: JobRow, leaving: Leaving) -> None:
        self._count(key, -1)

    def _count(self, key: int, more: int) -> None:
        before = self._sent.get(key, 0)
        after = self._sent[key] = before + more
        self._used += min(after, self._seats) - min(before, self._seats)
        if after == 0:
            del self._sent[key]

    @property
    def is_idle(self) -> bool:
        return not self._sent


#: When each slot of a rate began, and how many starts it had; ascending. Monotonic seconds in a running fleet, where
#: somebody may set the clock; seconds since 1970 in a store.
Starts = Sequence[tuple[float, int]]


class Rate:
    """Counts the starts of the last span.

    What it counts is what is sent. So that this is a start, a job with a rate goes to a free seat only (see
    `taskq.bands`). Two starts it cannot see: that of a job whose process was stopped comes later, and what was sent in
    the last second before the broker was killed may not be recorded yet.
    """

    def __init__(self, slots: Starts = ()) -> None:
        self._slots = deque(slots)  # (when it begins, starts), ascending
        self._starts = sum(starts for _, starts in slots)
        self._slot_of: dict[int, float] = {}  # by seq, of the jobs that consumers have

    def room(self, gate: Gate, key: int, head: JobRow, now: float) -> int:
        self.forget(gate, now)
        return max(0, gate.amount - self._starts)

    def forget(self, gate: Gate, now: float) -> None:
        """What began a span ago counts no more."""
        while self._slots and self._forgotten_at(gate) <= now:
            self._starts -= self._slots.popleft()[1]

    def _forgotten_at(self, gate: Gate) -> float:
        return self._slots[0][0] + gate.period_s * (1 + 1 / _SLOTS)

    def opens_at(self, gate: Gate) -> float:
        """When there may be room again."""
        return self._forgotten_at(gate) if self._slots else 0.0

    def enter(self, gate: Gate, key: int, rows: Sequence[JobRow], now: float) -> None:
        slot_s = gate.period_s / _SLOTS
        begins = now // slot_s * slot_s
        if self._slots and self._slots[-1][0] >= begins:  # a restored one may be younger
            begins, starts = self._slots.pop()
            self._slots.append((begins, starts + len(rows)))
        else:
            self._slots.append((begins, len(rows)))
        self._starts += len(rows)
        self._slot_of.update((row.seq, begins) for row in rows)

    def leave(self, gate: Gate, key: int, row: JobRow, leaving: Leaving) -> None:
        sent_at = self._slot_of.pop(row.seq, None)
        if leaving is not Leaving.UNSTARTED:
            return
        for index in range(len(self._slots) - 1, -1, -1):  # none other than its own: that may be forgotten already
            begins, starts = self._slots[index]
            if begins == sent_at:
                self._slots[index] = begins, starts - 1
                self._starts -= 1
                return

    @property
    def slots(self) -> Starts:
        """What is to be kept of it, so that a new broker does not count anew."""
        return tuple(self._slots)

    @property
    def is_idle(self) -> bool:
        return not self._slots


class Order:
    """Remembers who is with a consumer, and who was and is to run again: none that is younger goes before it, though it
    may wait in another band, that of the queue that it crashed into."""

    def __init__(self) -> None:
        self._sent: int | None = None
        self._again: set[int] = set()

    def room(self, gate: Gate, key: int, head: JobRow, now: float) -> int:
        return 1 if self._sent is None and (not self._again or head.seq <= min(self._again)) else 0

    def enter(self, gate: Gate, key: int, rows: Sequence[JobRow], now: float) -> None:
        [row] = rows
        self._sent = row.seq
        self._again.discard(row.seq)

    def leave(self, gate: Gate, key: int, row: JobRow, leaving: Leaving) -> None:
        if self._sent == row.seq:
            self._sent = None
        if leaving is Leaving.AGAIN or (leaving is Leaving.UNSTARTED and row.attempts):
            self._again.add(row.seq)
        else:
            self._again.discard(row.seq)

    @property
    def is_idle(self) -> bool:
        return self._sent is None and not self._again


class Resource:
    """Counts what is taken of one of the fleet's capacities."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0

    def room(self, gate: Gate, key: int, head: JobRow, now: float) -> int:
        return max(0, self._capacity - self._used) // gate.amount

    def enter(self, gate: Gate, key: int, rows: Sequence[JobRow], now: float) -> None:
        self._used += gate.amount * len(rows)

    def leave(self, gate: Gate, key: int, row: JobRow, leaving: Leaving) -> None:
        self._used -= gate.amount

    @property
    def is_idle(self) -> bool:
        return self._used == 0


def new_state(gate: Gate, seats: int, capacities: Mapping[str, int]) -> GateState:
    """The state of a gate that nobody has passed yet."""
    match gate.kind:
        case "concurrency":
            return Concurrency(seats)
        case "rate":
            return Rate()
        case "order":
            return Order()
        case "resource":
            return Resource(capacities.get(gate.name, 0))
    raise ValueError(f"no such gate: {gate.kind}")
