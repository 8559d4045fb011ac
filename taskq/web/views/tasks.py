"""Tasks: how their jobs end, how long they wait and run, and of what they fail."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskq.client.transport.api import AsyncQueueClient
from taskq.model.errors import ConfigError, JobNotFound
from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.failures import AGAIN_EVENTS
from taskq.model.info.search import FoundJobs
from taskq.model.info.status import FleetStatus, QueueStatus
from taskq.model.job import JobState
from taskq.model.units import seconds_in
from taskq.telemetry.reader import Filter, ago
from taskq.web.charts import Series
from taskq.web.logs import kept_newest
from taskq.web.pages import Page, Visit
from taskq.web.rules.rates import ended, flow_of
from taskq.web.rules.shares import queued_by_task
from taskq.web.views.fleet import ends_of, labels_of

#: Attempts in the log that were followed by another, of each kind; and groups on one page.
_MOST_ATTEMPTS = 2_000
_MOST_GROUPS = 50
_DAY_S = 86_400.0
_NEWEST = 10
#: Running jobs that are counted by task; jobs of a queue that are, if they are queued, and for how many queues.
_MOST_RUNNING = 1_000
_FEW_QUEUED = 200
_MOST_LOOKED_AT = 5
#: How long the page of a task looks for its failed jobs, in seconds: there may be many of other tasks.
_LOOKS_S = 0.03


class Row(NamedTuple):
    """One row of the list of tasks.

    Attributes:
        queued: how many of its jobs are queued; None if only the queue's number is known, which has other tasks, too.
        is_exact: whether that is so, or about so.
        in_queue: how many jobs of its queue are queued.
        running: how many of its jobs run.
        counts: how its jobs ended.
        done: how many ended.
    """

    task: str
    queue: str
    queued: int | None
    is_exact: bool
    in_queue: int
    running: int
    counts: Counts
    done: int


async def tasks(visit: Visit) -> Page:
    """The jobs of each task: those that wait and run now, and those of the last hour or since the beginning."""
    is_total = visit.query("of") == "total"
    client = visit.q.async_client()
    counts, status = await client.counts(), await client.look()
    running = await _running(client, status)
    by_queue: defaultdict[str, list[TaskCounts]] = defaultdict(list)
    for each in counts:
        by_queue[each.queue].append(each)
    exact = await _queued(client, status, by_queue)
    rows = []
    for queue, own in by_queue.items():
        kept, runs = status.queues.get(queue, QueueStatus()), running[queue]
        is_exact = queue in exact
        queued = exact[queue] if is_exact else queued_by_task(kept, own, runs)
        for each in own:
            part, now = each.total if is_total else each.last_hour, None if queued is None else queued[each.task]
            rows.append(Row(each.task, queue, now, is_exact, kept.queued, runs[each.task], part, ended(part)))
    rows = [row for row in rows if row.done or row.counts.started or row.counts.enqueued or row.queued or row.running]
    rows.sort(key=lambda row: (-row.done, row.task, row.queue))
    return Page("tasks", "Tasks", {"rows": rows, "is_total": is_total})


async def _running(client: AsyncQueueClient, status: FleetStatus) -> defaultdict[str, Counter[str]]:
    """How many jobs run, by queue and task."""
    told: defaultdict[str, Counter[str]] = defaultdict(Counter)
    if any(queue.running for queue in status.queues.values()):
        for info in (await client.find(JobState.RUNNING, None, None, None, _MOST_RUNNING)).jobs:
            told[info.queue][info.task] += 1
    return told


async def _queued(
    client: AsyncQueueClient, status: FleetStatus, by_queue: Mapping[str, Sequence[TaskCounts]]
) -> dict[str, dict[str, int]]:
    """How many jobs are queued, by queue and task, in the queues of which that is easily told: those that have only one
    task, or few jobs, which are looked at."""
    told: dict[str, dict[str, int]] = {}
    looked_at = 0
    for name, own in by_queue.items():
        queued = status.queues.get(name, QueueStatus()).queued
        if len(own) == 1 or not queued:
            told[name] = Counter({own[0].task: queued})
        elif queued <= _FEW_QUEUED and looked_at < _MOST_LOOKED_AT:
            looked_at += 1
            found = await client.find(JobState.QUEUED, None, name, None, _FEW_QUEUED, within_s=_LOOKS_S)
            if found.place is None:
                told[name] = Counter(info.task for info in found.jobs)
    return told


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
