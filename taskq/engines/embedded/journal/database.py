"""The connection to a journal: opening, checking, committing, a full disk, and how its rows become jobs.

The classes that build on it read and change the jobs: `taskq.engines.embedded.journal.sqlite`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import apsw
import msgpack

from taskq.engines.embedded.journal import schema, statements
from taskq.engines.embedded.journal.files import FilesBeside, boot_id
from taskq.engines.embedded.journal.partition_numbers import PartitionNumbers
from taskq.engines.embedded.journal.row_counts import LaterCounts, RowCounts, WaitingIn, forget_counts, kept_counts
from taskq.engines.embedded.journal.store import TOTAL_NAMES
from taskq.engines.embedded.journal.wal import WriteAheadLog
from taskq.model.constraints import Constraints
from taskq.model.effects import Event
from taskq.model.errors import JournalError, StoreFull
from taskq.model.job import JobRow
from taskq.model.partition import partition_of
from taskq.model.spec import Spec
from taskq.model.stored import StoredJob, StoredState
from taskq.system.clock import SYSTEM_CLOCK, Clock

S = TypeVar("S", bound="Database")
P = ParamSpec("P")
T = TypeVar("T")

#: The jobs that wait in so many partitions are counted one by one: a count of a million takes 65 ms, all groups 200 ms.
_FEW_PARTITIONS = 2
#: The states in which a job may wait for its time.
_MAY_BE_DUE = frozenset({StoredState.SCHEDULED, StoredState.WAITING})


def trusted(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Turns the errors of SQLite into ours."""

    @wraps(method)
    def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
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


