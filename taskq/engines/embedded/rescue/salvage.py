"""What can be saved of a damaged journal is read from a copy of it, and written into a new one.

Tables are read in the order of their keys. Where a page cannot be read, jobs go on behind it: the next sequence number
that can be read is searched by halves. Each job is checked: its id and arguments by their checksum, its task, its
state, its outcome. The index of ids says which jobs are missing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import apsw
import msgpack

from taskq.engines.embedded.journal import schema, statements
from taskq.engines.embedded.journal.store import TOTAL_NAMES
from taskq.model.attempt import unpack
from taskq.model.errors import JournalError, ProtocolError
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, StoredState

_END: Final = 1 << 62
_CRC_BYTES: Final = 4
_HEADER_BYTES: Final = 100
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
#: The tables besides those of jobs, specs and bands, with what their rows are read by.
_OTHERS: Final = {
    "attempts": "job, number",
    "edges": "parent, child",
    "items": "job, position",
    "schedules": "name",
    "paused": "queue",
    "counts": "minute, task, queue",
    "machines": "since",
    "rates": "name",
}
_JOB = (
    "seq, id, spec, band, state, attempts, crashes, due_at, finished_at, payload, outcome, terms, is_keyed, "
    "expires_at, unique_key, snoozes, checkpoint"
)
_PLAIN_GATES: Final = b"\x90"
#: What a damaged page raises.
_DAMAGE = (apsw.CorruptError, apsw.NotADBError, apsw.IOError, apsw.FormatError)


@dataclass(slots=True)
class Salvaged:
    """What was saved, and what was not.

    Attributes:
        states: how many jobs were saved, by state.
        missing: the ids of jobs that the journal's index names, and that cannot be read.
        damaged: the ids of jobs that were read, and are not what was written.
        holes: between which sequence numbers jobs cannot be read: as far as the index cannot be read either, nobody
            knows which they were.
        is_index_read: whether the index of ids was read as a whole, so that `missing` is complete.
        tables: how many rows of the other tables were saved.
        damaged_tables: those of which some rows cannot be read.
        lost_changes: how many jobs that came in or ended the journal is said to have besides, if nothing else is lost.
        lost_frames: how many pages at the end of the write-ahead log cannot be trusted: the last commits are missing.
        notes: what else was mended.
    """

    states: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    holes: list[tuple[int, int]] = field(default_factory=list)
    is_index_read: bool = True
    tables: dict[str, int] = field(default_factory=dict)
    damaged_tables: list[str] = field(default_factory=list)
    lost_changes: int = 0
    lost_frames: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is lost, and nothing had to be mended."""
        return self.is_index_read and not any(
            (
                *(self.missing, self.damaged, self.holes, self.damaged_tables),
                *(self.lost_changes, self.lost_frames, self.notes),
            )
        )


def salvage(source: Path, target: Path, changes: int) -> Salvaged:
    """Reads a copy of a journal, which may be changed by that, and writes what can be saved of it into a new one.

    Args:
        source: the copy, with its write-ahead log beside it.
        target: the new file.
        changes: how many changes it is said to have: see `taskq.engines.embedded.journal.files`.

    Raises:
        JournalError: nothing can be read; or another version of taskq wrote it.
    """
    found = Salvaged()
    try:
        with closing(apsw.Connection(str(target))) as new:
            schema.configure(new, "os", target)
            schema.upgrade(new, target)
            new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            _mend_header(source, target, found)
            frames = _frames_of(source)
            with closing(apsw.Connection(str(source))) as old:
                _open(old, source)
                log = old.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)[0]
                found.lost_frames = max(0, frames - max(0, log))
                with new:
                    has = _Reader(old, new, found).read()
                if found.is_whole:
                    found.lost_changes = max(0, changes - has)
            new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            new.execute("PRAGMA journal_mode=DELETE")
    except _DAMAGE as error:
        raise JournalError(f"nothing can be read of {source.name}: {error}; restore it from a backup") from error
    return found


def _open(old: apsw.Connection, source: Path) -> None:
    old.execute("PRAGMA locking_mode=EXCLUSIVE")
    [version] = old.execute("PRAGMA user_version").fetchone() or (0,)
    if version != schema.SCHEMA_VERSION:
        told = f"it is of version {version}, and this taskq knows {schema.SCHEMA_VERSION}"
        raise JournalError(f"{source.name} can be recovered by the version of taskq that wrote it: {told}")


