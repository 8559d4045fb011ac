"""The log file. A full disk, a missing directory or a meddling operator cost log lines, never the broker.

    write(line) -> O_APPEND, one os.write per line -> taskq.jsonl   (if the disk is full, a partial line is cut off)
                        | it would grow past max_bytes
                        v
    taskq.jsonl -> taskq.jsonl.1 -> ... -> taskq.jsonl.<keep> -> gone

The log is not fsynced: a power cut may cost its last seconds. The journal has all jobs.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from taskq.telemetry.files import rotated_numbers, rotated_path
from taskq.telemetry.record import Event, compose, encode

DEFAULT_MAX_BYTES = 10 * 1024 * 1024
DEFAULT_KEEP = 5
CHECK_INTERVAL_S = 1.0

_OPEN_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Drops:
    """Counts lines that could not be written, until a ``log.dropped`` line can report them.

    Attributes:
        total: lines lost since the start; never falls.
        unreported: those that no ``log.dropped`` line has reported yet.
    """

    def __init__(self) -> None:
        self.total = 0
        self.unreported = 0
        self._why = ""

    def note(self, error: OSError) -> None:
        """Count one line that was lost because of `error`."""
        self.total += 1
        self.unreported += 1
        self._why = error.strerror or str(error)

    def notice(self) -> Event:
        """The event that reports the losses. Call `told` when it has been written."""
        return compose("warning", {"event": "log.dropped", "error": self._why, "count": self.unreported}, time.time())

    def told(self) -> None:
        """The notice has been written."""
        self.unreported = 0


class RotatingFile:
    """Appends lines to a file and rotates it by size. For one thread.

    Another process may append to the same file meanwhile (`append_once`); only one may rotate it.
    All files together stay below ``max_bytes * (keep + 1)``.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep: int = DEFAULT_KEEP,
        *,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        """
        Args:
            path: the file; it and its directory are made if they are missing (0600, 0700).
            max_bytes: the size at which the file is rotated. A longer line is dropped.
            keep: how many rotated files are kept.
            clock: monotonic seconds.
            write: `os.write`, or a test's substitute.
        """
        self.drops = Drops()
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._clock = clock
        self._os_write = write
        self._fd = -1
        self._identity = (0, 0)  # device and inode of the open file
        self._size = 0
        self._torn = False  # whether the file ends within a line
        self._next_check_s = -1e18
        self._why_closed = OSError(errno.ENOENT, "not open")

    @property
    def dropped(self) -> int:
        """How many lines were lost since the start."""
        return self.drops.total

    def write(self, line: bytes) -> None:
        """Append one line, which ends with a newline. Never raises OSError: lines that fail are counted."""
        try:
            self._check()
            if self.drops.unreported:
                self._put(encode(self.drops.notice()))
                self.drops.told()
            self._put(line)
        except OSError as error:
            self.drops.note(error)

    def close(self) -> None:
        """Close the file. A later `write` opens it again."""
        fd, self._fd = self._fd, -1
        self._next_check_s = -1e18
        if fd >= 0:
            os.close(fd)

    def _check(self) -> None:
        """Once a second, check whether the open file still has that name, and how long it is."""
        now_s = self._clock()
        if now_s >= self._next_check_s:
            moved = self._moved()
            self._next_check_s = now_s + CHECK_INTERVAL_S
            if moved:
                self._reopen()
        elif self._fd < 0:
            raise self._why_closed

    def _moved(self) -> bool:
        """Whether the name belongs to another file now, or to none."""
        if self._fd < 0:
            return True
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # nobody knows; the open file still takes lines
            return False
        self._size = found.st_size  # another process may have appended, or truncated it
        return (found.st_dev, found.st_ino) != self._identity

    def _reopen(self) -> None:
        self.close()
        try:
            self._fd = open_for_append(self._path)
            found = os.fstat(self._fd)
            self._torn = ends_within_line(self._fd, found.st_size)
        except OSError as error:
            self._why_closed = error
            raise
        finally:
            self._next_check_s = self._clock() + CHECK_INTERVAL_S
        self._identity = (found.st_dev, found.st_ino)
        self._size = found.st_size

    def _put(self, line: bytes) -> None:
        """Write one line, in one system call.

        Raises:
            OSError: it was not written, or not all of it.
        """
        if self._torn:
            line = b"\n" + line
        if len(line) > self._max_bytes:
            raise OSError(errno.EMSGSIZE, "the line is longer than the file may be")
        if self._size + len(line) > self._max_bytes:
            self._rotate()
        try:
            written = self._os_write(self._fd, line)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                self.close()
                self._why_closed, self._next_check_s = error, self._clock() + CHECK_INTERVAL_S
            raise
        self._size += written
        if written < len(line):  # the disk filled up within the line
            self._size, self._torn = take_back(self._fd, written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def _rotate(self) -> None:
        """Move the files up by one number and start a new one.

        Only the files below the first free number move. So a rotation that failed half-way and is tried again with
        every line (if the current file is append-only, say) does not push old files out.
        """
        numbers = rotated_numbers(self._path)
        for number in numbers:
            if number > self._keep:
                os.unlink(rotated_path(self._path, number))
        taken = set(numbers)
        free = next((n for n in range(1, self._keep + 1) if n not in taken), self._keep)
        for number in range(free - 1, 0, -1):
            os.replace(rotated_path(self._path, number), rotated_path(self._path, number + 1))
        if self._keep:
            os.replace(self._path, rotated_path(self._path, 1))
        else:
            os.unlink(self._path)
        self._reopen()


def append_once(path: Path, line: bytes) -> bool:
    """Open, append one line, close: for the guardian, while the broker may write and rotate the same file.

    Returns:
        Whether the whole line was written. Never raises OSError.
    """
    fd = -1
    try:
        fd = open_for_append(path)
        if ends_within_line(fd, os.fstat(fd).st_size):  # the broker was killed within a line
            line = b"\n" + line
        written = os.write(fd, line)
        if written < len(line):
            take_back(fd, written)
        return written == len(line)
    except OSError:
        return False
    finally:
        if fd >= 0:
            os.close(fd)


def open_for_append(path: Path) -> int:
    """Open the log file, private to the user, and make it and its directory where they are missing.

    Raises:
        OSError: it cannot be opened, or it is a symlink, a FIFO, a device.
    """
    try:
        fd = os.open(path, _OPEN_FLAGS, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, _OPEN_FLAGS, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    return fd


def take_back(fd: int, written: int) -> tuple[int, bool]:
    """Cut off the part of a line that the last write on a descriptor could write, so that no torn line stays.

    The part stays if another process has appended something in the meantime.

    Returns:
        The size of the file, and whether it ends within a line.
    """
    size = os.fstat(fd).st_size
    if size == os.lseek(fd, 0, os.SEEK_CUR):  # with O_APPEND, this is the end of what this descriptor wrote last
        size -= written
        os.ftruncate(fd, size)
    return size, ends_within_line(fd, size)


def ends_within_line(fd: int, size: int) -> bool:
    """Whether the last byte of a file of `size` bytes is not a newline."""
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
