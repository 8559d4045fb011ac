"""Jobs come in: a row in `jobs` and one in `queue`, in one statement, which also counts them in `tallies`.

It may be sent again: what is there already stays as it is. Times travel as seconds from now, so that the clock of the
client does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgpack

from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.protocol.postgres.arrays import Array, byteas, floats, ints, smallints, texts, uuids
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
        SELECT n.seq, n.id, $2::int, $1::int, 0 FROM new n JOIN kept USING (id)),
    tallied AS (
        INSERT INTO taskq.tallies SELECT taskq.now_(), 0, $1::int, count(*) FROM kept HAVING count(*) > 0)
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
        FROM new n JOIN kept USING (id)),
    tallied AS (
        INSERT INTO taskq.tallies SELECT taskq.now_(), 0, $1::int, count(*) FROM kept HAVING count(*) > 0)
    SELECT count(*) FROM kept"""
_SUBMIT_FLOW = """
    WITH new AS MATERIALIZED (
        SELECT *, nextval('taskq.queue_seq_seq') AS seq
        FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::int[], $5::int[], $6::float8[], $7::float8[], $8::int[])
             AS n(id, payload, constraints, spec, partition, due_s, expires_s, pending)),
    kept AS (
        INSERT INTO taskq.jobs (id, seq, spec, state, payload, constraints)
        SELECT id, seq, spec, 3, payload, constraints FROM new ON CONFLICT (id) DO NOTHING RETURNING id),
    linked AS (
        INSERT INTO taskq.edges (parent, child, goes_on, is_open)
        SELECT e.parent, e.child, e.goes_on = 1, true
        FROM unnest($9::uuid[], $10::uuid[], $11::smallint[]) AS e(parent, child, goes_on)
        JOIN kept ON kept.id = e.child
        ON CONFLICT DO NOTHING),
    waiting AS (
        INSERT INTO taskq.queue (seq, id, partition, spec, state, pending, due_at, expires_at)
        SELECT n.seq, n.id, n.partition, n.spec,
               CASE WHEN pending > 0 THEN 2 WHEN due_s IS NULL THEN 0 ELSE 1 END, pending,
               taskq.now_() + due_s * interval '1 second', taskq.now_() + expires_s * interval '1 second'
        FROM new n JOIN kept USING (id)),
    tallied AS (
        INSERT INTO taskq.tallies SELECT taskq.now_(), 0, spec, count(*) FROM new JOIN kept USING (id) GROUP BY spec)
    SELECT count(*) FROM kept"""
_UNKNOWN = """
    SELECT uuid_send(n.id) FROM unnest($1::uuid[]) AS n(id)
    WHERE NOT EXISTS (SELECT FROM taskq.jobs j WHERE j.id = n.id) LIMIT 1"""
_OTHER_ARGUMENTS = """
    SELECT uuid_send(j.id) FROM unnest($1::uuid[], $2::bytea[]) AS n(id, payload) JOIN taskq.jobs j USING (id)
    WHERE j.payload <> n.payload LIMIT 1"""
#: What `tallies.what` means: the name of the count, by its number. Those of `TALLIED_BY_FLEETS` fleets have noted of
#: jobs that they had.
TALLIED = ("enqueued", "cancelled", "expired", "succeeded", "failed", "cancelled", "expired", "retried")
TALLIED_BY_FLEETS = range(3, 7)
#: Whether the role may read the arguments of jobs.
MAY_READ_ARGUMENTS = Query("SELECT has_column_privilege('taskq.jobs', 'payload', 'SELECT')")
#: PostgreSQL's times end in the year 294276.
_FARTHEST_S = 1e11


class NewJob(NamedTuple):
    """A job to come in.

    Attributes:
        spec, partition: the numbers of its spec and of its partition.
    """

    id: bytes
    payload: bytes
    constraints: Constraints | None
    spec: int
    partition: int

    @property
    def after(self) -> tuple[tuple[bytes, bool], ...]:
        """The jobs that it comes after; see `Constraints.after`."""
        return () if self.constraints is None else self.constraints.after


def submit_plain(spec: int, partition: int, ids: Sequence[bytes], payloads: Sequence[bytes]) -> Query:
    """The statement for jobs without constraints. It returns how many are new.

    Args:
        spec, partition: their numbers.
    """
    return Query(_SUBMIT, (spec, partition, uuids(ids), byteas(payloads)))


