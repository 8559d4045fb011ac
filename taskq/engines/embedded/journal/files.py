"""What lies beside the journal: a marker, a canary for lost commits, and space for when the disk is full."""

from __future__ import annotations

import os
from pathlib import Path

from taskq.model.errors import JournalError
from taskq.system.platform import free_bytes, sync_directory

#: Set aside in a file, and given up when the disk is full: with no space left not even a job's end can be recorded.
BALLAST_BYTES = 8 * 1024 * 1024
#: Whether the commits that are counted survive a crash of the system: follows their number.
_SURE, _UNSURE = b"s", b"u"
#: Says, in a directory whose jobs were moved to a database, where they are.
_MOVED = "moved.to"


class FilesBeside:
    """The files beside a journal, each named after it but the marker. Errors of the system come as `OSError`."""

    def __init__(self, journal: Path) -> None:
        """Touches nothing.

        Args:
            journal: the database file.
        """
        self._journal = journal
        self._marker = journal.with_name("queue.id")
        self._high_water = journal.with_suffix(".high")
        self._ballast = journal.with_suffix(".ballast")
        self._moved = journal.with_name(_MOVED)
        self._high = -1  # its descriptor, while it is open

    # -- while the journal is opened

    def expect_journal(self) -> None:
        """Looks whether there is a journal where there must be one.

        Raises:
            JournalError: the marker says so, and it is missing or empty; or its jobs were moved elsewhere.
        """
        place = read_if_there(self._moved).decode(errors="replace").strip()
        if place:
            raise JournalError(
                f"the jobs of {self._journal.parent} were moved to {place}: set TASKQ_URL to that database. Jobs would "
                f"run twice if a fleet ran here as well; to go back all the same, remove {self._moved}"
            )
        is_new = not self._journal.exists() or self._journal.stat().st_size == 0
        if is_new and self._marker.exists():
            raise JournalError(
                f"{self._journal} is missing or empty, but {self._marker.name} says that it held jobs: "
                f"restore it from a backup, or remove {self._marker} to begin with an empty queue"
            )

    def mark(self) -> None:
        """Says, durably, that there is a journal from now on."""
        if not self._marker.exists():
            # the rollback journal of its creation must not come back beside the marker
            sync_directory(self._marker.parent)
            write_durably(self._marker, f"taskq {os.urandom(16).hex()}\n".encode())

    def expect_changes(self, changes: int) -> int:
        """Compares what the journal has with what it was said to have.

        Args:
            changes: how many the journal has: a number that grows with each commit.

        Returns:
            How many are missing, after a crash of the system with a durability that may lose some.

        Raises:
            JournalError: some are missing that no crash can have lost.
        """
        said = read_if_there(self._high_water)
        missing = max(0, int.from_bytes(said[:8], "big") - changes)
        if missing and said[8:] == _SURE:
            raise JournalError(
                f"{self._journal} lacks its last changes ({missing:,} jobs that came in or ended): it is an older "
                f"copy, or its write-ahead log is missing or damaged. Put back all files of {self._journal.parent} as "
                f"they were at one time; or, to go on without these jobs and outcomes, remove {self._high_water}"
            )
        return missing

    def open(self) -> None:
        """The journal is open: opens what is written with each commit."""
        self._high = os.open(self._high_water, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def close(self) -> None:
        """Writes no more commits. A second time does nothing."""
        if self._high >= 0:
            os.close(self._high)
            self._high = -1

    # -- while it is used

    def committed(self, changes: int, is_sure: bool) -> None:
        """Says how many changes the journal has.

        Args:
            changes: as for `expect_changes`.
            is_sure: whether they survive a crash of the system.
        """
        try:
            os.pwrite(self._high, changes.to_bytes(8, "big") + (_SURE if is_sure else _UNSURE), 0)
        except OSError:
            pass  # a canary that is behind does no harm, and the commit is done

    # -- a full disk

    def give_up_ballast(self) -> None:
        """Frees the space that was set aside."""
        self._ballast.unlink(missing_ok=True)

    @property
    def has_ballast(self) -> bool:
        """Whether space is set aside."""
        return self._ballast.exists()

    @property
    def has_room_for_ballast(self) -> bool:
        """Whether as much as is to be set aside is free."""
        return free_bytes(self._journal.parent) >= BALLAST_BYTES

    def set_aside_ballast(self) -> None:
        """Sets space aside if there is much of it, and leaves it to the jobs where the disk is small or nearly full."""
        if free_bytes(self._journal.parent) < 4 * BALLAST_BYTES:
            return
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _allocate(descriptor, BALLAST_BYTES)
        except OSError:
            self._ballast.unlink()
        finally:
            os.close(descriptor)


def boot_id() -> str:
    """Tells one boot of the system from another; empty where the system does not say."""
    return read_if_there(Path("/proc/sys/kernel/random/boot_id")).decode().strip()


def read_if_there(path: Path) -> bytes:
    """The content of a file; nothing if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file so that it, and its name, are there after a loss of power."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.write(descriptor, bytes(size))


def mark_moved(journal: Path, place: str) -> None:
    """Notes durably that the jobs of a journal were moved, so that nobody opens it again. Raises OSError."""
    write_durably(journal.with_name(_MOVED), f"{place}\n".encode())


def moved_to(journal: Path) -> str | None:
    """Where the jobs of a journal were moved to, or None."""
    return read_if_there(journal.with_name(_MOVED)).decode(errors="replace").strip() or None
