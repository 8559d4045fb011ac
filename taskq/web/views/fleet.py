"""The fleet: what it does at a glance, its queues, its consumers, its broker, and its limits."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from datetime import datetime

from taskq.model.errors import JobNotFound
from taskq.model.info.counts import TaskCounts
from taskq.model.info.readiness import why_not_ready
from taskq.model.info.stack import stack_of
from taskq.model.info.status import FleetStatus, QueueStatus
from taskq.model.info.why import LimitState, Reason
from taskq.model.job import JobState
from taskq.telemetry.reader import Filter
from taskq.web.charts import Series
from taskq.web.logs import kept_newest
from taskq.web.news import explained, news
from taskq.web.pages import Page, Visit
from taskq.web.rules.concerns import concerns_of
from taskq.web.rules.keeping_up import verdict_of
from taskq.web.rules.rates import Flow, added_up, flow_of, together

#: Jobs that wait whose obstacles are asked for, to find the limits in use.
_MOST_ASKED = 60
_MOST_WAITING = 500
#: Warnings that are searched for those that are not about jobs.
_MOST_WARNINGS = 5_000


async def overview(visit: Visit) -> Page:
    """Is it healthy, what runs, how long is the backlog, what fails?"""
    client = visit.q.async_client()
    status, counts = await client.look(), await client.counts()
    flow = flow_of(counts, visit.now, told=together(status.flows.values()))
    known = await news(visit, status, counts)
    waiting = sum(queue.queued for queue in status.queues.values())
    open_ = sum(queue.queued for name, queue in status.queues.items() if name not in status.paused)
    return Page(
        "overview",
        "Overview",
        {
            "status": status,
            "concerns": explained(concerns_of(status, counts, flow), known),
            "standing": known.standing,
            "flow": flow,
            "ends": ends_of(flow),
            "came": [Series("enqueued", "later", flow.enqueued)],
            "labels": labels_of(flow),
            "hour": added_up(counts),
            "waiting": waiting,
            "open": open_,
            "empty_in_s": flow.empty_in_s(open_),
            "queues": queue_rows(status, counts, visit.now),
            "slots": sum(consumer.slots for consumer in status.consumers),
            "running": sum(consumer.running for consumer in status.consumers),
        },
    )


def ends_of(flow: Flow) -> list[Series]:
    """How jobs ended, as a chart shows it."""
    return [
        Series("succeeded", "good", flow.succeeded),
        Series("failed", "bad", flow.failed),
        Series("cancelled or expired", "off", flow.other),
    ]


def labels_of(flow: Flow) -> list[str]:
    """The minutes of a chart, as people read them."""
    return [f"{datetime.fromtimestamp(minute * 60):%H:%M}" for minute in flow.minutes]


def queue_rows(
    status: FleetStatus, counts: list[TaskCounts], now: float
) -> list[tuple[str, QueueStatus, bool, Flow, float | None]]:
    """For each queue: its name, its jobs, whether it is paused, its flow, and in how many seconds it is empty."""
    names = sorted({*status.queues, *status.paused, *(each.queue for each in counts if each.queue)})
    rows = []
    for name in names:
        kept = status.queues.get(name, QueueStatus())
        flow = flow_of([each for each in counts if each.queue == name], now, told=status.flows.get(name))
        rows.append((name, kept, name in status.paused, flow, flow.empty_in_s(kept.queued)))
    return rows


async def queues(visit: Visit) -> Page:
    """Each queue: what waits there, whether it is paused, and how fast it goes."""
    client = visit.q.async_client()
    status, counts = await client.look(), await client.counts()
    tasks_of: dict[str, list[str]] = {}
    for each in counts:
        if each.task:
            tasks_of.setdefault(each.queue, []).append(each.task)
    values = {
        "status": status,
        "queues": queue_rows(status, counts, visit.now),
        "standing": await visit.reasons.of(visit.q, status, visit.now),
        "tasks_of": tasks_of,
    }
    return Page("queues", "Queues", values)


async def consumers(visit: Visit) -> Page:
    """Each consumer: what it runs, since when, how far, with how much memory."""
    status = await visit.q.async_client().look()
    told = await kept_newest(visit, Filter(event="consumer.*", level="warning"), 40)
    ended = [event for event in told if event.get("event") not in ("consumer.stacks", "consumer.log")]
    values = {"status": status, "ended": ended[-20:][::-1], "own": os.uname().nodename}
    return Page("consumers", "Consumers", values)


async def consumer(visit: Visit) -> Page:
    """One consumer, and where it was in its code when somebody asked last."""
    number = visit.request.path_params["number"]
    status = await visit.q.async_client().look()
    pid = visit.query("pid")  # there may be one of that number on each of several machines
    numbered = [each for each in status.consumers if each.number == number]
    found = next((each for each in numbered if pid in ("", str(each.pid))), None)
    if found is None:
        raise JobNotFound(f"there is no consumer {number} now")
    asked = await kept_newest(visit, Filter(event="consumer.stacks"), 50)
    told = [event for event in asked if event.get("pid") == found.pid]
    stack = stack_of(number, told[-1], None) if told else None
    at = told[-1].get("timestamp") if told else None
    own = found.machine in (None, os.uname().nodename)  # another machine's fleet is not asked
    values = {"consumer": found, "stack": stack, "at": at, "own": own}
    return Page("consumer", f"Consumer {number}", values)


async def broker(visit: Visit) -> Page:
    """The broker's own health: its loop, its memory, the spool, the last reload, and what was logged of it."""
    status = await visit.q.async_client().look()
    told = await kept_newest(visit, Filter(level="warning"), _MOST_WARNINGS)
    own = [event for event in told if not str(event.get("event", "")).startswith("job.")]
    verdict = verdict_of(status, why_not_ready(asdict(status)))
    return Page("broker", "Broker", {"status": status, "verdict": verdict, "events": own[-20:][::-1]})


async def limits(visit: Visit) -> Page:
    """The limits that keep jobs back now, and the jobs that hold them."""
    client = visit.q.async_client()
    waiting = (await client.find(JobState.QUEUED, None, None, None, _MOST_WAITING)).jobs
    asked = _spread([(info.task, info.queue, info.id) for info in waiting])
    found: dict[tuple[str, str], tuple[LimitState, Reason, list[str]]] = {}
    for each in asyncio.as_completed([_reasons(visit, job_id) for job_id in asked]):
        job_id, reasons = await each
        for reason in reasons:
            if reason.limit is not None:
                key = reason.limit.kind, reason.limit.name
                found.setdefault(key, (reason.limit, reason, []))[2].append(job_id)
    rows = [found[key] for key in sorted(found)]
    return Page("limits", "Limits", {"limits": rows, "asked": len(asked), "waiting": len(waiting)})


async def _reasons(visit: Visit, job_id: str) -> tuple[str, list[Reason]]:
    try:
        return job_id, (await visit.q.job(job_id).awhy()).reasons
    except JobNotFound:
        return job_id, []


def _spread(jobs: list[tuple[str, str, str]]) -> list[str]:
    """Some of these jobs: of each task and queue in turn, so that many of one do not hide the others."""
    by_kind: dict[tuple[str, str], list[str]] = {}
    for task, queue, job_id in reversed(jobs):  # the oldest first: they wait longest
        by_kind.setdefault((task, queue), []).append(job_id)
    chosen: list[str] = []
    while by_kind and len(chosen) < _MOST_ASKED:
        for kind in list(by_kind):
            chosen.append(by_kind[kind].pop(0))
            if not by_kind[kind]:
                del by_kind[kind]
    return chosen[:_MOST_ASKED]
