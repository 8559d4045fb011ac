"""Takes in a whole queue that another engine has exported, in one transaction: all of it is there, or nothing.

The transaction also notes that this journal was moved. So a move that is killed can be begun again: either it finds
that note, or nothing of what it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, Protocol
from uuid import UUID

import msgpack
import psycopg
from psycopg import errors

from taskq.engines.moving.portable import (
    ROWS_AT_ONCE,
    Moved,
    PortableAttempt,
    PortableEdge,
    PortableJob,
    PortableSchedule,
    Tally,
)
from taskq.engines.postgres.migrate import migrate
from taskq.model.errors import BrokerUnavailable, JournalError
from taskq.model.info.counts import CountsRow
from taskq.model.limits import MAX_ITEM_BYTES
from taskq.model.partition import Partition
from taskq.model.schedule import Schedule
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, StoredState
from taskq.protocol.postgres.kinds import pack_limits, pack_spec
from taskq.protocol.postgres.refusals import sentence
from taskq.protocol.postgres.submitting import DUE_WORD, SEARCH_WORD, ready_word
from taskq.protocol.postgres.watching import LIVES
from taskq.system.place import DatabaseUrl

#: What was moved here. Made by the first move: few queues ever see one.
_MOVES = """
CREATE TABLE IF NOT EXISTS taskq.moves (
    journal  text PRIMARY KEY,
    moved_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    tally    text NOT NULL
)"""
_JOBS = {
    "id": "uuid", "seq": "int8", "spec": "int4", "state": "int2", "attempts": "int4", "crashes": "int4",
    "snoozes": "int4", "finished_at": "timestamptz", "constraints": "bytea", "payload": "bytea",
    "checkpoint": "bytea", "outcome": "bytea",
}  # fmt: skip
_QUEUE = {
    "seq": "int8", "id": "uuid", "partition": "int4", "spec": "int4", "state": "int2", "attempts": "int4",
    "crashes": "int4", "snoozes": "int4", "pending": "int4", "due_at": "timestamptz", "expires_at": "timestamptz",
    "ready_at": "timestamptz",
}  # fmt: skip
_CALLED_OFF = {
    "id": "uuid",
    "seq": "int8",
    "partition": "int4",
    "spec": "int4",
    "due_at": "timestamptz",
    "expires_at": "timestamptz",
}
_EDGES = {"parent": "uuid", "child": "uuid", "goes_on": "bool", "is_open": "bool"}
_ATTEMPTS = {"id": "uuid", "number": "int4", "outcome": "bytea", "host": "text"}
_ITEMS = {"id": "uuid", "position": "int4", "item": "bytea"}
#: A key whose job has ended is anybody's.
_KEYS = """
INSERT INTO taskq.keys AS k (key, id) SELECT * FROM unnest(%s::bytea[], %s::uuid[])
ON CONFLICT (key) DO UPDATE SET id = excluded.id
WHERE NOT EXISTS (SELECT FROM taskq.jobs AS j WHERE j.id = k.id AND j.state = 3)"""
_TALLY = """
SELECT (SELECT count(*) FROM taskq.queue WHERE state = 0), (SELECT count(*) FROM taskq.queue WHERE state = 1),
    (SELECT count(*) FROM taskq.queue WHERE state = 1 AND attempts > 0),
    (SELECT count(*) FROM taskq.queue WHERE state = 2),
    count(*) FILTER (WHERE state = 10), (SELECT count(*) FROM taskq.failed JOIN taskq.jobs USING (id)),
    count(*) FILTER (WHERE state = 12), count(*) FILTER (WHERE state = 13),
    count(*) FILTER (WHERE state = 10 AND outcome IS NOT NULL),
    (SELECT count(*) FROM taskq.attempts), (SELECT count(*) FROM taskq.items), (SELECT count(*) FROM taskq.edges)
