"""The options of Celery's tasks and messages as options of jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.utils.time import maybe_iso8601

from taskq.client.options.options import JobOptions
from taskq.contrib.celery.fleet import TASK_ID
from taskq.model.limits import MAX_QUEUE_NAME_CHARS

#: After this number of deaths of its process, a task that may be repeated is marked as failed.
MAX_CRASHES = 3
_PER = {"s": "s", "m": "m", "h": "h"}


def task_options(app: Celery, name: str) -> JobOptions:
    """The options that all jobs of a task share.

    What Celery calls a retry is a new message, and so a new job. The one retry here, and the one crash more than
    `MAX_CRASHES`, are for attempts that do not run the task, but mark it as failed.
    """
    task = app.tasks.get(name)
    queue = getattr(task, "queue", None) or app.conf.task_default_queue
    options: JobOptions = {"queue": queue_name(queue), "retries": 1, "backoff": [0], "max_crashes": MAX_CRASHES + 1}
    rate = None if task is None else task.rate_limit
    if rate:
        options["rate"] = rate_of(rate)
    return options


def message_options(app: Celery, headers: Mapping[str, Any], queue: str, priority: object) -> JobOptions:
    """The options of the job of one message."""
    options = task_options(app, headers["task"])
    options["queue"] = queue_name(queue)
    options["meta"] = {TASK_ID: headers["id"]}
    if isinstance(priority, int):
        options["priority"] = priority
    due = moment(headers.get("eta"))
    if due is not None and due > datetime.now(UTC):
        options["at"] = due
    limit_s = limits_of(app, headers)[0]
    if limit_s:
        options["timeout"] = limit_s
    return options


def limits_of(app: Celery, headers: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The hard and the soft time limit of a message, in seconds, or None."""
    hard, soft = (*(headers.get("timelimit") or ()), None, None)[:2]
    task = app.tasks.get(headers["task"])
    of_task = (None, None) if task is None else (task.time_limit, task.soft_time_limit)
    return hard or of_task[0] or app.conf.task_time_limit, soft or of_task[1] or app.conf.task_soft_time_limit


def moment(value: object) -> datetime | None:
    """A time in the headers of a message, which Celery writes as text; without a zone it is UTC."""
    if not value:
        return None
    found: datetime = maybe_iso8601(value)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def queue_name(name: str) -> str:
    """The name of a queue, without characters that are not allowed in taskq."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:MAX_QUEUE_NAME_CHARS]


def rate_of(rate: object) -> str:
    """A rate limit of Celery, such as 10, "10/s" or "0.5/m", as one of taskq. There it counts for the whole fleet."""
    number, _, per = str(rate).partition("/")
    count, unit = float(number), _PER[per or "s"]
    if count >= 1:
        return f"{round(count)}/{unit}"
    return f"1/{round(1 / count)}{unit}"
