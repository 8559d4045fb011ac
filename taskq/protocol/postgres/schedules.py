"""Schedules in the database: their rows, and the jobs that they make.

Whoever changes a schedule, or fires it, locks its row first, and writes its next time in the transaction that makes the
jobs. So it fires once for each of its times, whoever finds it due, and whatever dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import msgpack

from taskq.model.rules.schedules import Unfinished
from taskq.model.schedule import Schedule, ScheduleRow, ahead_s, constraints_for, payload_for
from taskq.model.stored import StoredState
from taskq.protocol.postgres.arrays import texts, uuids
from taskq.protocol.postgres.plans import Query, Rows
from taskq.protocol.submissions import Call

#: See `read_row`.
COLUMNS: Final = "name, fields, next_at, app, is_paused, last_at, uuid_send(last_id), fires_at"
_PUT = """
    INSERT INTO taskq.schedules (name, fields, next_at, app, is_paused, last_at, last_id, fires_at, every_s)
    VALUES ($1::text, $2::bytea, $3::float8, $4::text, $5::boolean, $6::float8, $7::uuid, $8::float8, $9::float8)
    ON CONFLICT (name) DO UPDATE SET fields = excluded.fields, next_at = excluded.next_at, app = excluded.app,
        is_paused = excluded.is_paused, last_at = excluded.last_at, last_id = excluded.last_id,
        fires_at = excluded.fires_at, every_s = excluded.every_s"""
_REMOVE = "DELETE FROM taskq.schedules WHERE name = ANY ($1::text[])"
_UNFINISHED = """
    SELECT uuid_send(j.id), coalesce(q.state, 0::smallint) FROM taskq.jobs j LEFT JOIN taskq.queue q ON q.seq = j.seq
    WHERE j.id = ANY ($1::uuid[]) AND j.state = 3"""


def read_row(columns: Sequence[Any]) -> ScheduleRow:
    """A schedule of its columns."""
    _, fields, next_at, app, is_paused, last_at, last_id, _ = columns
    schedule = Schedule.from_wire(msgpack.unpackb(bytes(fields)))
    return ScheduleRow(schedule, next_at, app, is_paused, last_at, None if last_id is None else bytes(last_id))


def read_rows(found: Iterable[Sequence[Any]]) -> dict[str, ScheduleRow]:
    """Schedules by name."""
    return {columns[0]: read_row(columns) for columns in found}


def put(row: ScheduleRow, wall: float) -> Query:
    """Records a schedule.

    Args:
        wall: seconds since 1970, by the database's clock.

    Raises:
        ConfigError: its time zone is not on this system.
    """
    own: tuple[Any, ...] = row.schedule.name, msgpack.packb(row.schedule.to_wire()), float(row.next_at), row.app
    last_id = None if row.last_id is None else UUID(bytes=bytes(row.last_id))
    last_at = None if row.last_at is None else float(row.last_at)
    every_s = None if row.schedule.every_s is None else float(row.schedule.every_s)
    return Query(_PUT, (*own, row.is_paused, last_at, last_id, fires_at(row, wall), every_s))


def fires_at(row: ScheduleRow, wall: float) -> float:
    """When a schedule fires next, by the database's clock: earlier than its time says, if that clock was set back.
    Raises the same as `put`."""
    return float(row.fires_at - ahead_s(row.schedule, row.next_at, wall))


def remove(names: Sequence[str]) -> Query:
    """Removes schedules."""
    return Query(_REMOVE, (texts(names),))


def unfinished_of(rows: Iterable[ScheduleRow]) -> Query:
    """The statement for the last jobs of schedules that have not ended; see `read_unfinished`."""
    return Query(_UNFINISHED, (uuids([job_id for row in rows for job_id in row.last_jobs]),))


def read_unfinished(found: Rows) -> dict[bytes, Unfinished]:
    """The answer to `unfinished_of`, by id."""
    jobs = [Unfinished(bytes(job_id), StoredState(state)) for job_id, state in found]
    return {job.id: job for job in jobs}


def last_unfinished(row: ScheduleRow, unfinished: dict[bytes, Unfinished]) -> Unfinished | None:
    """The last job of a schedule, if it has not ended."""
    return next((unfinished[job_id] for job_id in row.last_jobs if job_id in unfinished), None)


def calls_of(schedule: Schedule, ids: Iterable[bytes], wall: float, after: bytes | None = None) -> list[Call]:
    """The jobs that a schedule makes.

    Args:
        wall: seconds since 1970.
        after: the job for whose end they are kept back.
    """
    constraints = constraints_for(schedule, wall, after)
    return [Call(job_id, payload_for(schedule, job_id), constraints) for job_id in ids]
