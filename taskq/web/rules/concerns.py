"""What somebody should look at in a fleet, the worst first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from taskq.model.info.counts import TaskCounts
from taskq.model.info.status import FleetStatus
from taskq.model.info.words import count_of
from taskq.web.rates import Flow, ended

#: A task fails often from this share of its jobs on, of the last hour.
_OFTEN = 0.05
#: Fewer jobs than this waiting are not a backlog.
_BACKLOG = 100


@dataclass(frozen=True, slots=True)
class Concern:
    """Something to look at.

    Attributes:
        tone: "bad" if jobs do not run or fail; "look" otherwise.
        told: what it is, in a sentence.
        path: the path of the page that shows more, and its query.
    """

    tone: Literal["bad", "look"]
    told: str
    path: str


def concerns_of(status: FleetStatus, counts: Sequence[TaskCounts], flow: Flow) -> list[Concern]:
    """Returns what is wrong, or may soon be."""
    found = [*_of_fleet(status), *_of_tasks(counts), *_of_backlog(status, flow)]
    return sorted(found, key=lambda concern: concern.tone != "bad")


def _of_fleet(status: FleetStatus) -> Iterator[Concern]:
    broker = status.broker
    if broker.state == "stopped":
        yield Concern("bad", "No fleet runs: start one with `taskq worker`.", "/broker")
    elif broker.state == "stopping":
        yield Concern("look", "The fleet is stopping: running jobs may finish, and no other job starts.", "/broker")
    elif not any(each.state in ("idle", "running") for each in status.consumers):
        yield Concern("bad", "No consumer is ready for jobs.", "/consumers")
    for missing in status.not_started[:3]:
        first = missing.error.partition("\n")[0]
        yield Concern("bad", f"Consumer {missing.number} does not start: {first}", "/consumers")
    if status.reload.state == "failed":
        first = str(status.reload.error).partition("\n")[0]
        yield Concern("bad", f"The last reload failed, so old code still runs: {first}", "/broker")
    if status.spooled_files:
        files = count_of(status.spooled_files, "file")
        yield Concern("look", f"{files} with jobs wait in the spool until a fleet takes them in.", "/broker")
    for queue in () if status.machines else status.unserved:
        counts = status.queues[queue]
        waits = count_of(counts.queued + counts.scheduled + counts.waiting, "job")
        yield Concern("bad", f"No consumer serves queue {queue}: {waits} will not run.", "/queues")
    for queue in status.paused:
        kept = status.queues.get(queue)
        waits = f": {count_of(kept.queued, 'job')} waiting" if kept and kept.queued else ""
        yield Concern("look", f"Queue {queue} is paused{waits}.", "/queues")


def _of_tasks(counts: Sequence[TaskCounts]) -> Iterator[Concern]:
    for each in counts:
        hour = each.last_hour
        done = ended(hour)
        if hour.failed and hour.failed >= done * _OFTEN:
            name = each.task or "(others)"
            told = f"{count_of(hour.failed, 'job')} of task {name} failed in the last hour, of {done:,} that ended."
            yield Concern("bad", told, "/failures")
        if hour.crashed:
            name, crashes = each.task or "(others)", count_of(hour.crashed, "time")
            yield Concern("bad", f"The process of task {name} died {crashes} in the last hour.", "/failures")


def _of_backlog(status: FleetStatus, flow: Flow) -> Iterator[Concern]:
    waiting = sum(queue.queued for name, queue in status.queues.items() if name not in status.paused)
    if waiting >= _BACKLOG and flow.empty_in_s(waiting) is None and status.broker.state == "running":
        came, went = flow.came_a_minute, flow.ended_a_minute
        told = f"{waiting:,} jobs wait, and they do not get fewer: {came:,.0f} a minute come in, and {went:,.0f} end."
        yield Concern("look", told, "/queues")
