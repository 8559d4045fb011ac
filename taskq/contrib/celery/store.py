"""What Celery keeps beside its messages: results, states, the parts of chords, and which job a task's id stands for.

It is a database in the directory of the queue, written by all processes of the application: those that enqueue, and the
consumers. A commit survives `kill -9` of any process. Only chords are synced to the disk at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw

_BUSY_MS = 30_000
# Columns without a type keep text as text.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value, expires_at REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (task_id TEXT PRIMARY KEY, job_id TEXT NOT NULL, expires_at REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revoked (task_id TEXT PRIMARY KEY, expires_at REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chords (
    group_id TEXT PRIMARY KEY, size INTEGER, added INTEGER NOT NULL, last_part TEXT, expires_at REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    group_id TEXT, task_id TEXT, position REAL NOT NULL, result, expires_at REAL,
    PRIMARY KEY (group_id, task_id)) WITHOUT ROWID;
"""
_TABLES = ("entries", "jobs", "revoked", "chords", "parts")


class Store:
    """The database of one queue. Threads and forked processes have a connection each."""

    def __init__(self, path: Path, keep_s: float | None) -> None:
        """
        Args:
            keep_s: how long an entry is kept, in seconds; None for ever.
        """
        self.path = path
        self._keep_s = keep_s
        self._local = threading.local()

    def get(self, key: bytes) -> str | bytes | None:
        """Returns a value, or None."""
        return self._value("SELECT value FROM entries WHERE key = ?", (key,))

    def get_many(self, keys: Sequence[bytes]) -> list[str | bytes | None]:
        """Returns the values of keys, in their order."""
        return [self.get(key) for key in keys]

    def put(self, key: bytes, value: str | bytes) -> None:
        """Keeps a value."""
        self._do("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (key, value, self._expiry()))

    def drop(self, key: bytes) -> None:
        """Drops a value."""
        self._do("DELETE FROM entries WHERE key = ?", (key,))

    def note_job(self, task_id: str, job_id: str, due_at: float | None = None) -> None:
        """Notes which job runs a task; of several (retries), the latest.

        Args:
            due_at: when the job may start, in seconds since 1970, if not at once.
        """
        self._do("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)", (task_id, job_id, self._expiry(due_at)))

    def job_of(self, task_id: str) -> str | None:
        """Returns the id of the job that runs a task, or None if nothing is known of it."""
        return self._value("SELECT job_id FROM jobs WHERE task_id = ?", (task_id,))

    def revoke(self, task_id: str) -> None:
        """Notes that a task must not start any more, whether it has been sent or not."""
        self._do("INSERT OR REPLACE INTO revoked VALUES (?, ?)", (task_id, self._expiry()))

    def is_revoked(self, task_id: str) -> bool:
        """Whether a task must not start."""
        return self._value("SELECT 1 FROM revoked WHERE task_id = ?", (task_id,)) is not None

    def revoked(self) -> list[str]:
        """The ids of the tasks that must not start."""
        return [task_id for (task_id,) in self._connection().execute("SELECT task_id FROM revoked")]

    # -- chords

    def begin_chord(self, group_id: str, size: int) -> None:
        """Says how many tasks must end before the body of a chord is called; some may have ended already. If it was
        called before, the chord begins again."""
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM parts WHERE group_id = ?1 AND (SELECT last_part FROM chords WHERE group_id = ?1) NOTNULL",
                (group_id,),
            )
            connection.execute(
                "INSERT INTO chords VALUES (?, ?, 0, NULL, ?) ON CONFLICT (group_id) DO UPDATE "
                "SET size = excluded.size, last_part = NULL, added = iif(last_part ISNULL, added, 0)",
                (group_id, size, self._expiry()),
            )

    def grow_chord(self, group_id: str) -> None:
        """One more task must end before the body of a chord is called."""
        self._do(
            "INSERT INTO chords VALUES (?, NULL, 1, NULL, ?) ON CONFLICT (group_id) DO UPDATE SET added = added + 1",
            (group_id, self._expiry()),
        )

    def end_part(self, group_id: str, task_id: str, position: float, result: str | bytes) -> list[str | bytes] | None:
        """A task of a chord has ended. It may say so more than once, if its process died before it was told.

        Returns:
            The results of all tasks, by position, if this task is the one that has to call the body, otherwise None.
        """
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?)",
                (group_id, task_id, position, result, self._expiry()),
            )
            is_last = connection.execute(
                "UPDATE chords SET last_part = ?1 WHERE group_id = ?2 AND coalesce(last_part, ?1) = ?1 "
                "AND size + added <= (SELECT count(*) FROM parts WHERE group_id = ?2) RETURNING 1",
                (task_id, group_id),
            ).fetchall()
        if not is_last:
            return None
        rows = self._connection().execute("SELECT result FROM parts WHERE group_id = ? ORDER BY position", (group_id,))
        return [result for (result,) in rows]

    @contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        """A transaction that is synced: a part that was lost would stop its chord for ever."""
        connection = self._connection()
        connection.execute("PRAGMA synchronous = FULL; BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.execute("PRAGMA synchronous = NORMAL")

    def clean_up(self) -> None:
        """Drops what has expired."""
        for table in _TABLES:
            self._do(f"DELETE FROM {table} WHERE expires_at < ?", (time.time(),))

    # -- connections

    def _expiry(self, since: float | None = None) -> float | None:
        return None if self._keep_s is None else max(time.time(), since or 0) + self._keep_s

    def _value(self, statement: str, values: Sequence[object]) -> str | None:
        found: str | None = self._connection().execute(statement, values).get
        return found

    def _do(self, statement: str, values: Sequence[object]) -> None:
        self._connection().execute(statement, values)

    def _connection(self) -> apsw.Connection:
        known: tuple[int, apsw.Connection] | None = getattr(self._local, "connection", None)
        if known is not None and known[0] == os.getpid():
            return known[1]
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(_BUSY_MS)
        connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
        connection.execute(_SCHEMA)
        self._local.connection = os.getpid(), connection
        return connection
