"""What a client changes in the tables besides submitting jobs: cancel, retry and purge jobs, and pause queues.

A job that no fleet has is changed here, under the lock of its row in `queue`; a fleet that has it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from taskq.model.attempt import pack_failure
from taskq.model.errors import JobNotFound
from taskq.model.job import JobError, JobRow
from taskq.model.partition import Partition, partition_of
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol.postgres.arrays import bigints, byteas, ints, texts, uuids
from taskq.protocol.postgres.kinds import read_spec
from taskq.protocol.postgres.plans import Plan, Query, Step
from taskq.protocol.postgres.submitting import (
    SEARCH_WORD,
    ended_words,
    notify,
    pack_constraints,
    read_constraints,
    ready_word,
)
from taskq.protocol.postgres.watching import LIVES, tell

_LOCK = """
    SELECT q.seq, q.lease, coalesce(q.id = ANY(b.running), false) FROM taskq.queue q
    LEFT JOIN taskq.beats b ON b.fleet = q.lease
    WHERE q.seq = (SELECT seq FROM taskq.jobs WHERE id = $1 AND state = 3) FOR UPDATE OF q"""
_STATE = "SELECT state FROM taskq.jobs WHERE id = $1"
_CANCEL = """
    WITH gone AS (DELETE FROM taskq.queue WHERE seq = $1 RETURNING id),
    done AS (
        UPDATE taskq.jobs j SET state = 12, outcome = $2, finished_at = taskq.now_(), payload = NULL,
            checkpoint = NULL, settled_by = 0
        FROM gone WHERE j.id = gone.id RETURNING j.spec)
    INSERT INTO taskq.tallies SELECT taskq.now_(), 1, spec, 1 FROM done"""
_DETACH = """
    WITH gone AS (DELETE FROM taskq.called_off WHERE id = $1 RETURNING id),
    edges AS (DELETE FROM taskq.edges e USING gone WHERE e.child = gone.id)
    UPDATE taskq.jobs j SET payload = NULL FROM gone WHERE j.id = gone.id"""
_ASK_TO_CANCEL = "UPDATE taskq.queue SET cancel = greatest(cancel, $2::smallint) WHERE seq = $1"
_CANCELLING = "SELECT q.lease, q.cancel FROM taskq.queue q JOIN taskq.jobs j USING (seq) WHERE j.id = $1"


def cancel(job_id: bytes, also_running: bool, channel: str) -> Plan[bool | None]:
    """Cancels a job, or asks the fleet that has it to. Returns whether it is cancelled; None if the fleet was asked.

    Args:
        channel: of the brokers.

    Raises:
        JobNotFound: nothing is known of it.
    """
    key = UUID(bytes=bytes(job_id))
    locked, states = yield Step(Query(_LOCK, (key,)), Query(_STATE, (key,)))
    if not states:
        raise JobNotFound.of(job_id)
    if states[0][0] != LIVES:
        if states[0][0] == StoredState.CANCELLED:  # one that was cancelled because of another would come back with that
            yield Step(Query(_DETACH, (key,)), commits=True)
        return bool(states[0][0] == StoredState.CANCELLED)
    if not locked:
        return None  # it has just gone elsewhere: look again
    [(seq, lease, _)] = locked
    if lease is None:
        outcome = pack_failure(None, None, JobError("Cancelled", "cancelled before it started"))
        words = notify(channel, ended_words([job_id]))
        yield Step(Query(_CANCEL, (seq, outcome)), commits=True, after=(tell([job_id], channel), words))
        return True
    word = notify(channel, [f"c {lease}"])
    yield Step(Query(_ASK_TO_CANCEL, (seq, 2 if also_running else 1)), commits=True, after=(word,))
    return None


def is_being_cancelled(job_id: bytes) -> Plan[bool | None]:
    """What has become of the wish to cancel a job that a fleet has. None: it is still wanted; False: it runs and goes
    on; True: ask again."""
    [found] = yield Step(Query(_CANCELLING, (UUID(bytes=bytes(job_id)),)), commits=True)
    if not found or found[0][0] is None:
        return True
    return False if found[0][1] == 0 else None


# -- retry

_FAILED_ONE = """
    SELECT uuid_send(j.id), s.fields, j.spec, j.attempts, j.crashes, j.snoozes, j.constraints FROM taskq.jobs j
    JOIN taskq.specs s USING (spec) WHERE j.id = ANY($1::uuid[]) AND j.state = 11 FOR UPDATE OF j"""
_RETRY = """
    WITH again AS MATERIALIZED (
        SELECT id, partition, constraints, nextval('taskq.queue_seq_seq') AS seq
        FROM unnest($1::uuid[], $2::int[], $3::bytea[]) AS n(id, partition, constraints)),
    history AS (
        INSERT INTO taskq.attempts (id, number, outcome, host) SELECT j.id, j.attempts, j.outcome, h.host
        FROM taskq.jobs j JOIN again USING (id) LEFT JOIN taskq.hosts h ON h.fleet = j.settled_by
        WHERE j.outcome IS NOT NULL ON CONFLICT DO NOTHING),
    living AS (
        UPDATE taskq.jobs j SET state = 3, seq = again.seq, constraints = again.constraints, finished_at = NULL,
            settled_by = NULL
        FROM again WHERE j.id = again.id AND j.state = 11
        RETURNING j.id, j.seq, j.spec, j.attempts, j.crashes, j.snoozes, again.partition),
    alive AS (DELETE FROM taskq.failed f USING living WHERE f.id = living.id),
    tallied AS (INSERT INTO taskq.tallies SELECT taskq.now_(), 7, spec, count(*) FROM living GROUP BY spec)
    INSERT INTO taskq.queue (seq, id, partition, spec, state, attempts, crashes, snoozes, ready_at)
    SELECT seq, id, partition, spec, 0, attempts, crashes, snoozes, taskq.now_() FROM living RETURNING uuid_send(id)"""
_HAS_CALLED_OFF = "SELECT EXISTS (SELECT FROM taskq.called_off)"
#: Jobs that were cancelled because of others ($1) which are run again: who looks at the same ones waits.
_LOCK_CALLED_OFF = """
    SELECT 1 FROM taskq.called_off WHERE id IN (
        SELECT child FROM taskq.edges WHERE parent = ANY($1::uuid[]) AND NOT goes_on) ORDER BY id FOR UPDATE"""
#: These wait again: not if another that one needs did not succeed, or is no longer there, as nobody knows whether that
#: had succeeded. All of its edges are open again: brokers close those whose parents have ended.
_REVIVE = """
    WITH again AS MATERIALIZED (
        SELECT * FROM taskq.called_off c
        WHERE id IN (SELECT child FROM taskq.edges WHERE parent = ANY($1::uuid[]) AND NOT goes_on)
            AND NOT EXISTS (
                SELECT FROM taskq.edges e LEFT JOIN taskq.jobs b ON b.id = e.parent
                WHERE e.child = c.id AND NOT e.goes_on AND coalesce(b.state, 12) > 10)),
    back AS (DELETE FROM taskq.called_off c USING again WHERE c.id = again.id),
    living AS (
        UPDATE taskq.jobs j SET state = 3, outcome = NULL, finished_at = NULL, settled_by = NULL FROM again
        WHERE j.id = again.id),
    opened AS (
        UPDATE taskq.edges e SET is_open = true FROM again
        WHERE e.child = again.id AND EXISTS (SELECT FROM taskq.jobs b WHERE b.id = e.parent) RETURNING e.child),
    pending AS MATERIALIZED (SELECT child, count(*) AS count FROM opened GROUP BY child)
    INSERT INTO taskq.queue (seq, id, partition, spec, state, pending, due_at, expires_at)
    SELECT a.seq, a.id, a.partition, a.spec, 2, p.count, a.due_at, a.expires_at
    FROM again a JOIN pending p ON p.child = a.id
    RETURNING uuid_send(id)"""
_NOTHING = "SELECT"
_FAILED_NEXT = """
    SELECT uuid_send(f.id), s.fields FROM (
        SELECT id FROM taskq.failed WHERE id > $1 ORDER BY id LIMIT $2) f
    JOIN taskq.jobs j USING (id) JOIN taskq.specs s USING (spec) ORDER BY f.id"""


class Failed(NamedTuple):
    """A failed job that is to be queued again."""

    row: JobRow
    partition: Partition


def read_failed(ids: Sequence[bytes]) -> Plan[list[Failed]]:
    """Those of some jobs that have failed."""
    [found] = yield Step(Query(_FAILED_ONE, (uuids(ids),)), commits=True)
    jobs: list[Failed] = []
    for job_id, fields, _, attempts, crashes, snoozes, packed in found:
        spec = read_spec(bytes(fields))
        row = JobRow(0, bytes(job_id), spec, b"", attempts, crashes, read_constraints(packed))
        row.snoozes = snoozes
        row.forgive()
        jobs.append(Failed(row, partition_of(spec, row.constraints)))
    return jobs


def retry(jobs: Sequence[Failed], numbers: Sequence[int], channel: str) -> Plan[int]:
    """Queues failed jobs again, and has those wait again that were cancelled because of them. Returns how many of them
    still had failed.

    Args:
        numbers: of their partitions.
        channel: of the brokers.
    """
    columns = (
        uuids([job.row.id for job in jobs]),
        ints(numbers),
        byteas([pack_constraints(job.row.constraints) for job in jobs]),
    )
    words = [ready_word(number) for number in set(numbers)]
    queued, [(has_called_off,)] = yield Step(Query(_RETRY, columns), Query(_HAS_CALLED_OFF))
    again = [bytes(job_id) for (job_id,) in queued] if has_called_off else []
    while again:
        parents = uuids(again)
        _, revived = yield Step(Query(_LOCK_CALLED_OFF, (parents,)), Query(_REVIVE, (parents,)))
        again = [bytes(job_id) for (job_id,) in revived]
        if again:
            words.append(SEARCH_WORD)
    yield Step(Query(_NOTHING), commits=True, after=(notify(channel, dict.fromkeys(words)),))
    return len(queued)


def next_failed(fits: Callable[[Spec], bool], after: bytes, seen: int) -> Plan[tuple[list[bytes], bytes | None]]:
    """The next failed jobs, the oldest first, of specs that are meant; and where to go on, or None for the end."""
    [found] = yield Step(Query(_FAILED_NEXT, (UUID(bytes=after), seen)), commits=True)
    ids = [bytes(job_id) for job_id, fields in found if fits(read_spec(bytes(fields)))]
    return ids, bytes(found[-1][0]) if len(found) == seen else None


# -- purge

_LOCK_MANY = """
    SELECT uuid_send(q.id), q.seq, q.lease FROM taskq.queue q JOIN taskq.jobs j USING (seq)
    WHERE j.id = ANY($1::uuid[]) AND j.state = 3 ORDER BY q.seq FOR UPDATE OF q"""
_PURGE = """
    WITH ended AS (DELETE FROM taskq.queue WHERE seq = ANY($2::bigint[]) RETURNING spec),
    tallied AS (INSERT INTO taskq.tallies SELECT taskq.now_(), 1, spec, count(*) FROM ended GROUP BY spec),
    gone AS (DELETE FROM taskq.jobs WHERE id = ANY($1::uuid[]) RETURNING id),
    f AS (DELETE FROM taskq.failed WHERE id = ANY($1::uuid[])),
    a AS (DELETE FROM taskq.attempts WHERE id = ANY($1::uuid[])),
    o AS (DELETE FROM taskq.called_off WHERE id = ANY($1::uuid[])),
    i AS (DELETE FROM taskq.items WHERE id = ANY($1::uuid[]))
    SELECT uuid_send(id) FROM gone"""


def purge(ids: Sequence[bytes], channel: str) -> Plan[list[bytes]]:
    """Removes jobs that no fleet has. Returns those that were removed."""
    [locked] = yield Step(Query(_LOCK_MANY, (uuids(ids),)))
    leased = {bytes(job_id) for job_id, _, lease in locked if lease is not None}
    free = [job_id for job_id in ids if job_id not in leased]
    seqs = [seq for _, seq, lease in locked if lease is None]
    query = Query(_PURGE, (uuids(free), bigints(seqs)))
    gone, *_ = yield Step(query, commits=True, after=(tell(free, channel), notify(channel, ended_words(free))))
    return [bytes(job_id) for (job_id,) in gone]


# -- pause

#: As long as what a fleet of a directory logs.
_MAX_BY_CHARS = 200
_PAUSE = "INSERT INTO taskq.paused SELECT unnest($1::text[]) ON CONFLICT DO NOTHING RETURNING queue"
_RESUME = "DELETE FROM taskq.paused WHERE queue = ANY($1::text[]) OR cardinality($1::text[]) = 0 RETURNING queue"


def pause(queues: Sequence[str], is_paused: bool, by: str, channel: str) -> Plan[list[str]]:
    """Pauses or resumes queues (none: all that are paused). Returns those for which that is a change.

    Args:
        by: who wants it, for the logs of fleets.
    """
    query = Query(_PAUSE if is_paused else _RESUME, (texts(list(queues)),))
    changed, _ = yield Step(query, commits=True, after=(notify(channel, [f"p {by[:_MAX_BY_CHARS]}"]),))
    return sorted(queue for (queue,) in changed)
