"""Why a job in a database does not run, as far as the tables tell. What a machine's resources are, they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

import msgpack

from taskq.client.transport.postgres.looking import Row, read_row
from taskq.model.attempt import read_outcome
from taskq.model.info.why import MOST_JOBS_TOLD, LimitState, OtherJob, Reason, WhyInfo
from taskq.model.job import JobState
from taskq.model.partition import Limit, partition_of
from taskq.model.rules.limiters import Rate, with_slack
from taskq.model.stored import FIRST_FINAL, StoredState
from taskq.protocol.postgres.arrays import texts
from taskq.protocol.postgres.kinds import pack_limits, read_limits, read_spec
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step

_AHEAD = """
    SELECT count(*) FROM (SELECT FROM taskq.queue q WHERE q.state = 0 AND q.seq < $1 AND q.partition IN (
        SELECT partition FROM taskq.partitions WHERE queue = $2) LIMIT 100000) AS ahead"""
_PAUSED = "SELECT 1 FROM taskq.paused WHERE queue = $1"
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
    SELECT uuid_send(q.id), s.fields, q.state FROM taskq.queue q JOIN taskq.partitions p USING (partition)
    JOIN taskq.specs s ON s.spec = q.spec
    WHERE p.limits = $1 AND q.attempts > 0 AND q.lease IS NULL AND q.seq < $2 ORDER BY q.seq LIMIT 1"""
_FLEETS = "SELECT count(*) FROM taskq.beats WHERE seen_at > taskq.now_() - interval '20 s'"


def read_reasons(job_id: bytes) -> Plan[WhyInfo]:
    """Why a job does not run, the nearest obstacle first. Raises JobNotFound."""
    row = yield from read_row(job_id)
    reasons = [own] if (own := _own_reason(row)) is not None else []
    if row.kept < FIRST_FINAL and not row.is_running:
        queue = row.spec.queue
        queries = [Query(_AHEAD, (row.seq, queue)), Query(_PAUSED, (queue,)), Query(_FLEETS)]
        is_waiting = row.kept == StoredState.QUEUED and not row.is_leased
        limits = [each for each in partition_of(row.spec, row.constraints).limits if each.kind != "resource"]
        if is_waiting and limits:
            queries += _asked_of(limits, row)
        [(ahead,)], paused, [(fleets,)], *found = yield Step(*queries, commits=True)
        if not fleets:
            reasons.append(Reason("no_fleet"))
        if paused:
            reasons.append(Reason("paused"))
        if row.is_leased:
            reasons.append(Reason("sent"))
        elif found and (closed := list(_closed(limits, _Found(*found)))):
            reasons += closed
        elif ahead and row.kept == StoredState.QUEUED:
            reasons.append(Reason("behind", ahead=ahead))
    return WhyInfo(row.id.hex(), row.spec.task, row.spec.queue, row.state, reasons)


def _own_reason(row: Row) -> Reason | None:
    """The reason in the job's own row; None if it waits for nothing but a fleet."""
    error = None if row.outcome is None else read_outcome(row.outcome).error
    told = None if error is None else f"{error.dotted_type}: {error.message}".rstrip(": ")
    if row.is_running:
        return Reason("running", attempt=row.attempts + 1)
    if row.kept == StoredState.SCHEDULED:
        return Reason("scheduled", until=row.due_at, attempt=row.attempts or None, error=told)
    if row.kept >= FIRST_FINAL:
        return Reason("ended", since=row.finished_at, attempt=row.attempts or None, error=told)
    return Reason("waiting") if row.kept == StoredState.WAITING else None


# -- limits


class _Found(NamedTuple):
    """What the tables say of the limits of a job: the rows of `_asked_of`."""

    granted: Rows
    held: Rows
    rates: Rows
    again: Rows


def _asked_of(limits: Sequence[Limit], row: Row) -> list[Query]:
    keys = texts([limit.kind for limit in limits]), texts([limit.name for limit in limits])
    return [
        Query(_GRANTED, keys),
        Query(_HELD, keys),
        Query(_RATES, (texts([limit.name for limit in limits if limit.kind == "rate"]),)),
        Query(_AGAIN, (pack_limits(partition_of(row.spec, row.constraints)), row.seq)),
    ]


def _closed(limits: Sequence[Limit], found: _Found) -> Iterator[Reason]:
    """The limits that let no further job pass now."""
    granted = {(kind, name): amount for kind, name, amount in found.granted}
    rates = {name: (Rate(msgpack.unpackb(bytes(state))), at) for name, state, at in found.rates}
    for limit in limits:
        used = granted.get(limit[:2], 0)
        if limit.kind == "rate":
            state, at = rates.get(limit.name, (Rate(), 0.0))
            if not state.free(with_slack(limit), at):
                yield Reason("limit", limit=_state(limit, limit.amount), until=state.opens_at(with_slack(limit)))
        elif used >= limit.amount:
            holders = _holders(limit, found.held)
            others = max(0, used - len(holders)) if limit.kind == "concurrency" else 0
            yield Reason("limit", limit=_state(limit, used), jobs=holders, others=others)
        elif limit.kind == "order" and found.again:
            [(job_id, fields, state)] = found.again
            before = OtherJob(bytes(job_id).hex(), read_spec(bytes(fields)).task, StoredState(state).state)
            yield Reason("limit", limit=_state(limit, 1), jobs=[before])


def _state(limit: Limit, used: int) -> LimitState:
    kind = cast(Literal["concurrency", "rate", "order"], limit.kind)
    return LimitState(kind, limit.name, limit.amount, used, 1, limit.period_s)


def _holders(limit: Limit, held: Rows) -> list[OtherJob]:
    """Some of the jobs of fleets that have a limit: those that run, or if none does, those that were sent."""
    own = [
        (OtherJob(bytes(job_id).hex(), read_spec(bytes(fields)).task, _shown(is_running)), is_running)
        for job_id, fields, is_running, limits in held
        if any(each[:2] == limit[:2] for each in read_limits(bytes(limits)))
    ]
    running = [job for job, is_running in own if is_running]
    return (running or [job for job, _ in own])[:MOST_JOBS_TOLD]


def _shown(is_running: bool) -> JobState:
    return JobState.RUNNING if is_running else JobState.QUEUED
