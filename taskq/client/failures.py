"""Failed jobs in groups, a portion in each request: all at once, or a part each time for a page that asks again."""

from __future__ import annotations

import time

from taskq.client.transport.api import AsyncQueueClient, QueueApi
from taskq.client.transport.verbs import Operation
from taskq.model.info.failures import FailureGroups
from taskq.model.info.job import JobInfo
from taskq.model.info.status import FleetStatus
from taskq.model.job import JobState
from taskq.model.limits import MAX_JOBS_LISTED

#: How long one page may read, in seconds.
_READS_S = 0.03
#: More failed jobs are not counted.
_MOST_JOBS = 100_000
#: How long what was read is shown while no job fails: jobs may have been retried or removed by hand.
_SHOWN_S = 30.0
#: Filters that are remembered.
_MOST_KEPT = 10

_Place = bytes | int | None


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


# -- a part of them each time


class _Reading:
    """One walk through the failed jobs, those that were enqueued last first."""

    def __init__(self, place: _Place) -> None:
        self.groups = FailureGroups(0.0)
        self.place = place
        self.seen: tuple[int | None, int] = (None, 0)
        self.ended_at = 0.0  # monotonic
        self._ids: set[str] = set()

    @property
    def is_full(self) -> bool:
        return len(self._ids) >= _MOST_JOBS

    def add(self, jobs: list[JobInfo]) -> None:
        self.groups.add_jobs(job for job in jobs if job.id not in self._ids)
        self._ids.update(job.id for job in jobs)


class _Kept:
    """The last walk that was ended, and the one that is under way."""

    def __init__(self) -> None:
        self.whole: _Reading | None = None
        self.under_way: _Reading | None = None


class KeptFailures:
    """What was read of the failed jobs before. Only tasks of one event loop may ask."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str | None, str | None], _Kept] = {}

    async def groups(
        self, client: AsyncQueueClient, status: FleetStatus, task: str | None, queue: str | None
    ) -> tuple[FailureGroups, bool]:
        """Returns the groups of failed jobs, and whether there are more that are not counted, or not yet.

        Args:
            status: of the fleet, at this moment.
            task, queue: only jobs of these; None for all.
        """
        while len(self._kept) >= _MOST_KEPT and (task, queue) not in self._kept:
            self._kept.pop(next(iter(self._kept)))
        kept = self._kept.setdefault((task, queue), _Kept())
        seen, now = (status.broker.pid, status.totals.failed), time.monotonic()
        whole = kept.whole
        if whole is None or kept.under_way or whole.seen != seen or now - whole.ended_at > _SHOWN_S:
            await self._read_on(kept, client, task, queue, until=now + _READS_S)
        shown = kept.whole or kept.under_way
        assert shown is not None
        if shown is kept.whole and kept.under_way is None:
            shown.seen = seen
        return shown.groups, shown.place is not None

    @staticmethod
    async def _read_on(
        kept: _Kept, client: AsyncQueueClient, task: str | None, queue: str | None, until: float
    ) -> None:
        newest = await client.find(JobState.FAILED, task, queue, None, MAX_JOBS_LISTED, within_s=0)
        reading = kept.under_way = kept.under_way or _Reading(newest.place)
        for each in {reading, kept.whole or reading}:
            each.add(newest.jobs)
        while reading.place is not None and not reading.is_full:
            found = await client.find(JobState.FAILED, task, queue, reading.place, MAX_JOBS_LISTED, within_s=0)
            reading.add(found.jobs)
            reading.place = found.place
            if time.monotonic() >= until:
                break
        if reading.place is None or reading.is_full:
            reading.ended_at = time.monotonic()
            kept.whole, kept.under_way = reading, None
