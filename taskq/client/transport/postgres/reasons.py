"""Why a job in a database does not run, as far as the tables tell."""

from __future__ import annotations

from taskq.client.transport.postgres.looking import Row, read_row
from taskq.model.attempt import read_outcome
from taskq.model.info.why import Reason, WhyInfo
from taskq.model.stored import FIRST_FINAL, StoredState
from taskq.protocol.postgres.plans import Plan, Query, Step

_AHEAD = """
    SELECT count(*) FROM (SELECT FROM taskq.queue q WHERE q.state = 0 AND q.seq < $1 AND q.partition IN (
        SELECT partition FROM taskq.partitions WHERE queue = $2) LIMIT 100000) AS ahead"""
_PAUSED = "SELECT 1 FROM taskq.paused WHERE queue = $1"
_FLEETS = "SELECT count(*) FROM taskq.beats WHERE seen_at > taskq.now_() - interval '20 s'"


def read_reasons(job_id: bytes) -> Plan[WhyInfo]:
    """Why a job does not run, the nearest obstacle first. Raises JobNotFound."""
    row = yield from read_row(job_id)
    reasons = [own] if (own := _own_reason(row)) is not None else []
    if row.kept < FIRST_FINAL and not row.is_running:
        queue = row.spec.queue
        queries = Query(_AHEAD, (row.seq, queue)), Query(_PAUSED, (queue,)), Query(_FLEETS)
        [(ahead,)], paused, [(fleets,)] = yield Step(*queries, commits=True)
        if not fleets:
            reasons.append(Reason("no_fleet"))
        if paused:
            reasons.append(Reason("paused"))
        if row.is_leased:
            reasons.append(Reason("sent"))
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