class Database:
    """A journal file that is open, and the transaction in it that collects the changes of a tick."""

    #: Whether a job waits for the end of another; kept by `taskq.engines.embedded.journal.dependencies`.
    has_waiting: bool

    def __init__(
        self, path: Path, durability: str = "power", vfs: str | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """Opens the journal, or makes it.

        Args:
            path: the database file. The directory must be private, and locked by the caller.
            durability: "power", "os" or "memory": how commits are synced.
            vfs: the name of a registered SQLite VFS; the tests use one that loses unsynced writes.

        Raises:
            JournalError: it is damaged, missing though its marker is there, or made by a newer taskq.
        """
        self._path = path
        self._clock = clock
        self._files = FilesBeside(path)
        self._wal = WriteAheadLog(Path(f"{path}-wal"))
        self._spec_of_number: dict[int, Spec] = {}
        self._number_of_spec: dict[Spec, int] = {}
        #: The specs in each block of jobs that was looked at: see `taskq.engines.embedded.journal.queries`.
        self._specs_in: dict[int, frozenset[int]] = {}
        self._next_seq = 1
        self.is_full = False
        #: What the opening found, for the log: events and their fields.
        self.findings: list[Event] = []
        self._survives_power_loss = durability == "power"
        self._waiting: list[WaitingIn] | None = None  # as they were when there were so many changes of rows:
        self._unchanged = 0
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

    @trusted
    def _open(self, durability: str, vfs: str | None) -> None:
        self._files.expect_journal()
        self._db = apsw.Connection(str(self._path), vfs=vfs)
        try:
            self._set_up(durability)
        except BaseException:
            self._db.close()
            raise

    def _set_up(self, durability: str) -> None:
        schema.configure(self._db, durability, self._path)
        schema.upgrade(self._db, self._path)
        self._files.mark()
        self._check_pages()
        self._load()
        self._expect_changes()
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('open_since_boot', ?)", (boot_id(),))
        forget_counts(self._db)
        self._db.execute("COMMIT")
        self._unchanged = self._db.total_changes()
        self._files.open()
        page_bytes = self._value("PRAGMA page_size")
        self._wal.open(self._db, schema.WAL_PAGES, page_bytes, writes_ahead=self._survives_power_loss)

    def _check_pages(self) -> None:
        """Looks for damage. A process that died leaves none; only after a crash of the system is all of it read."""
        self._opened_in = self._value("SELECT value FROM meta WHERE name = 'open_since_boot'")
        if self._opened_in is not None and self._opened_in != boot_id():
            problem = self._value("PRAGMA quick_check(1)")
            if problem != "ok":
                told = "restore it from a backup, or save what can be read with `taskq recover`"
                raise JournalError(f"{self._path} is damaged: {problem}; {told}")

    def _expect_changes(self) -> None:
        missing = self._files.expect_changes(self._changes())
        if missing:
            self.findings.append(Event("store.damaged", {"missing_changes": missing}))
        if self._opened_in is not None:
            self.findings.append(Event("store.recovered", {"changes": self._changes()}))

    def _load(self) -> None:
        *unseen, others = self._one(f"SELECT {', '.join(TOTAL_NAMES)}, commits FROM totals")
        self._others: int = others
        kept = kept_counts(self._db) if self._opened_in is None else None
        self._rows, self._waiting = kept or (RowCounts.counted(self._db), None)
        self._later = LaterCounts(self._db)
        self._unseen = tuple(unseen)
        self.totals = self._rows.totals(unseen)
        self._committed = self._changes()
        # never a number again: the broker knows jobs by theirs, and after a rollback it goes on
        self._next_seq = max(self._next_seq, (self._value("SELECT max(seq) FROM jobs") or 0) + 1)
        self._partitions = PartitionNumbers(self._db)
        for number, fields in self._db.execute("SELECT spec, fields FROM specs"):
            spec = Spec.from_wire(msgpack.unpackb(fields))
            self._spec_of_number[number] = spec
            self._number_of_spec[spec] = number

    @trusted
    def close(self) -> None:
        """Commits what is open, notes the clean end and folds the WAL into the database."""
        self.commit()
        waiting = self._count_waiting()
        self._db.execute("BEGIN IMMEDIATE")
        self._rows.keep(self._db, waiting)
        self._db.execute("DELETE FROM meta WHERE name = 'open_since_boot'")
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._wal.close()
        self._files.close()

    def _count_waiting(self) -> list[WaitingIn]:
        """Counts the jobs that are queued, by partitions, unless nothing was changed since they were counted."""
        if self._waiting is not None and self._db.total_changes() == self._unchanged:
            return self._waiting
        numbers = self._partitions.by_number()
        found: list[Any] = []
        if len(numbers) <= _FEW_PARTITIONS:
            for number in sorted(numbers):
                found += self._db.execute(statements.WAITING_IN, (number,))
        else:
            found += self._db.execute(statements.WAITING)
        return [(number, jobs, first_seq) for number, jobs, first_seq in found if jobs]

    # -- transactions

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")

    @trusted
    def commit(self) -> None:
        if not self._db.in_transaction:
            return
        unseen = self._rows.unseen_of(self.totals)
        changes = self._changes()
        is_other = changes == self._committed
        if is_other or unseen != self._unseen:
            self._others += is_other
            self._unseen = unseen
            self._db.execute(statements.TOTALS, (*unseen, self._others))
        self._db.execute("COMMIT")
        self._committed = changes + is_other
        self._wal.check(self._clock.monotonic())
        self._files.committed(self._committed, self._survives_power_loss)

    @property
    def connection(self) -> apsw.Connection:
        return self._db

    @trusted
    def size(self) -> int:
        return os.stat(self._path).st_size + self._wal.size

    @trusted
    def fold_log(self) -> bool:
        if not self._wal.is_long or self._db.in_transaction:
            return False
        self._wal.fold(self._db)
        return True

    def _changes(self) -> int:
        """A number that grows with each commit, and follows from what the journal has: what happened to jobs, and the
        number of commits in which nothing did."""
        return self.totals.all() + self._others

    @trusted
    def rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._spec_of_number.clear()
        self._number_of_spec.clear()
        self._load()

    # -- a full disk

    @trusted
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

    # -- rows

    def _spec_number(self, spec: Spec) -> int:
        number = self._number_of_spec.get(spec)
        if number is None:
            fields = msgpack.packb(spec.to_wire())
            self._db.execute("INSERT OR IGNORE INTO specs (fields) VALUES (?)", (fields,))
            number = self._number_of_spec[spec] = int(self._value("SELECT spec FROM specs WHERE fields = ?", fields))
            self._spec_of_number[number] = spec
        return number

    def _leave(self, seqs: Iterable[int]) -> None:
        """Counts out those of these jobs that are scheduled or wait for others: their state is about to change."""
        if self._later:
            for state, number in self._db.execute(statements.LATER_AMONG, (str(list(seqs)),)):
                self._later.add(state, self._spec_of_number[number].queue, -1)

    def _partition_number(self, row: JobRow, *, is_queued: bool = True) -> int:
        """Of the partition in which a job stands: see `taskq.engines.embedded.journal.partition_numbers`."""
        return self._partitions.of(partition_of(row.spec, row.constraints if is_queued else None))

    def _row(self, fields: Sequence[Any]) -> JobRow:
        seq, job_id, number, payload, attempts, crashes, packed, snoozes, checkpoint, ready_at = fields
        constraints = None if packed is None else Constraints.from_wire(msgpack.unpackb(packed))
        row = JobRow(seq, job_id, self._spec_of_number[number], payload or b"", attempts, crashes, constraints)
        row.snoozes, row.checkpoint, row.ready_at = snoozes, checkpoint, ready_at
        return row

    def _stored(self, fields: Sequence[Any]) -> StoredJob:
        *own, state, outcome, finished_at = fields
        row = self._row(own)
        due_at = row.ready_at if state in _MAY_BE_DUE else None
        return StoredJob(row, StoredState(state), due_at, outcome, finished_at)

    def _value(self, sql: str, *bindings: Any) -> Any:
        row: Any = self._db.execute(sql, bindings).fetchone()
        return None if row is None else row[0]

    def _one(self, sql: str) -> tuple[Any, ...]:
        row: Any = self._db.execute(sql).fetchone()
        return tuple(row)
