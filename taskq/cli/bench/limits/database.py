"""The limit of a queue in PostgreSQL: the statements that one must make, and nothing else.

Two tables, as those of the engine: a job is two rows when it comes in; its lease is an update and a look, its end a
delete and an update. One process submits, another one leases and settles, each with one commit for a batch.

python -m taskq.cli.bench.limits.database SCHEMA: leases and settles until its standard input ends; TASKQ_BENCH_DATABASE
says where. After each batch it prints how many it has settled in all.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg

from taskq.cli.bench.children import uninterrupted
from taskq.model.errors import BrokerUnavailable, TaskQError
from taskq.system.platform import die_with_parent

_WHERE = "TASKQ_BENCH_DATABASE"
_BATCH = 500
#: How long the worker waits when it has found nothing.
_POLL_S = 0.002
_PAYLOAD, _OUTCOME = b"x" * 60, b"\xc0"

_TABLES = """
CREATE TABLE jobs (id uuid PRIMARY KEY, seq bigint NOT NULL, spec int NOT NULL, state smallint NOT NULL,
    attempts int NOT NULL DEFAULT 0, settled_by bigint, finished_at timestamptz, payload bytea, outcome bytea)
    WITH (fillfactor = 70);
CREATE TABLE queue (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id uuid NOT NULL, partition int NOT NULL,
    spec int NOT NULL, state smallint NOT NULL, lease bigint, attempts int NOT NULL DEFAULT 0)
    WITH (fillfactor = 80);
CREATE INDEX ON queue (partition, seq) WHERE state = 0 AND lease IS NULL;
CREATE INDEX ON queue (lease, seq) WHERE lease IS NOT NULL;
"""
_SUBMIT = """
WITH new AS MATERIALIZED (
    SELECT id, payload, nextval('queue_seq_seq') AS seq FROM unnest(%s::uuid[], %s::bytea[]) AS n(id, payload)),
kept AS (INSERT INTO jobs (id, seq, spec, state, payload) SELECT id, seq, 1, 3, payload FROM new
         ON CONFLICT (id) DO NOTHING RETURNING id)
INSERT INTO queue (seq, id, partition, spec, state) OVERRIDING SYSTEM VALUE
SELECT n.seq, n.id, 1, 1, 0 FROM new n JOIN kept USING (id)
"""
_LEASE = """
WITH picked AS MATERIALIZED (
    SELECT seq FROM queue WHERE partition = 1 AND state = 0 AND lease IS NULL AND seq >= %s
    ORDER BY seq LIMIT %s FOR UPDATE SKIP LOCKED),
