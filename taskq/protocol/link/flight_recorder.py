"""The flight recorder: which job each consumer runs, in a file that outlives the broker and its consumers."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from struct import Struct
from typing import NamedTuple

_RECORD = Struct(">16sI")  # id, attempt: written at each start
_write_record = _RECORD.pack_into
_NUMBER = Struct(">I")  # of the consumer: written once, behind that
_RECORD_BYTES = 32  # with room; one cache line holds two


class FlightRecord(NamedTuple):
    """A job that ran when its consumer, and the broker with it, died."""

    job_id: bytes
    attempt: int
    consumer: int | None = None  # its number


class FlightRecorder:
    """What a consumer is running, in a file that outlives every process.

    The broker learns from the counters block which job a dead consumer was running. When the broker died too,
    the block is gone; then the next broker reads this file, so that a job that takes the whole fleet down is charged
    with the crash as well, and is parked in the end.

    Each consumer writes its own records, one for each slot, without a lock; a broker reads them all once, before it
    starts consumers.
    """

    def __init__(self, path: Path, consumer: int, slots: int = 1, number: int = 0) -> None:
        """Opens the records of a consumer; its file must have been prepared by `clear_flight_records`.

        Args:
            consumer: which records these are; 0 for the first.
            number: the number of the consumer in the log, or 0.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._places = [(consumer * slots + slot) * _RECORD_BYTES for slot in range(slots)]
        for place in self._places:
            _NUMBER.pack_into(self._map, place + _RECORD.size, number)

    def started(self, job_id: bytes, attempt: int, slot: int = 0) -> None:
        """Notes a start: one copy of 20 bytes. No reader can see half of it, because readers wait for our end."""
        _write_record(self._map, self._places[slot], job_id, attempt)

    def idle(self, slot: int = 0) -> None:
        """Notes that nothing runs."""
        _write_record(self._map, self._places[slot], b"", 0)


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
            (number,) = _NUMBER.unpack_from(data, start + _RECORD.size)
            records.append(FlightRecord(job_id, attempt, number or None))
    return records


def clear_flight_records(path: Path, consumers: int, slots: int = 1) -> None:
    """Makes an empty file with room for consumers 0 to `consumers`, in place of the one that was there. On a full disk
    the old file is emptied, which takes no space, if it is large enough."""
    empty = bytes((consumers + 1) * slots * _RECORD_BYTES)
    fresh = path.with_suffix(".new")
    try:
        _write(fresh, os.O_CREAT | os.O_TRUNC, empty)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        size = path.lstat().st_size if path.exists() else 0
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or size < len(empty):
            raise
        _write(path, 0, bytes(size))
    else:
        fresh.replace(path)


def _write(path: Path, flags: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def clear_flight_record(path: Path, consumer: int, slots: int = 1) -> None:
    """Empties the records of a consumer that is dead and whose jobs the living broker has charged."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, bytes(slots * _RECORD_BYTES), consumer * slots * _RECORD_BYTES)
    finally:
        os.close(descriptor)
