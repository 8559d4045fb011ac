"""What a consumer and the broker share: the counters block and the flight recorder.

Both have one writer and one reader, and belong to ONE consumer process: a process that is killed while it holds a
multiprocessing Lock leaves it locked for ever, so a consumer shares what it could die holding with nobody but the
broker, and all of it is thrown away with the process.
"""

from __future__ import annotations

import os
import time
from ctypes import c_uint64
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from taskq.model.attempt import Claim
from taskq.protocol.link.flight_recorder import _RECORD_BYTES
from taskq.system.semaphores import remove_name

#: A consumer holds the lock for about a microsecond. One that does not give it up within this time is stopped or
#: dying; the broker goes on and asks again later.
LOCK_TIMEOUT_S = 0.002


class Counters:
    """The block: numbers under a Lock. Handed to the consumer by inheritance.

    Numbers count the jobs sent to this process: 1, 2, 3 ... They are claimed in this order, each by one *slot*, and
    a slot runs one job at a time; a consumer has one slot, or as many as `--threads` says.

        valid_from            written by the broker: numbers below are no longer this consumer's
        jobs_done, busy_s     written by the consumer: jobs it ended, seconds it spent in them
        of each slot:
            claimed           written by the consumer: the last number it started
            finished          written by the consumer: the last number it finished
            started_at        written by the consumer: time.monotonic() of the last claim
            overdue           written by the broker: the number of the job that is to end, before the soft signal
            reason            written by the broker, before that: why it is to end (`taskq.model.attempt.Reason`)
    """

    def __init__(self, context: BaseContext, slots: int = 1) -> None:
        self._lock = context.Lock()
        self._memory: Any = context.RawArray(c_uint64, 3 + 5 * slots)
        self._look()

    def __getstate__(self) -> tuple[object, object]:
        return self._lock, self._memory

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        self._lock, self._memory = state
        self._look()

    def _look(self) -> None:
        """Makes views of the memory. Aligned 8-byte stores do not tear, and each number has one writer: only a claim
        needs the lock."""
        self.slots = slots = (len(self._memory) - 3) // 5
        data = memoryview(self._memory).cast("B")
        self._valid_from, self._jobs_done = data[:8].cast("Q"), data[8:16].cast("Q")
        self._busy_s = data[16:24].cast("d")
        columns = [data[24 + 8 * slots * column : 24 + 8 * slots * (column + 1)] for column in range(5)]
        self._claimed, self._finished, self._overdue, self._reason = (column.cast("Q") for column in columns[:4])
        self._started_at = columns[4].cast("d")
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._own_jobs_done, self._own_busy_s = self._jobs_done[0], self._busy_s[0]  # the consumer's own

    # -- what the consumer does

    def claim(self, number: int, slot: int = 0) -> float | None:
        """Starts a job, unless it was taken back. Returns the time of the start (monotonic), or None."""
        self._acquire()  # not `with`: a call less, 70 ns instead of 140
        try:
            if number < self._valid_from[0]:
                return None
            # in this order: whoever reads meanwhile must not see the new number with the start of the one before
            self._started_at[slot] = started_at = time.monotonic()
            self._claimed[slot] = number
            return started_at
        finally:
            self._release()

    def finish(self, number: int, duration_s: float, slot: int = 0) -> None:
        """Notes that a claimed job ended. Called by one thread at a time."""
        self._finished[slot] = number
        self._own_jobs_done = self._jobs_done[0] = self._own_jobs_done + 1
        self._own_busy_s = self._busy_s[0] = self._own_busy_s + duration_s

    def is_overdue(self, number: int, slot: int = 0) -> bool:
        """Whether the broker's soft signal means this job, and not one that ended in the meantime."""
        return self._overdue[slot] == number

    def reason(self, slot: int = 0) -> int:
        """Why the job that the soft signal means is to end."""
        return self._reason[slot]

    # -- what the broker does

    def opened(self) -> None:
        """The consumer has its copy, so the name of the lock is not needed any more."""
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
        """What the consumer is running. Reads without the lock, so it never blocks, and may be a moment old."""
        slots = zip(self._claimed, self._finished, self._started_at, strict=True)
        return [Claim(claimed, started_at) for claimed, finished, started_at in slots if claimed > finished]

    def mark_overdue(self, number: int, reason: int = 0) -> None:
        """Says which job the soft signal that follows is for, and why."""
        for slot, claimed in enumerate(self._claimed):
            if claimed == number:
                self._reason[slot] = reason
                self._overdue[slot] = number

    @property
    def jobs_done(self) -> int:
        """Jobs that this process ended."""
        return self._jobs_done[0]

    @property
    def busy_s(self) -> float:
        """Seconds that this process spent in jobs."""
        return self._busy_s[0]


def widen_flight_records(path: Path, consumer: int, slots: int = 1) -> None:
    """Makes room for the records of a consumer, if there is none: a new consumer may start while several old ones still
    run."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = (consumer + 1) * slots * _RECORD_BYTES
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
