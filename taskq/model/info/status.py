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
        commit_mean_s: how long its commits took in the last minute, in seconds, with their syncs; None if there were
            none, or if the queue is in a database.
        commit_longest_s: the longest of them, or None.
        journal_bytes: the size of the journal with its write-ahead log, or None if the queue is in a database.
        clients: how many clients are connected, or None if no fleet runs.
        rejected_clients: how many clients it has refused or dropped since it started, or None.
        busy_share: the share of the last minute in which its loop was busy, from 0 to 1, its syncs included; or None.
        cpu_s: the seconds of CPU time that its process has used, with its children that have ended; or None.
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
    commit_mean_s: float | None = None
    commit_longest_s: float | None = None
    journal_bytes: int | None = None
    clients: int | None = None
    rejected_clients: int | None = None
    busy_share: float | None = None
    cpu_s: float | None = None


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
class QueueFlow:
    """How fast the jobs of one queue come and go, by the last 20 to 30 seconds.

    Attributes:
        came_per_s: jobs that came in, a second.
        ended_per_s: jobs that ended, a second.
        trend: of the jobs that may start: "growing", "shrinking", or "steady" if about as many come as end, or if none
            wait.
        empty_in_s: in how many seconds they have ended at this rate, if the queue is not paused; None if never.
        oldest_waiting_s: for how many seconds the oldest of them could have been running; None if there are none.
        oldest_waiting_job: the id of that job; None if there is none, or if it is not known.
    """

    came_per_s: float = 0.0
    ended_per_s: float = 0.0
    trend: Literal["growing", "steady", "shrinking"] = "steady"
    empty_in_s: float | None = None
    oldest_waiting_s: float | None = None
    oldest_waiting_job: str | None = None


#: Rates that differ by less than this share of the larger one are about the same.
_ABOUT_THE_SAME = 0.02


def flow_of(
    queued: int,
    came_per_s: float,
    ended_per_s: float,
    oldest_waiting_s: float | None,
    oldest_waiting_job: str | None = None,
    *,
    is_paused: bool,
) -> QueueFlow:
    """Returns how fast the jobs of a queue come and go.

    Args:
        queued: how many may start.
    """
    gain = ended_per_s - came_per_s
    is_steady = not queued or abs(gain) <= _ABOUT_THE_SAME * max(came_per_s, ended_per_s)
    empty_in_s = 0.0 if not queued else None if is_paused or gain <= 0 or is_steady else round(queued / gain, 1)
    return QueueFlow(
        came_per_s=round(came_per_s, 3),
        ended_per_s=round(ended_per_s, 3),
        trend="steady" if is_steady else "shrinking" if gain > 0 else "growing",
        empty_in_s=empty_in_s,
        oldest_waiting_s=None if oldest_waiting_s is None else round(max(0.0, oldest_waiting_s), 3),
        oldest_waiting_job=oldest_waiting_job,
    )


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
        cpu_percent: how much of one core the process has used in the last second or two, in percent, with its children
            that have ended; None if that is not known.
        machine: the name of the machine on which it runs; None if the queue is in a directory.
        cpu_s: the seconds of CPU time that the process has used since it started, with its children that have ended;
            None if that is not known.
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
    cpu_percent: int | None = None
    machine: str | None = None
    cpu_s: float | None = None


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
        flows: how fast jobs come and go, by the names of the queues with such jobs, or in which some came or ended
            lately; none if no fleet runs.
        unserved: the names of the queues with jobs that no consumer serves, of all fleets that share them.
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
    flows: dict[str, QueueFlow] = field(default_factory=dict)
    unserved: list[str] = field(default_factory=list)
