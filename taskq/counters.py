"""What a consumer and the broker share: the counters block and the flight recorder.

Both are one writer, one reader, and belong to ONE incarnation of a consumer: a process that is killed while it
holds a multiprocessing Lock leaves it locked for ever, so nothing a consumer can die holding is shared with
anyone but the broker, and all of it is thrown away with the process.
"""

from __future__ import annotations

import mmap
import os
import time
from ctypes import Structure, c_double, c_uint64
from multiprocessing.context import BaseContext
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from taskq.semaphores import remove_name

#: A consumer holds the lock for about a microsecond. One that does not give it up within this time is stopped or
#: dying; the broker goes on and asks again later.
LOCK_TIMEOUT_S = 0.002


class _Block(Structure):
    """Numbers count the jobs sent to this incarnation: 1, 2, 3 ..."""

    _fields_ = (
        ("claimed", c_uint64),  # written by the consumer: the last number it started
        ("finished", c_uint64),  # written by the consumer: the last number it finished
        ("valid_from", c_uint64),  # written by the broker: numbers below are no longer this consumer's
        ("overdue", c_uint64),  # written by the broker: the number whose time is over, before the soft signal
        ("started_at", c_double),  # written by the consumer: time.monotonic() of the last claim
        ("jobs_done", c_uint64),  # written by the consumer
        ("busy_s", c_double),  # written by the consumer: seconds spent in jobs
    )


class Claim(NamedTuple):
    """What a consumer was doing when the block was read."""

    number: int
    running: bool
    started_at: float


class Counters:
    """The block: a Value under its Lock. Handed to the consumer by inheritance."""

    def __init__(self, context: BaseContext) -> None:
        self._lock = context.Lock()
        self._value: Any = context.Value(_Block, lock=self._lock)
        self._block: Any = self._value.get_obj()
        self._acquire, self._release = self._lock.acquire, self._lock.release

    def __getstate__(self) -> tuple[object, object]:
        return self._lock, self._value

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        self._lock, self._value = state
        self._block = self._value.get_obj()
        self._acquire, self._release = self._lock.acquire, self._lock.release

    # -- the consumer's side

    def claim(self, number: int) -> float | None:
        """Starts a job, unless it was taken back. Returns the time of the start (monotonic), or None."""
        block = self._block
        self._acquire()  # not `with`: a call less, 70 ns instead of 140
        try:
            if number < block.valid_from:
                return None
            block.claimed = number
            block.started_at = started_at = time.monotonic()
            return started_at
        finally:
            self._release()

    def finish(self, number: int, duration_s: float) -> None:
        """Notes that a claimed job ended. No lock: each field has one writer, and aligned 8-byte stores do not tear."""
        block = self._block
        block.finished = number
        block.jobs_done += 1
        block.busy_s += duration_s

    def is_overdue(self, number: int) -> bool:
        """Whether the broker's soft signal means this job, and not one that ended in the meantime."""
        return bool(self._block.overdue == number)

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
            self._block.valid_from = sent + 1
            return int(self._block.claimed)
        finally:
            self._lock.release()

    def read(self) -> Claim:
        """What the consumer is doing. Reads without the lock: it may be from a moment ago, but never blocks."""
        block = self._block
        claimed = int(block.claimed)
        return Claim(claimed, claimed > int(block.finished), float(block.started_at))

    def mark_overdue(self, number: int) -> None:
        """Says which job the soft signal that follows is for."""
        self._block.overdue = number

    @property
    def jobs_done(self) -> int:
        """Jobs that this incarnation ended."""
        return int(self._block.jobs_done)

    @property
    def busy_s(self) -> float:
        """Seconds that this incarnation spent in jobs."""
        return float(self._block.busy_s)


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

    Each consumer writes its own record, without a lock; a broker reads them all once, before it starts consumers.
    """

    def __init__(self, path: Path, consumer: int) -> None:
        """Opens the record of a consumer; its file must have been prepared by `clear_flight_records`."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._start = consumer * _RECORD_BYTES

    def started(self, job_id: bytes, attempt: int) -> None:
        """Notes a start. One copy of 20 bytes; a reader in the middle of it cannot be, for it waits for our end."""
        _RECORD.pack_into(self._map, self._start, job_id, attempt)

    def idle(self) -> None:
        """Notes that nothing runs."""
        _RECORD.pack_into(self._map, self._start, b"", 0)


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


def clear_flight_records(path: Path, consumers: int) -> None:
    """Makes an empty file with room for consumers 0 to `consumers`, in place of what was there."""
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, bytes((consumers + 1) * _RECORD_BYTES))
    finally:
        os.close(descriptor)
    fresh.replace(path)


def clear_flight_record(path: Path, consumer: int) -> None:
    """Empties the record of a consumer that is dead and whose job the living broker has charged."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, bytes(_RECORD_BYTES), consumer * _RECORD_BYTES)
    finally:
        os.close(descriptor)
