"""Jobs come in: a row in `jobs` and one in `queue`, in one statement.

It may be sent again: what is there already stays as it is. Times travel as seconds from now, so that the clock of the
client does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgpack

from taskq.model.constraints import Constraints
from taskq.protocol.postgres.arrays import byteas, floats, ints, texts, uuids
from taskq.protocol.postgres.plans import Query

_SUBMIT = """
    WITH new AS MATERIALIZED (
        SELECT id, payload, nextval('taskq.queue_seq_seq') AS seq
        FROM unnest($3::uuid[], $4::bytea[]) AS n(id, payload)),
    kept AS (
        INSERT INTO taskq.jobs (id, seq, spec, state, payload) SELECT id, seq, $1::int, 3, payload FROM new
        ON CONFLICT (id) DO NOTHING RETURNING id),
    waiting AS (
        INSERT INTO taskq.queue (seq, id, partition, spec, state)
        SELECT n.seq, n.id, $2::int, $1::int, 0 FROM new n JOIN kept USING (id))
    SELECT count(*) FROM kept"""
_SUBMIT_CONSTRAINED = """
    WITH new AS MATERIALIZED (
        SELECT *, nextval('taskq.queue_seq_seq') AS seq
        FROM unnest($2::uuid[], $3::bytea[], $4::bytea[], $5::int[], $6::float8[], $7::float8[])
             AS n(id, payload, constraints, partition, due_s, expires_s)),
    kept AS (
        INSERT INTO taskq.jobs (id, seq, spec, state, payload, constraints)
        SELECT id, seq, $1::int, 3, payload, constraints FROM new ON CONFLICT (id) DO NOTHING RETURNING id),
    waiting AS (
        INSERT INTO taskq.queue (seq, id, partition, spec, state, due_at, expires_at)
        SELECT n.seq, n.id, n.partition, $1::int, CASE WHEN due_s IS NULL THEN 0 ELSE 1 END,
               taskq.now_() + due_s * interval '1 second', taskq.now_() + expires_s * interval '1 second'
        FROM new n JOIN kept USING (id))
    SELECT count(*) FROM kept"""
_OTHER_ARGUMENTS = """
    SELECT uuid_send(j.id) FROM unnest($1::uuid[], $2::bytea[]) AS n(id, payload) JOIN taskq.jobs j USING (id)
    WHERE j.payload <> n.payload LIMIT 1"""
#: PostgreSQL's times end in the year 294276.
_FARTHEST_S = 1e11


class NewJob(NamedTuple):
    """A job to come in.

    Attributes:
        partition: the number of its partition.
    """

    id: bytes
    payload: bytes
    constraints: Constraints | None
    partition: int


def submit_plain(spec: int, partition: int, ids: Sequence[bytes], payloads: Sequence[bytes]) -> Query:
    """The statement for jobs without constraints. It returns how many are new.

    Args:
        spec, partition: their numbers.
    """
    return Query(_SUBMIT, (spec, partition, uuids(ids), byteas(payloads)))


def submit_constrained(spec: int, jobs: Sequence[NewJob], wall: float) -> Query:
    """The statement for jobs some of which have constraints. It returns how many are new.

    Args:
        spec: the number of their spec.
        wall: the time by the clock that made their `due_at` and `expires_at`, in seconds since 1970.
    """
    columns = (
        uuids([job.id for job in jobs]),
        byteas([job.payload for job in jobs]),
        byteas([pack_constraints(job.constraints) for job in jobs]),
        ints([job.partition for job in jobs]),
        floats([None if job.constraints is None else _seconds_until(job.constraints.due_at, wall) for job in jobs]),
        floats([None if job.constraints is None else _seconds_until(job.constraints.expires_at, wall) for job in jobs]),
    )
    return Query(_SUBMIT_CONSTRAINED, (spec, *columns))


def other_arguments(ids: Sequence[bytes], payloads: Sequence[bytes]) -> Query:
    """The statement for one of the jobs that were there before with other arguments."""
    return Query(_OTHER_ARGUMENTS, (uuids(ids), byteas(payloads)))


def _seconds_until(at: float | None, wall: float) -> float | None:
    return None if at is None else min(at - wall, _FARTHEST_S)


def pack_constraints(constraints: Constraints | None) -> bytes | None:
    """The constraints of a job as they stand in its row."""
    kept = None if constraints is None else constraints.kept
    return None if kept is None else msgpack.packb(kept.to_wire())


def read_constraints(packed: bytes | None) -> Constraints | None:
    """The opposite of `pack_constraints`."""
    return None if packed is None else Constraints.from_wire(msgpack.unpackb(packed))


# -- who is told


def ready_word(partition: int) -> str:
    """Tells brokers that jobs of a partition are ready."""
    return f"q {partition}"


#: Tells brokers that a job is due within `SOON_S`; otherwise they look often enough.
DUE_WORD = "d"
SOON_S = 2.0


def notify(channel: str, words: Iterable[str]) -> Query:
    """Tells those who listen. To be sent behind a commit, in a transaction of its own: a commit that notifies holds a
    lock of the whole server while it is written to the disk."""
    return Query("SELECT pg_notify($1, word) FROM unnest($2::text[]) AS word", (channel, texts(list(words))))
