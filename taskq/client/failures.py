"""Reads the failed jobs of a queue, a portion in each request, and groups them as they come."""

from __future__ import annotations

from taskq.client.transport.api import QueueApi
from taskq.client.transport.verbs import Operation
from taskq.model.info.failures import FailureGroups
from taskq.model.job import JobState
from taskq.model.limits import MAX_JOBS_LISTED


def group_failed_jobs(
    asked: QueueApi, groups: FailureGroups, task: str | None, queue: str | None, most: int
) -> Operation[bool]:
    """Adds failed jobs to groups, those that were enqueued last first.

    Args:
        task: only jobs of this task; None for all.
        queue: only jobs of this queue; None for all.
        most: stop after about this many.

    Returns:
        Whether there are more.

    Raises:
        BrokerUnavailable: there never was a fleet.
    """
    place: bytes | int | None = None
    read = 0
    while read < most:
        found, place = yield from asked.find(JobState.FAILED, task, queue, place, MAX_JOBS_LISTED, within_s=0)
        groups.add_jobs(found)
        read += len(found)
        if place is None:
            return False
    return True
