"""The status of a fleet: what `TaskQ.status` returns, and what `taskq status --json` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from taskq.model.job import Progress


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The broker of a fleet.

    Attributes:
        pid: the id of its process, or None if no fleet runs.
        uptime_s: seconds since it started, or None.
        directory: the queue's directory.
        rss_bytes: its resident memory, or None.
        state: "stopping" while running jobs finish, "stopped" if no fleet runs.
        restarts_of_consumers: how many consumer processes were started in place of ones that died.
        longest_turn_s: the longest time, in seconds, for which its loop was busy since it started, so that it answered
            nobody; or None.
        longest_turn_last_minute_s: the same in the last minute.
        longest_turn_cpu_s: the most CPU time, in seconds, that one turn of its loop took since it started; or None. A
            turn lasts longer than that by its sync, and while other processes have the core.
    """

    pid: int | None
    uptime_s: float | None
    directory: str
    rss_bytes: int | None
    state: Literal["running", "stopping", "stopped"] = "running"
    restarts_of_consumers: int = 0
    longest_turn_s: float | None = None
    longest_turn_last_minute_s: float | None = None
    longest_turn_cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """The last reload.

    Attributes:
        number: how many reloads there were since the broker started.
        state: "none" if there was no reload; "failed" as long as a consumer runs the old code.
        error: why it failed, or None.
    """

    number: int = 0
    state: Literal["none", "running", "failed", "done"] = "none"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class MissingConsumer:
    """A consumer that does not start.

    Attributes:
        number: 1 for the first consumer.
        error: why its process ended before its first job.
    """

    number: int
    error: str


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The jobs of one queue that have not ended, by state.

    Attributes:
        waiting: jobs that come after others, which have not ended.
        scheduled: jobs that have a time before which they do not start.
        queued: jobs that may start.
        running: jobs that have started.
    """

    waiting: int = 0
    scheduled: int = 0
    queued: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class JobTotals:
    """What has happened to jobs since the queue's directory was made.

    Attributes:
        enqueued: jobs that came in.
        succeeded: jobs that succeeded.
        failed: jobs that failed for good.
        retried: attempts that were followed by another.
        crashed: attempts during which the process died.
        cancelled: jobs that were cancelled.
        expired: jobs that were not started in time.
    """

    enqueued: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    crashed: int = 0
    cancelled: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """A consumer process.

    Attributes:
        number: 1 for the first consumer; one that takes the place of another has the same number.
        pid: the id of its process.
        state: what it does; "retiring" if it ends after the jobs that it runs.
        has_old_code: whether it was started before the last reload.
        running: how many jobs it runs.
        slots: how many it may run at once.
        job_id: the job that has been running for the longest time, or None.
        task: the task of that job.
        running_s: for how many seconds it has been running.
        progress: how far it is, if it said so.
        rss_bytes: resident memory of the process.
        jobs_done: attempts that it has ended.
        busy_s: the seconds that these took, and those of running jobs so far.
    """

    number: int
    pid: int
    state: Literal["starting", "idle", "running", "retiring"]
    has_old_code: bool
    running: int
    slots: int = 1
    job_id: str | None = None
    task: str | None = None
    running_s: float | None = None
    progress: Progress | None = None
    rss_bytes: int = 0
    jobs_done: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One of the fleets that share a database.

    Attributes:
        host: the name of its machine.
        pid: the id of its broker's process.
        state: of its broker.
        seen_s: how many seconds ago it was heard of.
        consumers: how many processes run jobs there.
        running: how many jobs run there.
    """

    host: str
    pid: int
    state: str
    seen_s: float
    consumers: int
    running: int


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """What a fleet is doing, or what one that does not run has left.

    Attributes:
        broker: the process that decides.
        reload: how far the last reload is.
        not_started: the consumers that do not start.
        queues: the jobs that have not ended, by the names of their queues; queues without such jobs are left out.
        spooled_files: files with jobs that wait in the spool; no more than 10,000 are counted.
        paused: the names of the paused queues.
        totals: what has happened to jobs so far.
        consumers: the processes that run jobs, by number.
        machines: the fleets that share a database; none if the queue is in a directory.
    """

    broker: BrokerStatus
    reload: ReloadStatus = field(default_factory=ReloadStatus)
    not_started: list[MissingConsumer] = field(default_factory=list)
    queues: dict[str, QueueStatus] = field(default_factory=dict)
    spooled_files: int = 0
    paused: list[str] = field(default_factory=list)
    totals: JobTotals = field(default_factory=JobTotals)
    consumers: list[ConsumerStatus] = field(default_factory=list)
    machines: list[MachineStatus] = field(default_factory=list)
