"""What a consumer and the broker share: the counters block and the flight recorder.

Both are one writer, one reader, and belong to ONE incarnation of a consumer: a process that is killed while it
holds a multiprocessing Lock leaves it locked for ever, so nothing a consumer can die holding is shared with
anyone but the broker, and all of it is thrown away with the process.
"""

from __future__ import annotations

import mmap
import os
import time
from ctypes import c_uint64
from multiprocessing.context import BaseContext
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from taskq.semaphores import remove_name

#: A consumer holds the lock for about a microsecond. One that does not give it up within this time is stopped or
#: dying; the broker goes on and asks again later.
LOCK_TIMEOUT_S = 0.002


class Claim(NamedTuple):
    """A job that a consumer was running when its block was read."""

    number: int
    started_at: float


class Counters:
    """The block: numbers under a Lock. Handed to the consumer by inheritance.

    Numbers count the jobs sent to this incarnation: 1, 2, 3 ... They are claimed in this order, each by one *seat*, and
    a seat runs one job at a time; a consumer has one seat, or as many as `--threads` says.

        valid_from            written by the broker: numbers below are no longer this consumer's
        jobs_done, busy_s     written by the consumer: jobs it ended, seconds it spent in them
        of each seat:
            claimed           written by the consumer: the last number it started
            finished          written by the consumer: the last number it finished
            started_at        written by the consumer: time.monotonic() of the last claim
            overdue           written by the broker: the number of the job that is to end, before the soft signal
            reason            written by the broker, before that: why it is to end (`taskq.outcome.Reason`)
    """

    def __init__(self, context: BaseContext, seats: int = 1) -> None:
        self._lock = context.Lock()
        self._memory: Any = context.RawArray(c_uint64, 3 + 5 * seats)
        self._look()

    def __getstate__(self) -> tuple[object, object]:
        return self._lock, self._memory

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        self._lock, self._memory = state
        self._look()

    def _look(self) -> None:
        """Aligned 8-byte stores do not tear, and each has one writer: only the way of a claim needs the lock."""
        self.seats = seats = (len(self._memory) - 3) // 5
        data = memoryview(self._memory).cast("B")
        self._valid_from, self._jobs_done = data[:8].cast("Q"), data[8:16].cast("Q")
        self._busy_s = data[16:24].cast("d")
        columns = [data[24 + 8 * seats * column : 24 + 8 * seats * (column + 1)] for column in range(5)]
        self._claimed, self._finished, self._overdue, self._reason = (column.cast("Q") for column in columns[:4])
        self._started_at = columns[4].cast("d")
        self._acquire, self._release = self._lock.acquire, self._lock.release

    # -- the consumer's side

    def claim(self, number: int, seat: int = 0) -> float | None:
        """Starts a job, unless it was taken back. Returns the time of the start (monotonic), or None."""
        self._acquire()  # not `with`: a call less, 70 ns instead of 140
        try:
            if number < self._valid_from[0]:
                return None
            # in this order: whoever reads meanwhile must not see the new number with the start of the one before
            self._started_at[seat] = started_at = time.monotonic()
            self._claimed[seat] = number
            return started_at
        finally:
            self._release()

    def finish(self, number: int, duration_s: float, seat: int = 0) -> None:
        """Notes that a claimed job ended. Called by one thread at a time."""
        self._finished[seat] = number
        self._jobs_done[0] += 1
        self._busy_s[0] += duration_s

    def is_overdue(self, number: int, seat: int = 0) -> bool:
        """Whether the broker's soft signal means this job, and not one that ended in the meantime."""
        return self._overdue[seat] == number

    def reason(self, seat: int = 0) -> int:
        """Why the job that the soft signal means is to end."""
        return self._reason[seat]

    # -- the broker's side

    def opened(self) -> None:
        """The consumer has its copy, so the name of the lock is of no use any more."""
        remove_name(self._lock)

    def take_back(self, sent: int) -> int | None:
        """Takes back every job up to `sent` that has not started.

        Returns:
            The last number that was started: all above it are the broker's own again. None if the consumer does not
            give up the lock (it is stopped, or was killed inside): nothing was taken back then.
        """
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            return None
        try:
            self._valid_from[0] = sent + 1
            return max(self._claimed)
        finally:
            self._lock.release()

    def read(self) -> list[Claim]:
        """What the consumer is running. Reads without the lock: it may be from a moment ago, but never blocks."""
        seats = zip(self._claimed, self._finished, self._started_at, strict=True)
        return [Claim(claimed, started_at) for claimed, finished, started_at in seats if claimed > finished]

    def mark_overdue(self, number: int, reason: int = 0) -> None:
        """Says which job the soft signal that follows is for, and why."""
        for seat, claimed in enumerate(self._claimed):
            if claimed == number:
                self._reason[seat] = reason
                self._overdue[seat] = number

    @property
    def jobs_done(self) -> int:
        """Jobs that this incarnation ended."""
        return self._jobs_done[0]

    @property
    def busy_s(self) -> float:
        """Seconds that this incarnation spent in jobs."""
        return self._busy_s[0]


_RECORD = Struct(">16sI")  # id, attempt
_RECORD_BYTES = 32  # with room; one cache line holds two


class FlightRecord(NamedTuple):
    """A job that ran when its consumer, and the broker with it, died."""

    job_id: bytes
    attempt: int


class FlightRecorder:
    """What a consumer is running, in a file that outlives every process.

    The broker learns from the counters block which job a dead consumer was running. When the broker died too,
    the block is gone; then the next broker reads this file, so that a job that takes the whole fleet down is
    charged with its crash as well, and is parked in the end.

    Each consumer writes its own records, one for each seat, without a lock; a broker reads them all once, before it
    starts consumers.
    """

    def __init__(self, path: Path, consumer: int, seats: int = 1) -> None:
        """Opens the records of a consumer; its file must have been prepared by `clear_flight_records`."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._start = consumer * seats * _RECORD_BYTES

    def started(self, job_id: bytes, attempt: int, seat: int = 0) -> None:
        """Notes a start. One copy of 20 bytes; a reader in the middle of it cannot be, for it waits for our end."""
        _RECORD.pack_into(self._map, self._start + seat * _RECORD_BYTES, job_id, attempt)

    def idle(self, seat: int = 0) -> None:
        """Notes that nothing runs."""
        _RECORD.pack_into(self._map, self._start + seat * _RECORD_BYTES, b"", 0)


def read_flight_records(path: Path) -> list[FlightRecord]:
    """The jobs that ran when the last fleet on this file died. Call it only when no consumer is left."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for start in range(0, len(data) - _RECORD_BYTES + 1, _RECORD_BYTES):
        job_id, attempt = _RECORD.unpack_from(data, start)
        if any(job_id) and attempt:
            records.append(FlightRecord(job_id, attempt))
    return records


def clear_flight_records(path: Path, consumers: int, seats: int = 1) -> None:
    """Makes an empty file with room for consumers 0 to `consumers`, in place of what was there."""
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, bytes((consumers + 1) * seats * _RECORD_BYTES))
    finally:
        os.close(descriptor)
    fresh.replace(path)


def widen_flight_records(path: Path, consumer: int, seats: int = 1) -> None:
    """Makes room for a consumer, if there is none: a new one of a number may come while several old ones still run."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = (consumer + 1) * seats * _RECORD_BYTES
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def clear_flight_record(path: Path, consumer: int, seats: int = 1) -> None:
    """Empties the records of a consumer that is dead and whose jobs the living broker has charged."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, bytes(seats * _RECORD_BYTES), consumer * seats * _RECORD_BYTES)
    finally:
        os.close(descriptor)
