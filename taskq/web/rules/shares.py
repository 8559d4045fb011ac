"""How many of a queue's jobs are those of each of its tasks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from taskq.model.info.counts import TaskCounts
from taskq.model.info.status import QueueStatus
from taskq.web.rules.rates import ended

#: By how much the sum of the counts may differ from what the queue has, since both are read while jobs come and go.
_DIFFERS: Final = 0.01


def queued_by_task(
    kept: QueueStatus, counts: Sequence[TaskCounts], running: Mapping[str, int]
) -> dict[str, int] | None:
    """About how many jobs of each task are queued in one queue: those that came in, without those that ended or run.
    The journal counts jobs by queue only, as to count them by task would slow each job down.

    Args:
        kept: the jobs of the queue, all tasks together.
        counts: what happened to the jobs of each task in this queue.
        running: how many of them run, by task.

    Returns:
        The numbers; None if the counts do not add up to what the queue has: jobs were removed or retried by hand, or
        some have to wait for a time or for other jobs, which the counts do not tell apart.
    """
    if kept.scheduled or kept.waiting:
        return None
    queued = {each.task: each.total.enqueued - ended(each.total) - running.get(each.task, 0) for each in counts}
    is_right = abs(sum(queued.values()) - kept.queued) <= _DIFFERS * kept.queued
    return queued if is_right and min(queued.values(), default=0) >= 0 else None
