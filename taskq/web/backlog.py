"""Why backlogs stand: what is in the way of a job of each queue that does not get empty."""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from taskq.client.app import TaskQ
from taskq.model.errors import JobNotFound
from taskq.model.info.sentences import sentence
from taskq.model.info.status import FleetStatus
from taskq.model.info.why import WhyInfo
from taskq.model.job import JobState

#: What was told is told again for this time, to all visitors, in seconds.
_KEPT_S: Final = 2.0
#: How many queues are asked about, those first whose jobs have waited longest.
_MOST_QUEUES: Final = 10
#: A queue whose jobs end stands nevertheless if its oldest job has waited for this many seconds.
_LONG_S: Final = 10.0
#: What is not in the way of a job that may start.
_NO_OBSTACLES: Final = frozenset({"ended", "running", "scheduled", "waiting"})


class Queue(NamedTuple):
    """A queue that does not get empty.

    Attributes:
        name: its name.
        oldest: the job of it that has waited longest.
        waited_s: for how many seconds.
        moves: whether jobs of it end, so that the oldest is another one in a moment.
    """

    name: str
    oldest: str
    waited_s: float
    moves: bool


class Standing(NamedTuple):
    """Why a queue does not get empty.

    Attributes:
        job_id: the job that was asked about: the oldest of the queue, or the newest if jobs of it end.
        is_oldest: which of them.
        since: from when on the oldest could have been running, in seconds since 1970.
        told: what is in the way of that job, in a sentence.
    """

    job_id: str
    is_oldest: bool
    since: float
    told: str

    @property
    def place(self) -> str:
        """Which job of its queue that is, in words."""
        return "waits longest" if self.is_oldest else "came last"


class KeptReasons:
    """What was asked of each queue a moment ago. Used by the loop of one dashboard."""

    def __init__(self) -> None:
        self._until = 0.0  # monotonic
        self._kept: dict[str, Standing] = {}

    async def of(self, q: TaskQ, status: FleetStatus, now: float) -> dict[str, Standing]:
        """Why the queues stand that do, by their names.

        Args:
            now: seconds since 1970.
        """
        if time.monotonic() >= self._until:
            self._until = time.monotonic() + _KEPT_S
            queues = standing_queues(status)
            reasons = await asyncio.gather(*(_reason(q, queue) for queue in queues))
            self._kept = {
                queue.name: Standing(info.id, info.id == queue.oldest, now - queue.waited_s, told)
                for queue, info in zip(queues, reasons, strict=True)
                if info is not None and (told := told_of(info, now))
            }
        return self._kept


def standing_queues(status: FleetStatus) -> list[Queue]:
    """The queues that do not get empty, those first whose jobs have waited longest. Pure."""
    found = [
        Queue(name, flow.oldest_waiting_job, flow.oldest_waiting_s, flow.ended_per_s > 0)
        for name, flow in status.flows.items()
        if flow.oldest_waiting_job is not None and flow.oldest_waiting_s is not None
    ]
    standing = [queue for queue in found if not queue.moves or queue.waited_s >= _LONG_S]
    return sorted(standing, key=lambda queue: -queue.waited_s)[:_MOST_QUEUES]


def told_of(info: WhyInfo, now: float) -> str:
    """The nearest obstacle of a job in words; empty if nothing is in its way. Pure."""
    first = next(iter(info.reasons), None)
    if first is None or first.kind in _NO_OBSTACLES:
        return ""
    is_free = first.kind == "behind" and not first.ahead and first.busy < max(first.consumers, 1)
    return "" if is_free else sentence(first, info, now)


async def _reason(q: TaskQ, queue: Queue) -> WhyInfo | None:
    job_id = queue.oldest
    if queue.moves:
        newest = (await q.async_client().find(JobState.QUEUED, None, queue.name, None, 1)).jobs
        job_id = newest[0].id if newest else job_id
    try:
        return await q.job(job_id).awhy()
    except JobNotFound:
        return None  # it has gone meanwhile
