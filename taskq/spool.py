"""The spool: jobs enqueued while no broker answers, one file per submit frame.

A client writes a file under a temporary name, syncs it, gives it its name and syncs the folder: then the job is as safe
as in the journal. The broker takes the files in when it starts, and looks for new ones while it runs. A file that was
taken in but not yet removed when the broker died is harmless: ids that are known are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from taskq.errors import BrokerUnavailable, StoreFull
from taskq.platform import sync_directory

_SUFFIX = ".jobs"


def spool_frame(spool: Path, first_id: bytes, frame: bytes) -> None:
    """Writes a submit frame to the spool; it is durable when this returns.

    Raises:
        StoreFull: the disk is full.
        BrokerUnavailable: the spool cannot be written.
    """
    temporary = spool / f"{first_id.hex()}.{os.getpid()}.tmp"
    try:
        try:
            _write(temporary, frame)
            os.replace(temporary, spool / f"{first_id.hex()}{_SUFFIX}")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(spool)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise StoreFull(f"no fleet answers, and the disk of {spool} is full") from error
        raise BrokerUnavailable(
            f"no fleet answers, and the job cannot be spooled to {spool} ({error.strerror}): "
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
    try:
        paths = sorted(spool.glob(f"*{_SUFFIX}"))
    except OSError:
        return  # out of descriptors, perhaps: it is looked at again soon
    for path in paths:
        try:
            content = path.read_bytes() if path.lstat().st_uid == os.geteuid() else b""
        except FileNotFoundError:
            continue
        except OSError:
            content = b""  # a folder, or a file that is not ours: as unreadable as one full of garbage
        yield path, content


def set_aside(path: Path) -> Path:
    """Renames a file that cannot be understood, so that it is kept but not read again. Returns its new name."""
    return path.rename(path.with_suffix(".bad"))


def is_spooled(spool: Path, job_id: bytes) -> bool:
    """Whether a job waits in the spool. Reads all of it: for the rare question while no broker runs."""
    return any(job_id in content for _, content in spooled(spool))
