"""The spool: jobs enqueued while no broker answers, one file per submit frame.

A client writes a file under a temporary name, syncs it, gives it its name and syncs the folder: then the job is as safe
as in the journal. The broker takes the files in when it starts, and looks for new ones while it runs. A file that was
taken in but not yet removed when the broker died does no harm: known ids are left out.

The name says which jobs a file may hold, so that one is found without reading them all:

    ID.jobs            one job
    FIRST-LAST.jobs    several, whose ids are between these
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import suppress
from heapq import nsmallest
from itertools import islice
from pathlib import Path

from taskq.model.errors import BrokerUnavailable, StoreFull
from taskq.system.platform import sync_directory

_SUFFIX = ".jobs"
#: What one commit takes in at the most: some 20 ms, in which clients wait. At least one file, whatever its size.
_PORTION_FILES = 100
_PORTION_BYTES = 1024 * 1024
#: Names that are kept from one listing of the folder, for the portions to come.
_NAMES = 10_000


def spool_frame(spool: Path, ids: Collection[bytes], frame: bytes, reason: str = "no fleet answers") -> None:
    """Writes a submit frame to the spool; it is durable when this returns.

    Args:
        ids: of the jobs in the frame.
        reason: why they go to the spool.

    Raises:
        StoreFull: the disk is full.
        BrokerUnavailable: the spool cannot be written.
    """
    first, last = min(ids).hex(), max(ids).hex()
    name = first if first == last else f"{first}-{last}"
    temporary = spool / f"{name}.{os.getpid()}.tmp"
    try:
        try:
            _write(temporary, frame)
            os.replace(temporary, spool / f"{name}{_SUFFIX}")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(spool)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise StoreFull(f"{reason}, and the disk of {spool} is full") from error
        raise BrokerUnavailable(
            f"{reason}, and the job cannot be spooled to {spool} ({error.strerror}): "
            "make that folder writable, or start a fleet with `taskq worker module:app`"
        ) from error


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def spooled(spool: Path) -> Iterator[tuple[Path, bytes]]:
    """The files in the spool and their content, oldest first: names begin with an id, and ids sort by time."""
    return _contents(spool, sorted(_names(spool)))


def _names(spool: Path) -> Iterator[str]:
    with suppress(OSError), os.scandir(spool) as entries:  # out of descriptors, perhaps: it is looked at again soon
        for entry in entries:
            if entry.name.endswith(_SUFFIX):
                yield entry.name


def _contents(spool: Path, names: Iterable[str]) -> Iterator[tuple[Path, bytes]]:
    for name in names:
        path = spool / name
        try:
            content = path.read_bytes() if path.lstat().st_uid == os.geteuid() else b""
        except FileNotFoundError:
            continue
        except OSError:
            content = b""  # a folder, or a file that is not ours: as unreadable as one full of garbage
        yield path, content


class Backlog:
    """The files in the spool, oldest first, in portions for one commit each."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._names: deque[str] = deque()
        self.has_more = True  #: Whether there may be more than was returned; nobody has looked yet.

    def portion(self) -> list[tuple[Path, bytes]]:
        """The next files and their content; they are to be removed, or set aside."""
        if not self._names:
            self._names.extend(nsmallest(_NAMES, _names(self._spool)))
        files: list[tuple[Path, bytes]] = []
        size = 0
        while self._names and len(files) < _PORTION_FILES and size < _PORTION_BYTES:
            for path, content in _contents(self._spool, [self._names.popleft()]):
                files.append((path, content))
                size += len(content)
        self.has_more = bool(files)  # one that was empty a moment ago is looked at again soon
        return files

    def pause(self) -> None:
        """Begins anew next time: what was returned last stays where it is."""
        self._names.clear()
        self.has_more = False


def set_aside(path: Path) -> Path:
    """Renames a file that cannot be understood, so that it is kept but not read again. Returns its new name."""
    return path.rename(path.with_suffix(".bad"))


def has_files(spool: Path, besides: Container[str] = ()) -> bool:
    """Whether jobs wait in the spool, in files other than those with some names."""
    return any(name not in besides for name in _names(spool))


def count_files(spool: Path, most: int | None = None) -> int:
    """How many files with jobs wait in the spool; no more than `most` are counted."""
    return sum(1 for _ in islice(_names(spool), most))


def find(spool: Path, ids: Collection[bytes]) -> dict[bytes, bytes]:
    """Looks for jobs in the spool. Returns, for each that is there, the content of its file."""
    wanted = sorted(job_id.hex() for job_id in ids)
    names = [f"{one}{_SUFFIX}" for one in wanted if (spool / f"{one}{_SUFFIX}").exists()]
    if len(names) < len(wanted):
        names += [name for name in _names(spool) if _may_hold(name, wanted)]
    found: dict[bytes, bytes] = {}
    for _, content in _contents(spool, names):
        found.update((job_id, content) for job_id in ids if job_id in content)
    return found


def _may_hold(name: str, wanted: list[str]) -> bool:
    """Whether one of the ids, in order, is between those in a file's name."""
    first, dash, last = name.removesuffix(_SUFFIX).partition("-")
    position = bisect_left(wanted, first)
    return bool(dash) and position < len(wanted) and wanted[position] <= last
