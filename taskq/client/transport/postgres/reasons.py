"""Why a job in a database does not run: from its tables, and from what fleets have told there, of all machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast
from uuid import UUID

import msgpack

from taskq.client.transport.postgres.looking import Row, read_row
from taskq.model.attempt import read_outcome
from taskq.model.info.why import MOST_JOBS_TOLD, LimitState, OtherJob, Reason, WhyInfo
from taskq.model.job import JobState
from taskq.model.partition import Limit, partition_of
from taskq.model.rules.limiters import Rate, with_slack
from taskq.model.stored import FIRST_FINAL, StoredState
from taskq.protocol.postgres.arrays import texts
from taskq.protocol.postgres.beats import Told, read_told
from taskq.protocol.postgres.kinds import pack_limits, read_limits, read_spec
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step

#: Those of its queue that are before it and do not run.
_AHEAD = """
    SELECT count(*) FROM (SELECT FROM taskq.queue q WHERE q.state = 0 AND q.seq < $1 AND q.partition IN (
        SELECT partition FROM taskq.partitions WHERE queue = $2)
        AND (q.lease IS NULL OR q.id NOT IN (SELECT unnest(running) FROM taskq.beats)) LIMIT 100000) AS ahead"""
_PAUSED = "SELECT 1 FROM taskq.paused WHERE queue = $1"
#: Jobs that run, on all machines.
_RUNNING = """
    SELECT uuid_send(q.id), s.fields, p.limits FROM (SELECT unnest(running) AS id FROM taskq.beats) b
    JOIN taskq.jobs j USING (id) JOIN taskq.queue q ON q.seq = j.seq JOIN taskq.partitions p USING (partition)
    JOIN taskq.specs s ON s.spec = q.spec WHERE j.state = 3 AND q.lease IS NOT NULL ORDER BY q.seq LIMIT 10000"""
#: The jobs that a job waits for.
_BEFORE = """
    SELECT uuid_send(e.parent), s.fields, coalesce(q.state, j.state), coalesce(j.id = ANY (b.running), false),
        extract(epoch FROM q.due_at)::float8
    FROM taskq.edges e LEFT JOIN taskq.jobs j ON j.id = e.parent
    LEFT JOIN taskq.queue q ON q.seq = j.seq AND j.state = 3
    LEFT JOIN taskq.specs s ON s.spec = coalesce(q.spec, j.spec) LEFT JOIN taskq.beats b ON b.fleet = q.lease
    WHERE e.child = $1 AND e.is_open ORDER BY e.parent LIMIT 100"""
#: $1, $2: limits. How much of each all fleets have.
_GRANTED = """
    SELECT g.kind, g.name, sum(g.amount)::int FROM taskq.grants g
    JOIN unnest($1::text[], $2::text[]) AS l (kind, name) ON g.kind = l.kind AND g.name = l.name GROUP BY 1, 2"""
#: The jobs of the fleets that have some of these limits, those that run first; some have others.
_HELD = """
    SELECT uuid_send(q.id), s.fields, coalesce(q.id = ANY (b.running), false) AS runs, p.limits
    FROM taskq.queue q JOIN taskq.partitions p USING (partition) JOIN taskq.specs s ON s.spec = q.spec
    LEFT JOIN taskq.beats b ON b.fleet = q.lease
    WHERE q.lease IN (SELECT g.fleet FROM taskq.grants g
        JOIN unnest($1::text[], $2::text[]) AS l (kind, name) ON g.kind = l.kind AND g.name = l.name)
    ORDER BY runs DESC, q.seq LIMIT 1000"""
_RATES = """
    SELECT name, state, extract(epoch FROM taskq.now_())::float8 FROM taskq.limits
    WHERE kind = 'rate' AND name = ANY ($1::text[])"""
#: $1: the packed limits of the job; $2: its seq. The first job before it that was started and will run again.
_AGAIN = """
    SELECT uuid_send(q.id), s.fields, q.state, extract(epoch FROM q.due_at)::float8
    FROM taskq.queue q JOIN taskq.partitions p USING (partition)
    JOIN taskq.specs s ON s.spec = q.spec
    WHERE p.limits = $1 AND q.attempts > 0 AND q.lease IS NULL AND q.seq < $2 ORDER BY q.seq LIMIT 1"""
#: What fleets tell that were heard of lately.
_FLEETS = """
    SELECT b.fleet, f.host, b.status FROM taskq.beats b JOIN taskq.fleets f USING (fleet)
    WHERE b.seen_at > taskq.now_() - interval '20 s' AND b.status IS NOT NULL ORDER BY b.fleet"""


class _Fleet(NamedTuple):
    """A fleet that was heard of lately."""

    number: int
    host: str
    told: Told


class _Running(NamedTuple):
    """A job that runs."""

    id: bytes
    task: str
    limits: Sequence[Limit]

    def shown(self) -> OtherJob:
        """As clients see it."""
        return OtherJob(self.id.hex(), self.task, JobState.RUNNING)


def read_reasons(job_id: bytes) -> Plan[WhyInfo]:
    """Why a job does not run, the nearest obstacle first. Raises JobNotFound."""
    row = yield from read_row(job_id)
    reasons = [_own_reason(row, [])] if row.kept >= FIRST_FINAL else (yield from _obstacles(row))
    return WhyInfo(row.id.hex(), row.spec.task, row.spec.queue, row.state, reasons)


def _obstacles(row: Row) -> Plan[list[Reason]]:
    """Why a job does not run that has not ended."""
    is_queued, queue = row.kept == StoredState.QUEUED, row.spec.queue
    limits = partition_of(row.spec, row.constraints).limits if is_queued else ()
    shared = [each for each in limits if each.kind != "resource"]
    queries = [Query(_FLEETS), Query(_RUNNING), Query(_PAUSED, (queue,)), Query(_AHEAD, (row.seq, queue))]
    queries.append(Query(_BEFORE, (UUID(bytes=row.id),)))
    heard, running, paused, [(ahead,)], before, *found = yield Step(*queries, *_asked_of(shared, row), commits=True)
    fleets = [_Fleet(number, host, read_told(bytes(told))) for number, host, told in heard]
    jobs = [_Running(bytes(job_id), read_spec(bytes(f)).task, read_limits(bytes(own))) for job_id, f, own in running]
    if row.is_running:
        return [_runs(row, fleets)]
    reasons = [] if is_queued else [_own_reason(row, before)]
    reasons += _lasting(row, [fleet.told for fleet in fleets], is_paused=bool(paused))
    if shared:
        reasons += _closed(shared, row, _Found(*found))
    reasons += _lacking([each for each in limits if each.kind == "resource"], row, fleets, jobs)
    if is_queued and fleets and (ahead or not reasons):
        reasons.append(_behind(row, fleets, jobs, ahead))
    return reasons


def _own_reason(row: Row, before: Rows) -> Reason:
    """The reason in the job's own row, if it waits for something else than a fleet, or has ended."""
    error = None if row.outcome is None else read_outcome(row.outcome).error
    told = None if error is None else f"{error.dotted_type}: {error.message}".rstrip(": ")
    if row.kept == StoredState.SCHEDULED:
        return Reason("scheduled", until=row.due_at, attempt=row.attempts or None, error=told)
    if row.kept >= FIRST_FINAL:
        return Reason("ended", since=row.finished_at, attempt=row.attempts or None, error=told)
    jobs = [
        OtherJob(bytes(job_id).hex())
        if fields is None
        else OtherJob(bytes(job_id).hex(), read_spec(bytes(fields)).task, _shown(state, runs), due_at)
        for job_id, fields, state, runs, due_at in before
    ]
    return Reason("waiting", jobs=jobs[:MOST_JOBS_TOLD], others=max(0, len(jobs) - MOST_JOBS_TOLD))


