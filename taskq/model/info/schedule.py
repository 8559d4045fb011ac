"""What clients learn about a schedule."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.model.errors import ConfigError
from taskq.model.schedule import Misfire, Overlap, ScheduleRow


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """What is known of a schedule.

    Attributes:
        name: the name of the schedule.
        task: the task of its jobs.
        queue: the queue of its jobs.
        cron: its cron expression, or None.
        every: its interval in seconds, or None.
        timezone: the time zone of the cron expression.
        misfire: what happens to the times at which no fleet ran.
        overlap: what happens to a fire while the job of the fire before has not ended.
        jitter: by how many seconds each fire is delayed at the most.
        is_paused: whether it rests, until it is resumed.
        is_declared: whether it is declared in the code of an application; else it was added at run time.
        next_at: when it fires next, in seconds since 1970; None while it is paused (or its time zone is not known).
        last_at: for which time it fired last, in seconds since 1970, or None.
        last_job_id: the id of the job of that fire, or None.
    """

    name: str
    task: str
    queue: str
    cron: str | None
    every: float | None
    timezone: str
    misfire: Misfire
    overlap: Overlap
    jitter: float
    is_paused: bool
    is_declared: bool
    next_at: float | None
    last_at: float | None
    last_job_id: str | None


def schedule_info(row: ScheduleRow, ahead_s: float = 0.0) -> ScheduleInfo:
    """Returns what clients learn about a schedule.

    Args:
        ahead_s: how many seconds its times run ahead of the clock (`taskq.model.schedule.ahead_s`).
    """
    schedule = row.schedule
    next_at = _fires_at(row)
    return ScheduleInfo(
        name=schedule.name,
        task=schedule.spec.task,
        queue=schedule.spec.queue,
        cron=schedule.cron,
        every=schedule.every_s,
        timezone=schedule.zone,
        misfire=schedule.misfire,
        overlap=schedule.overlap,
        jitter=schedule.jitter_s,
        is_paused=row.is_paused,
        is_declared=row.app is not None,
        next_at=None if next_at is None else next_at - ahead_s,
        last_at=None if row.last_at is None else row.last_at - ahead_s,
        last_job_id=row.last_job,
    )


def _fires_at(row: ScheduleRow) -> float | None:
    try:
        return None if row.is_paused else row.fires_at
    except ConfigError:
        return None  # its time zone is not on this system any more
