"""The beat schedule of an application, as schedules of the fleet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import Celery
from celery.beat import BeatLazyFunc
from celery.schedules import crontab, maybe_schedule, schedule

from taskq.client.context import current_job
from taskq.client.schedules import ScheduleOptions
from taskq.contrib.celery.fleet import fleet_of
from taskq.contrib.celery.running import Running, keeping
from taskq.model.errors import ConfigError

#: The task that sends what a schedule names. It has a job at each fire, which ends at once.
TASK = "celery.beat"
_CLEAN_UP = "celery.backend_cleanup"


def declare_schedules(app: Celery) -> None:
    """Declares a schedule for each entry of `beat_schedule`, those of `add_periodic_task` included.

    Raises:
        ConfigError: a schedule is of a kind that taskq does not have, such as `solar`.
    """
    entries = entries_of(app)

    def fire(name: str) -> None:
        _fire(app, entries[name])

    q = fleet_of(app).q
    task = q.task(name=TASK, retries=0)(fire)
    for name, entry in entries.items():
        cron, options = times_of(app, name, entry["schedule"])
        q.schedules.declare(re.sub(r"[^A-Za-z0-9_.:-]", "-", name), task, cron, {**options, "args": (name,)})


def entries_of(app: Celery) -> dict[str, Mapping[str, Any]]:
    """The entries of the schedule, by name, with that which drops old results."""
    found = dict(app.conf.beat_schedule or {})
    if app.conf.result_expires and not app.backend.supports_autoexpire:
        found.setdefault(_CLEAN_UP, {"task": _CLEAN_UP, "schedule": crontab(minute="0", hour="4")})
    return found


def times_of(app: Celery, name: str, when: Any) -> tuple[str | None, ScheduleOptions]:
    """The cron expression of a schedule, or None, and its options.

    Raises:
        ConfigError: it has neither fixed times nor an interval.
    """
    when = maybe_schedule(when, app=app)
    if isinstance(when, crontab):
        zone = app.conf.timezone or ("UTC" if app.conf.enable_utc else None)
        return cron_of(when), {"timezone": str(zone)} if zone else {}
    if type(when) is schedule:
        return None, {"every": when.run_every}
    raise ConfigError(
        f"beat_schedule[{name!r}]: {type(when).__name__} is not supported on taskq: use a crontab or an interval, "
        "or have a task that looks whether it is time"
    )


def cron_of(when: crontab) -> str:
    """The expression of a crontab. Where both the days of the month and those of the week are restricted, it has the
    latter: cron would fire on either, and Celery wants both, so `_fire` looks at the day."""
    days = "*" if _is_restricted_twice(when) else _field(when.day_of_month, 31)
    return " ".join(
        (
            _field(when.minute, 60),
            _field(when.hour, 24),
            days,
            _field(when.month_of_year, 12),
            _field(when.day_of_week, 7),
        )
    )


def _field(values: set[int], count: int) -> str:
    return "*" if len(values) == count else ",".join(map(str, sorted(values)))


def _is_restricted_twice(when: crontab) -> bool:
    return len(when.day_of_month) < 31 and len(when.day_of_week) < 7


def _fire(app: Celery, entry: Mapping[str, Any]) -> None:
    """Sends the task of an entry, together with the success of this job: once, whatever dies."""
    when = entry["schedule"]
    is_checked = isinstance(when, crontab) and _is_restricted_twice(when)
    if is_checked and datetime.now(app.timezone).day not in when.day_of_month:
        return
    job_id = current_job().id
    args = [_evaluated(each) for each in entry.get("args") or ()]
    kwargs = {key: _evaluated(each) for key, each in (entry.get("kwargs") or {}).items()}
    options = {"task_id": str(UUID(job_id)), "add_to_parent": False, **(entry.get("options") or {})}
    task = app.tasks.get(entry["task"])
    with keeping(Running(None, job_id)) as running:
        if task is not None:
            task.apply_async(args, kwargs, **options)
        else:
            app.send_task(entry["task"], args, kwargs, **options)
        running.send_with_success()


def _evaluated(value: Any) -> Any:
    return value() if isinstance(value, BeatLazyFunc) else value
