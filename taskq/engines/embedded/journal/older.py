"""A journal that an older taskq wrote, looked at without an upgrade: that taskq can still start there afterwards."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw

from taskq.engines.embedded.journal.schema import SCHEMA_VERSION
from taskq.model.errors import JournalError
from taskq.protocol import spool
from taskq.system.directory import Directory


def is_older(journal: Path) -> bool:
    """Whether a journal would be upgraded by being opened. The caller holds the lock; nothing is changed.

    A file that is missing or cannot be read is not older: whoever opens it says what is wrong with it.
    """
    wal = journal.with_name(f"{journal.name}-wal")
    try:
        has_wal = wal.exists() and wal.stat().st_size > 0
        version = _version_by_sqlite(journal) if has_wal else _version_in_header(journal)
    except (apsw.Error, OSError):
        return False
    return 0 < version < SCHEMA_VERSION


def _version_in_header(journal: Path) -> int:
    """SQLite keeps `user_version` at byte 60 of the file. To open it would make files beside it."""
    with journal.open("rb") as file:
        header = file.read(64)
    return int.from_bytes(header[60:], "big") if header.startswith(b"SQLite format 3\0") else 0


def _version_by_sqlite(journal: Path) -> int:
    """Where a broker was killed, the write-ahead log knows more than the file; it stays as it is."""
    with closing(apsw.Connection(str(journal), flags=apsw.SQLITE_OPEN_READWRITE)) as db:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        version: Any = db.execute("PRAGMA user_version").fetchone()
    return int(version[0])


def copy_directory(directory: Directory, place: Path) -> Directory:
    """Copies what a look needs of a directory: the journal, what lies beside it, and the spool. The caller holds the
    lock.

    Args:
        place: an empty, private directory for the copy.

    Raises:
        JournalError: there is no room for the copy, or it cannot be made for another reason.
    """
    copy = Directory(place)
    names = ("journal.db", "journal.db-wal", "journal.high", "queue.id")
    try:
        copy.spool.mkdir()
        copy.log.mkdir()
        for path in (*map(directory.path.joinpath, names), *spool.files(directory.spool)):
            if path.exists():
                shutil.copy(path, place / os.path.relpath(path, directory.path))
    except OSError as error:
        raise JournalError(
            f"{directory.journal} is of an older taskq, so a copy of it is looked at, and {place} cannot hold that: "
            f"{error.strerror or error}. Free some space there, or start a fleet, which upgrades the journal"
        ) from error
    return copy
