"""The spool: jobs enqueued while no broker answers.

Clients write it (`taskq.protocol.spooler`), and what is there is as safe as in the journal. The broker takes it in when
it starts, and looks for more while it runs. A file that was taken in but not yet removed when the broker died does no
harm: known ids are left out. There are two kinds of files, whose names begin with an id, so that they sort by time:

    ID.jobs            one submit frame, of one job
    FIRST-LAST.jobs    one submit frame, of several jobs, whose ids are between these
    ID.frames          submit frames of one client, each appended with one sync, up to a size that one commit takes in

    ID.frames := record* zero*            record := u32 CRC-32 of the frame | frame

A client appends to a file under a lock, and only while its owner may write the file. The broker makes it read-only,
under the same lock, before it reads what it takes in: whoever wants to append after that begins another file. What
follows the last complete record was never acknowledged: the power failed, or its writer died, in the middle of it.
"""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import suppress
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from stat import S_IWUSR
from struct import Struct
from typing import NamedTuple
from zlib import crc32

SINGLE = ".jobs"
SERIES = ".frames"
_SUFFIXES = (SINGLE, SERIES)
_SET_ASIDE = ".bad"
#: What one commit takes in at the most: some 20 ms, in which clients wait. At least one file, whatever its size.
_PORTION_FRAMES = 100
_PORTION_BYTES = 1024 * 1024
#: Names that are kept from one listing of the folder, for the portions to come.
_NAMES = 10_000
#: The checksum of a record, and the length with which its frame begins.
_RECORD = Struct("!II")
_CHECKSUM = Struct("!I")


class SpoolFile(NamedTuple):
    """A file in the spool.

    Attributes:
        frames: what it holds, in order; one frame may be garbage, in a file of one.
        is_damaged: whether it holds more, which cannot be read.
    """

    path: Path
    frames: list[bytes]
    is_damaged: bool = False


def record_of(frame: bytes) -> bytes:
    """Makes a record of a file of several frames."""
    return _CHECKSUM.pack(crc32(frame)) + frame


def split_records(content: bytes) -> tuple[list[bytes], bool]:
    """Returns the frames in a file of several, and whether it is damaged: whether more follows than one record that
    its writer did not finish. The file was as long as it is before the second record was written."""
    frames: list[bytes] = []
    view, position = memoryview(content), 0
    while True:
        end = position + _RECORD.size
        checksum, length = _RECORD.unpack_from(content, position) if end <= len(content) else (0, 0)
        frame = view[position + _CHECKSUM.size : end + length]
        if length == 0 or end + length > len(content) or crc32(frame) != checksum:
            break
        frames.append(bytes(frame))
        position = end + length
    is_full = not content[position:].lstrip(b"\0")  # but for a few bytes, perhaps, in which no record fits
    is_cut_off = position > 0 and end + length > len(content) and not is_full
    return frames, is_cut_off or bool(content[end + length :].lstrip(b"\0"))


def spooled(spool: Path) -> Iterator[SpoolFile]:
    """The files in the spool, oldest first. They are only looked at."""
    return _read_all(spool, sorted(_names(spool)))


def files(spool: Path) -> list[Path]:
    """The paths of the files in the spool."""
    return [spool / name for name in _names(spool)]


def _names(spool: Path) -> Iterator[str]:
    with suppress(OSError), os.scandir(spool) as entries:  # out of descriptors, perhaps: it is looked at again soon
        for entry in entries:
            if entry.name.endswith(_SUFFIXES):
                yield entry.name


def _read_all(spool: Path, names: Iterable[str]) -> Iterator[SpoolFile]:
    for name in names:
        path = spool / name
        try:
            content = path.read_bytes() if path.lstat().st_uid == os.geteuid() else None
        except FileNotFoundError:
            continue
        except OSError:
            content = None  # a folder, or a file that is not ours: as unreadable as one full of garbage
        if name.endswith(SERIES):
            yield SpoolFile(path, *([], True) if content is None else split_records(content))
        else:
            yield SpoolFile(path, [content or b""])


