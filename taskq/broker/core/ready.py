"""The waiting jobs of a fleet: who is next. Pure.

    queues, by their weights -> partitions, by priority and age -> jobs, oldest first

A partition (`taskq.model.partition.Partition`) is jobs of one queue with the same priority and the same limits. It is
*listed* while a job of it may go, *parked* at a limit while that is closed, else empty. Of a long partition the
oldest jobs are in memory and the rest in the store (`taskq.broker.core.window`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from heapq import heappop, heappush, heapreplace
from itertools import count, islice
from typing import Final

from taskq.broker.core.open_queues import OpenQueues
from taskq.broker.core.shared_limits import SharedLimits
from taskq.broker.core.waiting import (
    Entry,
    Heap,
    Line,
    SharedLimit,
    WaitingPartition,
    WaitingQueue,
    drop_stale,
    turn_of_next,
)
from taskq.broker.core.window import Portion, Window
from taskq.model.job import JobRow
from taskq.model.partition import Limit, Load, Partition, Starts, partition_of
from taskq.model.rules.limiters import UNLIMITED, Release

#: How many open queues, and listed partitions of each, are looked into to see how many jobs may go: each of the others
#: has at least one.
_LOOK_INTO_QUEUES: Final = 8
_LOOK_INTO: Final = 32
#: How many partitions stay listed though their concurrency is used up by other consumers than the one that asks.
_SET_ASIDE: Final = 8
#: Of how many queues partitions are listed at once when a limit opens.
_WOKEN: Final = 4
#: How many jobs or partitions are looked at to see how many jobs are before one.
_LOOK_AHEAD: Final = 2_000
#: How many partitions are looked at for the oldest job of each queue.
_LOOK_FOR_OLDEST: Final = 2_000
#: How many queues without jobs are remembered, with what they have used of their shares.
_EMPTY_QUEUES: Final = 1_000


class ReadyJobs:
    """All waiting jobs. Written and read by the core alone."""

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        memory_bytes: int = 256 * 1024 * 1024,
        slots: int = 1,
        capacities: Mapping[str, int] | None = None,
        served: Collection[str] | None = None,
    ) -> None:
        """
        Args:
            weights: the share of each queue that does not have the share 1.
            memory_bytes: bound of the waiting jobs held in memory.
            slots: how many jobs a consumer runs at once.
            capacities: the fleet's resources.
            served: the queues whose jobs are sent; None for all.
        """
        self._served = served
        self._weights = weights or {}
        self._window = Window(memory_bytes)
        self._limits = SharedLimits(slots, capacities or {})
        self._queues: dict[str, WaitingQueue] = {}
        self._empty: dict[str, WaitingPartition] = {}  # queues that were emptied, the first one in front, with the last
        self._paused: set[str] = set()
        self._open = OpenQueues(served)
        self._partitions: dict[Partition, WaitingPartition] = {}
        self._ties = count()

    # -- jobs come in

    def found(self, partition: Partition, waiting: int, first_seq: int) -> None:
        """Notes at the start that the store holds queued jobs of a partition.

        Args:
            waiting: how many.
            first_seq: the lowest `seq` of them.
        """
        found = self._partition(partition)
        found.waiting = waiting
        found.queue.waiting += waiting
        self._window.leave_on_disk(found, first_seq - 1)

    def add(self, rows: Sequence[JobRow]) -> None:
        """Adds new jobs of one partition, in ascending order of `seq`. They are stored already."""
        partition = self._partition(partition_of(rows[0].spec, rows[0].constraints))
        partition.waiting += len(rows)
        partition.queue.waiting += len(rows)
        if partition.on_disk_after is not None:
            return
        self._window.add(partition, rows)
        self._list(partition)

    def add_late(self, row: JobRow) -> None:
        """Adds a job that was stored before and becomes queued now: a scheduled one, or one that runs again."""
        partition = self._partition(partition_of(row.spec, row.constraints))
        partition.waiting += 1
        partition.queue.waiting += 1
        is_ordered = row.constraints is not None and row.constraints.order_key is not None
        if not self._window.add_late(partition, row, in_front=is_ordered):
            return
        self._list(partition)
        if is_ordered:
            self._wake(partition)  # those behind it wait for it; it does not have to

    def add_unread(self, row: JobRow) -> None:
        """Notes a queued job that is younger than all others, and still has to be read from the store."""
        partition = self._partition(partition_of(row.spec, row.constraints))
        partition.waiting += 1
        partition.queue.waiting += 1
        if partition.on_disk_after is None:
            self._window.leave_on_disk(partition, row.seq - 1)

    def put_back(
        self, key: int, rows: Iterable[JobRow], leaving: Release = Release.UNSTARTED, each_s: float = 0.0
    ) -> None:
        """Puts jobs that were sent to a consumer back in their places.

        Args:
            each_s: the run time that was charged to the share of their queue for each job; it is given back.
        """
        by_partition: dict[Partition, list[JobRow]] = {}
        for row in rows:
            by_partition.setdefault(partition_of(row.spec, row.constraints), []).append(row)
        for name, back in by_partition.items():
            partition = self._partition(name)
            self._window.put_back(partition, back)
            partition.waiting += len(back)
            partition.queue.waiting += len(back)
            partition.queue.spent_s -= each_s * len(back) / partition.queue.weight
            for limit, shared in partition.limits:
                shared.state.leave(limit, key, back, leaving)
            self._list(partition)
            self._open.note(partition.queue)
            self._wake(partition)

    def drop(self, row: JobRow) -> None:
        """Removes a waiting job: it will not be sent."""
        partition = self._partition(partition_of(row.spec, row.constraints))
        partition.waiting -= 1
        partition.queue.waiting -= 1
        self._window.drop(partition, row.seq)
        self.abandoned(row)
        self._trim(partition)

    def _trim(self, partition: WaitingPartition) -> None:
        """Forgets dropped jobs while they are the oldest of their partition. It may be long before a job of it is sent;
        otherwise all jobs of an emptied queue would be skipped at once when the next job is sent."""
        self._window.skip_dropped(partition)
        if partition.is_listed and not partition.held:
            partition.unlist()  # where it is listed or parked, nobody may ask about its first job: it has none
            drop_stale(partition.queue.listed)
            self._open.note(partition.queue)
            self._wake(partition)  # it may have been its turn at a limit
        self._window.look_for_more(partition)
        self._forget(partition)

    # -- between memory and store

    def loads(self) -> list[Load]:
        """What to read from the store now, since memory runs short of it."""
        return self._window.loads()

    @property
    def is_short(self) -> bool:
        """Whether `loads` has more to return."""
        return bool(self._window.short)

    def loaded(self, name: Partition, rows: Sequence[JobRow], is_all: bool) -> None:
        """The answer to a load."""
        partition = self._partition(name)
        self._window.loaded(partition, rows, is_all)
        self._list(partition)
        self._forget(partition)

    # -- who is next

    def may_send(self) -> bool:
        """Whether anything is listed: if not, no job may be sent."""
        return self._open.all.open > 0

    def may_send_of(self, queues: Collection[str]) -> bool:
        """Whether anything of these queues is listed."""
        return self._line(queues).open > 0

    def _line(self, queues: Collection[str] | None) -> Line:
        line = self._open.line(queues)
        if line is None:
            line = self._open.new_line(queues, self._queues.values())
            for shared in self._limits.in_use.values():
                self._wake_at(shared)
        return line

    def ready(self, enough: int) -> int:
        """About how many jobs may be sent, without those at closed limits. Stops counting when there are enough."""
        ready = self._open.all.open
        for queue in self._open.all.some(_LOOK_INTO_QUEUES):
            ready += max(0, len(queue.listed) - _LOOK_INTO) - 1
            for entry in queue.listed[:_LOOK_INTO]:
                ready += len(entry[-1].held)
                if ready >= enough:
                    return ready
        return ready

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
        line = self._line(queues)
        visited: dict[WaitingQueue, None] = {}
        aside: list[WaitingPartition] = []
        while (queue := line.pop()) is not None:
            if queue in visited:
                continue  # it was opened again meanwhile
            visited[queue] = None
            self._open.begin_turn(queue)
            work_s = portion.work_s
            while queue.listed and portion.has_room:
                self._take_from_partition(key, queue, portion, run_s, now, wall, aside)
            queue.spent_s += (portion.work_s - work_s) / queue.weight
            if not portion.has_room:
                break
        for partition in aside:
            self._push(partition.queue.listed, partition)
        for queue in visited:
            drop_stale(queue.listed)
            self._open.end_turn(queue)

    def take_lone(self, run_s: Callable[[str], float]) -> tuple[JobRow, float] | None:
        """Takes the job that waits for a consumer of all queues, if there is only one and it has no limits. What `take`
        does for that takes five times as long.

        Args:
            run_s: the time that a task takes.

        Returns:
            The job and the time that it takes; None if there is no such job.
        """
        if self._open.all.open != 1:
            return None
        queue = self._open.all.first()
        if queue is None or queue.waiting != 1 or len(queue.listed) != 1:
            return None
        partition = queue.listed[0][-1]
        if partition.entry is not queue.listed[0] or partition.limits or partition.on_disk_after is not None:
            return None
        row = self._window.take_lone(partition)
        if row is None:
            return None
        each_s = run_s(row.spec.task)
        queue.listed.clear()
        partition.unlist()
        self._open.begin_turn(queue)
        queue.spent_s += each_s / queue.weight
        self._open.note(queue)
        self._forget(partition)
        return row, each_s

    def _take_from_partition(
        self,
        key: int,
        queue: WaitingQueue,
        portion: Portion,
        run_s: Callable[[str], float],
        now: float,
        wall: float,
        aside: list[WaitingPartition],
    ) -> None:
        """Takes as many jobs of the partition whose turn it is as its limits allow, and lists it again if more may
        go."""
        partition = queue.listed[0][-1]
        if partition.entry is not queue.listed[0]:
            heappop(queue.listed)
            return
        self._window.skip_dropped(partition)
        first = len(portion.rows)
        room = self._room(partition, key, now) if partition.limits and partition.held else UNLIMITED
        if room and partition.is_rated and partition.held:
            room = min(room, portion.at_once - first)  # starts are counted: behind others it might start much later
            if room <= 0:
                portion.close()  # without more to do, the consumer has a free slot soon; else it might never have one
                return
        if room and partition.held:
            self._window.move(partition, portion, room, turn_of_next(queue.listed), run_s, wall)
        taken = portion.rows[first:] if partition.limits else ()
        if taken:
            for limit, shared in partition.limits:
                shared.state.enter(limit, key, taken, now)
                if limit.kind == "rate":
                    self._limits.note_start(limit)
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
            self._window.look_for_more(partition)
        if partition.limits:
            self._wake(partition, key, now)
        self._forget(partition)

    # -- limits

    def left(self, key: int, rows: Sequence[JobRow], leaving: Release) -> None:
        """Notes that jobs with limits, all of one partition, have left their consumer and do not come back to their
        places."""
        partition = self._partition(partition_of(rows[0].spec, rows[0].constraints))
        for limit, shared in partition.limits:
            shared.state.leave(limit, key, rows, leaving)
        self._wake(partition)
        self._forget(partition)

    def grant(self, kind: str, name: str, amount: int | None) -> None:
        """Sets how much of a limit this fleet may use from now on, if it shares the limit with others; None for all of
        it. If that is less than before, what was sent is for the caller to take back."""
        shared = self._limits.grant(kind, name, amount)
        if shared is not None:
            self._wake_at(shared)

    def used(self, kind: str, name: str) -> int:
        """How much of a concurrency or an order the jobs take that consumers have."""
        return self._limits.used(kind, name)

    def share_limits(self) -> None:
        """From now on, nothing may be used of concurrencies, orders and rates but what `grant` and `allow_starts`
        say."""
        self._limits.share()

    def revoke(self, kind: str, name: str) -> None:
        """Forgets a limit of which no job is here."""
        self._limits.revoke(kind, name)

    def unused_starts(self, name: str) -> int:
        """How many of the allowed starts of a rate were not made."""
        return self._limits.unused_starts(name)

    def allow_starts(self, name: str, more: int) -> None:
        """Allows more starts of a rate than until now, or fewer."""
        shared = self._limits.allow_starts(name, more)
        if shared is not None and more > 0:
            self._wake_at(shared)

    def under_way(self, row: JobRow) -> None:
        """Notes at the start that this job will run again, and that those behind it in order wait for it."""
        for limit, shared in self._partition(partition_of(row.spec, row.constraints)).limits:
            if limit.kind == "order":
                shared.state.leave(limit, 0, [row], Release.AGAIN)

    def abandoned(self, row: JobRow) -> None:
        """Notes that a job that no consumer holds will not run: those behind it in order do not have to wait for it."""
        if row.constraints is None or row.constraints.order_key is None:
            return
        partition = self._partition(partition_of(row.spec, row.constraints))
        for limit, shared in partition.limits:
            if limit.kind == "order":
                shared.state.leave(limit, 0, [row], Release.ENDED)
        self._wake(partition)
        self._forget(partition)

    def _room(self, partition: WaitingPartition, key: int, now: float) -> int:
        return min(shared.state.room(limit, key, partition.held[0], now) for limit, shared in partition.limits)

    def _park(self, partition: WaitingPartition, key: int, now: float, aside: list[WaitingPartition]) -> None:
        """Parks a partition at its first closed limit; it is listed again when that limit lets a job pass."""
        limit, shared = next(
            (limit, shared)
            for limit, shared in partition.limits
            if shared.state.room(limit, key, partition.held[0], now) == 0
        )
        if limit.kind == "concurrency" and len(aside) < _SET_ASIDE:
            partition.heap = partition.entry = None
            aside.append(partition)  # a consumer that already runs jobs of it may get more of them
            return
        self._push(shared.parked_with(partition, limit), partition)
        self._limits.note_opening(limit, shared)

    def _wake(self, partition: WaitingPartition, key: int | None = None, now: float = 0.0) -> None:
        """Lists the next partitions at each limit of this one. While jobs are taken for a consumer (`key`), only where
        the limit is open for it: otherwise a partition could be woken for ever by those that park after it."""
        for _, shared in partition.limits:
            if shared.parked:
                self._wake_at(shared, key, now)

    def _wake_at(self, shared: SharedLimit, key: int | None = None, now: float = 0.0) -> None:
        """Lists the next partitions at a limit, of some queues: each wakes others when it is tried, while the limit is
        open. Where consumers serve different queues, it lists those of all queues: nobody might try these for long."""
        most = _WOKEN if self._open.has_one_line else UNLIMITED
        limit: Limit | None = None
        for alike in list(shared.parked):
            woken = 0
            while woken < most and (parked := shared.next_of(alike)) is not None:
                limit = next(limit for limit, other in parked.limits if other is shared)
                if key is not None and not shared.state.room(limit, key, parked.held[0], now):
                    break
                shared.unpark(alike)
                self._list_again(parked)
                woken += parked.queue.may_send  # a paused one does not hand the turn on
        if limit is not None and shared.parked:
            self._limits.note_opening(limit, shared)

    def next_opening(self) -> float | None:
        """When a limit may open by time (monotonic)."""
        return self._limits.next_opening()

    def open_due(self, now: float) -> None:
        """Lists the partitions whose time at a limit is over."""
        for limit, shared in self._limits.take_open(now):
            self._wake_at(shared)
            if shared.partitions == 0:
                self._limits.forget(limit, shared, now)

    def restore_rates(self, starts: Mapping[str, Starts], now: float, wall: float) -> None:
        """Takes over, at the start and before `found`, what `changed_rates` returned before. `now` and `wall` are the
        same moment."""
        self._limits.restore_rates(starts, now, wall)

    def changed_rates(self, now: float, wall: float) -> list[tuple[str, Starts, float]]:
        """The starts that count for rates and are not stored yet; see `SharedLimits.changed_rates`."""
        return self._limits.changed_rates(now, wall)

    def rates_stored(self) -> None:
        """What `changed_rates` has just returned is durable."""
        self._limits.rates_stored()

    # -- queues

    def counts(self) -> dict[str, int]:
        """The number of jobs in each queue that wait here or in the store."""
        return {name: queue.waiting for name, queue in self._queues.items()}

    def oldest(self) -> dict[str, list[JobRow | tuple[Partition, int]]]:
        """The oldest waiting job of each partition, by queue; for one that was not read from the store yet, its
        partition, and the sequence number behind which it is. If there are very many partitions, some are left out."""
        found: dict[str, list[JobRow | tuple[Partition, int]]] = {}
        for name, partition in islice(self._partitions.items(), _LOOK_FOR_OLDEST):
            if not partition.waiting:
                continue
            self._window.skip_dropped(partition)
            if partition.held:
                found.setdefault(name.queue, []).append(partition.held[0])
            elif partition.on_disk_after is not None:
                found.setdefault(name.queue, []).append((name, partition.on_disk_after))
        return found

    @property
    def has_some(self) -> bool:
        """Whether a job of a queue that may send waits here or in the store."""
        return any(queue.waiting and queue.may_send for queue in self._queues.values())

    def waiting(self, queue: str) -> int:
        """The number of jobs in one queue that wait here or in the store."""
        found = self._queues.get(queue)
        return 0 if found is None else found.waiting

    def serves(self, queue: str) -> bool:
        """Whether the fleet serves a queue."""
        return self._served is None or queue in self._served

    def limits_of(self, row: JobRow) -> Sequence[tuple[Limit, SharedLimit]]:
        """The limits of a job that waits."""
        partition = self._partitions.get(partition_of(row.spec, row.constraints))
        return () if partition is None else partition.limits

    def ahead(self, row: JobRow) -> int:
        """About how many jobs of its queue go before a job that waits, without those at closed limits."""
        own = self._partitions.get(partition_of(row.spec, row.constraints))
        if own is None:
            return 0
        before = own.before(row.seq, _LOOK_AHEAD)
        for entry in own.queue.listed[:_LOOK_AHEAD]:
            other = entry[-1]
            if other.entry is entry and other is not own and other.partition.priority >= own.partition.priority:
                is_first = other.partition.priority > own.partition.priority
                before += other.waiting if is_first else other.before(row.seq, _LOOK_AHEAD // len(own.queue.listed))
        return before

    @property
    def paused(self) -> Set[str]:
        """The queues that are paused."""
        return self._paused

    def pause(self, name: str, is_paused: bool) -> None:
        """Pauses a queue, whose jobs are not sent then, or resumes it."""
        (self._paused.add if is_paused else self._paused.discard)(name)
        queue = self._queues.get(name)
        if queue is not None:
            queue.is_paused = is_paused
            self._open.note(queue)
            self._window.note_short(queue)
            for partition in [entry[-1] for entry in queue.listed if is_paused and entry[-1].entry is entry]:
                self._wake(partition)  # it may have been its turn at a limit

    def is_paused(self, name: str) -> bool:
        """Whether a queue is paused."""
        return name in self._paused

    def _queue(self, name: str) -> WaitingQueue:
        queue = self._queues.get(name)
        if queue is None:
            is_served = self._served is None or name in self._served
            weight, is_paused = self._weights.get(name, 1.0), name in self._paused
            queue = self._queues[name] = WaitingQueue(name, weight, is_served=is_served, is_paused=is_paused)
            self._open.enter(queue)
        return queue

    # -- partitions

    def _partition(self, name: Partition) -> WaitingPartition:
        partition = self._partitions.get(name)
        if partition is None:
            limits = [(limit, self._limits.get(limit)) for limit in name.limits]
            for _, shared in limits:
                shared.partitions += 1
            queue = self._queue(name.queue)
            queue.partitions += 1
            partition = self._partitions[name] = WaitingPartition(name, queue, limits)
        return partition

    def _forget(self, partition: WaitingPartition) -> None:
        """Removes a partition that is empty and idle: else there would be one for each key and priority that was ever
        used. The last one of a queue is remembered for a while."""
        if partition.waiting or partition.is_listed or partition.held:
            return
        queue = partition.queue
        if queue.short.pop(partition.partition, None) is not None:
            self._window.note_short(queue)
        partition.on_disk_after = None  # there is none on disk either
        if partition.limits or queue.partitions > 1:
            self._remove(partition)
        if queue.partitions <= 1:
            self._empty[queue.name] = partition
            if len(self._empty) > _EMPTY_QUEUES:
                self._forget_queue(self._empty.pop(next(iter(self._empty))))

    def _forget_queue(self, last: WaitingPartition) -> None:
        """Forgets a queue that was emptied long ago, unless it is in use again."""
        queue = last.queue
        if not (last.waiting or last.is_listed or last.held):
            self._remove(last)
        if not queue.partitions:
            self._queues.pop(queue.name, None)

    def _remove(self, partition: WaitingPartition) -> None:
        if self._partitions.get(partition.partition) is not partition:
            return  # it is gone already
        del self._partitions[partition.partition]
        partition.queue.partitions -= 1
        for limit, shared in partition.limits:
            shared.partitions -= 1
            if shared.partitions == 0:
                self._limits.forget(limit, shared)

    def _entry(self, partition: WaitingPartition) -> Entry:
        return -partition.partition.priority, partition.held[0].seq, next(self._ties), partition

    def _push(self, heap: Heap, partition: WaitingPartition) -> None:
        partition.heap, partition.entry = heap, self._entry(partition)
        heappush(heap, partition.entry)

    def _list(self, partition: WaitingPartition) -> None:
        if not partition.held:
            return
        if not partition.is_listed:
            partition.is_listed = True
            self._push(partition.queue.listed, partition)
            self._open.note(partition.queue)
        elif partition.heap is not None and partition.entry is not None and partition.held[0].seq < partition.entry[1]:
            self._push(partition.heap, partition)  # what came back has its old place in the queue, too

    def _list_again(self, partition: WaitingPartition) -> None:
        partition.is_listed = False
        self._list(partition)
