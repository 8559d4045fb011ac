"""Schedules: what a fleet enqueues by the clock, and what it does next."""

from __future__ import annotations

from taskq.model.job import JobState
from taskq.web.pages import Page, Visit
from taskq.web.rules.cron import next_times, words_of

_MOST_DUE = 200
_SHOWN_DUE = 50


async def schedules(visit: Visit) -> Page:
    """Each schedule in words, with its next times; and the jobs that are due next, retries among them."""
    client = visit.q.async_client()
    rows = [(info, words_of(info), next_times(info)) for info in await client.schedules()]
    scheduled = sum(queue.scheduled for queue in (await client.look()).queues.values())
    # no more than there are: to look for others, the broker would go through all jobs
    due = (await client.find(JobState.SCHEDULED, None, None, None, min(scheduled, _MOST_DUE))).jobs
    due.sort(key=lambda info: info.due_at or 0.0)
    values = {"rows": rows, "due": due[:_SHOWN_DUE], "is_cut": len(due) == _MOST_DUE}
    return Page("schedules", "Schedules", values)