def close_series(path: Path) -> bool:
    """Makes a file of several frames read-only. Returns whether nobody appends to it now, or will."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True  # it cannot be read either
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # its writer needs an exclusive one
        os.fchmod(descriptor, 0o400)
        return True
    except OSError:
        return False  # its writer is appending, or it is not ours
    finally:
        os.close(descriptor)


def lock_series(descriptor: int) -> bool:
    """Locks a file of several frames. Returns whether it can be appended to.

    The lock ends when this process closes any descriptor of the file: another thread may read it. And a broker may have
    closed a new file before its writer could lock it. So a writer asks `is_open_series` again after it has written."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return is_open_series(descriptor)


def is_open_series(descriptor: int) -> bool:
    """Whether a file of several frames is still in the spool, and no broker has made it read-only."""
    status = os.fstat(descriptor)
    return status.st_nlink > 0 and bool(status.st_mode & S_IWUSR)


class Backlog:
    """The files in the spool, oldest first, in portions for one commit each."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._names: deque[str] = deque()
        self.has_more = True  #: Whether there may be more than was returned; nobody has looked yet.
        self.has_left_some = False  #: Whether the last look has left files there, which are to be tried again soon.

    def portion(self) -> list[SpoolFile]:
        """Returns the next files; they are to be removed, or set aside. One to which a client is appending at this
        moment is left for the next look."""
        if not self._names:
            self._names.extend(nsmallest(_NAMES, _names(self._spool)))
        files: list[SpoolFile] = []
        frames = size = 0
        self.has_left_some = False
        while self._names and frames < _PORTION_FRAMES and size < _PORTION_BYTES:
            name = self._names.popleft()
            if name.endswith(SERIES) and not close_series(self._spool / name):
                self.has_left_some = True
                continue
            for file in _read_all(self._spool, [name]):
                files.append(file)
                frames += len(file.frames)
                size += sum(map(len, file.frames))
        self.has_more = bool(files)  # one that was empty a moment ago is looked at again soon
        return files

    def pause(self) -> None:
        """Begins anew next time: what was returned last stays where it is."""
        self._names.clear()
        self.has_more = False
        self.has_left_some = True


def set_aside(path: Path) -> Path:
    """Renames a file that cannot be understood, so that it is kept but not read again. Returns its new name."""
    return path.rename(path.with_suffix(_SET_ASIDE))


def has_files(spool: Path, besides: Container[str] = ()) -> bool:
    """Whether jobs wait in the spool, in files other than those with some names."""
    return any(name not in besides for name in _names(spool))


def count_files(spool: Path, most: int | None = None) -> int:
    """How many files with jobs wait in the spool; no more than `most` are counted."""
    return sum(1 for _ in islice(_names(spool), most))


def find(spool: Path, ids: Collection[bytes]) -> dict[bytes, bytes]:
    """Looks for jobs in the spool. Returns, for each that is there, its frame."""
    wanted = sorted(job_id.hex() for job_id in ids)
    names = [f"{one}{SINGLE}" for one in wanted if (spool / f"{one}{SINGLE}").exists()]
    if len(names) < len(wanted):
        names += [name for name in _names(spool) if _may_hold(name, wanted)]
    found: dict[bytes, bytes] = {}
    for file in _read_all(spool, names):
        for frame in file.frames:
            found.update((job_id, frame) for job_id in ids if job_id in frame)
    return found


def holds(spool: Path, job_id: bytes) -> bool:
    """Whether a job is in the spool, or in a file that was set aside there."""
    if find(spool, [job_id]):
        return True
    return any(job_id in path.read_bytes() for path in spool.glob(f"*{_SET_ASIDE}") if path.is_file())


def _may_hold(name: str, wanted: list[str]) -> bool:
    """Whether one of the ids, in order, may be in a file of this name that is not named by it."""
    if name.endswith(SERIES):
        return True
    first, dash, last = name.removesuffix(SINGLE).partition("-")
    position = bisect_left(wanted, first)
    return bool(dash) and position < len(wanted) and wanted[position] <= last