def _runs(row: Row, fleets: Sequence[_Fleet]) -> Reason:
    """That it runs, and where."""
    fleet = next((each for each in fleets if each.number == row.fleet), None)
    told = None if fleet is None else row.own_of(fleet.told.running)
    if fleet is None or told is None:  # it has begun since, or its machine is silent
        return Reason("running", attempt=row.attempts + 1)
    return Reason("running", since=told.started_at, attempt=told.attempt, consumer=told.consumer, machine=fleet.host)


# -- fleets


def _lasting(row: Row, fleets: Sequence[Told], *, is_paused: bool) -> Iterator[Reason]:
    """What will not go away without somebody's help."""
    queue, going = row.spec.queue, [told for told in fleets if told.is_going]
    serving = [(told, consumer) for told in going for consumer in told.ready(queue)]
    if not fleets:
        yield Reason("no_fleet")
    elif not going:
        yield Reason("stopping")
    elif not any(told.serves(queue) for told in going):
        yield Reason("not_served")
    elif not serving:
        error = next((missing.error for told in going for missing in told.status.not_started), None)
        is_missing = error is not None or not any(True for told in going for _ in told.ready())
        yield Reason("no_consumers", error=error) if is_missing else Reason("not_served")
    elif not any(told.has_task(row.spec.task) for told, _ in serving):
        yield Reason("unknown_task", consumers=len(serving))
    if is_paused:
        yield Reason("paused")


