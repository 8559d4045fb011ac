"""The embedded store: a journal in SQLite.

Rules that keep it safe (figures and sources: CRASH_SAFETY.md, sections 2.1 and 2.3):
- WAL and synchronous=FULL, set explicitly, one commit for all that a tick of the broker brought (group commit).
- One connection for the broker's life, and nobody else opens the file, ever, by any means: a stray open and close in
  this process would drop SQLite's POSIX locks, and another process could then remove the WAL under us. As a canary,
  each commit checks that the WAL's path still leads to the file we write.
- A failed commit is an unknown outcome: nothing is acknowledged, and the broker stops.
- A marker file says that there must be a journal, so a lost one is an error and never a silent empty queue.

APSW is the driver: in the same run it took 3.6 microseconds of CPU to insert a row and 2.3 to end it, where the sqlite3
module took 7.5 and 4.3; it brings a current SQLite, and a VFS for the tests of power loss.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from importlib.resources import files
from itertools import chain, count, islice, repeat
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import apsw
import msgpack

from taskq.engines.embedded.journal import statements
from taskq.engines.embedded.journal.files import FilesBeside, boot_id
from taskq.engines.embedded.journal.partition_numbers import BandNumbers
from taskq.engines.embedded.journal.statements import PRUNABLE
from taskq.engines.embedded.journal.store import TOTAL_NAMES, Totals, Wanted
from taskq.model.attempt import shortened
from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.model.errors import EnqueueError, JournalError, StoreFull
from taskq.model.job import Carried, JobRow, first_id_at
from taskq.model.limits import KEPT_ATTEMPTS_EACH_END, MAX_JOBS_SEEN, MIB
from taskq.model.partition import Partition, Starts, partition_of
from taskq.model.schedule import Schedule, ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, Edge, Ended, Rescheduled, StoredJob, StoredState

SCHEMA_VERSION = 3
_SYNCHRONOUS = {"power": "FULL", "os": "NORMAL", "memory": "OFF"}
_CACHE_KIB = 32 * 1024
_WAL_PAGES = 4_000
_WAL_KEPT_BYTES = 64 * 1024 * 1024
#: How often pruning begins again at the oldest job.
_PRUNE_AGAIN_S = 60.0
#: Ids whose time lies further ahead are not those of a clock that runs a little fast.
_FUTURE_S = 86_400.0
_AFTER_ALL_IDS = b"\xff" * 17
#: `find` stops at payloads and outcomes of this size together.
_FIND_BYTES = 4 * MIB

P = ParamSpec("P")
T = TypeVar("T")


def _trusted(
    method: Callable[Concatenate[SQLiteStore, P], T],
) -> Callable[Concatenate[SQLiteStore, P], T]:
    """Turns the errors of SQLite into ours."""

    @wraps(method)
    def wrapper(self: SQLiteStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except apsw.FullError as error:
            raise StoreFull(f"the disk that holds {self._path} is full: free some space there") from error
        except apsw.Error as error:
            raise JournalError(f"{self._path}: {type(error).__name__}: {error}") from error
        except OSError as error:  # of the files beside it
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(f"the disk that holds {self._path} is full: free some space there") from error
            raise JournalError(f"{self._path}: {error}") from error

    return wrapper


@cache
def _script(name: str) -> str:
    return files("taskq.engines.embedded.journal").joinpath(name).read_text()


class SQLiteStore:
    """A journal file and what it knows. See `taskq.engines.embedded.journal.store.Store` for the meaning of the
    operations."""

    def __init__(self, path: Path, durability: str = "power", vfs: str | None = None) -> None:
        """Opens the journal, or makes it.

        Args:
            path: the database file. The directory must be private, and locked by the caller.
            durability: "power", "os" or "memory": how commits are synced.
            vfs: the name of a registered SQLite VFS; the tests use one that loses unsynced writes.

        Raises:
            JournalError: it is damaged, missing though its marker is there, or made by a newer taskq.
        """
        self._path = path
        self._files = FilesBeside(path)
        self._spec_of_number: dict[int, Spec] = {}
        self._number_of_spec: dict[Spec, int] = {}
        # no job is known whose id lies between these two: see `_find_gap`
        self._gap_from, self._gap_to, self._horizon = b"", _AFTER_ALL_IDS, b""
        self._next_seq = 1
        self._prune_after = 0  # up to this seq nothing more is to be removed now
        self._pruning_since = 0.0
        self.is_full = False
        self.has_waiting = False
        self._has_edges = False
        #: What the opening found, for the log: events and their fields.
        self.findings: list[tuple[str, dict[str, Any]]] = []
        self._survives_power_loss = durability == "power"
        mask = os.umask(0o077)  # what SQLite makes beside the database is for us alone, too
        try:
            try:
                self._open(durability, vfs)
            except StoreFull:
                self.make_room()  # to open writes a little
                self._open(durability, vfs)
        finally:
            os.umask(mask)

    # -- opening and closing

    @_trusted
    def _open(self, durability: str, vfs: str | None) -> None:
        self._files.expect_journal()
        self._db = apsw.Connection(str(self._path), vfs=vfs)
        try:
            self._set_up(durability)
        except BaseException:
            self._db.close()
            raise

    def _set_up(self, durability: str) -> None:
        self._db.set_busy_timeout(5_000)
        for pragma in (
            "locking_mode=EXCLUSIVE",
            "journal_mode=WAL",
            f"synchronous={_SYNCHRONOUS[durability]}",
            "fullfsync=1",
            "checkpoint_fullfsync=1",
            f"cache_size=-{_CACHE_KIB}",
            f"wal_autocheckpoint={_WAL_PAGES}",
            f"journal_size_limit={_WAL_KEPT_BYTES}",
            "temp_store=MEMORY",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        if self._value("PRAGMA journal_mode") != "wal":  # if a call fails while it changes, it stays, without an error
            raise JournalError(f"{self._path} could not be changed to a write-ahead log")
        self._migrate()
        self._db.execute(_script("items.sql"))
        self._files.mark()
        self._verify()
        self._load()
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('open_since_boot', ?)", (boot_id(),))
        self._db.execute("COMMIT")
        self._files.open()

    def _migrate(self) -> None:
        version = self._value("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise JournalError(
                f"{self._path} was written by a newer taskq (journal version {version}, this one knows "
                f"{SCHEMA_VERSION}): install that version again; the file was not touched"
            )
        for number in range(version + 1, SCHEMA_VERSION + 1):
            script = _script(_SCRIPTS[number])
            self._db.execute(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version={number}; COMMIT")

    def _verify(self) -> None:
        """Looks for damage. A process that died leaves none; only after a crash of the system is all of it read."""
        opened_in = self._value("SELECT value FROM meta WHERE name = 'open_since_boot'")
        if opened_in is not None and opened_in != boot_id():
            problem = self._value("PRAGMA quick_check(1)")
            if problem != "ok":
                raise JournalError(f"{self._path} is damaged: {problem}; restore it from a backup")
        commits = self._value("SELECT commits FROM totals")
        missing = self._files.expect_commits(commits)
        if missing:
            self.findings.append(("store.damaged", {"missing_commits": missing}))
        if opened_in is not None:
            self.findings.append(("store.recovered", {"commits": commits}))

    def _load(self) -> None:
        *counts, self._commits = self._one(f"SELECT {', '.join(TOTAL_NAMES)}, commits FROM totals")
        self.totals = Totals(*counts)
        # never a number again: the broker knows jobs by theirs, and after a rollback it goes on
        self._next_seq = max(self._next_seq, (self._value("SELECT max(seq) FROM jobs") or 0) + 1)
        self._find_gap()
        self._prune_after = 0
        self._look_at_edges()
        self._kept = self._value(
            f"SELECT count(*) FROM jobs WHERE state >= {FIRST_FINAL} AND state <> {StoredState.FAILED}"
        )
        self._partitions = BandNumbers(self._db)
        for number, fields in self._db.execute("SELECT spec, fields FROM specs"):
            spec = Spec.from_wire(msgpack.unpackb(fields))
            self._spec_of_number[number] = spec
            self._number_of_spec[spec] = number

    @_trusted
    def close(self) -> None:
        """Commits what is open, notes the clean end and folds the WAL into the database."""
        self.commit()
        self._db.execute("DELETE FROM meta WHERE name = 'open_since_boot'")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._files.close()

    # -- taking in

    @_trusted
    def submit(
        self,
        spec: Spec,
        ids: Sequence[bytes],
        payloads: Iterable[bytes],
        constraints: Sequence[Constraints | None] | None = None,
    ) -> list[JobRow]:
        self._begin()
        first = self._next_seq
        rows = list(map(JobRow, count(first), ids, repeat(spec), payloads))
        if constraints is not None:
            for row, own in zip(rows, constraints, strict=True):
                row.constraints = own
        newest = max(ids)
        is_new = self._gap_from < min(ids) and newest < self._gap_to and len(set(ids)) == len(ids)
        if not is_new:
            rows = self._without_known(rows)
        if constraints is None:
            self._insert(rows, self._spec_number(spec), self._partitions.of(partition_of(spec, None)))
        else:
            self._insert_with_constraints(rows, self._spec_number(spec))
        if is_new and newest < self._horizon:
            self._gap_from = newest
        else:
            self._find_gap()
        self._next_seq = first + len(rows)
        self.totals.enqueued += len(rows)
        return rows

    def _find_gap(self) -> None:
        """Finds between which ids no job is known.

        Ids sort by time, so new ones fall between the newest that is known and those of the far future, and need no
        look-up. The latter come from a clock that was wrong, or from somebody who made them up; without a limit to what
        counts as newest, one of them would have all later ones looked up.
        """
        self._horizon = first_id_at(time.time() + _FUTURE_S)
        self._gap_from = self._value("SELECT max(id) FROM jobs WHERE id < ?", self._horizon) or b""
        self._gap_to = self._value("SELECT min(id) FROM jobs WHERE id >= ?", self._horizon) or _AFTER_ALL_IDS

    def _insert(self, rows: list[JobRow], spec: int, partition: int) -> None:
        values = [(row.seq, row.id, spec, partition, row.payload) for row in rows]
        whole = len(values) - len(values) % statements.ROWS_PER_INSERT
        remaining = iter(values[:whole])
        while together := tuple(islice(remaining, statements.ROWS_PER_INSERT)):
            self._db.execute(statements.INSERT_MANY, tuple(chain.from_iterable(together)))
        if whole < len(values):
            self._db.executemany(statements.INSERT_ONE, values[whole:])

    def _insert_with_constraints(self, rows: list[JobRow], spec: int) -> None:
        values: list[tuple[Any, ...]] = []
        edges: list[tuple[bytes, int, bool]] = []
        unkeyed = self._partitions.of(partition_of(rows[0].spec, None)) if rows else 0
        pack = msgpack.Packer().pack  # to make one takes as long as to pack one
        queued, scheduled, waiting = int(StoredState.QUEUED), int(StoredState.SCHEDULED), int(StoredState.WAITING)
        for row in rows:
            constraints = row.constraints or NO_CONSTRAINTS
            row.constraints = kept = constraints.kept
            state = waiting if constraints.after else queued if constraints.due_at is None else scheduled
            if constraints.after:
                edges += [(parent, row.seq, goes_on) for parent, goes_on in constraints.after]
            partition, is_keyed = unkeyed, 1 if constraints.is_keyed else None
            if is_keyed and state == queued:
                partition = self._partitions.of(partition_of(row.spec, kept))
            packed = None if kept is None else pack(kept.to_wire())
            key = None if constraints.unique is None else constraints.unique.key
            fields = row.seq, row.id, spec, partition, row.payload, state, constraints.due_at, packed, is_keyed
            values.append((*fields, constraints.expires_at, key))
        self._db.executemany(statements.INSERT_WITH_CONSTRAINTS, values)
        if edges:
            self._db.execute(statements.EDGES_GO_WITH_THEIR_JOB)
            self._db.executemany(statements.ADD_EDGE, edges)
            self.has_waiting = self._has_edges = True

    def _without_known(self, rows: list[JobRow]) -> list[JobRow]:
        fresh: dict[bytes, JobRow] = {}
        for row in rows:
            known = self._db.execute("SELECT payload FROM jobs WHERE id = ?", (row.id,)).fetchone()
            if known is None and row.id in fresh:
                known = (fresh[row.id].payload,)
            if known is None:
                fresh[row.id] = row
            elif known[0] is not None and known[0] != row.payload:
                raise EnqueueError(f"job id {row.id.hex()} is already used by a job with other arguments")
        for seq, row in enumerate(fresh.values(), self._next_seq):
            row.seq = seq
        return list(fresh.values())

    def _spec_number(self, spec: Spec) -> int:
        number = self._number_of_spec.get(spec)
        if number is None:
            fields = msgpack.packb(spec.to_wire())
            self._db.execute("INSERT OR IGNORE INTO specs (fields) VALUES (?)", (fields,))
            number = self._number_of_spec[spec] = int(self._value("SELECT spec FROM specs WHERE fields = ?", fields))
            self._spec_of_number[number] = spec
        return number

    def _partition_number(self, row: JobRow, *, is_queued: bool = True) -> int:
        """Of the partition in which a job stands: see `taskq.engines.embedded.journal.partition_numbers`."""
        return self._partitions.of(partition_of(row.spec, row.constraints if is_queued else None))

    # -- handing out

    @_trusted
    def waiting(self) -> list[tuple[Partition, int, int]]:
        partitions = self._partitions.by_number()
        rows: list[Any] = self._db.execute(statements.WAITING).fetchall()
        return [(partitions[number], jobs, first_seq) for number, jobs, first_seq in rows]

    @_trusted
    def retried_in_order(self) -> list[JobRow]:
        rows = [self._row(fields) for fields in self._db.execute(statements.RETRIED)]
        return [row for row in rows if row.constraints is not None and row.constraints.order_key is not None]

    @_trusted
    def lease(self, partition: Partition, after: int, limit: int, max_bytes: int) -> tuple[list[JobRow], bool]:
        number = self._partitions.known(partition)
        if number is None:
            return [], True
        rows: list[JobRow] = []
        size = 0
        cursor = self._db.execute(
            statements.QUEUED_KEYED if partition.is_keyed else statements.QUEUED, (number, after, limit)
        )
        for fields in cursor:
            row = self._row(fields)
            rows.append(row)
            size += len(row.payload)
            if size >= max_bytes:
                cursor.close(True)
                return rows, False
        return rows, len(rows) < limit

    @_trusted
    def lease_due(self, now: float, limit: int) -> list[JobRow]:
        rows = [self._row(fields) for fields in self._db.execute(statements.DUE, (now, limit))]
        if rows:
            self._begin()
            self._db.executemany(statements.BECOME_DUE, [(self._partition_number(row), row.seq) for row in rows])
        return rows

    @_trusted
    def next_due(self) -> float | None:
        due: float | None = self._value(f"SELECT min(due_at) FROM jobs WHERE state = {StoredState.SCHEDULED}")
        return due

    @_trusted
    def next_expiry(self) -> float | None:
        expiry: float | None = self._value("SELECT min(expires_at) FROM jobs WHERE expires_at IS NOT NULL")
        return expiry

    @_trusted
    def expired(self, now: float, limit: int) -> list[StoredJob]:
        jobs = [self._stored(fields) for fields in self._db.execute(statements.EXPIRED, (now, limit))]
        if jobs:
            self._begin()
            self._db.executemany(statements.FORGET_EXPIRY, [(job.row.seq,) for job in jobs])
        return jobs

    @_trusted
    def with_keys(self, keys: Sequence[str]) -> dict[str, StoredJob]:
        found: dict[str, StoredJob] = {}
        for start in range(0, len(keys), statements.KEYS_AT_ONCE):
            part = tuple(keys[start : start + statements.KEYS_AT_ONCE])
            sql = statements.WITH_KEYS if len(part) == statements.KEYS_AT_ONCE else statements.with_keys(len(part))
            for key, *fields in self._db.execute(sql, part):
                found[key] = self._stored(fields)
        return found

    @_trusted
    def release_keys(self, rows: Iterable[JobRow]) -> None:
        self._begin()
        self._db.executemany("UPDATE jobs SET unique_key = NULL WHERE seq = ?", [(row.seq,) for row in rows])

    def release(self, rows: Iterable[JobRow]) -> None:
        """Nothing to do: the journal does not know of leases, and its one user forgets them with its end."""

    def extend(self) -> None:
        """Nothing to do: the lock on the directory says that the owner lives."""

    # -- settling

    @_trusted
    def settle(self, ended: Sequence[Ended], rescheduled: Sequence[Rescheduled], now: float) -> None:
        self._begin()
        plain: list[tuple[int, int, float, bytes, int]] = []
        with_constraints: list[tuple[int, int, float, bytes, bool, int]] = []
        others: list[Ended] = []
        succeeded = StoredState.SUCCEEDED  # looked up once: 0.1 microseconds each time
        for row, kept, outcome in ended:
            if kept is not succeeded:
                others.append((row, kept, outcome))
            elif row.constraints is None:
                plain.append((row.attempts, row.crashes, now, outcome, row.seq))
            else:
                with_constraints.append((row.attempts, row.crashes, now, outcome, _keeps_key(row.constraints), row.seq))
        if plain:
            self._db.executemany(statements.SUCCEED, plain)
        if with_constraints:  # two updates of each would take twice as long
            self._db.executemany(statements.SUCCEED_WITH_CONSTRAINTS, with_constraints)
        self.totals.succeeded += len(plain) + len(with_constraints)
        self._kept += len(plain) + len(with_constraints)
        if others:
            self._end(others, now)
        if with_constraints or others:
            self._drop_edges(ended)
        if rescheduled:
            self._db.executemany(statements.RESCHEDULE, [self._rescheduling(change) for change in rescheduled])
            self._keep_attempts((row.seq, row.attempts, outcome) for row, _, outcome in rescheduled if outcome)

    def _end(self, ended: Sequence[Ended], now: float) -> None:
        """Records the ends of jobs that did not succeed."""
        fields = [(kept, row.attempts, row.crashes, now, outcome, row.seq) for row, kept, outcome in ended]
        self._db.executemany(statements.END, fields)
        constraints = [(_keeps_key(row.constraints), row.seq) for row, _, _ in ended if row.constraints is not None]
        self._db.executemany(statements.END_CONSTRAINTS, constraints)
        count = Counter(kept for _, kept, _ in ended)
        self.totals.failed += count[StoredState.FAILED]
        self.totals.cancelled += count[StoredState.CANCELLED]
        self.totals.expired += count[StoredState.EXPIRED]
        self._kept += len(ended) - count[StoredState.FAILED]
        failed = [(row.seq,) for row, kept, _ in ended if kept == StoredState.FAILED]
        self._db.executemany("INSERT INTO failed VALUES (?)", failed)

    def _rescheduling(self, change: Rescheduled) -> tuple[int | float | bytes | None, ...]:
        row = change.row
        state = StoredState.QUEUED if change.due_at is None else StoredState.SCHEDULED
        snoozes = 0 if row.carried is None else row.carried.snoozes
        counts = row.attempts, row.crashes, snoozes
        numbers = self._spec_number(row.spec), self._partition_number(row, is_queued=change.due_at is None)
        return state, change.due_at, *numbers, *counts, change.outcome, row.seq

    def _keep_attempts(self, ended: Iterable[tuple[int, int, bytes]]) -> None:
        """Keeps the outcomes of attempts that are not the last: seq, number, outcome."""
        for seq, number, outcome in ended:
            self._db.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?)", (seq, number, shortened(outcome)))
            if number > 2 * KEPT_ATTEMPTS_EACH_END:
                middle = KEPT_ATTEMPTS_EACH_END, number - KEPT_ATTEMPTS_EACH_END
                self._db.execute("DELETE FROM attempts WHERE job = ? AND number > ? AND number <= ?", (seq, *middle))

    def _drop_edges(self, ended: Sequence[Ended]) -> None:
        """Of jobs that came after others and cannot be run again."""
        seqs = [
            (row.seq,)
            for row, kept, _ in ended
            if row.constraints and row.constraints.follows and kept != StoredState.FAILED
        ]
        if seqs:
            self._db.executemany("DELETE FROM edges WHERE child = ?", seqs)
            self._look_at_edges()

    # -- jobs that come after others

    def _look_at_edges(self) -> None:
        self.has_waiting = self._value("SELECT 1 FROM edges WHERE is_open = 1 LIMIT 1") is not None
        self._has_edges = self.has_waiting or self._value("SELECT 1 FROM edges LIMIT 1") is not None

    @_trusted
    def states(self, ids: Sequence[bytes]) -> dict[bytes, StoredState]:
        found: dict[bytes, StoredState] = {}
        for job_id in ids:
            if self._gap_from < job_id < self._gap_to:
                continue  # it is new
            state = self._value("SELECT state FROM jobs WHERE id = ?", job_id)
            if state is not None:
                found[job_id] = StoredState(state)
        return found

    @_trusted
    def passed(self, parents: Sequence[bytes], limit: int) -> list[Edge]:
        edges: list[tuple[bytes, int, int]] = []
        for parent in parents:
            edges += [
                (parent, *fields) for fields in self._db.execute(statements.OPEN_EDGES, (parent, limit - len(edges)))
            ]
        if not edges:
            return []
        self._begin()
        self._db.executemany(statements.CLOSE_EDGE, [(parent, child) for parent, child, _ in edges])
        waits = {child: self._value(statements.IS_WAITING, child) is not None for _, child, _ in edges}
        self._look_at_edges()
        return [Edge(parent, child, bool(goes_on), not waits[child]) for parent, child, goes_on in edges]

    @_trusted
    def set_free(self, parents: Sequence[bytes]) -> bool:
        return any(self._value(statements.SETS_FREE, parent) is not None for parent in parents)

    @_trusted
    def still_waiting(self, seqs: Sequence[int]) -> list[StoredJob]:
        found = [self._db.execute(statements.READ_WAITING, (seq,)).fetchone() for seq in seqs]
        return [self._stored(fields) for fields in found if fields is not None]

    @_trusted
    def let_go(self, jobs: Sequence[StoredJob], now: float) -> None:
        self._begin()
        late = [job.row.seq for job in jobs if job.due_at is not None and job.due_at > now]
        queued = [job.row for job in jobs if job.due_at is None or job.due_at <= now]
        self._db.executemany(f"UPDATE jobs SET state = {StoredState.SCHEDULED} WHERE seq = ?", [(seq,) for seq in late])
        self._db.executemany(statements.BECOME_DUE, [(self._partition_number(row), row.seq) for row in queued])

    @_trusted
    def call_off(self, ended: Sequence[Ended], now: float) -> None:
        self._begin()
        self._db.executemany(statements.CALL_OFF, [(now, outcome, row.seq) for row, _, outcome in ended])
        self._db.executemany("UPDATE edges SET is_open = 0 WHERE child = ?", [(row.seq,) for row, _, _ in ended])
        self._look_at_edges()
        self._kept += len(ended)
        self.totals.cancelled += len(ended)

    @_trusted
    def keep_off(self, row: JobRow) -> None:
        self._begin()
        self._db.execute(statements.KEEP_OFF, (row.seq,))
        self._drop_edges([(row, StoredState.CANCELLED, b"")])

    @_trusted
    def call_back(self, ids: Sequence[bytes]) -> dict[bytes, StoredState]:
        if not self._has_edges:
            return {}
        self._begin()
        found: list[tuple[int]] = []
        parents = list(ids)
        while parents:
            children = [
                tuple(child) for parent in parents for child in self._db.execute(statements.CALLED_OFF, (parent,))
            ]
            found += [(seq,) for seq, _ in children]
            self._db.executemany(statements.CALL_BACK, [(seq,) for seq, _ in children])
            parents = list(dict.fromkeys(job_id for _, job_id in children))
        found = list(dict.fromkeys(found))
        self._db.executemany(statements.REOPEN, found)
        self._look_at_edges()
        self._kept -= len(found)
        self.totals.retried += len(found)
        return {
            parent: StoredState(state)
            for child in found
            for parent, state in self._db.execute(statements.ENDED_PARENTS, child)
        }

    @_trusted
    def left_waiting(self) -> list[tuple[bytes, StoredState]]:
        return [(parent, StoredState(state)) for parent, state in self._db.execute(statements.LEFT_WAITING)]

    @_trusted
    def parents(self, seq: int, limit: int) -> list[bytes]:
        return [
            parent for (parent,) in self._db.execute("SELECT parent FROM edges WHERE child = ? LIMIT ?", (seq, limit))
        ]

    @_trusted
    def followers(self, job_id: bytes, limit: int) -> list[bytes]:
        return [child for (child,) in self._db.execute(statements.FOLLOWERS, (job_id, limit))]

    @_trusted
    def keep_checkpoints(self, rows: Iterable[JobRow]) -> None:
        self._begin()
        kept = [(row.carried.checkpoint, row.seq) for row in rows if row.carried is not None]
        self._db.executemany("UPDATE jobs SET checkpoint = ? WHERE seq = ?", kept)

    @_trusted
    def add_items(self, seq: int, first: int, items: Sequence[bytes]) -> None:
        self._begin()
        self._db.execute(statements.ITEMS_GO_WITH_THEIR_JOB)
        self._db.executemany(statements.ADD_ITEM, [(seq, position, item) for position, item in enumerate(items, first)])

    @_trusted
    def items(self, seq: int, start: int, limit: int, max_bytes: int) -> list[bytes]:
        found: list[bytes] = []
        size = 0
        cursor = self._db.execute(statements.ITEMS, (seq, start, limit))
        for (item,) in cursor:
            size += len(item)
            if found and size > max_bytes:
                cursor.close(True)
                break
            found.append(item)
        return found

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")

    @_trusted
    def commit(self) -> None:
        if not self._db.in_transaction:
            return
        self._commits += 1
        self._db.execute(statements.TOTALS, (*self.totals.as_dict().values(), self._commits))
        self._db.execute("COMMIT")
        self._files.committed(self._commits, self._survives_power_loss)

    @_trusted
    def rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._spec_of_number.clear()
        self._number_of_spec.clear()
        self._load()

    # -- a full disk

    @_trusted
    def make_room(self) -> None:
        self._files.give_up_ballast()
        self.is_full = True

    def keep_room(self) -> None:
        try:
            self._set_aside()
        except OSError:
            pass  # others took the space, or the files: it is tried again

    def _set_aside(self) -> None:
        if self._files.has_ballast:
            return
        self.is_full = self.is_full and not self._files.has_room_for_ballast
        self._files.set_aside_ballast()

    # -- reading and pruning

    @_trusted
    def read(self, job_id: bytes) -> StoredJob | None:
        fields = self._db.execute(statements.READ, (job_id,)).fetchone()
        return None if fields is None else self._stored(fields)

    @_trusted
    def attempts(self, row: JobRow) -> list[tuple[int, bytes]]:
        sql = "SELECT number, outcome FROM attempts WHERE job = ? ORDER BY number"
        found: list[Any] = self._db.execute(sql, (row.seq,)).fetchall()
        return [(number, outcome) for number, outcome in found]

    @property
    def last_seq(self) -> int:
        return self._next_seq - 1

    @_trusted
    def find(
        self, wanted: Wanted, after: int, before: int, limit: int, *, newest_first: bool
    ) -> tuple[list[StoredJob], int | None]:
        source, seq = (
            ("failed CROSS JOIN jobs ON seq = job", "job") if wanted.kept == StoredState.FAILED else ("jobs", "seq")
        )
        order = f"ORDER BY {seq} {'DESC' if newest_first else 'ASC'} LIMIT"
        reach = f"FROM {source} WHERE {seq} > ? AND {seq} < ?"
        sql = f"SELECT {seq} {reach.replace(source, source.split()[0])} {order} 1 OFFSET {MAX_JOBS_SEEN - 1}"
        last_seen = self._value(sql, after, before)
        if last_seen is not None:
            after, before = (last_seen - 1, before) if newest_first else (after, last_seen + 1)
        condition, bindings = self._condition(wanted)
        sql = f"SELECT {statements.FOUND} {reach} {condition} {order} ?"
        jobs: list[StoredJob] = []
        size = 0
        cursor = self._db.execute(sql, (after, before, *bindings, limit))
        for *fields, payload_bytes in cursor:
            jobs.append(self._stored(fields))
            size += (payload_bytes or 0) + len(jobs[-1].outcome or b"")
            if size >= _FIND_BYTES:
                cursor.close(True)
                return jobs, jobs[-1].row.seq
        return jobs, jobs[-1].row.seq if len(jobs) == limit else last_seen

    def _condition(self, wanted: Wanted) -> tuple[str, list[object]]:
        condition = "" if wanted.kept is None else f"AND state = {wanted.kept:d} "
        bindings: list[object] = []
        if wanted.task is not None or wanted.queue is not None:
            specs = [
                number
                for number, spec in self._spec_of_number.items()
                if wanted.task in (None, spec.task) and wanted.queue in (None, spec.queue)
            ]
            condition += "AND spec IN (SELECT value FROM json_each(?)) "
            bindings.append(str(specs))
        if wanted.before is not None:
            condition += "AND (finished_at < ? OR finished_at IS NULL AND id < ?) "
            bindings += [wanted.before, first_id_at(wanted.before)]
        return condition, bindings

    @_trusted
    def requeue(self, jobs: Sequence[StoredJob]) -> list[JobRow]:
        self._begin()
        for seq, (row, _, _, outcome, _) in enumerate(jobs, self._next_seq):
            row.forgive()
            constraints = None if row.constraints is None else msgpack.packb(row.constraints.to_wire())
            self._db.execute(statements.REQUEUE, (seq, self._partition_number(row), constraints, row.seq))
            self._db.execute("DELETE FROM failed WHERE job = ?", (row.seq,))
            self._db.execute("UPDATE attempts SET job = ? WHERE job = ?", (seq, row.seq))
            if row.constraints is not None and row.constraints.follows:
                self._db.execute("UPDATE edges SET child = ? WHERE child = ?", (seq, row.seq))
            if outcome:
                self._keep_attempts([(seq, row.attempts, outcome)])
            row.seq = seq
        self._next_seq += len(jobs)
        return [job.row for job in jobs]

    @_trusted
    def remove(self, jobs: Sequence[StoredJob]) -> None:
        self._begin()
        seqs = [(job.row.seq,) for job in jobs]
        self._db.executemany("DELETE FROM attempts WHERE job = ?", seqs)
        self._db.executemany("DELETE FROM failed WHERE job = ?", seqs)
        self._db.executemany("DELETE FROM jobs WHERE seq = ?", seqs)
        if self._has_edges:
            self._look_at_edges()
        self._kept -= sum(1 for job in jobs if job.kept in PRUNABLE)
        self.totals.cancelled += sum(1 for job in jobs if job.kept < FIRST_FINAL)

    @_trusted
    def pause(self, queues: Iterable[str], is_paused: bool) -> None:
        self._begin()
        sql = "INSERT OR IGNORE INTO paused VALUES (?)" if is_paused else "DELETE FROM paused WHERE queue = ?"
        self._db.executemany(sql, [(queue,) for queue in queues])

    @_trusted
    def keep_rates(self, rates: Sequence[tuple[str, Starts, float]]) -> None:
        if rates:
            self._begin()
            rows = [(name, msgpack.packb(starts), until) for name, starts, until in rates]
            self._db.executemany("INSERT OR REPLACE INTO rates VALUES (?, ?, ?)", rows)

    @_trusted
    def rates(self, now: float) -> dict[str, Starts]:
        self._begin()
        self._db.execute("DELETE FROM rates WHERE until < ?", (now,))
        self.commit()
        kept = self._db.execute("SELECT name, starts FROM rates")
        return {name: [tuple(slot) for slot in msgpack.unpackb(starts)] for name, starts in kept}

    @_trusted
    def paused(self) -> frozenset[str]:
        return frozenset(queue for (queue,) in self._db.execute("SELECT queue FROM paused"))

    @_trusted
    def schedules(self) -> list[ScheduleRow]:
        return [
            ScheduleRow(Schedule.from_wire(msgpack.unpackb(fields)), next_at, app, bool(is_paused), last_at, last_id)
            for fields, next_at, app, is_paused, last_at, last_id in self._db.execute(statements.SCHEDULES)
        ]

    @_trusted
    def put_schedule(self, row: ScheduleRow) -> None:
        self._begin()
        fields = msgpack.packb(row.schedule.to_wire())
        state = row.next_at, row.app, row.is_paused, row.last_at, row.last_id
        self._db.execute(statements.PUT_SCHEDULE, (row.schedule.name, fields, *state))

    @_trusted
    def remove_schedule(self, name: str) -> None:
        self._begin()
        self._db.execute("DELETE FROM schedules WHERE name = ?", (name,))

    @_trusted
    def counts(self, kept: StoredState) -> dict[str, int]:
        if kept == StoredState.WAITING:  # by the edges: an index of these jobs would cost all others a little
            waiting: list[Any] = self._db.execute(statements.COUNT_WAITING).fetchall() if self.has_waiting else []
            return dict(waiting)
        if kept == StoredState.SCHEDULED:  # by the partitions, which stand in the index of these jobs
            scheduled: list[Any] = self._db.execute(statements.COUNT_SCHEDULED).fetchall()
            return dict(scheduled)
        found: Counter[str] = Counter()
        for number, jobs in self._db.execute("SELECT spec, count(*) FROM jobs WHERE state = ? GROUP BY spec", (kept,)):
            found[self._spec_of_number[int(number)].queue] += int(jobs)
        return dict(found)

    @_trusted
    def prune(self, before: float, keep: int, limit: int) -> int:
        if before - self._pruning_since > _PRUNE_AGAIN_S:
            self._prune_after, self._pruning_since = 0, before  # jobs that waited when it passed may have ended since
        first = last = removed = seen = 0
        is_kept = False
        sql = statements.JOBS_AFTER_SPARED if self._has_edges else statements.JOBS_AFTER
        cursor = self._db.execute(sql, (self._prune_after, limit))
        for seen, (seq, state, finished_at) in enumerate(cursor, 1):  # noqa: B007  used after the loop
            if state in PRUNABLE:
                is_kept = finished_at >= before and self._kept - removed <= keep
                if is_kept:
                    break  # what is behind it ended later, nearly always
                first = first or seq
                removed += 1
            last = seq
        cursor.close(True)
        if removed:
            self._begin()
            prune = statements.PRUNE_SPARING if self._has_edges else statements.PRUNE
            self._db.execute(prune, (first, last))  # one by one takes twice as long
            self._db.execute(statements.PRUNE_ATTEMPTS, (first, last))
            self._kept -= removed
        is_at_end = seen < limit and not is_kept
        self._prune_after = 0 if is_at_end else last or self._prune_after
        return removed

    @_trusted
    def tidy(self, now: float, limit: int) -> int:
        partitions = [(number,) for number in self._partitions.take_idle(limit)]
        rates = self._db.execute("SELECT name FROM rates WHERE until < ? LIMIT ?", (now, limit)).fetchall()
        if partitions or rates:  # else an idle fleet would write once a second
            self._begin()
            self._db.executemany("DELETE FROM bands WHERE band = ?", partitions)
            self._db.executemany("DELETE FROM rates WHERE name = ?", rates)
        return len(partitions) + len(rates)

    @property
    def kept(self) -> int:
        """Ended jobs that are kept, without the failed ones."""
        return int(self._kept)

    # -- helpers

    def _row(self, fields: Sequence[Any]) -> JobRow:
        seq, job_id, number, payload, attempts, crashes, packed, snoozes, checkpoint = fields
        constraints = None if packed is None else Constraints.from_wire(msgpack.unpackb(packed))
        row = JobRow(seq, job_id, self._spec_of_number[number], payload or b"", attempts, crashes, constraints)
        if snoozes or checkpoint is not None:
            row.carried = Carried(snoozes, checkpoint)
        return row

    def _stored(self, fields: Sequence[Any]) -> StoredJob:
        *row, state, due_at, outcome, finished_at = fields
        return StoredJob(self._row(row), StoredState(state), due_at, outcome, finished_at)

    def _value(self, sql: str, *bindings: Any) -> Any:
        row: Any = self._db.execute(sql, bindings).fetchone()
        return None if row is None else row[0]

    def _one(self, sql: str) -> tuple[Any, ...]:
        row: Any = self._db.execute(sql).fetchone()
        return tuple(row)


_SCRIPTS = {1: "schema.sql", 2: "upgrade_2.sql", 3: "upgrade_3.sql"}


def _keeps_key(constraints: Constraints) -> bool:
    """Whether the job's unique key counts for a time even when the job has ended; any other is free then."""
    return constraints.unique is not None and constraints.unique.period_s is not None