leased AS (UPDATE queue q SET lease = 7 FROM picked p WHERE q.seq = p.seq RETURNING q.seq, q.id)
SELECT l.seq, l.id, j.payload FROM leased l JOIN jobs j ON j.id = l.id
"""
_SETTLE = """
WITH d AS MATERIALIZED (SELECT * FROM unnest(%s::bigint[], %s::uuid[], %s::bytea[]) AS d(seq, id, outcome)),
gone AS (DELETE FROM queue q USING d WHERE q.seq = d.seq AND q.lease = 7 RETURNING q.seq)
UPDATE jobs j SET state = 10, attempts = 1, outcome = d.outcome, settled_by = 7, finished_at = now(), payload = NULL
FROM d JOIN gone USING (seq) WHERE j.id = d.id
"""

Rows = Sequence[tuple[Any, ...]]


def _connect(where: str, schema: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(where, autocommit=True, application_name="taskq bench")
    for setting in (f'search_path="{schema}"', "plan_cache_mode=force_generic_plan", "enable_seqscan=off", "jit=off"):
        connection.execute(f"SET {setting}".encode())
    return connection


def _submit(connection: psycopg.Connection[Any], ids: Sequence[UUID]) -> None:
    connection.execute(_SUBMIT, (ids, [_PAYLOAD] * len(ids)), prepare=True)


def _turn(connection: psycopg.Connection[Any], held: Rows, low: int, most: int) -> Rows:
    """Settles what is held, and leases more, in one commit."""
    with connection.pipeline(), connection.transaction():
        if held:
            _settle(connection, held)
        leased = connection.execute(_LEASE, (low, most), prepare=True)
    return leased.fetchall()


def _settle(connection: psycopg.Connection[Any], held: Rows) -> None:
    ids = [row[0] for row in held], [row[1] for row in held]
    connection.execute(_SETTLE, (*ids, [_OUTCOME] * len(held)), prepare=True)


class OwnSchema:
    """A schema of the benchmark's own, which is removed with all that is in it.

    Args:
        where: the database, for libpq.
    """

    def __init__(self, where: str) -> None:
        self.name = f"taskq_bench_{uuid4().hex[:12]}"
        self._where = where
        self._execute("CREATE SCHEMA {}")

    def close(self) -> None:
        """Removes it."""
        self._execute("DROP SCHEMA {} CASCADE")

    def _execute(self, sql: str) -> None:
        try:
            with psycopg.connect(self._where, autocommit=True) as connection:
                connection.execute(sql.format(self.name).encode())
        except psycopg.Error as error:
            raise BrokerUnavailable(f"the database of --url: {str(error).strip()}") from None


class BareDatabase:
    """The limit: this process submits, and a child leases and settles. The child stands still but in `working`: its
    looks for jobs would take part of what is measured beside it.

    Args:
        where: the database, for libpq.
    """

    def __init__(self, where: str) -> None:
        self._own = OwnSchema(where)
        self._schema = self._own.name
        self._connection = _connect(where, self._schema)
        self._connection.execute(_TABLES)
        with uninterrupted():
            self._worker = subprocess.Popen(
                [sys.executable, "-m", __name__, self._schema],
                env={**os.environ, _WHERE: where},  # it may have a password, and anyone may see arguments
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
            )
        self._sent = self._done = 0
        try:
            self._hear()
            self._hold()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the child, and removes the tables."""
        self._worker.kill()
        self._worker.communicate()
        self._connection.close()
        self._own.close()

    def enqueue(self) -> None:
        """Submits one job, with a commit."""
        self._sent += 1
        _submit(self._connection, [uuid4()])

    def enqueue_many(self, count: int) -> None:
        """Submits jobs in batches."""
        first = uuid4().int >> 32 << 32
        for start in range(0, count, _BATCH):
            number = min(_BATCH, count - start)
            _submit(self._connection, [UUID(int=first + start + each) for each in range(number)])
        self._sent += count

    def wait(self) -> None:
        """Waits until the child has settled all."""
        while self._done < self._sent:
            self._hear()

    def three_commits(self) -> None:
        """Submits a job, leases it and settles it."""
        _submit(self._connection, [uuid4()])
        _settle(self._connection, self._connection.execute(_LEASE, (0, 1), prepare=True).fetchall())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Lets the child lease and settle while a block runs, which ends with `wait`."""
        self._worker.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        """Stops the child, at a moment at which it has no transaction open."""
        while not self._is_idle():
            time.sleep(_POLL_S)

    def _is_idle(self) -> bool:
        """Stops the child, and lets it go on if it had begun something."""
        self._worker.send_signal(signal.SIGSTOP)
        [(busy,)] = self._connection.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
            " WHERE c.oid = 'queue'::regclass AND l.pid <> pg_backend_pid()"
        ).fetchall()
        if busy:
            self._worker.send_signal(signal.SIGCONT)
        return not busy

    def _hear(self) -> None:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line:
            raise TaskQError("the process of the benchmark that leases and settles jobs has failed")
        self._done = int(line)


def work(where: str, schema: str) -> None:
    """Leases and settles until the standard input ends."""
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    with _connect(where, schema) as connection:
        held: Rows = ()
        low = done = 0
        print(done, flush=True)
        while not selector.select(0 if held else _POLL_S):
            settled = len(held)
            held = _turn(connection, held, low, _BATCH)
            low = max((row[0] for row in held), default=0)
            if settled:
                done += settled
                print(done, flush=True)


if __name__ == "__main__":
    die_with_parent()
    work(os.environ[_WHERE], sys.argv[1])
