"""Which partitions a fleet asks for jobs, when, and for how many. Pure.

A fleet leases what its consumers can begin at once, and what they will do in the next moment by the rate at which they
ended jobs in the last one. So small jobs are leased by the hundred, and nothing waits here behind long jobs while
another machine is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import ceil, exp, inf
from typing import Final, NamedTuple

from taskq.engines.postgres.limits.share import FleetLimits, Probe, Wanted
from taskq.model.partition import Partition
from taskq.protocol.postgres.kinds import read_limits
from taskq.protocol.postgres.plans import Rows

#: Jobs worth this much run time are leased in advance.
AHEAD_S: Final = 0.2
#: The rate of the last moment: older ends count less and less.
_MOMENT_S: Final = 0.1
_MEASURED_EVERY_S: Final = 0.01
#: The most jobs, and about the most bytes of payloads, of one lease.
MOST_JOBS: Final = 2_000
_MOST_BYTES: Final = 16 * 1024 * 1024
#: How soon to look for jobs of which nobody has told, after some were found: doubling while there are none.
_LOOK_FIRST_S: Final = 0.005
LOOK_LONGEST_S: Final = 1.0
#: A look begins behind the jobs that were leased last, where entries of the dead need not be passed; this often it
#: begins at the very first, for jobs that have come back or were committed late.
_WHOLE_EVERY_S: Final = 1.0
#: A partition may be committed after one with a number that is higher by this.
_NUMBERS_LATE: Final = 1_000


@dataclass(slots=True)
class _Partition:
    number: int
    queue: str
    priority: int
    low: int = 0  # no job before it is ready, as far as is known


class Asked(NamedTuple):
    """What a lease asks for.

    Attributes:
        partitions, lows, queues, priorities: partitions, the lowest seq to look at in each, the queue of each, as its
            place in `mosts`, from 1 on, and its priority; in that order.
        mosts: how many jobs of each queue.
        probe: what it asks about limits before; None: nothing.
    """

    partitions: list[int]
    lows: list[int]
    queues: list[int]
    priorities: list[int]
    mosts: list[int]
    probe: Probe | None = None


class Demand:
    """Used by the engine alone."""

    def __init__(self, limits: FleetLimits, served: Collection[str] = ()) -> None:
        """
        Args:
            limits: what this fleet may use of limits.
            served: the queues that this fleet serves; empty for all.
        """
        self._limits = limits
        self._served = frozenset(served) or None
        self._partitions: dict[int, _Partition] = {}
        self._last_partition = 0
        self._by_queue: dict[str, list[_Partition]] = {}
        self._ended: dict[str, int] = {}  # by queue, since the last measurement
        self._rates: dict[str, float] = {}  # jobs a second, by queue
        self._measured_at = -inf
        self._mean_bytes = 1_000.0
        self._pause_s = _LOOK_FIRST_S
        self._look_at = -inf  # when to look though nobody has told of jobs
        self._whole_at = -inf
        self._is_told = True  # there are jobs, or may be

    # -- what there is

    def to_read(self) -> tuple[int, list[int]]:
        """Where partitions begin that it may not know, and those from there on that it knows."""
        after = max(0, self._last_partition - _NUMBERS_LATE)
        return after, [number for number in range(after + 1, self._last_partition + 1) if number in self._partitions]

    def learn(self, rows: Rows) -> None:
        """Takes partitions that were read: number, queue, priority, limits."""
        for number, queue, priority, packed in rows:
            if number in self._partitions:
                continue
            self._last_partition = max(number, self._last_partition)
            partition = _Partition(number, queue, priority)
            self._partitions[number] = partition
            if limits := read_limits(bytes(packed)):
                self._limits.partitions.learn(number, Partition(queue, priority, limits))
            elif self._served is None or queue in self._served:
                of_queue = self._by_queue.setdefault(queue, [])
                of_queue.append(partition)
                of_queue.sort(key=lambda each: -each.priority)
        if rows:
            self.tell()

    def forget(self, numbers: Iterable[int]) -> None:
        """Forgets partitions with limits that nobody uses any more. No round may be under way."""
        for number in numbers:
            self._partitions.pop(number, None)
            self._limits.partitions.forget(number)

    def knows(self, partition: int) -> bool:
        """Whether it knows a partition."""
        return partition in self._partitions

    def unknown(self, partitions: Iterable[int]) -> set[int]:
        """Those of some partitions that it does not know."""
        return set(partitions) - self._partitions.keys()

    def tell_of(self, number: int, *, is_returned: bool = False) -> None:
        """A partition has jobs: look at once.

        Args:
            is_returned: they have come back: look from the very first on.
        """
        if self._limits.partitions.find(number) is not None:
            self._limits.partitions.tell(number, is_returned=is_returned)
        elif is_returned:
            self._is_told = True
            self._whole_at = -inf
        else:
            self._is_told = True

    def tell(self) -> None:
        """There are new jobs: look at once."""
        self._is_told = True

    def tell_of_returned(self) -> None:
        """Jobs have come back, or may have: look at once, from the very first on."""
        self._is_told = True
        self._whole_at = -inf
        self._limits.partitions.look_at_all()

    # -- what the fleet does

    def ended(self, queue: str, count: int = 1) -> None:
        """Counts jobs that have ended."""
        self._ended[queue] = self._ended.get(queue, 0) + count

    def measure(self, now: float) -> None:
        """Measures the rates."""
        passed = now - self._measured_at
        if passed < _MEASURED_EVERY_S:
            return
        self._measured_at = now
        weight = 1.0 if passed == inf else 1.0 - exp(-passed / _MOMENT_S)
        for queue in self._rates.keys() | self._ended.keys():
            rate = self._rates.get(queue, 0.0)
            count = self._ended.get(queue, 0)
            rate += ((count / passed if passed < inf else 0.0) - rate) * weight
            if rate < 0.01:
                self._rates.pop(queue, None)
            else:
                self._rates[queue] = rate
        self._ended.clear()

    # -- what to ask for

    def ask(
        self, now: float, slots: Callable[[str], int], held: Mapping[str, int], paused: Collection[str]
    ) -> Asked | None:
        """Returns what to lease now; None for nothing.

        Args:
            slots: how many jobs of a queue consumers can run at once.
            held: the jobs of each queue that the fleet has.
            paused: the queues that are paused.
        """
        is_due = self._is_told or now >= self._look_at
        limited = self._limits.partitions.queues
        if not is_due and not limited:
            return None
        asked = Asked([], [], [], [], [])
        most = max(1, min(MOST_JOBS, int(_MOST_BYTES / self._mean_bytes)))
        is_whole = now >= self._whole_at
        of_queue: dict[str, Wanted] = {}
        for queue in [*self._by_queue, *(limited - self._by_queue.keys())] if limited else self._by_queue:
            if queue in paused:
                continue
            own_slots = slots(queue)
            wanted = self._wanted(own_slots, self._rates.get(queue, 0.0), held.get(queue, 0))
            if wanted:
                asked.mosts.append(min(wanted, most))
                if queue in limited:
                    of_queue[queue] = self._of_queue(queue, len(asked.mosts), asked.mosts[-1], own_slots, held)
                for partition in self._by_queue.get(queue, ()):
                    if is_whole:
                        partition.low = 0
                    asked.partitions.append(partition.number)
                    asked.lows.append(partition.low)
                    asked.queues.append(len(asked.mosts))
                    asked.priorities.append(partition.priority)
        probe = self._limits.ask(now, of_queue) if limited else None
        if probe is None and not (is_due and asked.partitions):
            return None
        if is_whole:
            self._whole_at = now + _WHOLE_EVERY_S
        return asked._replace(probe=probe)

    def _of_queue(self, queue: str, place: int, jobs: int, slots: int, held: Mapping[str, int]) -> Wanted:
        ahead = 1 + self._rates.get(queue, 0.0) * AHEAD_S / slots
        return Wanted(place, jobs, slots, ahead, max(0, slots - held.get(queue, 0)))

    def _wanted(self, slots: int, rate: float, held: int) -> int:
        """How many jobs of a queue to lease: none, while all slots have one and three quarters of what is wanted are
        here."""
        if not slots:
            return 0
        target = slots + ceil(rate * AHEAD_S)
        return target - held if held < slots or (target - held) * 4 >= target else 0

    def answered(self, asked: Asked, partitions: Mapping[int, tuple[int, int]], mean_bytes: float, now: float) -> None:
        """Takes the answer to a lease.

        Args:
            asked: what it asked for.
            partitions: for each that had jobs, how many they were, and the highest seq.
            mean_bytes: what their payloads took, on the average; 0.0 if there were none.
        """
        counts = [0] * (len(asked.mosts) + 1)
        for number, queue in zip(asked.partitions, asked.queues, strict=True):
            count, last = partitions.get(number, (0, 0))
            if count:
                self._partitions[number].low = last + 1
                counts[queue] += count
        if asked.probe is not None:
            for number in partitions.keys() - set(asked.partitions):
                counts[asked.probe.wanted[self._partitions[number].queue].place] += partitions[number][0]
        self._is_told = any(count >= most for count, most in zip(counts[1:], asked.mosts, strict=True))
        if partitions:
            self._mean_bytes = max(1.0, self._mean_bytes + (mean_bytes - self._mean_bytes) / 4)
            self._pause_s = _LOOK_FIRST_S
        else:
            self._pause_s = min(2 * self._pause_s, LOOK_LONGEST_S)
        self._look_at = now + self._pause_s

    def failed(self, now: float) -> None:
        """The lease was not answered: what it asked for may be there."""
        self.tell_of_returned()
        self._look_at = now

    @property
    def last_partition(self) -> int:
        """The highest number of a partition that it has heard of."""
        return self._last_partition

    @property
    def next_at(self) -> float:
        """When to look though nobody has told of jobs (monotonic)."""
        return self._look_at
