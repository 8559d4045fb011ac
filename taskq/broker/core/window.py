"""Which waiting jobs are in memory, and which are still to be read from the store.

Of a long partition the oldest jobs are in memory. What is dropped stays there until its turn comes, marked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from taskq.broker.core.waiting import WaitingPartition, WaitingQueue
from taskq.model.job import JobRow
from taskq.model.partition import Load

#: Memory that a waiting job takes besides its payload, measured with tracemalloc.
ROW_BYTES: Final = 400
#: How many jobs are read from the store at once, which takes 3 ms, and from how many partitions.
LOAD_JOBS: Final = 500
LOAD_BYTES: Final = 4 * 1024 * 1024
_LOAD_PARTITIONS: Final = 50
#: While memory is full, this much is read of a partition with a key (there may be any number of them), and only when it
#: has nothing left.
_FEW_JOBS: Final = 20
_FEW_BYTES: Final = 64 * 1024


class Portion:
    """The jobs that are taken for one batch, until one of its bounds is reached."""

    __slots__ = ("at_once", "bytes", "is_closed_behind_crash", "max_bytes", "max_work_s", "most", "rows", "work_s")

    def __init__(self, most: int, max_work_s: float, max_bytes: int, at_once: int = 0) -> None:
        self.rows: list[JobRow] = []
        self.work_s = 0.0
        self.bytes = 0
        self.most = most
        self.max_work_s = max_work_s
        self.max_bytes = max_bytes
        self.at_once = at_once  # how many start at once: they are taken however long they run
        self.is_closed_behind_crash = False

    @property
    def has_room(self) -> bool:
        """Whether no bound is reached."""
        count = len(self.rows)
        has_time = self.work_s < self.max_work_s or count < self.at_once
        return count < self.most and has_time and self.bytes < self.max_bytes

    def close(self) -> None:
        """Takes no more."""
        self.most = len(self.rows)

    def close_behind_crash(self) -> None:
        """Takes no more: the last job was running when its process died, and may hang or crash again."""
        self.close()
        self.is_closed_behind_crash = True


def _bytes_of(rows: Sequence[JobRow]) -> int:
    """Memory that waiting jobs take."""
    return sum([len(row.payload) for row in rows]) + ROW_BYTES * len(rows)


class Window:
    """The waiting jobs that are in memory."""

    def __init__(self, memory_bytes: int) -> None:
        """
        Args:
            memory_bytes: bound of the jobs held in memory.
        """
        self._memory_bytes = memory_bytes
        self.held_bytes = 0
        self.dropped: dict[int, int] = {}  # by seq of cancelled jobs: how many rows to skip when their turn comes
        self.short: dict[str, WaitingQueue] = {}  # by name: queues that may send and have partitions in `short`
        self.expired: set[int] = set()  # seqs of jobs that were passed over: they only wait for their end, by `drop`

    # -- jobs come in

    def add(self, partition: WaitingPartition, rows: Sequence[JobRow]) -> None:
        """Adds the youngest jobs of a partition, in ascending order of `seq`. Memory holds all others of it."""
        size = _bytes_of(rows)
        room = self._memory_bytes - self.held_bytes
        if size <= room:
            partition.held.extend(rows)
            self.held_bytes += size
        else:
            self._add_what_fits(partition, rows, room)

    def _add_what_fits(self, partition: WaitingPartition, rows: Sequence[JobRow], room: int) -> None:
        for row in rows:
            if room <= 0:
                self.leave_on_disk(partition, row.seq - 1)
                return
            size = len(row.payload) + ROW_BYTES
            room -= size
            partition.held.append(row)
            self.held_bytes += size

    def add_late(self, partition: WaitingPartition, row: JobRow, *, in_front: bool) -> bool:
        """Adds a job that becomes queued though it is older than others.

        Args:
            in_front: whether it takes its place by age; else it goes to the end.

        Returns:
            Whether it is in memory; if not, it will be read with the others.
        """
        if not partition.holds(row.seq):
            return False
        self.held_bytes += len(row.payload) + ROW_BYTES
        if in_front:
            partition.put_in_front([row])
        else:
            partition.held.append(row)
        return True

    def put_back(self, partition: WaitingPartition, rows: Sequence[JobRow]) -> None:
        """Puts jobs that were taken back in their places."""
        partition.put_in_front(rows)
        self.held_bytes += _bytes_of(rows)

    # -- jobs go

    def drop(self, partition: WaitingPartition, seq: int) -> None:
        """Marks a job that must not be taken any more."""
        if seq in self.expired:
            self.expired.discard(seq)
        elif partition.holds(seq):
            self.dropped[seq] = self.dropped.get(seq, 0) + 1  # twice, if it was put back in the meantime

    def skip_dropped(self, partition: WaitingPartition) -> None:
        """Forgets dropped jobs while they are the oldest: limits must be asked about a job that really waits."""
        while self.dropped and partition.held and partition.held[0].seq in self.dropped:
            self._skip(partition.held.popleft())

    def _skip(self, row: JobRow) -> None:
        if self.dropped[row.seq] > 1:
            self.dropped[row.seq] -= 1
        else:
            del self.dropped[row.seq]
        self.held_bytes -= len(row.payload) + ROW_BYTES

    def take_lone(self, partition: WaitingPartition) -> JobRow | None:
        """Takes the only job of a partition; None if it must be looked at more closely, as `move` does."""
        row = partition.held[0]
        if self.dropped or len(partition.held) != 1 or row.constraints is not None or row.crashes:
            return None
        partition.held.clear()
        self.held_bytes -= len(row.payload) + ROW_BYTES
        partition.waiting -= 1
        partition.queue.waiting -= 1
        return row

    def move(
        self,
        partition: WaitingPartition,
        portion: Portion,
        room: int,
        turn_ends_at: int,
        run_s: Callable[[str], float],
        wall: float,
    ) -> None:
        """Takes the oldest jobs of a partition: the hot loop.

        Args:
            portion: is filled until one of its bounds is reached.
            room: how many jobs its limits let pass.
            turn_ends_at: the last `seq` before another partition has its turn.
            run_s: the time that a task takes.
            wall: seconds since 1970, for what expires.
        """
        held, rows, dropped = partition.held, portion.rows, self.dropped
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
            self.held_bytes -= len(row.payload) + ROW_BYTES
            if row.constraints is not None and row.constraints.is_over(wall) and not row.attempts:
                self.expired.add(row.seq)
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

    # -- between memory and store

    def leave_on_disk(self, partition: WaitingPartition, after: int) -> None:
        """Notes that the jobs of a partition after this `seq` still have to be read from the store."""
        partition.on_disk_after = after
        self.look_for_more(partition)

    def look_for_more(self, partition: WaitingPartition) -> None:
        """Notes a partition if it has few jobs in memory and more in the store."""
        if partition.on_disk_after is not None and len(partition.held) < 2 * LOAD_JOBS:
            partition.queue.short[partition.partition] = partition
            self.note_short(partition.queue)

    def note_short(self, queue: WaitingQueue) -> None:
        """Notes whether jobs of a queue have to be read, after it was paused or has become short."""
        if queue.short and queue.may_send:
            self.short[queue.name] = queue
        else:
            self.short.pop(queue.name, None)

    def loads(self) -> list[Load]:
        """Returns what to read from the store now, since memory runs short of it."""
        loads: list[Load] = []
        jobs = 0  # that these may bring
        while self.short and len(loads) < _LOAD_PARTITIONS and jobs < LOAD_JOBS:
            queue = next(iter(self.short.values()))
            while queue.short and len(loads) < _LOAD_PARTITIONS and jobs < LOAD_JOBS:
                _, partition = queue.short.popitem()
                jobs += self._load(partition, loads)
            self.note_short(queue)
        return loads

    def _load(self, partition: WaitingPartition, loads: list[Load]) -> int:
        """Adds what to read of a partition, if anything, and returns about how many jobs that brings."""
        if partition.on_disk_after is None:
            return 0
        if self.held_bytes < self._memory_bytes or not partition.partition.is_keyed:
            loads.append(Load(partition.partition, partition.on_disk_after, LOAD_JOBS, LOAD_BYTES))
        elif not partition.held:
            loads.append(Load(partition.partition, partition.on_disk_after, _FEW_JOBS, _FEW_BYTES))
        else:
            return 0  # memory is full, and has some of it: others must not wait behind it
        return min(partition.waiting, LOAD_JOBS)

    def loaded(self, partition: WaitingPartition, rows: Sequence[JobRow], is_all: bool) -> None:
        """Adds the jobs that a load has read.

        Args:
            is_all: whether the store has no more of this partition.
        """
        partition.held.extend(rows)
        self.held_bytes += _bytes_of(rows)
        if is_all:
            partition.on_disk_after = None
        else:
            if rows:
                partition.on_disk_after = rows[-1].seq
            self.look_for_more(partition)
