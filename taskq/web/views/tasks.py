"""Tasks: how their jobs end, how long they wait and run, and of what they fail."""

from __future__ import annotations

from taskq.model.errors import ConfigError, JobNotFound
from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.failures import AGAIN_EVENTS
from taskq.model.info.search import FoundJobs
from taskq.model.job import JobState
from taskq.model.units import seconds_in
from taskq.telemetry.reader import Filter, ago
from taskq.web.charts import Series
from taskq.web.logs import kept_newest
from taskq.web.pages import Page, Visit
from taskq.web.rates import ended, flow_of
from taskq.web.views.fleet import ends_of, labels_of

#: Attempts in the log that were followed by another, of each kind; and groups on one page.
_MOST_ATTEMPTS = 2_000
_MOST_GROUPS = 50
_DAY_S = 86_400.0
_NEWEST = 10
#: How long the page of a task looks for its failed jobs, in seconds: there may be many of other tasks.
_LOOKS_S = 0.03


def _row(each: TaskCounts, part: Counts) -> tuple[str, str, Counts, int]:
    return each.task, each.queue, part, ended(part)


async def tasks(visit: Visit) -> Page:
    """The jobs of each task, of the last hour or since the beginning."""
    is_total = visit.query("of") == "total"
    counts = await visit.q.async_client().counts()
    rows = [_row(each, each.total if is_total else each.last_hour) for each in counts]
    rows = [row for row in rows if row[3] or row[2].started or row[2].enqueued]
    rows.sort(key=lambda row: (-row[3], row[0], row[1]))
    return Page("tasks", "Tasks", {"rows": rows, "is_total": is_total})


async def task(visit: Visit) -> Page:
    """One task: its flow, its times, its newest failures."""
    name = visit.request.path_params["name"]
    client = visit.q.async_client()
    counts = [each for each in await client.counts() if each.task == name]
    if not counts and name not in visit.q.tasks:
        raise JobNotFound(f"nothing is known of task {name!r:.100}: no job of it has come in")
    flow = flow_of(counts, visit.now)
    hour, total = Counts(), Counts()
    for each in counts:
        hour.merge(each.last_hour)
        total.merge(each.total)
    failed = FoundJobs([], None)
    if total.failed:
        failed = await client.find(JobState.FAILED, name, None, None, _NEWEST, within_s=_LOOKS_S)
    values = {
        "name": name,
        "queues": sorted(each.queue for each in counts),
        "flow": flow,
        "ends": ends_of(flow),
        "came": [Series("enqueued", "later", flow.enqueued)],
        "labels": labels_of(flow),
        "spans": [("last hour", hour, ended(hour)), ("in total", total, ended(total))],
        "running": (await client.find(JobState.RUNNING, name, None, None, _NEWEST)).jobs,
        "failed": failed.jobs,
    }
    return Page("task", name, values)


async def failures(visit: Visit) -> Page:
    """What fails, in groups of one task, one type of error and one place."""
    task_name, queue, since = visit.query("task"), visit.query("queue"), visit.query("since")
    since_s = seconds_in(since) if since else _DAY_S
    if since_s is None:
        raise ConfigError(f"{since!r:.100} is not a time: use a duration such as 90s, 10m, 2h or 7d")
    client = visit.q.async_client()
    known, has_more = await visit.failures.groups(client, await client.look(), task_name or None, queue or None)
    groups = known.at(visit.now, visit.now - since_s)
    for name in AGAIN_EVENTS:
        wanted = Filter(task_name or None, None, name, None, ago(since_s))
        for event in await kept_newest(visit, wanted, _MOST_ATTEMPTS):
            if event.get("runs_again") is not False and queue in ("", event.get("queue")):
                groups.add_event(event)
    found = groups.all()
    first = int(visit.query("from") or 0) if visit.query("from").isdecimal() else 0
    values = {
        "groups": found[first : first + _MOST_GROUPS],
        "first": first,
        "kinds": len(found),
        "next": first + _MOST_GROUPS if len(found) > first + _MOST_GROUPS else 0,
        "failed": groups.failed,
        "again": groups.again,
        "has_more": has_more,
        "task": task_name,
        "queue": queue,
        "since": since or "1d",
    }
    return Page("failures", "Failures", values)
