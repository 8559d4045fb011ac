"""The records of waiting jobs: their queues, their partitions, the lines in which queues stand, and the limits that
partitions share."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from operator import attrgetter
from typing import Final

from taskq.model.job import JobRow
from taskq.model.partition import Limit, Partition
from taskq.model.rules.limiters import Limiter

_seq = attrgetter("seq")

#: A line is tidied when more of its places are stale than are not, and more than this number.
_MOST_STALE: Final = 16


class WaitingPartition:
    """The waiting jobs of one partition.

    `on_disk_after` is None while memory holds all of them; else memory holds those up to that sequence number (and
    what came back after it was sent), the store the others.
    """

    __slots__ = (
        "entry",
        "heap",
        "held",
        "is_listed",
        "is_rated",
        "limits",
        "on_disk_after",
        "partition",
        "queue",
        "waiting",
    )

    def __init__(self, partition: Partition, queue: WaitingQueue, limits: list[tuple[Limit, SharedLimit]]) -> None:
        self.partition = partition
        self.queue = queue
        self.limits = limits
        self.is_rated = any(limit.kind == "rate" for limit, _ in limits)
        self.held: deque[JobRow] = deque()
        self.waiting = 0
        self.on_disk_after: int | None = None
        self.is_listed = False  # in the heap of its queue, or parked at a limit
        self.heap: Heap | None = None  # where it is listed or parked
        self.entry: Entry | None = None  # its own there: any other names a job that is not the oldest any more

    def put_in_front(self, rows: Sequence[JobRow]) -> None:
        """Puts rows that were sent back where they were: before all younger ones, including those put back before."""
        youngest = max(row.seq for row in rows)
        front = list(rows)
        while self.held and self.held[0].seq < youngest:
            front.append(self.held.popleft())
        front.sort(key=_seq, reverse=True)
        self.held.extendleft(front)

    def unlist(self) -> None:
        """Notes that it has nothing to send: its entries in heaps are stale."""
        self.is_listed, self.heap, self.entry = False, None, None

    def before(self, seq: int, most: int) -> int:
        """About how many of its jobs are older than one.

        Args:
            most: how many of the jobs in memory to look at; the rest is estimated from the sequence numbers.
        """
        older = sum(1 for row in islice(self.held, most) if row.seq < seq)
        if older < most or not self.held:
            return min(older, self.waiting)
        return min(self.waiting, max(older, seq - self.held[0].seq))

    def holds(self, seq: int) -> bool:
        """Whether memory holds this job, if it waits."""
        return self.on_disk_after is None or seq <= self.on_disk_after


#: Partitions in the order in which their turn comes: (-priority, seq of the oldest job, tie-breaker, partition).
Entry = tuple[int, int, int, WaitingPartition]
Heap = list[Entry]
#: Queues in the order in which their turn comes: (what it has used of its share, tie-breaker, queue).
Turn = tuple[float, int, "WaitingQueue"]


class WaitingQueue:
    """A queue: its listed partitions, and how much of its share it has used."""

    __slots__ = (
        "is_paused",
        "is_served",
        "lines",
        "listed",
        "name",
        "partitions",
        "short",
        "spent_s",
        "turn",
        "waiting",
        "weight",
    )

    def __init__(self, name: str, weight: float, *, is_served: bool, is_paused: bool) -> None:
        self.name = name
        self.is_served = is_served  # by this fleet
        self.weight = weight
        self.spent_s = 0.0  # the run time of its jobs that were sent, divided by its weight
        self.listed: Heap = []
        self.short: dict[Partition, WaitingPartition] = {}  # those with few jobs in memory and more in the store
        self.waiting = 0
        self.is_paused = is_paused
        self.partitions = 0  # how many it has
        self.turn: Turn | None = None  # while it is open: its own in the lines that it stands in
        self.lines: tuple[Line, ...] = ()

    @property
    def may_send(self) -> bool:
        """Whether its jobs may be sent at all."""
        return self.is_served and not self.is_paused


class Line:
    """The open queues that some consumers serve. A place is stale if it is not the latest one of its queue."""

    __slots__ = ("_places", "open", "served")

    def __init__(self, served: Collection[str] | None) -> None:
        """
        Args:
            served: the names of the queues that may stand here; None for all.
        """
        self.served = served
        self.open = 0  # how many queues stand here
        self._places: list[Turn] = []

    def push(self, turn: Turn) -> None:
        """Gives a queue its place. Its earlier one is stale from now on."""
        heappush(self._places, turn)
        if len(self._places) > 2 * self.open + _MOST_STALE:
            self._tidy()

    def closed(self) -> None:
        """One of its queues has nothing to send any more: its place is stale."""
        self.open -= 1
        if len(self._places) > 2 * self.open + _MOST_STALE:
            self._tidy()

    def _tidy(self) -> None:
        self._places = [turn for turn in self._places if turn[-1].turn is turn]
        heapify(self._places)

    def pop(self) -> WaitingQueue | None:
        """Takes out the queue whose turn it is; None if there is none."""
        while self._places:
            turn = heappop(self._places)
            if turn[-1].turn is turn:
                return turn[-1]
        return None

    def first(self) -> WaitingQueue | None:
        """Returns the queue whose turn it is, and leaves it in its place."""
        while self._places:
            turn = self._places[0]
            if turn[-1].turn is turn:
                return turn[-1]
            heappop(self._places)
        return None

    def some(self, most: int) -> Iterator[WaitingQueue]:
        """Yields some of its queues, not in their order."""
        return (turn[-1] for turn in islice(self._places, most) if turn[-1].turn is turn)


class SharedLimit:
    """A limit, and the partitions that are parked at it: by whether the limit treats them alike, and by queue. The one
    that has waited longest is in front."""

    __slots__ = ("is_timed", "parked", "partitions", "state")

    def __init__(self, state: Limiter) -> None:
        self.state = state
        self.partitions = 0  # how many have it
        self.parked: dict[Hashable, OrderedDict[str, Heap]] = {}
        self.is_timed = False  # whether the time of its opening is noted

    def parked_with(self, partition: WaitingPartition, limit: Limit) -> Heap:
        """Returns where to park a partition: with those that go or stay as it does."""
        alike = partition.partition if limit.kind == "order" else limit.amount
        return self.parked.setdefault(alike, OrderedDict()).setdefault(partition.queue.name, [])

    def next_of(self, alike: Hashable) -> WaitingPartition | None:
        """Returns the next one of the partitions that the limit treats alike; None if none is parked any more."""
        by_queue = self.parked[alike]
        while by_queue:
            heap = next(iter(by_queue.values()))
            drop_stale(heap)
            if heap:
                return heap[0][-1]
            by_queue.popitem(last=False)
        del self.parked[alike]
        return None

    def unpark(self, alike: Hashable) -> None:
        """Takes out the partition that `next_of` has returned. The next one is of another queue, if there is one."""
        name, heap = self.parked[alike].popitem(last=False)
        heappop(heap)
        if heap:
            self.parked[alike][name] = heap


def drop_stale(heap: Heap) -> None:
    """Drops the first entries of a heap while they name partitions that are not there any more."""
    while heap and heap[0][-1].entry is not heap[0]:
        heappop(heap)


def turn_of_next(listed: Heap) -> int:
    """Returns the last `seq` up to which the first partition has its turn: after that, older jobs of the same priority
    in other partitions come first."""
    if len(listed) == 1:
        return 1 << 62
    following = listed[1] if len(listed) == 2 else min(listed[1], listed[2])
    return following[1] if following[0] == listed[0][0] else 1 << 62