FROM taskq.jobs"""


class Exported(Protocol):
    """A queue that is to be moved; each of its parts is read once."""

    @property
    def id(self) -> str:
        """What tells it from all others."""

    def tally(self) -> Tally:
        """How many there are of each kind."""

    def jobs(self) -> Iterator[PortableJob]:
        """All jobs, in the order of submission."""

    def edges(self) -> Iterator[PortableEdge]:
        """Which jobs come after others."""

    def attempts(self) -> Iterator[PortableAttempt]:
        """The attempts that others have followed."""

    def items(self) -> Iterator[tuple[bytes, int, bytes]]:
        """What generators have yielded."""

    def schedules(self) -> list[PortableSchedule]:
        """All schedules."""

    def paused(self) -> list[str]:
        """The queues that are paused."""

    def counts(self) -> list[CountsRow]:
        """What has happened to the jobs of each task and queue."""


def move(exported: Exported, database: DatabaseUrl) -> Moved:
    """Makes the tables if need be, and moves a queue into them.

    Raises:
        BrokerUnavailable: the database does not answer, or refuses the connection.
        JournalError: something cannot be moved, or the counts differ; then nothing was.
    """
    options: dict[str, Any] = {"autocommit": True, "application_name": "taskq migrate", "connect_timeout": 10}
    try:
        with (
            psycopg.connect(database.conninfo, **options) as own,
            psycopg.connect(database.conninfo, **options) as aside,
        ):
            migrate(own, database.schema)
            return _Move(own, aside, database.schema).run(exported)
    except errors.UniqueViolation as error:
        raise JournalError(
            f"{database.shown}: some of these jobs are there already, though not by `taskq migrate`: nothing was "
            f"moved ({_first_line(error)})"
        ) from None
    except psycopg.OperationalError as error:
        raise BrokerUnavailable(f"{database.shown}: {sentence(str(error))}; nothing was moved: run it again") from None
    except psycopg.Error as error:
        raise JournalError(f"{database.shown}: nothing was moved: {sentence(str(error))}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class _Move:
    """One move."""

    def __init__(self, own: psycopg.Connection[Any], aside: psycopg.Connection[Any], schema: str) -> None:
        """
        Args:
            own: for the transaction of the move.
            aside: for the numbers of specs and partitions, which are committed at once: others need them too.
        """
        self._own, self._schema = own, schema
        self._numbers = _Numbers(aside, schema)
        self._too_large: list[str] = []
        self._keys = 0

    def run(self, exported: Exported) -> Moved:
        """Moves all, or finds that it was done before."""
        expected = exported.tally()
        with self._own.transaction():
            self._do(_MOVES)
        with self._own.transaction():
            self._own.execute(
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
            )  # others' jobs do not change the counts
            done = self._do("SELECT tally FROM taskq.moves WHERE journal = %s", exported.id).fetchone()
            if done is not None:
                return Moved(_same(Tally(**json.loads(done[0])), expected, self._schema), was_before=True)
            before = self._count()
            self._write(exported)
            self._refuse_large()
            self._check(expected, before, exported)
            self._do("INSERT INTO taskq.moves VALUES (%s, DEFAULT, %s)", exported.id, json.dumps(asdict(expected)))
        words = [ready_word(partition) for partition in self._numbers.partitions.values()] + [DUE_WORD, SEARCH_WORD]
        self._do("SELECT pg_notify(%s, word) FROM unnest(%s::text[]) AS word", self._schema, words)
        return Moved(expected, was_before=False)

    def _write(self, exported: Exported) -> None:
        jobs = exported.jobs()
        while some := list(islice(jobs, ROWS_AT_ONCE)):
            self._write_jobs(some)
        edges = ((_uuid(edge.parent), _uuid(edge.child), edge.goes_on, edge.is_open) for edge in exported.edges())
        self._copy("edges", _EDGES, edges)
        attempts = ((_uuid(each.id), each.number, each.outcome, each.host) for each in exported.attempts())
        self._copy("attempts", _ATTEMPTS, attempts)
        items = ((_uuid(job_id), position, item) for job_id, position, item in exported.items())
        self._copy("items", _ITEMS, items)
        for queue in exported.paused():
            self._do("INSERT INTO taskq.paused VALUES (%s) ON CONFLICT DO NOTHING", queue)
        for row in exported.schedules():
            last = row.last_id and _uuid(row.last_id)
            every_s = Schedule.from_wire(msgpack.unpackb(row.fields)).every_s
            self._do(  # whoever finds it due adds the jitter
                "INSERT INTO taskq.schedules"
                " (name, fields, next_at, app, is_paused, last_at, last_id, fires_at, every_s)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                row.name, row.fields, row.next_at, row.app, row.is_paused, row.last_at, last, row.next_at, every_s,
            )  # fmt: skip
        key = int.from_bytes(exported.id.encode()[-8:], "big") >> 1  # of whom these counts are: of no machine
        for task, queue, minute, packed in exported.counts():
            self._do("INSERT INTO taskq.counts VALUES (%s, %s, %s, %s, %s)", key, minute, task, queue, packed)

    def _write_jobs(self, jobs: Sequence[PortableJob]) -> None:
        seqs = self._do("SELECT nextval('taskq.queue_seq_seq') FROM generate_series(1, %s)", len(jobs)).fetchall()
        rows, waiting, failed, called_off = list[Any](), list[Any](), list[Any](), list[Any]()
        for job, (seq,) in zip(jobs, seqs, strict=True):
            self._note_size(job)
            spec, job_id, is_living = self._numbers.spec(job.spec), _uuid(job.id), job.state < FIRST_FINAL
            counted = job.attempts, job.crashes, job.snoozes
            state = LIVES if is_living else int(job.state)
            contents = job.constraints, job.payload, job.checkpoint, job.outcome
            rows.append((job_id, seq, spec, state, *counted, _time(job.finished_at), *contents))
            if is_living:
                times = _time(job.due_at), _time(job.expires_at), _time(job.ready_at)
                partition = self._numbers.partition(job.partition)
                waiting.append((seq, job_id, partition, spec, int(job.state), *counted, job.pending, *times))
            elif job.state is StoredState.FAILED:
                failed.append((job_id,))
            elif job.state is StoredState.CANCELLED and job.payload is not None:  # because of another: it may come back
                until = _time(job.due_at), _time(job.expires_at)
                called_off.append((job_id, seq, self._numbers.partition(job.partition), spec, *until))
        self._copy("jobs", _JOBS, rows)
        self._copy("queue", _QUEUE, waiting)
        self._copy("failed", {"id": "uuid"}, failed)
        self._copy("called_off", _CALLED_OFF, called_off)
        keyed = [(job.unique_key.encode(), _uuid(job.id)) for job in jobs if job.unique_key is not None]
        if keyed:
            keys, ids = zip(*keyed, strict=True)
            self._keys += self._do(_KEYS, list(keys), list(ids)).rowcount

    def _copy(self, table: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
        """Writes rows of these columns, each given with its type."""
        sql = f'COPY "{self._schema}".{table} ({", ".join(columns)}) FROM STDIN (FORMAT BINARY)'
        with self._own.cursor() as cursor, cursor.copy(sql.encode()) as copy:
            copy.set_types(list(columns.values()))
            for row in rows:
                copy.write_row(row)

    def _do(self, sql: str, *parameters: Any) -> psycopg.Cursor[Any]:
        return self._own.execute(sql.replace("taskq.", f'"{self._schema}".').encode(), parameters)

    # -- what is refused

    def _note_size(self, job: PortableJob) -> None:
        size = max(len(job.payload or b""), len(job.outcome or b""))
        if size > MAX_ITEM_BYTES:
            self._too_large.append(f"{job.id.hex()} ({job.spec.task}, {job.state.state}): {size / 2**20:.1f} MiB")

    def _refuse_large(self) -> None:
        if self._too_large:
            more = f" and {len(self._too_large) - 1} more" if len(self._too_large) > 1 else ""
            raise JournalError(
                f"a database takes arguments and results of up to {MAX_ITEM_BYTES >> 20} MiB, and there are larger "
                f"ones: {self._too_large[0]}{more}; nothing was moved. Let such jobs run before the move, or remove "
                "them with `taskq purge`"
            )

    # -- the proof

    def _count(self) -> list[int]:
        [row] = self._do(_TALLY).fetchall()
        return list(row)

    def _check(self, expected: Tally, before: Sequence[int], exported: Exported) -> None:
        """Compares what the tables have more than before with what the journal has."""
        names = [schedule.name for schedule in exported.schedules()]
        [[schedules]] = self._do("SELECT count(*) FROM taskq.schedules WHERE name = ANY (%s)", names).fetchall()
        queues = exported.paused()
        [[paused]] = self._do("SELECT count(*) FROM taskq.paused WHERE queue = ANY (%s)", queues).fetchall()
        if self._keys != expected.unique_keys:
            raise JournalError(
                f"{expected.unique_keys - self._keys} of the unique keys belong to jobs in schema {self._schema!r} "
                "that have not ended: nothing was moved. Run it again when they have"
            )
        rows = [now - then for now, then in zip(self._count(), before, strict=True)]
        _same(Tally(*[*rows, self._keys, schedules, paused]), expected, self._schema)


def _same(found: Tally, expected: Tally, schema: str) -> Tally:
    """Raises JournalError unless two tallies are equal."""
    wanted = expected.by_name()
    wrong = [f"{name}: {there}, not {wanted[name]}" for name, there in found.by_name().items() if there != wanted[name]]
    if wrong:
        raise JournalError(
            f"what was moved to schema {schema!r} is not what the journal has ({'; '.join(wrong)}): nothing was changed"
        )
    return found


class _Numbers:
    """The numbers of specs and partitions."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self._connection, self._schema = connection, schema
        self._specs: dict[Spec, int] = {}
        self.partitions: dict[Partition, int] = {}

    def spec(self, spec: Spec) -> int:
        """The number of a spec."""
        return self._number(self._specs, spec, "specs", {"fields": pack_spec(spec)})

    def partition(self, partition: Partition) -> int:
        """The number of a partition."""
        fields = {"queue": partition.queue, "priority": partition.priority, "limits": pack_limits(partition)}
        return self._number(self.partitions, partition, "partitions", fields)

    def _number(self, known: dict[Any, int], what: Any, table: str, fields: dict[str, Any]) -> int:
        if what not in known:
            names, places = ", ".join(fields), ", ".join(["%s"] * len(fields))
            are_equal = " AND ".join(f"{name} = %s" for name in fields)
            insert = f'INSERT INTO "{self._schema}".{table} ({names}) VALUES ({places}) ON CONFLICT DO NOTHING'
            find = f'SELECT {table.removesuffix("s")} FROM "{self._schema}".{table} WHERE {are_equal}'
            values = list(fields.values())
            self._connection.execute(insert.encode(), values)
            [[known[what]]] = self._connection.execute(find.encode(), values).fetchall()
        return known[what]


def _uuid(job_id: bytes) -> UUID:
    return UUID(bytes=job_id)


#: The last time that Python knows.
_LAST: Final = 253_402_300_799.0


def _time(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(min(at, _LAST), UTC)
