"""What a client writes to the spool, with one sync for each frame: see `taskq.protocol.spool` for the files.

The first frame of a process, and each large one, gets a file of its own, which takes two syncs: one for the file, and
one for its name. The others are appended to a file of several, into space that was written when it was made: a sync of
such space takes half the time of one that makes a file longer.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from threading import RLock

from taskq.protocol.spool import SERIES, SINGLE, is_open_series, lock_series, record_of
from taskq.system.directory import Directory
from taskq.system.platform import sync_data, sync_directory

#: Of a file of several frames: a few hundred jobs, which one commit takes in.
_SERIES_BYTES = 32 * 1024
#: A larger frame gets a file of its own.
_APPENDED_BYTES = 8 * 1024

#: The spoolers of this process, by directory. Any thread adds to it.
_spoolers: dict[Path, Spooler] = {}


def spooler_of(directory: Directory) -> Spooler:
    """Returns what writes to the spool of a directory: all clients of a process share it, so that their jobs stay in
    order."""
    spooler = _spoolers.get(directory.path)
    if spooler is None or spooler.pid != os.getpid():  # a forked child begins its own files
        spooler = _spoolers[directory.path] = Spooler(directory)
    return spooler


class Spooler:
    """Writes to the spool of a directory. For any thread, and for a signal handler that interrupts one."""

    def __init__(self, directory: Directory) -> None:
        self.pid = os.getpid()
        self._directory = directory
        self._turn = RLock()
        self._is_adding = False
        self._series: _Series | None = None
        self._last = ""  # the highest id that a file was named by

    def add(self, ids: Collection[bytes], frame: bytes) -> None:
        """Writes a submit frame; it is durable when this returns.

        Args:
            ids: of the jobs in the frame.

        Raises:
            DirectoryError: the directory cannot be used.
            OSError: the frame cannot be written.
        """
        with self._turn:
            if self._is_adding or not self._last or len(frame) > _APPENDED_BYTES:
                self._series = None  # what is appended later belongs after this frame
                self._write_single(min(ids).hex(), max(ids).hex(), frame)
                return
            self._is_adding = True
            try:
                is_appended = self._append(min(ids).hex(), record_of(frame))
            finally:
                self._is_adding = False
            if not is_appended:
                self._write_single(min(ids).hex(), max(ids).hex(), frame)

    def _write_single(self, first: str, last: str, frame: bytes) -> None:
        self._directory.create()
        name = first if first == last else f"{first}-{last}"
        temporary = self._directory.spool / f"{name}.{os.getpid()}.tmp"
        try:
            _write_new(temporary, frame)
            os.replace(temporary, self._directory.spool / f"{name}{SINGLE}")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(self._directory.spool)
        self._last = max(self._last, last)

    def _append(self, first: str, record: bytes) -> bool:
        """Appends a record to a file of several, if need be a new one. Returns False if a broker has even that one."""
        series, self._series = self._series, None  # it is not used again if this is interrupted
        if series is None or not series.append(record):
            self._directory.create()
            name = max(first, f"{int(self._last, 16) + 1:032x}")  # after all that this process has written before
            self._last = name
            series = _Series(self._directory.spool / f"{name}{SERIES}")
            if not series.append(record):
                return False
        self._series = series
        return True


class _Series:
    """A file of several frames that this process writes. The first record makes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0

    def append(self, record: bytes) -> bool:
        """Appends a record. Returns False if it must go to another file: this one is full, or a broker has it."""
        if self._end + len(record) > _SERIES_BYTES:
            return False
        is_new = self._end == 0
        create = os.O_CREAT | os.O_EXCL if is_new else 0
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | create, 0o600)
        except OSError:
            if is_new:
                raise
            return False
        try:
            if not lock_series(descriptor):
                return False
            self._write(descriptor, record, is_new)
            if not is_open_series(descriptor):
                return False  # a broker has it after all, since the lock was lost, and may have read it too early
        finally:
            os.close(descriptor)
        self._end += len(record)
        return True

    def _write(self, descriptor: int, record: bytes, is_new: bool) -> None:
        try:
            if is_new:
                _write(descriptor, record.ljust(_SERIES_BYTES, b"\0"), 0)
                os.fsync(descriptor)
                sync_directory(self._path.parent)
            else:
                _write(descriptor, record, self._end)
                sync_data(descriptor)
        except OSError:  # its client will be told that it was not accepted
            with suppress(OSError):
                _write(descriptor, bytes(len(record)), self._end)
            if is_new:
                self._path.unlink(missing_ok=True)
            raise


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _write(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written
