"""Jobs that have to be let in: unique ones, those that come after others, and those of a queue that takes no more than
so many.

It is decided in the transaction that takes them in, by the rules of `taskq.model.rules`. The rows of unique keys are
locked first, in the order of the keys, so that clients wait for each other and never for themselves. A key is left with
the job that had it last: whether that still keeps others out is looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from taskq.model.constraints import NO_CONSTRAINTS
from taskq.model.errors import EnqueueError
from taskq.model.job import JobRow
from taskq.model.rules.room import check_room
from taskq.model.rules.unique import LEFT_OUT, REPLACED, Decision, decide, duplicate
from taskq.model.spec import Spec
from taskq.model.stored import StoredJob, StoredState
from taskq.protocol.postgres.arrays import bigints, byteas, uuids
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.submitting import (
    NewJob,
    ended_words,
    notify,
    other_arguments,
    submit_constrained,
    submit_flow,
    unknown_among,
)
from taskq.protocol.postgres.watching import LIVES, tell

_CLAIM = """
    INSERT INTO taskq.keys (key, id) SELECT key, id FROM unnest($1::bytea[], $2::uuid[]) AS n(key, id) ORDER BY key
    ON CONFLICT (key) DO UPDATE SET key = excluded.key RETURNING key, uuid_send(id)"""
_LOCK = """
    SELECT uuid_send(id), seq, lease IS NOT NULL FROM taskq.queue
    WHERE seq IN (SELECT seq FROM taskq.jobs WHERE id = ANY($1::uuid[]) AND state = 3) ORDER BY seq FOR UPDATE"""
_STATES = "SELECT uuid_send(id), state FROM taskq.jobs WHERE id = ANY($1::uuid[])"
#: The time, in seconds since 1970.
CLOCK = "SELECT extract(epoch FROM taskq.now_())::float8"
_WAITING = """
    SELECT count(*) FROM (
        SELECT FROM taskq.queue WHERE state = 0 AND lease IS NULL AND partition IN (
            SELECT partition FROM taskq.partitions WHERE queue = $1) LIMIT $2) AS waiting"""
_NOTHING = "SELECT NULL::bytea WHERE false"
_TAKE_KEYS = """
    UPDATE taskq.keys k SET id = n.id FROM unnest($1::bytea[], $2::uuid[]) AS n(key, id) WHERE k.key = n.key"""
_REPLACE = """
    WITH gone AS (DELETE FROM taskq.queue WHERE seq = ANY($1::bigint[]) RETURNING id),
    done AS (
        UPDATE taskq.jobs j SET state = 12, outcome = $2, finished_at = taskq.now_(), payload = NULL,
            checkpoint = NULL, settled_by = 0
        FROM gone WHERE j.id = gone.id RETURNING j.spec)
    INSERT INTO taskq.tallies SELECT taskq.now_(), 1, spec, count(*) FROM done GROUP BY spec"""

_NOTE_LEFT_OUT = """
    INSERT INTO taskq.jobs (id, seq, spec, state, outcome, finished_at, settled_by)
    SELECT id, nextval('taskq.queue_seq_seq'), $1::int, 12, outcome, taskq.now_(), 0
    FROM unnest($2::uuid[], $3::bytea[]) AS n(id, outcome) ON CONFLICT (id) DO NOTHING"""


class Admitted(NamedTuple):
    """What follows from a decision.

    Attributes:
        queries: take the jobs in; none if all were left out.
        after: tell of that, behind the commit.
        earlier: for each job that is left out, its id and that of the job in its place.
    """

    queries: list[Query]
    after: list[Query]
    earlier: dict[bytes, bytes]


class Admission(NamedTuple):
    """Jobs that ask to be let in, together or not at all.

    Attributes:
        groups: jobs by what they have in common. Unique ones are of one group.
        wall: seconds since 1970, by the clock that made their times.
        words: tells brokers of them.
        channel: of brokers.
        is_accepted: whether nobody hears of a refusal: there is room for them, and those that are left out are noted as
            cancelled.
        compares: whether to look if a known id has come with other arguments, which takes the right to read these.
    """

    groups: Sequence[tuple[Spec, Sequence[NewJob]]]
    wall: float
    words: Sequence[str]
    channel: str
    is_accepted: bool = False
    compares: bool = True

    @property
    def jobs(self) -> list[NewJob]:
        """All jobs."""
        return [job for _, own in self.groups for job in own]

    def plan(self, before: Sequence[Query] = ()) -> Plan[dict[bytes, bytes]]:
        """Takes them in. Returns, for each that is left out, its id and that of the job in its place.

        Args:
            before: statements that go with them.

        Raises:
            QueueFull: too many wait.
            EnqueueError: a job that they come after is not known, or one has the id of another with other arguments.
        """
        admitted = yield from self.decide()
        if admitted.queries:
            yield Step(*before, *admitted.queries, commits=True, after=admitted.after)
        return admitted.earlier

    def decide(self) -> Plan[Admitted]:
        """Decides which of them come in. Raises the same as `plan`."""
        jobs = self.jobs
        constraints = [job.constraints or NO_CONSTRAINTS for job in jobs]
        if any(own.unique for own in constraints):
            return (yield from self._decide_unique(jobs))
        rooms = [] if self.is_accepted else [(spec, len(own)) for spec, own in self.groups if spec.max_queued]
        parents = parents_of(jobs)
        if parents or rooms:
            unknown, is_new = yield Step(unknown_among(parents), unknown_among([jobs[0].id]))
            if not is_new:
                return Admitted([], [], {})  # they were sent before
            check_parents(unknown)
        for spec, count in rooms:
            yield from _check_room(spec, count)
        return Admitted([self._submit(jobs)], [self._bell()], {})

    def _submit(self, jobs: Sequence[NewJob]) -> Query:
        is_plain = len(self.groups) == 1 and not any(job.after for job in jobs)
        return submit_constrained(jobs, self.wall) if is_plain else submit_flow(jobs, self.wall)

    def _decide_unique(self, jobs: Sequence[NewJob]) -> Plan[Admitted]:
        """Locks the keys and the jobs that have them, and decides."""
        [(spec, _)] = self.groups
        ids = [job.id for job in jobs]
        own = [job.constraints or NO_CONSTRAINTS for job in jobs]
        first: dict[str, bytes] = {}
        for job_id, constraints in zip(ids, own, strict=True):
            if constraints.unique is not None:
                first.setdefault(constraints.unique.key, job_id)
        keys = byteas([key.encode() for key in first])
        others, unknown, claimed = yield Step(
            other_arguments(ids, [job.payload for job in jobs]) if self.compares else Query(_NOTHING),
            unknown_among(parents_of(jobs)),
            Query(_CLAIM, (keys, uuids(list(first.values())))),
        )
        check_arguments(others)
        holders = {bytes(key).decode(): bytes(holder) for key, holder in claimed}
        asked = uuids(list({*holders.values(), *ids}))
        locked, found, [(wall,)] = yield Step(Query(_LOCK, (asked,)), Query(_STATES, (asked,)), Query(CLOCK))
        states = {bytes(job_id): state for job_id, state in found}
        leases = _Leases(locked)
        known = [job_id for job_id in ids if job_id in states]
        if len(known) < len(ids):
            check_parents(unknown)
        stored = {
            key: leases.stored(holder, spec, states[holder]) for key, holder in holders.items() if holder in states
        }
        decision = decide(ids, own, known, stored, leases, wall)
        if not self.is_accepted:
            yield from _check_room(spec, len(decision.taken) - len(decision.replaced))
        return self._take(jobs, decision)

    def _take(self, jobs: Sequence[NewJob], decision: Decision) -> Admitted:
        taken = [jobs[position] for position in decision.taken]
        queries, after = list[Query](), list[Query]()
        if taken:
            keyed = [
                (job.constraints.unique.key.encode(), job.id)
                for job in taken
                if job.constraints is not None and job.constraints.unique is not None
            ]
            columns = byteas([key for key, _ in keyed]), uuids([one for _, one in keyed])
            queries.append(Query(_TAKE_KEYS, columns))
            after.append(self._bell())
        if decision.replaced:
            rows = [job.row for job in decision.replaced]
            queries.append(Query(_REPLACE, (bigints([row.seq for row in rows]), duplicate(REPLACED))))
            replaced = [row.id for row in rows]
            after += [tell(replaced, self.channel), notify(self.channel, ended_words(replaced))]
        if taken:
            queries.append(self._submit(taken))
        if decision.earlier and self.is_accepted:
            reasons = [duplicate(LEFT_OUT.format(earlier.hex())) for earlier in decision.earlier.values()]
            columns = uuids(list(decision.earlier)), byteas(reasons)
            queries.append(Query(_NOTE_LEFT_OUT, (jobs[0].spec, *columns)))
        return Admitted(queries, after, decision.earlier)

    def _bell(self) -> Query:
        return notify(self.channel, self.words)


def parents_of(jobs: Sequence[NewJob]) -> list[bytes]:
    """The jobs that others come after, without those among them."""
    own = {job.id for job in jobs}
    return list({parent: None for job in jobs for parent, _ in job.after if parent not in own})


def check_parents(unknown: Rows) -> None:
    """Takes the answer to `unknown_among`. Raises EnqueueError: a job to come after is not known."""
    for (job_id,) in unknown:
        raise EnqueueError(
            f"there is no job {bytes(job_id).hex()} to come after: it never existed, or it is no longer kept"
        )


def check_arguments(others: Rows) -> None:
    """Takes the answer to `other_arguments`. Raises EnqueueError: an id is used already."""
    for (job_id,) in others:
        raise EnqueueError(f"job id {bytes(job_id).hex()} is already used by a job with other arguments")


def _check_room(spec: Spec, jobs: int) -> Plan[None]:
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
