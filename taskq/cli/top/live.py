"""Reads a fleet: one or two requests for each look."""

from __future__ import annotations

import time

from taskq.cli.stack.command import answers
from taskq.cli.top.snapshot import JobLife, Snapshot, Tab, Target
from taskq.client.app import TaskQ
from taskq.client.failures import group_failed_jobs
from taskq.client.transport.blocking import Client
from taskq.model.errors import BrokerUnavailable, JobNotFound, TaskQError
from taskq.model.info.failures import AGAIN_EVENTS, FailureGroups, Failures
from taskq.model.info.job import JobInfo
from taskq.model.info.stack import ConsumerStack
from taskq.model.info.status import FleetStatus
from taskq.model.job import JobState
from taskq.telemetry.kept import KeptLog
from taskq.telemetry.reader import Filter, ago

#: Rows of a list.
MOST_JOBS = 200
#: Lines of the log that are shown, and those of one job.
MOST_LINES, MOST_LINES_OF_A_JOB = 500, 500
_MOST_DEATHS = 20
_MOST_FAILED = 5_000
_MOST_ATTEMPTS = 5_000
_DAY_S = 86_400.0
#: How long failures count as known if nothing has failed meanwhile: some may have been removed.
_FAILURES_KEPT_S = 20.0
#: How long the journal of a fleet that does not run counts as known: to read it takes a process.
_STOPPED_KEPT_S = 15.0


class LiveSource:
    """A fleet, or what one that does not run has left.

    Its fields are written by the thread that reads tabs, and by no other.
    """

    is_past = False

    def __init__(self, q: TaskQ, *, shows_arguments: bool) -> None:
        self._q = q
        self._shows_arguments = shows_arguments
        self._log = KeptLog()
        self._stopped: tuple[float, FleetStatus] | None = None
        self._failures: tuple[float, object, Failures] | None = None

    def read(self, tab: Tab) -> Snapshot:
        """What a tab needs, now."""
        now, client, path = time.time(), self._q.client, self._q.directory.path
        status = self._status(now)
        match tab:
            case "fleet" | "tasks":
                return Snapshot(tab, now, status, counts=client.counts())
            case "running":
                running = sum(queue.running for queue in status.queues.values())
                return Snapshot(tab, now, status, jobs=self._some(JobState.RUNNING, running))
            case "failures":
                return Snapshot(tab, now, status, failures=self._failing(now, status))
            case "consumers":
                deaths = self._log.newest(path, Filter(event="consumer.*", level="warning"), _MOST_DEATHS)
                told = [event for event in deaths if event.get("event") != "consumer.stacks"]
                return Snapshot(tab, now, status, events=told)
            case "schedules":
                scheduled = sum(queue.scheduled for queue in status.queues.values())
                due = self._some(JobState.SCHEDULED, scheduled)
                return Snapshot(tab, now, status, schedules=client.schedules(), jobs=due)
            case "log":
                return Snapshot(tab, now, status, events=self._log.newest(path, Filter(), MOST_LINES))

    def _status(self, now: float) -> FleetStatus:
        try:
            status = self._q.client.status()
            self._stopped = None
        except BrokerUnavailable:
            if self._stopped is not None and 0 <= now - self._stopped[0] < _STOPPED_KEPT_S:
                return self._stopped[1]
            status = self._q.client.look()
            if status.broker.state == "stopped":
                self._stopped = now, status
        return status

    def _some(self, state: JobState, there_are: int) -> list[JobInfo]:
        """The newest jobs in a state; no more than there are, since the broker would go through all jobs for others."""
        most = min(there_are, MOST_JOBS)
        return self._q.client.find(state, None, None, None, most).jobs if most else []

    def _failing(self, now: float, status: FleetStatus) -> Failures:
        """What fails, as `taskq errors` tells it. It takes long, so it is read again only if something has failed."""
        totals = status.totals
        seen = status.broker.pid, totals.failed, totals.retried, totals.crashed
        if self._failures is not None:
            read_at, seen_then, known = self._failures
            if seen == seen_then and 0 <= now - read_at < _FAILURES_KEPT_S:
                return known
        groups = FailureGroups(now)
        client = self._q.client
        has_more = client.run(group_failed_jobs(client.queue, groups, None, None, _MOST_FAILED))
        for name in AGAIN_EVENTS:
            wanted = Filter(event=name, since=ago(_DAY_S))
            for event in self._log.newest(self._q.directory.path, wanted, _MOST_ATTEMPTS):
                if event.get("runs_again") is not False:
                    groups.add_event(event)
        found = Failures(groups.all(), groups.failed, groups.again, has_more, now - _DAY_S)
        self._failures = now, seen, found
        return found

    def life(self, job_id: str) -> JobLife:
        """All that is known of a job."""
        job = self._q.job(job_id)
        events = self._log.newest(self._q.directory.path, Filter(job_id=job.id), MOST_LINES_OF_A_JOB)
        try:
            info = job.info(arguments=self._shows_arguments)
        except JobNotFound:
            if not events:
                raise
            return JobLife(time.time(), job.id, None, None, events)
        why = None if info.state.is_final else job.why()
        return JobLife(time.time(), job.id, info, why, events)

    def jobs(self, task: str | None, queue: str | None) -> list[JobInfo]:
        """The newest jobs of a task or a queue."""
        return self._q.client.find(None, task, queue, None, MOST_JOBS).jobs

    def stacks(self, target: Target) -> list[ConsumerStack]:
        """Where a consumer, or those that may run a job, are in their code now."""
        directory = self._q.directory
        client = Client(directory)  # of the fleet of this machine: others do not hear a signal
        try:
            status = client.status()
            number = _number_of(target, status)
            asked = dict(client.write_stacks(number))
            found = list(answers(directory, asked, status))
        finally:
            client.close()
        wanted = [each for each in found if not target.job_id or target.job_id in (each.job_id, None)] or found
        if not wanted:
            raise TaskQError("it did not write its stack: it is not on this machine, or it has been stopped")
        return wanted


def _number_of(target: Target, status: FleetStatus) -> int | None:
    """The consumer that is meant; None for all, if nobody knows which one has a job."""
    for consumer in status.consumers:
        is_meant = target.consumer is not None and consumer.pid == target.consumer.pid
        if is_meant or (target.job_id and consumer.job_id == target.job_id):
            return consumer.number
    if target.consumer is not None:
        raise JobNotFound(f"consumer {target.consumer.number} has ended, or is on another machine")
    return None
