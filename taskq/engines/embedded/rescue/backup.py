"""A copy of the journal, made while the broker works: a little in each turn of its loop, by SQLite's own backup.

What the broker commits meanwhile is in the copy too: it is the journal as it is when the last step is done. Until the
client has copied the files of large payloads, none of them is removed.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from taskq.model.errors import ConfigError, DirectoryError
from taskq.system.clock import SYSTEM_CLOCK, Clock

#: What one turn of the loop does for a backup: no more pages than these, which take about 1.5 ms; fewer in a turn that
#: has committed as well, and fewer on a slow disk: this is the time after which it stops, and the pages that it copies
#: between two looks at the clock.
_MOST_PAGES: Final = 256
_MOST_PAGES_BUSY: Final = 64
_STEP_S: Final = 0.002
_PAGES: Final = 32
#: While every turn commits, one in this time copies as well.
_LEFT_OUT_S: Final = 0.02
#: A client that has not asked for this long is gone.
_GONE_AFTER_S: Final = 5.0


class Copied(NamedTuple):
    """How far a backup is."""

    pages: int
    all_pages: int
    is_done: bool


class Backups:
    """The backup that is being made, if one is. Used by the broker's loop alone."""

    def __init__(self, db: apsw.Connection | None, clock: Clock = SYSTEM_CLOCK) -> None:
        """
        Args:
            db: the journal's connection; None if it is only in memory.
        """
        self._db, self._clock = db, clock
        self._path = ""
        self._target: apsw.Connection | None = None
        self._backup: apsw.Backup | None = None
        self._copied = Copied(0, 0, False)
        self._error = ""
        self._asked_at = self._stepped_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether one is being made: then the files of payloads stay where they are."""
        return bool(self._path)

    @property
    def has_more(self) -> bool:
        """Whether there is more to copy."""
        return self._backup is not None

    def ask(self, path: str, is_end: bool) -> Copied:
        """Begins a backup, tells how far it is, or ends it.

        Args:
            path: the file to write, which must not exist: the name of the backup, too.
            is_end: the client has all that it needs, or wants no more of it.

        Raises:
            ConfigError: another one is being made.
            DirectoryError: the file cannot be written.
        """
        self._drop_abandoned()
        if self._path not in ("", path):
            raise ConfigError(f"another backup is being made, to {self._path}: wait until it is done")
        if is_end:
            copied = self._copied
            self.close()
            return copied
        self._asked_at = self._clock.monotonic()
        if not self._path:
            self._begin(path)
        if self._error:
            error = self._error
            self.close()
            raise DirectoryError(error)
        return self._copied

    def _begin(self, path: str) -> None:
        if self._db is None:
            raise DirectoryError("the journal of this fleet is not in a file, so there is nothing to copy")
        self._path, self._copied, self._error = path, Copied(0, 0, False), ""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.close(descriptor)
            self._target = apsw.Connection(path)
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-1024"):
                self._target.execute(f"PRAGMA {pragma}")
            self._backup = self._target.backup("main", self._db, "main")
        except (OSError, apsw.Error) as error:
            self._fail(error)

    def step(self, now: float, *, is_busy: bool) -> None:
        """Copies a little, between two transactions.

        Args:
            now: monotonic seconds.
            is_busy: this turn of the loop has committed, too: then only if there was no other for a while.
        """
        backup = self._backup
        if backup is None or self._db is None or self._db.in_transaction:
            return
        if (is_busy and now < self._stepped_at + _LEFT_OUT_S) or self._drop_abandoned():
            return
        self._stepped_at = now
        until = self._clock.monotonic() + _STEP_S
        try:
            for _ in range((_MOST_PAGES_BUSY if is_busy else _MOST_PAGES) // _PAGES):
                with suppress(apsw.BusyError, apsw.LockedError):
                    backup.step(_PAGES)
                if backup.done or self._clock.monotonic() >= until:
                    break
            self._copied = Copied(backup.page_count - backup.remaining, backup.page_count, False)
            if backup.done:
                self._finish()
                self._copied = Copied(self._copied.all_pages, self._copied.all_pages, True)
        except apsw.Error as error:
            self._fail(error)

    def _finish(self) -> None:
        backup, self._backup = self._backup, None
        target, self._target = self._target, None
        if backup is not None:
            backup.finish()
        if target is not None:
            target.close()

    def _fail(self, error: Exception) -> None:
        self._error = f"{self._path} cannot be written: {error}"
        with suppress(apsw.Error):
            self._finish()

    def _drop_abandoned(self) -> bool:
        """Gives up a backup whose client is gone. Its file stays: whoever made its folder removes it."""
        is_gone = self.is_open and self._clock.monotonic() - self._asked_at > _GONE_AFTER_S
        if is_gone:
            self.close()
        return is_gone

    def close(self) -> None:
        """Gives up what is not done, and lets files of payloads go again."""
        with suppress(apsw.Error):
            self._finish()
        self._path = ""


def check_copy(path: Path) -> str:
    """Reads a copy as a whole, and folds its write-ahead log into it. Returns what is wrong; "" if nothing is."""
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            problems = [str(problem) for (problem,) in db.execute("PRAGMA quick_check(3)")]
    except apsw.Error as error:
        return str(error)
    return "" if problems == ["ok"] else "; ".join(problems)
