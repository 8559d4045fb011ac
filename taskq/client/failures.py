"""Reads the failed jobs of a queue, a portion in each request, and groups them as they come."""

from __future__ import annotations

from taskq.client.transport.api import QueueApi
from taskq.client.transport.operations import DirectoryQueue, Requests
from taskq.client.transport.verbs import Operation
from taskq.model.info.failures import FailureGroups
from taskq.model.job import JobState
from taskq.model.limits import MAX_JOBS_LISTED
from taskq.protocol.jobs import info_of
from taskq.protocol.requests import ListJobs


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
    if not isinstance(asked, DirectoryQueue):
        infos = yield from asked.jobs(JobState.FAILED, task, queue, None, most)
        groups.add_jobs(infos)
        return len(infos) == most
    place: int | None = None
    read = 0
    requests = Requests(asked)
    try:
        while read < most:
            request = ListJobs(JobState.FAILED.value, task, queue, place, MAX_JOBS_LISTED)
            found, place = yield from requests.ask(request)
            groups.add_jobs(map(info_of, found))
            read += len(found)
            if place is None:
                return False
        return True
    except GeneratorExit:
        requests.abandon()
        raise
    finally:
        yield from requests.end()
