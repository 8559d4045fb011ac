"""How the journal is set up in SQLite: what its file is opened with, its tables, and the upgrades of older ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import apsw

from taskq.model.errors import JournalError

SCHEMA_VERSION = 4
_SCRIPTS = {1: "schema.sql", 2: "upgrade_2.sql", 3: "upgrade_3.sql", 4: "upgrade_4.sql"}
_SYNCHRONOUS = {"power": "FULL", "os": "NORMAL", "memory": "OFF"}
#: At each commit after pages were moved in an index, SQLite looks at all pages that it keeps: with 32 MiB of them that
#: took a tenth of a broker's time in bulk. What is not kept is in the system's cache, and read in a microsecond.
_CACHE_KIB = 4 * 1024
#: The write-ahead log is to be folded into the journal when it has so many pages: 4 MB. That takes 3 ms of CPU time,
#: in a turn of the loop in which nothing is committed; 16 MB took 8 ms, and no less for each job.
WAL_PAGES = 1_000
_WAL_KEPT_BYTES = 64 * 1024 * 1024


def configure(db: apsw.Connection, durability: str, path: Path) -> None:
    """Sets how the journal is locked, written and synced, before anything else is done with it.

    Args:
        durability: "power", "os" or "memory".
        path: the database file, for messages.

    Raises:
        JournalError: it has no write-ahead log.
    """
    db.set_busy_timeout(5_000)
    for pragma in (
        "locking_mode=EXCLUSIVE",
        "journal_mode=WAL",
        f"synchronous={_SYNCHRONOUS[durability]}",
        "fullfsync=1",
        "checkpoint_fullfsync=1",
        f"cache_size=-{_CACHE_KIB}",
        "wal_autocheckpoint=0",  # see `taskq.engines.embedded.journal.wal`
        f"journal_size_limit={_WAL_KEPT_BYTES}",
        "temp_store=MEMORY",
    ):
        db.execute(f"PRAGMA {pragma}")
    if _pragma(db, "journal_mode") != "wal":  # if a call fails while it changes, it stays, without an error
        raise JournalError(f"{path} could not be changed to a write-ahead log")


def upgrade(db: apsw.Connection, path: Path) -> None:
    """Makes the tables of a new journal, and brings those of an older one up to date.

    Args:
        path: the database file, for messages.

    Raises:
        JournalError: a newer taskq wrote it.
    """
    version = _pragma(db, "user_version")
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"{path} was written by a newer taskq (journal version {version}, this one knows "
            f"{SCHEMA_VERSION}): install that version again; the file was not touched"
        )
    for number in range(version + 1, SCHEMA_VERSION + 1):
        script = _script(_SCRIPTS[number])
        db.execute(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version={number}; COMMIT")
    db.execute(_script("items.sql"))


def _pragma(db: apsw.Connection, name: str) -> Any:
    row: Any = db.execute(f"PRAGMA {name}").fetchone()
    return row[0]


@cache
def _script(name: str) -> str:
    return Path(__file__).with_name(name).read_text()
