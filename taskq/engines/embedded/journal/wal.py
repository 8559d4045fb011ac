"""The write-ahead log beside the journal: whether it is still there, its checkpoints, and space that is written in it
before SQLite needs it.

A sync over space that was written before takes 110 microseconds where one that makes the file longer takes 210, since
the file system must record the new length as well. SQLite uses the space of a log again once it was folded into the
journal (a checkpoint), so only the commits before that were slow: those of each fleet's first moments.

SQLite would make the checkpoint inside a commit. Here a commit only notes that it is time for one, and whoever commits
calls `fold` between two commits: it takes as long as all else that a turn of the broker's loop does.

Zeros behind the last frame are safe at any moment: SQLite reads frames up to the first one that does not have the salt
and the checksum of this log, as it does with the remains of an earlier one.
"""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from taskq.model.errors import JournalError
from taskq.system.platform import free_bytes

#: How far ahead of the last frame zeros are written at once: a megabyte, which makes one commit in 120 take 0.8 ms
#: longer while the log is new.
AHEAD_FRAMES = 256
#: They are written when fewer frames than this are left, so that a small commit always finds its space.
LEFT_FRAMES = 16
#: No zeros are written when less than this is free: the space is for the jobs.
_WANTED_FREE_BYTES = 64 * 1024 * 1024
#: A commit folds the log itself if that is this many times as long as when it is time to fold it: so it has a bound,
#: whoever commits.
FOLD_AT_ONCE = 2
#: How often a commit looks whether the log is still there.
LOOK_EVERY_S = 0.010
_PASSIVE = apsw.SQLITE_CHECKPOINT_PASSIVE
_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
_NEVER = 1 << 62
#: In pieces: the system keeps what is written at once together, and would count all of it as dirty with each commit.
_ZEROS = bytes(16 * 1024)


class WriteAheadLog:
    """The log of one journal. Written by SQLite; from here only behind its end."""

    def __init__(self, path: Path) -> None:
        """Touches nothing.

        Args:
            path: the file.
        """
        self._path = path
        self._inode = 0
        self._look_at = 0.0  # when it is looked at again (monotonic)
        #: Whether it is to be folded into the journal. Set by each commit, cleared by `fold`.
        self.is_long = False
        self._descriptor = -1  # while it is open

    def open(self, db: apsw.Connection, pages: int, page_bytes: int, *, writes_ahead: bool) -> None:
        """The journal is open: takes note of the file, and takes over the checkpoints.

        Args:
            db: the journal's connection.
            pages: from how many frames on the log is to be folded into the journal.
            page_bytes: the size of the journal's pages.
            writes_ahead: whether to write space in advance: it is of use if each commit is synced.
        """
        self._inode = os.stat(self._path).st_ino
        self._pages = pages
        self.is_long = False
        self._frame_bytes = _FRAME_HEADER_BYTES + page_bytes
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._first_ahead_at = LEFT_FRAMES if writes_ahead else _NEVER  # whoever only looks commits little
        self._ahead_at = self._first_ahead_at  # at how many frames zeros are written, if need be
        db.set_wal_hook(self._committed)  # in place of SQLite's own, which only makes the checkpoints

    def close(self) -> None:
        """Lets go of the file. A second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def size(self) -> int:
        """How many bytes the file takes."""
        return os.fstat(self._descriptor).st_size if self._descriptor >= 0 else 0

    def check(self, now: float) -> None:
        """Looks now and then whether the file that SQLite writes is still the one that the next broker will find.

        Args:
            now: monotonic seconds.

        Raises:
            JournalError: it is not.
        """
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        if _inode(self._path) != self._inode:
            raise JournalError(
                f"{self._path} was removed or replaced while the broker ran: the last commit may be lost. "
                "Nothing but the broker may open the journal"
            )

    def _committed(self, db: apsw.Connection, _name: str, frames: int) -> int:
        """SQLite calls this after each commit, with the number of frames that the log has then."""
        if frames >= self._ahead_at:
            self._write_ahead(frames)
        self.is_long = frames >= self._pages
        if frames >= FOLD_AT_ONCE * self._pages:
            self.fold(db)
        return apsw.SQLITE_OK

    def fold(self, db: apsw.Connection) -> None:
        """Folds the log into the journal. The next commit begins at the start of the file again."""
        self.is_long = False
        self._ahead_at = self._first_ahead_at  # SQLite may cut the file off
        try:
            db.wal_checkpoint(mode=_PASSIVE)
        except apsw.Error:
            pass  # the log keeps everything, and the next commit says again that it is long

    def _write_ahead(self, frames: int) -> None:
        self._ahead_at = frames + AHEAD_FRAMES - LEFT_FRAMES
        end = _HEADER_BYTES + min(frames + AHEAD_FRAMES, self._pages + LEFT_FRAMES) * self._frame_bytes
        try:
            size = os.fstat(self._descriptor).st_size
            if size < end and free_bytes(self._path.parent) >= _WANTED_FREE_BYTES:
                for start in range(size, end, len(_ZEROS)):
                    os.pwrite(self._descriptor, _ZEROS[: end - start], start)
        except OSError:
            pass  # the log does without; if the disk fails, the next sync says so


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None
