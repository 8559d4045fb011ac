"""What the log says of a fleet up to a moment. Pure: events go in, in their order, and a status comes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Literal

from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.failures import AGAIN_EVENTS, FailureGroups, Failures
from taskq.model.info.job import JobInfo
from taskq.model.info.status import BrokerStatus, ConsumerStatus, FleetStatus, JobTotals, QueueStatus
from taskq.model.job import JobState, Progress
from taskq.telemetry.record import LEVELS, Event, time_of

_HOUR_S = 3_600.0
#: Ends of attempts, and the number in `Counts` that they are.
_ENDS = {
    "job.succeeded": "succeeded",
    "job.failed": "failed",
    "job.retrying": "retried",
    "job.crashed": "crashed",
    "job.cancelled": "cancelled",
    "job.expired": "expired",
    "job.interrupted": "",
    "job.snoozed": "",
    "job.lost": "",
}
_ENDS_OF_CONSUMERS = ("consumer.exited", "consumer.crashed", "consumer.killed", "consumer.boot_failed")
_MOST_LINES = 500
_MOST_DEATHS = 20


class Past:
    """A fleet as the log tells of it, up to a moment."""

    def __init__(self, at: float, directory: str) -> None:
        """
        Args:
            at: the moment, in seconds since 1970.
            directory: the queue's directory.
        """
        self._at = at
        self._directory = directory
        self._pid: int | None = None
        self._since = at
        self._state: Literal["running", "stopping", "stopped"] = "stopped"
        self._consumers: dict[int, Event] = {}
        self._running: dict[str, tuple[Event, Progress | None]] = {}
        self._paused: set[str] = set()
        self._counts: dict[tuple[str, str], dict[int, Counts]] = {}
        self._failed: list[Event] = []
        self.events: deque[Event] = deque(maxlen=_MOST_LINES)
        self.deaths: deque[Event] = deque(maxlen=_MOST_DEATHS)

    def take_all(self, events: Iterable[Event]) -> None:
        """Takes what happened, oldest first."""
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Takes what happened next."""
        self.events.append(event)
        name = str(event.get("event", ""))
        kind = name.partition(".")[0]
        if kind == "job":
            self._job(name, event)
        elif kind == "consumer":
            self._consumer(name, event)
        elif kind in ("fleet", "broker"):
            self._fleet(name, event)
        elif name == "queue.paused":
            self._paused.add(str(event.get("queue", "")))
        elif name == "queue.resumed":
            self._paused.discard(str(event.get("queue", "")))

    def _fleet(self, name: str, event: Event) -> None:
        if name == "fleet.started":
            self._begin(event.get("pid"), "running", event)
        elif name == "fleet.stopping":
            self._state = "stopping"
        elif name in ("fleet.stopped", "fleet.given_up", "broker.died", "broker.killed"):
            self._begin(None, "stopped", event)

    def _begin(self, pid: int | None, state: Literal["running", "stopped"], event: Event) -> None:
        self._pid, self._state, self._since = pid, state, time_of(event)
        self._consumers.clear()
        self._running.clear()

    def _consumer(self, name: str, event: Event) -> None:
        number = event.get("consumer")
        if not isinstance(number, int):
            return
        if name == "consumer.started":
            self._consumers[number] = event
        elif name in _ENDS_OF_CONSUMERS:
            self._consumers.pop(number, None)
        if name != "consumer.stacks" and LEVELS.get(str(event.get("level")), 0) >= LEVELS["warning"]:
            self.deaths.append(event)

    def _job(self, name: str, event: Event) -> None:
        job_id = str(event.get("job_id", ""))
        if name == "job.started":
            self._running[job_id] = event, None
        elif name == "job.progress" and job_id in self._running:
            self._running[job_id] = self._running[job_id][0], _progress(event)
        elif name == "job.timed_out":
            self._count(event, "timed_out")
        elif name == "job.summary":
            self._summary(event)
        elif name in _ENDS:
            self._running.pop(job_id, None)
            self._ended(event, _ENDS[name])

    def _ended(self, event: Event, number: str) -> None:
        if number:
            self._count(event, number)
        is_again = event.get("event") in AGAIN_EVENTS and event.get("runs_again") is not False
        if number == "crashed" and not is_again:
            self._count(event, "failed_by_crash")
        if number == "failed" or is_again:  # a job whose last attempt crashed has also failed
            self._failed.append(event)

    def _count(self, event: Event, number: str, times: int = 1) -> None:
        """Counts it if it is of the last hour."""
        at = time_of(event)
        if at <= self._at - _HOUR_S:
            return
        minutes = self._counts.setdefault((str(event.get("task", "")), str(event.get("queue", ""))), {})
        counts = minutes.setdefault(int(at // 60), Counts())
        setattr(counts, number, getattr(counts, number) + times)
        took_ms = event.get("duration_ms", event.get("duration_mean_ms"))
        if isinstance(took_ms, int | float):
            counts.started += times
            counts.run.add(round(took_ms * 1e3), times)

    def _summary(self, event: Event) -> None:
        """Many that succeeded, told together."""
        succeeded = event.get("succeeded", 0)
        if isinstance(succeeded, int) and succeeded > 0:
            self._count(event, "succeeded", succeeded)

    # -- what was so

    def status(self) -> FleetStatus:
        """What the fleet was doing."""
        uptime_s = None if self._pid is None else self._at - self._since
        broker = BrokerStatus(self._pid, uptime_s, self._directory, None, self._state)
        queues: dict[str, int] = {}
        for event, _ in self._running.values():
            name = str(event.get("queue", ""))
            queues[name] = queues.get(name, 0) + 1
        totals: Counts = Counts()
        for minutes in self._counts.values():
            for counts in minutes.values():
                totals.merge(counts)
        return FleetStatus(
            broker,
            queues={name: QueueStatus(running=count) for name, count in sorted(queues.items())},
            paused=sorted(self._paused),
            totals=JobTotals(
                succeeded=totals.succeeded,
                failed=totals.failed,
                retried=totals.retried,
                crashed=totals.crashed,
                cancelled=totals.cancelled,
                expired=totals.expired,
            ),
            consumers=[self._consumer_status(number) for number in sorted(self._consumers)],
        )

    def _consumer_status(self, number: int) -> ConsumerStatus:
        own = [pair for pair in self._running.values() if pair[0].get("consumer") == number]
        pid = int(self._consumers[number].get("pid", 0))
        if not own:
            return ConsumerStatus(number, pid, "idle", False, 0)
        event, progress = own[0]
        job_id, task = str(event.get("job_id", "")), str(event.get("task", ""))
        running_s = self._at - time_of(event)
        return ConsumerStatus(number, pid, "running", False, len(own), len(own), job_id, task, running_s, progress)

    def running(self) -> list[JobInfo]:
        """The jobs that ran, the one that began last first."""
        return [
            JobInfo(
                str(event.get("job_id", "")),
                str(event.get("task", "")),
                str(event.get("queue", "")),
                JobState.RUNNING,
                int(event.get("attempt", 1)),
                0,
                enqueued_at=time_of(event),
                started_at=time_of(event),
                progress=progress,
            )
            for event, progress in reversed(self._running.values())
        ]

    def failures(self, since: float) -> Failures:
        """What failed.

        Args:
            since: since when the log was read, in seconds since 1970.
        """
        groups = FailureGroups(self._at)
        for event in self._failed:
            groups.add_event(event)
        return Failures(groups.all(), groups.failed, groups.again, False, since)

    def counts(self) -> list[TaskCounts]:
        """What the log says of the jobs of the last hour."""
        return [hour_of(task, queue, minutes) for (task, queue), minutes in sorted(self._counts.items())]


def hour_of(task: str, queue: str, minutes: dict[int, Counts]) -> TaskCounts:
    """The counts of some minutes: nothing else is known of that time."""
    summed = Counts()
    for counts in minutes.values():
        summed.merge(counts)
    return TaskCounts(task, queue, summed, summed, minutes)


def _progress(event: Event) -> Progress | None:
    done, total = event.get("done"), event.get("total")
    if not isinstance(done, int | float):
        return None
    return Progress(done, total if isinstance(total, int | float) else None, str(event.get("note", "")))