def submit_constrained(jobs: Sequence[NewJob], wall: float) -> Query:
    """The statement for jobs of one spec, some of which have constraints. It returns how many are new.

    Args:
        wall: the time by the clock that made their `due_at` and `expires_at`, in seconds since 1970.
    """
    columns = (
        uuids([job.id for job in jobs]),
        byteas([job.payload for job in jobs]),
        byteas([pack_constraints(job.constraints) for job in jobs]),
        ints([job.partition for job in jobs]),
        *_times(jobs, wall),
    )
    return Query(_SUBMIT_CONSTRAINED, (jobs[0].spec, *columns))


def submit_flow(jobs: Sequence[NewJob], wall: float) -> Query:
    """The statement for jobs of any specs that may come after others, which have been checked. Brokers look which of
    these have ended already. It returns how many are new.

    Args:
        wall: as for `submit_constrained`.
    """
    edges = [(parent, job.id, goes_on) for job in jobs for parent, goes_on in job.after]
    columns = (
        uuids([job.id for job in jobs]),
        byteas([job.payload for job in jobs]),
        byteas([pack_constraints(job.constraints) for job in jobs]),
        ints([job.spec for job in jobs]),
        ints([job.partition for job in jobs]),
        *_times(jobs, wall),
        ints([len(job.after) for job in jobs]),
        uuids([parent for parent, _, _ in edges]),
        uuids([child for _, child, _ in edges]),
        smallints([goes_on for _, _, goes_on in edges]),
    )
    return Query(_SUBMIT_FLOW, columns)


def unknown_among(ids: Sequence[bytes]) -> Query:
    """The statement for one of some jobs of which nothing is known."""
    return Query(_UNKNOWN, (uuids(ids),))


def _times(jobs: Sequence[NewJob], wall: float) -> tuple[Array, Array]:
    """In how many seconds jobs are due, and expire."""
    own = [job.constraints or NO_CONSTRAINTS for job in jobs]
    return (
        floats([_seconds_until(constraints.due_at, wall) for constraints in own]),
        floats([_seconds_until(constraints.expires_at, wall) for constraints in own]),
    )


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


def ended_words(ids: Sequence[bytes]) -> list[str]:
    """Tells brokers that these jobs have ended, or may have: others may come after them."""
    texts_of = [bytes(job_id).hex() for job_id in ids]
    starts = range(0, len(ids), _IDS_IN_A_WORD)
    return [f"{SEARCH_WORD} {' '.join(texts_of[at : at + _IDS_IN_A_WORD])}" for at in starts]


def ready_word(partition: int) -> str:
    """Tells brokers that jobs of a partition are ready."""
    return f"q {partition}"


#: Tells brokers that there are new jobs after others.
FLOW_WORD = "f"
#: Tells brokers that jobs may have ended that others come after; which, they have to search for.
SEARCH_WORD = "h"
#: How many ids fit one notification.
_IDS_IN_A_WORD = 200
#: Tells brokers that a job is due within `SOON_S`; otherwise they look often enough.
DUE_WORD = "d"
SOON_S = 2.0


def words_of(jobs: Iterable[NewJob], wall: float) -> list[str]:
    """What brokers are told of new jobs.

    Args:
        wall: as for `submit_constrained`.
    """
    words: dict[str, None] = {}
    own_ids, parents = set[bytes](), dict[bytes, None]()
    for job in jobs:
        own = job.constraints or NO_CONSTRAINTS
        if own.after:
            words[FLOW_WORD] = None
            parents |= dict.fromkeys(parent for parent, _ in own.after)
        elif own.due_at is None:
            words[ready_word(job.partition)] = None
        elif own.due_at - wall < SOON_S:
            words[DUE_WORD] = None
        own_ids.add(job.id)
    return [*words, *ended_words([parent for parent in parents if parent not in own_ids])]


def notify(channel: str, words: Iterable[str]) -> Query:
    """Tells those who listen. To be sent behind a commit, in a transaction of its own: a commit that notifies holds a
    lock of the whole server while it is written to the disk."""
    return Query("SELECT pg_notify($1, word) FROM unnest($2::text[]) AS word", (channel, texts(list(words))))
