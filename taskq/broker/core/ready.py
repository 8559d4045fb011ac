"""The waiting jobs of a fleet: who is next. Pure.

    queues, by their weights -> partitions, by priority and age -> jobs, oldest first

A partition (`taskq.model.partition.Partition`) is jobs of one queue with the same priority and the same limits. It is
*listed* while a job of it may go, *parked* at a limit while that is closed, else empty. Of a long partition the
oldest jobs are in memory and the rest in the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Final, NamedTuple

from taskq.broker.core.limiters import UNLIMITED, Limiter, Rate, Release, new_state
from taskq.model.job import JobRow
from taskq.model.partition import Limit, Partition, Starts, partition_of

#: Memory that a waiting job takes besides its payload, measured with tracemalloc.
ROW_BYTES: Final = 400
#: Jobs read from the store at once, and partitions that are read at once.
LOAD_JOBS: Final = 2_000
LOAD_BYTES: Final = 4 * 1024 * 1024
_LOAD_PARTITIONS: Final = 50
#: While memory is full, so much is read of a partition of a key (there may be any number of them), once it has
#: nothing left.
_FEW_JOBS: Final = 20
_FEW_BYTES: Final = 64 * 1024
#: So many listed partitions are looked into to see how many jobs may go.
_LOOK_INTO: Final = 32
#: ReadyJobs that stay listed though their concurrency is used up by other consumers than the one that asks.
_SET_ASIDE: Final = 8


class Load(NamedTuple):
    """Waiting jobs to read from the store; see `Store.lease`."""

    partition: Partition
    after: int
    limit: int
    max_bytes: int


class Portion:
    """What is taken for one batch: jobs, until one of its bounds is reached."""

    __slots__ = ("at_once", "bytes", "is_closed_behind_crash", "max_bytes", "max_work_s", "most", "rows", "work_s")

    def __init__(self, most: int, max_work_s: float, max_bytes: int, at_once: int = 0) -> None:
        self.rows: list[JobRow] = []
        self.work_s = 0.0
        self.bytes = 0
        self.most = most
        self.max_work_s = max_work_s
        self.max_bytes = max_bytes
        self.at_once = at_once  # so many start at once: they are taken however long they run
        self.is_closed_behind_crash = False

    @property
    def has_room(self) -> bool:
        count = len(self.rows)
        has_time = self.work_s < self.max_work_s or count < self.at_once
        return count < self.most and has_time and self.bytes < self.max_bytes

    def close(self) -> None:
        """Takes no more."""
        self.most = len(self.rows)

    def close_behind_crash(self) -> None:
        """Takes no more: the last job is one that was running when its process died, and may hang or die again."""
        self.close()
        self.is_closed_behind_crash = True


def _seq(row: JobRow) -> int:
    return row.seq


def _bytes_of(rows: Sequence[JobRow]) -> int:
    """Memory that waiting jobs take."""
    return sum([len(row.payload) for row in rows]) + ROW_BYTES * len(rows)


class _Waiting:
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

    def __init__(self, partition: Partition, queue: _Queue, limits: list[tuple[Limit, _GateKeeper]]) -> None:
        self.partition = partition
        self.queue = queue
        self.limits = limits
        self.is_rated = any(limit.kind == "rate" for limit, _ in limits)
        self.held: deque[JobRow] = deque()
        self.waiting = 0
        self.on_disk_after: int | None = None
        self.is_listed = False  # in the heap of its queue, or parked at a limit
        self.heap: _Heap | None = None  # where it is listed or parked
        self.entry: _Entry | None = None  # its own there: any other has a job that is not the oldest any more

    def put_in_front(self, rows: Sequence[JobRow]) -> None:
        """Rows that were sent come back to where they were: before all that is younger, also what came back before."""
        youngest = max(row.seq for row in rows)
        front = list(rows)
        while self.held and self.held[0].seq < youngest:
            front.append(self.held.popleft())
        front.sort(key=_seq, reverse=True)
        self.held.extendleft(front)

    def unlist(self) -> None:
        """It has nothing to send: whatever names it in a heap is stale."""
        self.is_listed, self.heap, self.entry = False, None, None

    def holds(self, seq: int) -> bool:
        return self.on_disk_after is None or seq <= self.on_disk_after


#: ReadyJobs in the order in which their turn comes: (-priority, seq of the oldest job, tie-breaker, partition).
_Entry = tuple[int, int, int, _Waiting]
_Heap = list[_Entry]


class _Queue:
    """A queue: its listed partitions, and how much of its share it had."""

    __slots__ = ("is_paused", "listed", "name", "short", "spent_s", "waiting", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name = name
        self.weight = weight
        self.spent_s = 0.0  # run time that was sent of it, divided by its weight
        self.listed: _Heap = []
        self.short: dict[Partition, _Waiting] = {}  # partitions of which memory holds little, and the store more
        self.waiting = 0
        self.is_paused = False


class _GateKeeper:
    """A limit, and the partitions that wait before it: together those of which one that cannot go tells that no other
    can."""

    __slots__ = ("is_timed", "parked", "partitions", "state")

    def __init__(self, state: Limiter) -> None:
        self.state = state
        self.partitions = 0  # that know it
        self.parked: dict[Hashable, _Heap] = {}
        self.is_timed = False  # whether the time of its opening is noted

    def parked_with(self, partition: _Waiting, limit: Limit) -> _Heap:
        # a partition may be paused, or served by few consumers, or want much, while another of the same limit may go
        alike = partition.partition if limit.kind == "order" else (partition.queue.name, limit.amount)
        return self.parked.setdefault(alike, [])

    def first_ones(self) -> list[tuple[_Heap, _Waiting]]:
        for alike, heap in list(self.parked.items()):
            _drop_stale(heap)
            if not heap:
                del self.parked[alike]
        return [(heap, heap[0][-1]) for heap in self.parked.values()]


def _drop_stale(heap: _Heap) -> None:
    while heap and heap[0][-1].entry is not heap[0]:
        heappop(heap)


class ReadyJobs:
    """All waiting jobs. Written and read by the core alone."""

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        memory_bytes: int = 256 * 1024 * 1024,
        slots: int = 1,
        capacities: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            weights: the share of each queue that has not the share 1.
            memory_bytes: bound of the waiting jobs held in memory.
            slots: how many jobs a consumer runs at once.
            capacities: the fleet's resources.
        """
        self._weights = weights or {}
        self._memory_bytes = memory_bytes
        self._slots = slots
        self._capacities = capacities or {}
        self._queues: dict[str, _Queue] = {}
        self._partitions: dict[Partition, _Waiting] = {}
        self._limits: dict[tuple[str, str], _GateKeeper] = {}
        self._held_bytes = 0
        self._dropped: dict[int, int] = {}  # cancelled: by seq, how many rows in memory are skipped in their turn
        self._expired: set[int] = set()  # seqs that were passed over: they wait only for their end, by `drop`
        self._openings: list[tuple[float, int, Limit]] = []  # when closed rates may open (monotonic)
        self._rates_changed: set[Limit] = set()  # whose starts are not kept by the store yet
        self._rates_before: dict[str, Starts] = {}  # what the store has kept of rates that nobody asked for since
        self._ties = count()
        self._spent_s = 0.0  # of the queue whose turn was last

    # -- jobs come in

    def found(self, partition: Partition, waiting: int, first_seq: int) -> None:
        """At the start: the store holds so many queued jobs of a partition, from this number on."""
        found = self._partition(partition)
        found.waiting = waiting
        found.queue.waiting += waiting
        self._read_from_disk(found, first_seq - 1)

    def add(self, rows: Sequence[JobRow]) -> None:
        """New jobs of one partition are stored, in ascending order of `seq`."""
        partition = self._partition(partition_of(rows[0].spec, rows[0].constraints))
        partition.waiting += len(rows)
        partition.queue.waiting += len(rows)
        if partition.on_disk_after is not None:
            return
        size = _bytes_of(rows)
        room = self._memory_bytes - self._held_bytes
        if size <= room:
            partition.held.extend(rows)
            self._held_bytes += size
        else:
            self._add_what_fits(partition, rows, room)
        self._list(partition)

    def _add_what_fits(self, partition: _Waiting, rows: Sequence[JobRow], room: int) -> None:
        for row in rows:
            if room <= 0:
                self._read_from_disk(partition, row.seq - 1)
                return
            size = len(row.payload) + ROW_BYTES
            room -= size
            partition.held.append(row)
            self._held_bytes += size

    def add_late(self, row: JobRow) -> None:
        """A job that was stored before becomes queued now: a scheduled one, or one that is run again."""
        partition = self._partition(partition_of(row.spec, row.constraints))
        partition.waiting += 1
        partition.queue.waiting += 1
        if not partition.holds(row.seq):
            return
        self._held_bytes += len(row.payload) + ROW_BYTES
        is_ordered = row.constraints is not None and row.constraints.order_key is not None
        if is_ordered:
            partition.put_in_front([row])
        else:
            partition.held.append(row)
        self._list(partition)
        if is_ordered:
            self._wake(partition)  # those behind it wait for it, itself need not

    def add_unread(self, row: JobRow) -> None:
        """A job is queued that is younger than all others, and still to be read from the store."""
        partition = self._partition(partition_of(row.spec, row.constraints))
        partition.waiting += 1
        partition.queue.waiting += 1
        if partition.on_disk_after is None:
            self._read_from_disk(partition, row.seq - 1)

    def put_back(
        self, key: int, rows: Iterable[JobRow], leaving: Release = Release.UNSTARTED, each_s: float = 0.0
    ) -> None:
        """Jobs that were sent to a consumer come back to their places.

        Args:
            each_s: the run time with which each was charged to the share of its queue, which has it again.
        """
        by_partition: dict[Partition, list[JobRow]] = {}
        for row in rows:
            by_partition.setdefault(partition_of(row.spec, row.constraints), []).append(row)
        for name, back in by_partition.items():
            partition = self._partition(name)
            partition.put_in_front(back)
            partition.waiting += len(back)
            partition.queue.waiting += len(back)
            partition.queue.spent_s -= each_s * len(back) / partition.queue.weight
            self._held_bytes += _bytes_of(back)
            for limit, keeper in partition.limits:
                for row in back:
                    keeper.state.leave(limit, key, row, leaving)
            self._list(partition)
            self._wake(partition)

    def drop(self, row: JobRow) -> None:
        """A waiting job is not to be sent any more."""
        partition = self._partition(partition_of(row.spec, row.constraints))
        partition.waiting -= 1
        partition.queue.waiting -= 1
        if row.seq in self._expired:
            self._expired.discard(row.seq)
        elif partition.holds(row.seq):
            self._dropped[row.seq] = self._dropped.get(row.seq, 0) + 1  # twice, if it was to run again meanwhile
        self.abandoned(row)
        self._trim(partition)

    def _trim(self, partition: _Waiting) -> None:
        """Forgets what was dropped, as far as it is the oldest of its partition: nothing of it may be sent for a long
        time, and else all of an emptied queue would be skipped in the moment in which the next job is sent."""
        self._skip_dropped(partition)
        if (
            partition.is_listed and not partition.held
        ):  # nobody is to ask about a job of it where it is listed or parked
            partition.unlist()
            self._wake(partition)  # it may have been its turn at a limit
        self._look_for_more(partition)
        self._forget(partition)

    # -- between memory and store

    def loads(self, queues: Collection[str] | None) -> list[Load]:
        """What to read of these queues (None: of all) from the store now, since memory runs short of it."""
        loads: list[Load] = []
        for queue in self._served(queues):
            while queue.short and len(loads) < _LOAD_PARTITIONS:
                _, partition = queue.short.popitem()
                self._load(partition, loads)
        return loads

    def _load(self, partition: _Waiting, loads: list[Load]) -> None:
        if partition.on_disk_after is None:
            return
        if self._held_bytes < self._memory_bytes or not partition.partition.is_keyed:
            loads.append(Load(partition.partition, partition.on_disk_after, LOAD_JOBS, LOAD_BYTES))
        elif not partition.held:
            loads.append(Load(partition.partition, partition.on_disk_after, _FEW_JOBS, _FEW_BYTES))

    def is_short(self, queues: Collection[str] | None) -> bool:
        """Whether `loads` has more to tell."""
        return any(queue.short for queue in self._served(queues))

    def _served(self, queues: Collection[str] | None) -> list[_Queue]:
        names = self._queues if queues is None else [name for name in queues if name in self._queues]
        return [queue for name in names if not (queue := self._queues[name]).is_paused]

    def loaded(self, name: Partition, rows: Sequence[JobRow], is_all: bool) -> None:
        """The answer to a load."""
        partition = self._partition(name)
        partition.held.extend(rows)
        self._held_bytes += _bytes_of(rows)
        if is_all:
            partition.on_disk_after = None
        else:
            if rows:
                partition.on_disk_after = rows[-1].seq
            self._look_for_more(partition)
        self._list(partition)
        self._forget(partition)

    def _read_from_disk(self, partition: _Waiting, after: int) -> None:
        partition.on_disk_after = after
        self._look_for_more(partition)

    def _look_for_more(self, partition: _Waiting) -> None:
        if partition.on_disk_after is not None and len(partition.held) < LOAD_JOBS / 2:
            partition.queue.short[partition.partition] = partition

    # -- who is next

    def ready(self, queues: Collection[str] | None, enough: int) -> int:
        """How many jobs may go, about; those at closed limits are not among them. Counts until there are enough."""
        ready = 0
        for queue in self._open(queues):
            ready += max(0, len(queue.listed) - _LOOK_INTO)
            for entry in queue.listed[:_LOOK_INTO]:
                ready += len(entry[-1].held)
                if ready >= enough:
                    return ready
        return ready

    def _open(self, queues: Collection[str] | None) -> list[_Queue]:
        return [queue for queue in self._served(queues) if queue.listed]

    def take(
        self,
        key: int,
        queues: Collection[str] | None,
        portion: Portion,
        run_s: Callable[[str], float],
        now: float,
        wall: float,
    ) -> None:
        """Takes jobs for a consumer, the queues by their shares.

        Args:
            queues: those that it serves, or None for all.
            portion: filled.
            run_s: the time that a task takes.
            now: monotonic seconds, for rates.
            wall: seconds since 1970, for what expires.
        """
        for queue in sorted(self._open(queues), key=lambda queue: queue.spent_s):
            if not portion.has_room:
                break
            queue.spent_s = max(queue.spent_s, self._spent_s)  # who had nothing to send for a while saved nothing
            self._spent_s = queue.spent_s
            work_s = portion.work_s
            aside: list[_Waiting] = []
            while queue.listed and portion.has_room:
                self._take_from_partition(key, queue, portion, run_s, now, wall, aside)
            for partition in aside:
                self._push(queue.listed, partition)
            queue.spent_s += (portion.work_s - work_s) / queue.weight

    def _take_from_partition(
        self,
        key: int,
        queue: _Queue,
        portion: Portion,
        run_s: Callable[[str], float],
        now: float,
        wall: float,
        aside: list[_Waiting],
    ) -> None:
        """Takes jobs of the partition whose turn it is, as far as its limits let them; then it is listed anew, or
        not."""
        partition = queue.listed[0][-1]
        if partition.entry is not queue.listed[0]:
            heappop(queue.listed)
            return
        self._skip_dropped(partition)
        first = len(portion.rows)
        room = self._room(partition, key, now) if partition.limits and partition.held else UNLIMITED
        if room and partition.is_rated and partition.held:
            room = min(room, portion.at_once - first)  # what counts is the start: behind others it might be much later
            if room <= 0:
                portion.close()  # with nothing more to do the consumer has a free slot soon; else that might never be
                return
        if room and partition.held:
            self._move(partition, portion, room, _turn_of_next(queue.listed), run_s, wall)
        taken = portion.rows[first:] if partition.limits else ()
        if taken:
            for limit, keeper in partition.limits:
                keeper.state.enter(limit, key, taken, now)
                if limit.kind == "rate":
                    self._rates_changed.add(limit)
        if not room:
            heappop(queue.listed)
            self._park(partition, key, now, aside)
        elif partition.held:
            partition.entry = self._entry(partition)
            heapreplace(queue.listed, partition.entry)
        else:
            heappop(queue.listed)
            partition.unlist()
        if partition.on_disk_after is not None:
            self._look_for_more(partition)
        if partition.limits:
            self._wake(partition, key, now)
            self._forget(partition)

    def _move(
        self,
        partition: _Waiting,
        portion: Portion,
        room: int,
        turn_ends_at: int,
        run_s: Callable[[str], float],
        wall: float,
    ) -> None:
        held, rows, dropped = partition.held, portion.rows, self._dropped
        spec, each_s = None, 0.0
        most = min(portion.most, len(rows) + room)
        work_s, size, before = portion.work_s, portion.bytes, len(rows)
        while (
            held
            and len(rows) < most
            and (work_s < portion.max_work_s or len(rows) < portion.at_once)
            and size < portion.max_bytes
        ):
            row = held[0]
            if row.seq > turn_ends_at:
                break
            held.popleft()
            if dropped and row.seq in dropped:
                self._skip(row)
                continue
            self._held_bytes -= len(row.payload) + ROW_BYTES
            if row.constraints is not None and row.constraints.is_over(wall) and not row.attempts:
                self._expired.add(row.seq)
                continue
            if row.spec is not spec:
                spec = row.spec
                each_s = run_s(spec.task)
            rows.append(row)
            size += len(row.payload)
            work_s += each_s
            if row.crashes:
                portion.close_behind_crash()
                break
        portion.work_s, portion.bytes = work_s, size
        moved = len(rows) - before
        partition.waiting -= moved
        partition.queue.waiting -= moved

    def _skip_dropped(self, partition: _Waiting) -> None:
        """The limits are asked about a job that waits indeed."""
        while self._dropped and partition.held and partition.held[0].seq in self._dropped:
            self._skip(partition.held.popleft())

    def _skip(self, row: JobRow) -> None:
        if self._dropped[row.seq] > 1:
            self._dropped[row.seq] -= 1
        else:
            del self._dropped[row.seq]
        self._held_bytes -= len(row.payload) + ROW_BYTES

    # -- limits

    def left(self, key: int, row: JobRow, leaving: Release) -> None:
        """A job with limits is with its consumer no more, and does not come back to its place."""
        partition = self._partition(partition_of(row.spec, row.constraints))
        for limit, keeper in partition.limits:
            keeper.state.leave(limit, key, row, leaving)
        self._wake(partition)
        self._forget(partition)

    def under_way(self, row: JobRow) -> None:
        """At the start: this job is to be run again, and those behind it in order wait for it."""
        for limit, keeper in self._partition(partition_of(row.spec, row.constraints)).limits:
            if limit.kind == "order":
                keeper.state.leave(limit, 0, row, Release.AGAIN)

    def abandoned(self, row: JobRow) -> None:
        """A job that no consumer holds will not run any more: those behind it in order need not wait for it."""
        if row.constraints is None or row.constraints.order_key is None:
            return
        partition = self._partition(partition_of(row.spec, row.constraints))
        for limit, keeper in partition.limits:
            if limit.kind == "order":
                keeper.state.leave(limit, 0, row, Release.ENDED)
        self._wake(partition)
        self._forget(partition)

    def _room(self, partition: _Waiting, key: int, now: float) -> int:
        return min(keeper.state.room(limit, key, partition.held[0], now) for limit, keeper in partition.limits)

    def _park(self, partition: _Waiting, key: int, now: float, aside: list[_Waiting]) -> None:
        """The partition waits at the first limit that is closed, and is listed again when that lets somebody pass."""
        limit, keeper = next(
            (limit, keeper)
            for limit, keeper in partition.limits
            if keeper.state.room(limit, key, partition.held[0], now) == 0
        )
        if limit.kind == "concurrency" and len(aside) < _SET_ASIDE:
            partition.heap = partition.entry = None
            aside.append(partition)  # who runs jobs of it already may have more of them
            return
        self._push(keeper.parked_with(partition, limit), partition)
        self._note_opening(limit, keeper)

    def _note_opening(self, limit: Limit, keeper: _GateKeeper) -> None:
        if isinstance(keeper.state, Rate) and not keeper.is_timed:
            keeper.is_timed = True
            heappush(self._openings, (keeper.state.opens_at(limit), next(self._ties), limit))

    def _wake(self, partition: _Waiting, key: int | None = None, now: float = 0.0) -> None:
        """Lists the next partitions at each limit of this one. While jobs are taken for a consumer (`key`): only if
        the limit is open for it, so that no partition is woken for ever by those that park after it."""
        for _, keeper in partition.limits:
            if not keeper.parked:
                continue
            for heap, parked in keeper.first_ones():
                limit = next(limit for limit, other in parked.limits if other is keeper)
                if key is None or keeper.state.room(limit, key, parked.held[0], now):
                    heappop(heap)
                    self._list_again(parked)

    def next_opening(self) -> float | None:
        """When a limit may open by time (monotonic)."""
        return self._openings[0][0] if self._openings else None

    def open_due(self, now: float) -> None:
        """Lists the partitions whose time at a limit is over."""
        while self._openings and self._openings[0][0] <= now:
            _, _, limit = heappop(self._openings)
            keeper = self._limits.get((limit.kind, limit.name))
            if keeper is not None:
                keeper.is_timed = False
                for heap, parked in keeper.first_ones():
                    heappop(heap)
                    self._list_again(parked)
                if keeper.partitions == 0:
                    self._forget_limit(limit, keeper, now)

    def restore_rates(self, starts: Mapping[str, Starts], now: float, wall: float) -> None:
        """At the start, before `found`: what `changed_rates` told before. `now` and `wall` are the same moment. If the
        clock was set back meanwhile, what would be yet to come has just been."""
        ahead_s = wall - now
        self._rates_before = {
            name: [(min(begins - ahead_s, now), count) for begins, count in slots] for name, slots in starts.items()
        }

    def changed_rates(self, now: float, wall: float) -> list[tuple[str, Starts, float]]:
        """The starts that count for rates, as far as they changed: name, starts, and when they count no more, all in
        seconds since 1970. `now` and `wall` are the same moment."""
        changed, self._rates_changed = self._rates_changed, set()
        told: list[tuple[str, Starts, float]] = []
        for limit in changed:
            keeper = self._limits.get((limit.kind, limit.name))  # forgotten meanwhile: its starts count no more
            state = None if keeper is None else keeper.state
            if isinstance(state, Rate) and state.slots:
                slots = [(begins + wall - now, count) for begins, count in state.slots]
                told.append((limit.name, slots, slots[-1][0] + 2 * limit.period_s))
        return told

    # -- counts and queues

    def counts(self) -> dict[str, int]:
        """Jobs of each queue that wait here or in the store."""
        return {name: queue.waiting for name, queue in self._queues.items()}

    def waiting(self, queue: str) -> int:
        """Jobs of one queue that wait here or in the store."""
        found = self._queues.get(queue)
        return 0 if found is None else found.waiting

    def pause(self, name: str, is_paused: bool) -> None:
        """Nothing of a paused queue is sent."""
        self._queue(name).is_paused = is_paused

    def is_paused(self, name: str) -> bool:
        """Whether nothing of a queue is sent."""
        return name in self._queues and self._queues[name].is_paused

    # -- helpers

    def _queue(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(name, self._weights.get(name, 1.0))
        return queue

    def _partition(self, name: Partition) -> _Waiting:
        partition = self._partitions.get(name)
        if partition is None:
            limits = [(limit, self._keeper(limit)) for limit in name.limits]
            for _, keeper in limits:
                keeper.partitions += 1
            partition = self._partitions[name] = _Waiting(name, self._queue(name.queue), limits)
        return partition

    def _keeper(self, limit: Limit) -> _GateKeeper:
        keeper = self._limits.get((limit.kind, limit.name))
        if keeper is None:
            before = self._rates_before.pop(limit.name, ()) if limit.kind == "rate" else ()
            keeper = _GateKeeper(Rate(before) if before else new_state(limit, self._slots, self._capacities))
            self._limits[limit.kind, limit.name] = keeper
        return keeper

    def _forget(self, partition: _Waiting) -> None:
        """There may be a partition for each key that ever was: what is empty, and idle, goes."""
        if partition.waiting or partition.is_listed or not partition.limits or partition.held:
            return
        if self._partitions.pop(partition.partition, None) is None:
            return
        partition.queue.short.pop(partition.partition, None)
        partition.on_disk_after = None  # none waits there either
        for limit, keeper in partition.limits:
            keeper.partitions -= 1
            if keeper.partitions == 0:
                self._forget_limit(limit, keeper)

    def _forget_limit(self, limit: Limit, keeper: _GateKeeper, now: float = 0.0) -> None:
        """No partition has this limit: it goes if nothing need be known of it, else later."""
        if isinstance(keeper.state, Rate):
            keeper.state.forget(limit, now)
        if keeper.state.is_idle:
            self._limits.pop((limit.kind, limit.name), None)
        else:
            self._note_opening(limit, keeper)

    def _entry(self, partition: _Waiting) -> tuple[int, int, int, _Waiting]:
        return -partition.partition.priority, partition.held[0].seq, next(self._ties), partition

    def _push(self, heap: _Heap, partition: _Waiting) -> None:
        partition.heap, partition.entry = heap, self._entry(partition)
        heappush(heap, partition.entry)

    def _list(self, partition: _Waiting) -> None:
        if not partition.held:
            return
        if not partition.is_listed:
            partition.is_listed = True
            self._push(partition.queue.listed, partition)
        elif partition.heap is not None and partition.entry is not None and partition.held[0].seq < partition.entry[1]:
            self._push(partition.heap, partition)  # what came back has its old place in the queue, too

    def _list_again(self, partition: _Waiting) -> None:
        partition.is_listed = False
        self._list(partition)


def _turn_of_next(listed: _Heap) -> int:
    """Up to which number the first partition has its turn: older jobs of the same priority in other partitions come
    before."""
    if len(listed) == 1:
        return 1 << 62
    following = listed[1] if len(listed) == 2 else min(listed[1], listed[2])
    return following[1] if following[0] == listed[0][0] else 1 << 62
