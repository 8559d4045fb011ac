"""Schedules: what a fleet enqueues by the clock, and what it does next."""

from __future__ import annotations

from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.words import span_text
from taskq.model.job import JobState
from taskq.web.cron import in_words, next_times
from taskq.web.pages import Page, Visit

_MOST_DUE = 200
_SHOWN_DUE = 50


async def schedules(visit: Visit) -> Page:
    """Each schedule in words, with its next times; and the jobs that are due next, retries among them."""
    client = visit.q.async_client()
    rows = [(info, words_of(info), next_times(info)) for info in await client.schedules()]
    scheduled = sum(queue.scheduled for queue in (await client.look()).queues.values())
    # no more than there are: to look for others, the broker would go through all jobs
    due = await client.jobs(JobState.SCHEDULED, None, None, None, min(scheduled, _MOST_DUE))
    due.sort(key=lambda info: info.due_at or 0.0)
    values = {"rows": rows, "due": due[:_SHOWN_DUE], "is_cut": len(due) == _MOST_DUE}
    return Page("schedules", "Schedules", values)


def words_of(info: ScheduleInfo) -> str:
    """When a schedule fires, in words."""
    if info.every is not None:
        when = f"every {span_text(info.every)}"
    else:
        words = in_words(info.cron or "")
        when = f"{words or info.cron} ({info.timezone})"
    return f"{when}, up to {span_text(info.jitter)} later" if info.jitter else when
