"""Jobs that have to be let in: unique ones, and those of a queue that takes no more than so many.

It is decided in the transaction that takes them in, by the rules of `taskq.model.rules`. The rows of unique keys are
locked first, in the order of the keys, so that clients wait for each other and never for themselves. A key is left with
the job that had it last: whether that still keeps others out is looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from taskq.model.attempt import pack_failure
from taskq.model.constraints import NO_CONSTRAINTS
from taskq.model.job import JobError, JobRow
from taskq.model.rules.room import check_room
from taskq.model.rules.unique import Decision, decide
from taskq.model.spec import Spec
from taskq.model.stored import StoredJob, StoredState
from taskq.protocol.postgres.arrays import bigints, byteas, uuids
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.submitting import ENDED_WORD, NewJob, notify, submit_constrained
from taskq.protocol.postgres.watching import LIVES, tell

_CLAIM = """
    INSERT INTO taskq.keys (key, id) SELECT key, id FROM unnest($1::bytea[], $2::uuid[]) AS n(key, id) ORDER BY key
    ON CONFLICT (key) DO UPDATE SET key = excluded.key RETURNING key, uuid_send(id)"""
_LOCK = """
    SELECT uuid_send(id), seq, lease IS NOT NULL FROM taskq.queue
    WHERE seq IN (SELECT seq FROM taskq.jobs WHERE id = ANY($1::uuid[]) AND state = 3) ORDER BY seq FOR UPDATE"""
_STATES = "SELECT uuid_send(id), state FROM taskq.jobs WHERE id = ANY($1::uuid[])"
_CLOCK = "SELECT extract(epoch FROM taskq.now_())::float8"
_WAITING = """
    SELECT count(*) FROM (
        SELECT FROM taskq.queue WHERE state = 0 AND lease IS NULL AND partition IN (
            SELECT partition FROM taskq.partitions WHERE queue = $1) LIMIT $2) AS waiting"""
_TAKE_KEYS = """
    UPDATE taskq.keys k SET id = n.id FROM unnest($1::bytea[], $2::uuid[]) AS n(key, id) WHERE k.key = n.key"""
_REPLACE = """
    WITH gone AS (DELETE FROM taskq.queue WHERE seq = ANY($1::bigint[]) RETURNING id)
    UPDATE taskq.jobs j SET state = 12, outcome = $2, finished_at = taskq.now_(), payload = NULL, checkpoint = NULL,
        settled_by = 0 FROM gone WHERE j.id = gone.id"""


class Admission(NamedTuple):
    """Jobs of one spec that ask to be let in.

    Attributes:
        spec: what they have in common.
        jobs: they.
        wall: seconds since 1970, by the clock that made their times.
        before: statements that go with them.
        words: tells brokers of them.
        channel: of brokers.
    """

    spec: Spec
    jobs: Sequence[NewJob]
    wall: float
    before: Sequence[Query]
    words: Sequence[str]
    channel: str

    def plan(self) -> Plan[dict[bytes, bytes]]:
        """Takes them in. Returns, for each that is left out, its id and that of the job in its place.

        Raises:
            QueueFull: too many wait.
        """
        own = [job.constraints or NO_CONSTRAINTS for job in self.jobs]
        if not any(constraints.unique for constraints in own):
            yield from self._check_room(len(self.jobs))
            yield Step(*self.before, submit_constrained(self.jobs, self.wall), commits=True, after=[self._bell()])
            return {}
        ids = [job.id for job in self.jobs]
        decision = yield from self._decide(ids)
        yield from self._check_room(len(decision.taken) - len(decision.replaced))
        taken = [self.jobs[position] for position in decision.taken]
        if taken:
            yield self._take(taken, decision)
        return decision.earlier

    def _check_room(self, jobs: int) -> Plan[None]:
        yield from check_room_of(self.spec, jobs)

    def _decide(self, ids: Sequence[bytes]) -> Plan[Decision]:
        """Locks the keys and the jobs that have them, and decides."""
        own = [job.constraints or NO_CONSTRAINTS for job in self.jobs]
        first: dict[str, bytes] = {}
        for job_id, constraints in zip(ids, own, strict=True):
            if constraints.unique is not None:
                first.setdefault(constraints.unique.key, job_id)
        keys = byteas([key.encode() for key in first])
        [claimed] = yield Step(Query(_CLAIM, (keys, uuids(list(first.values())))))
        holders = {bytes(key).decode(): bytes(holder) for key, holder in claimed}
        asked = uuids(list({*holders.values(), *ids}))
        locked, found, [(wall,)] = yield Step(Query(_LOCK, (asked,)), Query(_STATES, (asked,)), Query(_CLOCK))
        states = {bytes(job_id): state for job_id, state in found}
        leases = _Leases(locked)
        known = [job_id for job_id in ids if job_id in states]
        stored = {
            key: leases.stored(holder, self.spec, states[holder]) for key, holder in holders.items() if holder in states
        }
        return decide(ids, own, known, stored, leases, wall)

    def _take(self, taken: Sequence[NewJob], decision: Decision) -> Step:
        keyed = [
            (job.constraints.unique.key.encode(), job.id)
            for job in taken
            if job.constraints is not None and job.constraints.unique is not None
        ]
        queries = [
            *self.before,
            Query(_TAKE_KEYS, (byteas([key for key, _ in keyed]), uuids([one for _, one in keyed]))),
        ]
        after = [self._bell()]
        if decision.replaced:
            error = JobError("Duplicate", "a later job with the same unique key took its place")
            outcome = pack_failure(None, None, error)
            rows = [job.row for job in decision.replaced]
            queries.append(Query(_REPLACE, (bigints([row.seq for row in rows]), outcome)))
            after += [tell([row.id for row in rows], self.channel), notify(self.channel, [ENDED_WORD])]
        queries.append(submit_constrained(taken, self.wall))
        return Step(*queries, commits=True, after=after)

    def _bell(self) -> Query:
        return notify(self.channel, self.words)


def check_room_of(spec: Spec, jobs: int) -> Plan[None]:
    """Checks whether jobs may come into the queue of their spec. Raises QueueFull."""
    most = spec.max_queued
    if most is not None:
        [[(waiting,)]] = yield Step(Query(_WAITING, (spec.queue, most + 1)))
        check_room(spec, waiting, jobs)


class _Leases:
    """Which jobs fleets have: the `Leases` of `taskq.model.rules.unique`. One that a fleet has counts as running."""

    def __init__(self, locked: Rows) -> None:
        self._seqs = {bytes(job_id): seq for job_id, seq, _ in locked}
        self._leased = {bytes(job_id) for job_id, _, is_leased in locked if is_leased}

    def withdraw(self, job_id: bytes, /) -> bool:
        """Whether no fleet has it."""
        return job_id not in self._leased

    def is_running(self, job_id: bytes, /) -> bool:
        """Whether a fleet has it."""
        return job_id in self._leased

    def stored(self, job_id: bytes, spec: Spec, state: int) -> StoredJob:
        """A job, as far as it matters here."""
        row = JobRow(self._seqs.get(job_id, 0), job_id, spec, b"")
        kept = StoredState.QUEUED if state == LIVES else StoredState(state)
        return StoredJob(row, kept, None, None, None)
