"""Reads the past: the log, and the minutes of the last hour whose counts were kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from threading import Lock

from taskq.cli.top.live import MOST_LINES_OF_A_JOB
from taskq.cli.top.past import Past, hour_of
from taskq.cli.top.snapshot import JobLife, Snapshot, Tab, Target
from taskq.client.app import TaskQ
from taskq.model.errors import BrokerUnavailable, ConfigError, JobNotFound
from taskq.model.info.counts import MINUTES, TaskCounts
from taskq.model.info.job import JobInfo
from taskq.model.info.stack import ConsumerStack
from taskq.telemetry.reader import Filter, read

#: How far before the moment the log is read: what happened earlier, and nothing since, is not seen.
_BEFORE_S = 86_400.0


class ReplaySource:
    """A fleet at a moment of the past."""

    is_past = True

    def __init__(self, q: TaskQ, at: float, *, shows_arguments: bool) -> None:
        """
        Args:
            at: in seconds since 1970.
        """
        self._q = q
        self.at = at  # written by the user interface
        self._shows_arguments = shows_arguments
        self._known: Past | None = None
        self._known_at = 0.0
        self._lock = Lock()  # held by the thread that reads the log

    def read(self, tab: Tab) -> Snapshot:
        """What a tab needs, at the moment."""
        at = self.at
        past = self._past(at)
        status = past.status()
        match tab:
            case "fleet" | "tasks":
                return Snapshot(tab, at, status, counts=self._counts(past, at), is_past=True)
            case "running":
                return Snapshot(tab, at, status, jobs=past.running(), is_past=True)
            case "failures":
                return Snapshot(tab, at, status, failures=past.failures(at - _BEFORE_S), is_past=True)
            case "consumers":
                return Snapshot(tab, at, status, events=list(past.deaths), is_past=True)
            case "schedules":
                return Snapshot(tab, at, status, is_past=True)
            case "log":
                return Snapshot(tab, at, status, events=list(past.events), is_past=True)

    def _past(self, at: float) -> Past:
        with self._lock:
            if self._known is None or self._known_at != at:
                directory = self._q.directory.path
                until = datetime.fromtimestamp(at, UTC)
                past = Past(at, str(directory))
                past.take_all(read(directory, Filter(since=until - timedelta(seconds=_BEFORE_S), until=until)))
                self._known, self._known_at = past, at
            return self._known

    def _counts(self, past: Past, at: float) -> list[TaskCounts]:
        """The counts of the hour before: those that were kept, or what the log says if these begin later."""
        try:
            kept = self._q.client.counts()
        except BrokerUnavailable:
            kept = []  # nothing but the log is left of it
        this = int(at // 60)
        some = [
            hour_of(
                each.task,
                each.queue,
                {minute: own for minute, own in each.minutes.items() if this - MINUTES < minute <= this},
            )
            for each in kept
        ]
        return [each for each in some if each.minutes] or past.counts()

    def life(self, job_id: str) -> JobLife:
        """What the log says of a job up to the moment, and what its fleet knows of it now."""
        job = self._q.job(job_id)
        wanted = Filter(job_id=job.id, until=datetime.fromtimestamp(self.at, UTC))
        events = list(read(self._q.directory.path, wanted, MOST_LINES_OF_A_JOB))
        try:
            info = job.info(arguments=self._shows_arguments)
        except (BrokerUnavailable, JobNotFound):
            if not events:
                raise
            info = None
        return JobLife(self.at, job.id, info, None, events)

    def jobs(self, task: str | None, queue: str | None) -> list[JobInfo]:
        """The jobs of a task or a queue that ran."""
        running = self._past(self.at).running()
        return [info for info in running if task in (None, info.task) and queue in (None, info.queue)]

    def stacks(self, target: Target) -> list[ConsumerStack]:  # noqa: ARG002
        """Nobody can ask a consumer of the past."""
        raise ConfigError("this is the past: stacks that were asked for then are in the log")
