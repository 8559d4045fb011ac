"""What clients may ask about schedules, and change of them."""

from __future__ import annotations

from taskq.model.errors import EnqueueError
from taskq.model.info.schedule import ScheduleInfo, schedule_info
from taskq.model.limits import MAX_SCHEDULES
from taskq.model.rules.schedules import check_put, check_remove, planned, unknown
from taskq.model.schedule import Schedule, ScheduleRow, ahead_s
from taskq.protocol.postgres.admitting import CLOCK, Admission
from taskq.protocol.postgres.arrays import uuids
from taskq.protocol.postgres.plans import Plan, Query, Step
from taskq.protocol.postgres.schedules import (
    COLUMNS,
    calls_of,
    last_unfinished,
    put,
    read_row,
    read_rows,
    read_unfinished,
    remove,
    unfinished_of,
)
from taskq.protocol.postgres.submitting import DUE_WORD, NewJob, notify, words_of

_ALL = f"SELECT {COLUMNS} FROM taskq.schedules ORDER BY name LIMIT {MAX_SCHEDULES}"
_ONE = f"SELECT {COLUMNS} FROM taskq.schedules WHERE name = $1::text"
_LOCKED = f"{_ONE} FOR UPDATE"
_COUNT = "SELECT count(*) FROM taskq.schedules"
_NAMES = "SELECT name FROM taskq.schedules ORDER BY name LIMIT 20"
#: Whether a fleet runs an application.
_IS_RUN = "SELECT EXISTS (SELECT FROM taskq.fleets WHERE app = $1::text)"
_KNOWN = "SELECT 1 FROM taskq.jobs WHERE id = ANY ($1::uuid[])"


def read_schedules() -> Plan[list[ScheduleInfo]]:
    """All schedules, by name."""
    found, [(wall,)] = yield Step(Query(_ALL), Query(CLOCK), commits=True)
    return [_told(row, wall) for row in read_rows(found).values()]


def read_schedule(name: str) -> Plan[ScheduleRow]:
    """One schedule. Raises ScheduleNotFound."""
    [found] = yield Step(Query(_ONE, (name,)))
    return read_row(found[0]) if found else (yield from _refuse_unknown(name))


def put_schedule(schedule: Schedule, channel: str) -> Plan[ScheduleInfo]:
    """Adds a schedule, or changes the one of its name.

    Args:
        channel: of brokers.

    Raises:
        ConfigError: it makes no sense or is declared in an application's code, or there are too many.
    """
    found, [(count,)], [(wall,)] = yield Step(Query(_LOCKED, (schedule.name,)), Query(_COUNT), Query(CLOCK))
    known = read_row(found[0]) if found else None
    check_put(known, schedule, count)
    row = planned(known, schedule, None, wall)
    yield Step(put(row, wall), commits=True, after=(notify(channel, [DUE_WORD]),))
    return _told(row, wall)


def remove_schedule(name: str) -> Plan[None]:
    """Removes a schedule that was added at run time, or that belongs to an application that no fleet runs.

    Raises:
        ScheduleNotFound: there is none.
        ConfigError: it is declared in the code of an application that a fleet runs.
    """
    [found] = yield Step(Query(_LOCKED, (name,)))
    row = read_row(found[0]) if found else (yield from _refuse_unknown(name))
    [[(is_run,)]] = yield Step(Query(_IS_RUN, (row.app,)))
    check_remove(row, is_run)
    yield Step(remove([name]), commits=True)


def pause_schedule(name: str, is_paused: bool, channel: str) -> Plan[ScheduleInfo]:
    """Pauses or resumes a schedule. Raises ScheduleNotFound.

    Args:
        channel: of brokers.
    """
    found, [(wall,)] = yield Step(Query(_LOCKED, (name,)), Query(CLOCK))
    row = read_row(found[0]) if found else (yield from _refuse_unknown(name))
    if row.is_paused != is_paused:
        row = row._replace(is_paused=True) if is_paused else row.resumed(wall)
    yield Step(put(row, wall), commits=True, after=(notify(channel, [DUE_WORD]),))
    return _told(row, wall)


def run_schedule(name: str, job_id: bytes, spec: int, partition: int, channel: str) -> Plan[None]:
    """Makes a job of a schedule at once, even while it is paused. The next fire checks whether that job has ended.

    Args:
        spec, partition: their numbers.
        channel: of brokers.

    Raises:
        ScheduleNotFound: there is none.
        EnqueueError: the job is refused.
    """
    found, [(wall,)], taken = yield Step(
        Query(_LOCKED, (name,)), Query(CLOCK), Query(_KNOWN, (uuids([bytes(job_id)]),))
    )
    row = read_row(found[0]) if found else (yield from _refuse_unknown(name))
    if taken:
        if job_id in row.last_jobs:
            return  # it was sent before
        raise EnqueueError(f"job id {job_id.hex()} is already used by another job")
    [unfinished] = yield Step(unfinished_of([row]))
    is_counted = last_unfinished(row, read_unfinished(unfinished)) is None
    jobs = [NewJob(*call, spec, partition) for call in calls_of(row.schedule, [job_id], wall)]
    groups = [(row.schedule.spec, jobs)]
    admitted = yield from Admission(groups, wall, words_of(jobs, wall), channel, is_accepted=True).decide()
    changes = [put(row._replace(last_id=job_id), wall)] if is_counted else []
    yield Step(*admitted.queries, *changes, commits=True, after=admitted.after)


def _refuse_unknown(name: str) -> Plan[ScheduleRow]:
    [names] = yield Step(Query(_NAMES))
    raise unknown(name, [other for (other,) in names])


def _told(row: ScheduleRow, wall: float) -> ScheduleInfo:
    return schedule_info(row, ahead_s(row.schedule, row.next_at, wall))