def _mend_header(source: Path, sample: Path, found: Salvaged) -> None:
    """Writes the header of the file again if it is not one: it is the same in all journals but for a few numbers.
    SQLite opens no file that is shorter than its header says, either."""
    with sample.open("rb") as file:
        good = bytearray(file.read(_HEADER_BYTES))
    page_bytes = int.from_bytes(good[16:18], "big")
    with source.open("r+b") as file:
        header = file.read(_HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
        same = (slice(0, 18), slice(20, 24), slice(44, 48), slice(56, 64))
        is_header = len(header) == _HEADER_BYTES and all(header[part] == good[part] for part in same)
        if is_header and int.from_bytes(header[28:32], "big") * page_bytes <= size:
            return
        mended = bytearray(header) if is_header else good
        mended[28:32] = (size // page_bytes).to_bytes(4, "big")
        mended[32:40] = bytes(8)  # no free pages
        file.seek(0)
        file.write(mended)
    told = "the file is shorter than it was" if is_header else "the header of the file was damaged, and was made again"
    found.notes.append(told)


def _frames_of(source: Path) -> int:
    """How many pages the write-ahead log has, trusted or not: those that belong to its present round."""
    path = Path(f"{source}-wal")
    if not path.exists():
        return 0
    count = 0
    with path.open("rb") as file:
        header = file.read(_WAL_HEADER_BYTES)
        page_bytes = int.from_bytes(header[8:12], "big") or 65_536
        if len(header) < _WAL_HEADER_BYTES or page_bytes not in (1 << power for power in range(9, 17)):
            return 1 if os.path.getsize(path) else 0
        while len(head := file.read(_FRAME_HEADER_BYTES)) == _FRAME_HEADER_BYTES:
            if any(head):  # space that was written in advance
                count += head[8:16] == header[16:24]
            file.seek(page_bytes, os.SEEK_CUR)
    return count


class _Reader:
    """Reads one journal into another."""

    def __init__(self, old: apsw.Connection, new: apsw.Connection, found: Salvaged) -> None:
        self._old, self._new, self._found = old, new, found
        self._specs: dict[int, Spec] = {}
        self._bands: set[int] = set()
        self._saved: set[int] = set()  # sequence numbers
        self._damaged: dict[int, str] = {}  # by sequence number: the id that was read

    def read(self) -> int:
        """Reads all of it. Returns how many changes it has."""
        self._read_specs()
        if not self._specs and self._found.damaged_tables:  # of no job is known what it does
            raise JournalError("nothing can be read of this journal: restore it from a backup")
        self._read_bands()
        self._read_jobs()
        self._look_for_missing()
        for table, keys in _OTHERS.items():
            self._read_table(table, keys)
        others = self._read_totals()
        self._new.execute(f"INSERT OR IGNORE INTO failed SELECT seq FROM jobs WHERE state = {StoredState.FAILED:d}")
        ended = sum(self._found.states[kept.state.value] for kept in StoredState if kept >= FIRST_FINAL)
        return others + ended + sum(self._found.states.values())

    # -- what jobs have in common

    def _read_specs(self) -> None:
        for number, fields in self._rows("specs", "spec, fields", "spec"):
            try:
                self._specs[number] = Spec.from_wire(msgpack.unpackb(fields))
            except Exception:  # whatever bytes may raise that were written over
                self._is_damaged("specs")
                continue
            self._new.execute("INSERT INTO specs VALUES (?, ?)", (number, fields))

    def _read_bands(self) -> None:
        for row in self._rows("bands", "band, queue, priority, gates", "band"):
            with suppress(apsw.ConstraintError):
                self._new.execute("INSERT INTO bands VALUES (?, ?, ?, ?)", row)
                self._bands.add(row[0])

    def _band_of(self, spec: Spec) -> int:
        """The partition of plain jobs of a queue, in place of one that cannot be read."""
        plain = spec.queue, 0, _PLAIN_GATES
        self._new.execute("INSERT OR IGNORE INTO bands (queue, priority, gates) VALUES (?, ?, ?)", plain)
        sql = "SELECT band FROM bands WHERE queue = ? AND priority = ? AND gates = ?"
        band: int = self._new.execute(sql, plain).get
        self._bands.add(band)
        return band

    # -- jobs

    def _read_jobs(self) -> None:
        after = 0
        while True:
            try:
                for row in self._old.execute(f"SELECT {_JOB} FROM jobs WHERE seq > ? ORDER BY seq", (after,)):
                    after = row[0]
                    self._take(row)
                return
            except _DAMAGE:
                behind = self._next_readable(after)
                self._found.holes.append((after, behind))
                if behind >= _END:
                    return
                after = behind

    def _next_readable(self, after: int) -> int:
        """The lowest sequence number behind which a job, or the end, can be read; `_END` if there is none."""
        step = 1
        while not self._can_read(after + step):
            step *= 2
            if after + step >= _END:
                return _END
        low, high = after + step // 2, after + step
        while low + 1 < high:
            middle = (low + high) // 2
            if self._can_read(middle):
                high = middle
            else:
                low = middle
        return high

    def _can_read(self, after: int) -> bool:
        try:
            row = self._old.execute("SELECT seq FROM jobs WHERE seq > ? ORDER BY seq LIMIT 1", (after,)).fetchone()
            if row is not None:  # also its content, which may be on other pages
                self._old.execute(f"SELECT {_JOB} FROM jobs WHERE seq = ?", (row[0],)).fetchall()
        except _DAMAGE:
            return False
        return True

    def _take(self, row: Sequence[Any]) -> None:
        values = list(row)
        seq, job_id, number, band, state = values[:5]
        if not self._is_good(values):
            self._damaged[seq] = job_id.hex() if isinstance(job_id, bytes) else f"number {seq}"
            return
        if band not in self._bands:
            values[3] = self._band_of(self._specs[number])
        marks = ", ".join("?" * len(values))
        try:
            self._new.execute(f"INSERT INTO jobs ({_JOB}) VALUES ({marks})", values)
        except apsw.ConstraintError:  # its key or its id is there twice
            values[14] = None
            try:
                self._new.execute(f"INSERT INTO jobs ({_JOB}) VALUES ({marks})", values)
            except apsw.ConstraintError:
                self._damaged[seq] = job_id.hex()
                return
        self._saved.add(seq)
        self._found.states[StoredState(state).state.value] += 1

    def _is_good(self, values: Sequence[Any]) -> bool:
        _, job_id, number, _, state, attempts, crashes, due_at, finished_at, payload, outcome, *_ = values
        if not (isinstance(job_id, bytes) and len(job_id) == 16) or number not in self._specs:
            return False
        if state not in set(StoredState) or not all(isinstance(count, int) for count in (attempts, crashes)):
            return False
        if not all(moment is None or isinstance(moment, (int, float)) for moment in (due_at, finished_at)):
            return False
        if state < FIRST_FINAL and not payload:
            return False
        if payload and crc32(payload[_CRC_BYTES:], crc32(job_id)) != int.from_bytes(payload[:_CRC_BYTES], "big"):
            return False
        try:
            if outcome is not None:
                unpack(outcome)
        except ProtocolError:
            return False
        return True

    def _look_for_missing(self) -> None:
        """Compares the index of ids with what was saved."""
        known: dict[int, bytes] = {}
        for order in ("ASC", "DESC"):
            try:
                sql = f"SELECT seq, id FROM jobs INDEXED BY jobs_id ORDER BY id {order}"
                for seq, job_id in self._old.execute(sql):
                    known[seq] = job_id
                break
            except _DAMAGE:
                self._found.is_index_read = False
        lost = known.keys() - self._saved - self._damaged.keys()
        self._found.missing = [known[seq].hex() for seq in sorted(lost)]
        ids = {seq: known[seq].hex() if seq in known else told for seq, told in self._damaged.items()}
        self._found.damaged = [ids[seq] for seq in sorted(ids)]  # the index has the id that was written

    # -- the rest

    def _read_table(self, table: str, keys: str) -> None:
        count = 0
        for row in self._rows(table, "*", keys):
            with suppress(apsw.ConstraintError):
                self._new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
                count += 1
        self._found.tables[table] = count

    def _rows(self, table: str, columns: str, keys: str) -> Iterator[Sequence[Any]]:
        """The rows of a table: in the order of its keys up to a damaged page, then from its end back to one."""
        seen: set[Sequence[Any]] = set()
        for order in ("ASC", "DESC"):
            by = ", ".join(f"{key} {order}" for key in keys.split(", "))
            try:
                for row in self._old.execute(f"SELECT {columns} FROM {table} ORDER BY {by}"):
                    if row not in seen:
                        seen.add(row)
                        yield row
                return
            except _DAMAGE:
                self._is_damaged(table)
            except apsw.SQLError:
                self._is_damaged(table)
                return  # there is no such table any more

    def _is_damaged(self, table: str) -> None:
        if table not in self._found.damaged_tables:
            self._found.damaged_tables.append(table)

    def _read_totals(self) -> int:
        names = (*TOTAL_NAMES, "commits")
        try:
            row = self._old.execute(f"SELECT {', '.join(names)} FROM totals").fetchone()
        except (*_DAMAGE, apsw.SQLError):
            row = None
        if row is None or not all(isinstance(count, int) for count in row):
            self._is_damaged("totals")
            return 0
        self._new.execute(statements.TOTALS, row)
        return sum(row)