def _behind(row: Row, fleets: Sequence[_Fleet], running: Sequence[_Running], ahead: int) -> Reason:
    """Other jobs go first, or all consumers for it are busy. A job that a fleet has waits for that one's."""
    own = [each.told for each in fleets if row.fleet in (None, each.number) and each.told.is_going]
    serving = [(told, consumer) for told in own for consumer in told.ready(row.spec.queue)]
    busy = [(told, consumer) for told, consumer in serving if consumer.running >= consumer.slots]
    if row.fleet is not None and len(busy) < len(serving):
        return Reason("sent")
    if not serving or len(busy) < len(serving):
        return Reason("behind", ahead=ahead, consumers=len(serving), busy=len(busy))
    keeping = {
        job_id for told, consumer in busy for job_id, job in told.running.items() if job.consumer == consumer.number
    }
    jobs = [job.shown() for job in running if job.id in keeping]
    others = max(0, len(keeping) - MOST_JOBS_TOLD)
    return Reason("behind", jobs[:MOST_JOBS_TOLD], others, ahead=ahead, consumers=len(serving), busy=len(busy))


def _lacking(
    resources: Sequence[Limit], row: Row, fleets: Sequence[_Fleet], running: Sequence[_Running]
) -> Iterator[Reason]:
    """The resources of which no fleet that serves the job's queue has enough left. What is told is that of the one that
    has most."""
    own = [each.told for each in fleets if row.fleet in (None, each.number)]
    serving = [told for told in own if told.is_going and told.serves(row.spec.queue)]
    for limit in resources:
        states = []
        for told in serving:
            holders = [
                (job, own.amount)
                for job in running
                if job.id in told.running
                for own in job.limits
                if own[:2] == limit[:2]
            ]
            used = sum(amount for _, amount in holders)
            states.append((told.resources.get(limit.name, 0), used, [job.shown() for job, _ in holders]))
        if states and all(amount - used < limit.amount for amount, used, _ in states):
            amount, used, jobs = max(states, key=lambda state: state[0])
            told_state = LimitState("resource", limit.name, amount, used, limit.amount)
            yield Reason("limit", limit=told_state, jobs=jobs[:MOST_JOBS_TOLD])


# -- limits


class _Found(NamedTuple):
    """What the tables say of the limits of a job: the rows of `_asked_of`."""

    granted: Rows
    held: Rows
    rates: Rows
    again: Rows


def _asked_of(limits: Sequence[Limit], row: Row) -> list[Query]:
    if not limits:
        return []
    keys = texts([limit.kind for limit in limits]), texts([limit.name for limit in limits])
    return [
        Query(_GRANTED, keys),
        Query(_HELD, keys),
        Query(_RATES, (texts([limit.name for limit in limits if limit.kind == "rate"]),)),
        Query(_AGAIN, (pack_limits(partition_of(row.spec, row.constraints)), row.seq)),
    ]


def _closed(limits: Sequence[Limit], row: Row, found: _Found) -> Iterator[Reason]:
    """The limits that let no further job pass now. Of a job that a fleet has, only those that others have."""
    granted = {(kind, name): amount for kind, name, amount in found.granted}
    rates = {name: (Rate(msgpack.unpackb(bytes(state))), at) for name, state, at in found.rates}
    for limit in limits:
        used = granted.get(limit[:2], 0)
        if limit.kind == "rate":
            state, at = rates.get(limit.name, (Rate(), 0.0))
            if row.fleet is None and not state.free(with_slack(limit), at):
                yield Reason("limit", limit=_state(limit, limit.amount), until=state.opens_at(with_slack(limit)))
            continue
        holders = [job for job in _holders(limit, found.held) if job.id != row.id.hex()]
        if used >= limit.amount and (holders or row.fleet is None):
            others = max(0, used - len(holders)) if limit.kind == "concurrency" else 0
            yield Reason("limit", limit=_state(limit, used), jobs=holders, others=others)
        elif limit.kind == "order" and found.again:
            [(job_id, fields, state, due_at)] = found.again
            before = OtherJob(bytes(job_id).hex(), read_spec(bytes(fields)).task, StoredState(state).state, due_at)
            yield Reason("limit", limit=_state(limit, 1), jobs=[before])


def _state(limit: Limit, used: int) -> LimitState:
    kind = cast(Literal["concurrency", "rate", "order"], limit.kind)
    return LimitState(kind, limit.name, limit.amount, used, 1, limit.period_s)


def _holders(limit: Limit, held: Rows) -> list[OtherJob]:
    """Some of the jobs of fleets that have a limit: those that run, or if none does, those that were sent."""
    own = [
        (
            OtherJob(bytes(job_id).hex(), read_spec(bytes(fields)).task, _shown(StoredState.QUEUED, is_running)),
            is_running,
        )
        for job_id, fields, is_running, limits in held
        if any(each[:2] == limit[:2] for each in read_limits(bytes(limits)))
    ]
    running = [job for job, is_running in own if is_running]
    return (running or [job for job, _ in own])[:MOST_JOBS_TOLD]


def _shown(kept: int, is_running: bool) -> JobState:
    return JobState.RUNNING if is_running else StoredState(kept).state
