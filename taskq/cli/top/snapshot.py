"""What `taskq top` shows, as it was read at one moment: of a fleet that runs, or of the past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from taskq.model.info.counts import TaskCounts
from taskq.model.info.failures import FailureGroup, Failures
from taskq.model.info.job import JobInfo
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.stack import ConsumerStack
from taskq.model.info.status import ConsumerStatus, FleetStatus
from taskq.model.info.why import WhyInfo
from taskq.telemetry.record import Event

Tab = Literal["fleet", "tasks", "running", "failures", "consumers", "schedules", "log"]

#: The tabs: their titles, and their titles where there is little room.
TABS: dict[Tab, tuple[str, str]] = {
    "fleet": ("Fleet", "Fleet"),
    "tasks": ("Tasks", "Tasks"),
    "running": ("Running", "Run"),
    "failures": ("Failures", "Fail"),
    "consumers": ("Consumers", "Cons"),
    "schedules": ("Schedules", "Sched"),
    "log": ("Log", "Log"),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one tab needs.

    Attributes:
        tab: the tab.
        at: when this was so, in seconds since 1970.
        status: of the fleet.
        counts: what happened to the jobs of each task and queue.
        jobs: those that run, or that are due next.
        failures: what fails.
        schedules: by name.
        events: of the log, oldest first.
        is_past: whether it was put together from the log.
    """

    tab: Tab
    at: float
    status: FleetStatus
    counts: Sequence[TaskCounts] = ()
    jobs: Sequence[JobInfo] = ()
    failures: Failures | None = None
    schedules: Sequence[ScheduleInfo] = ()
    events: Sequence[Event] = ()
    is_past: bool = False


@dataclass(frozen=True, slots=True)
class JobLife:
    """All that is known of one job.

    Attributes:
        at: when this was so, in seconds since 1970.
        id: the job's id.
        info: what the fleet knows, or None if it does not know the job any more.
        why: why it does not run, or None.
        events: of the log about it, oldest first.
    """

    at: float
    id: str
    info: JobInfo | None
    why: WhyInfo | None
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class Target:
    """What a row is about: what Enter opens, and what keys act on.

    Attributes:
        kind: of the row.
        job_id: the id of a job; empty if it is not about one.
        task: the name of a task, or empty.
        queue: the name of a queue, or empty.
        schedule: the name of a schedule, or empty.
        is_paused: whether the queue or the schedule is paused.
        consumer: a consumer.
        failures: a group of failures.
        event: a line of the log.
    """

    kind: Literal["job", "queue", "task", "failures", "consumer", "schedule", "event"]
    job_id: str = ""
    task: str = ""
    queue: str = ""
    schedule: str = ""
    is_paused: bool = False
    consumer: ConsumerStatus | None = None
    failures: FailureGroup | None = field(default=None, repr=False)
    event: Event | None = field(default=None, repr=False)


class Source(Protocol):
    """Where it is read from. Each call may take a while, and any thread may make it.

    All raise BrokerUnavailable if nobody answers, and there is nothing else to read.

    Attributes:
        is_past: whether it is a moment of the past.
    """

    is_past: bool

    def read(self, tab: Tab) -> Snapshot:
        """What a tab needs."""

    def life(self, job_id: str) -> JobLife:
        """All that is known of a job. Raises JobNotFound."""

    def jobs(self, task: str | None, queue: str | None) -> list[JobInfo]:
        """The newest jobs of a task or a queue."""

    def stacks(self, target: Target) -> list[ConsumerStack]:
        """Where a consumer, or those that may run a job, are in their code now. Raises TaskQError: none answers."""
