"""What somebody should look at in a fleet, the worst first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.status import FleetStatus
from taskq.model.info.words import count_of
from taskq.web.rules.keeping_up import verdict_of
from taskq.web.rules.rates import Flow, ended

#: A task fails often from this share of its jobs on, of the last hour.
_OFTEN = 0.05
#: Fewer jobs than this waiting are not a backlog, unless one of them has waited for this many seconds.
_BACKLOG = 100
_LONG_S = 600.0
_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Concern:
    """Something to look at.

    Attributes:
        tone: "bad" if jobs do not run or fail; "look" otherwise.
        told: what it is, in a sentence.
        path: the path of the page that shows more, and its query.
        subject: the task or the queue that it is about; or "".
        kind: what is wrong with that: "failed", "died", "unserved", "paused" or "waits"; or "".
        since: from when on, as far as the last hour tells, in seconds since 1970; or None.
        why: the cause, in a sentence or as an error; or "".
    """

    tone: Literal["bad", "look"]
    told: str
    path: str
    subject: str = ""
    kind: Literal["failed", "died", "unserved", "paused", "waits", ""] = ""
    since: float | None = None
    why: str = ""


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
    elif (verdict := verdict_of(status)).tone != "good":
        yield Concern("look", f"The broker: {verdict.told[0].lower()}{verdict.told[1:]}", "/broker")
    for missing in status.not_started[:3]:
        first = missing.error.partition("\n")[0]
        yield Concern("bad", f"Consumer {missing.number} does not start: {first}", "/consumers")
    if status.reload.state == "failed":
        first = str(status.reload.error).partition("\n")[0]
        yield Concern("bad", f"The last reload failed, so old code still runs: {first}", "/broker")
    if status.spooled_files:
        files = count_of(status.spooled_files, "file")
        yield Concern("look", f"{files} with jobs wait in the spool until a fleet takes them in.", "/broker")
    for queue in status.unserved:
        counts = status.queues[queue]
        waits = count_of(counts.queued + counts.scheduled + counts.waiting, "job")
        told = f"No consumer serves queue {queue}: {waits} will not run."
        why = f"Start one with `--queues {queue}`."
        yield Concern("bad", told, _path("/jobs", queue=queue), queue, "unserved", why=why)
    for queue in status.paused:
        kept = status.queues.get(queue)
        waits = f": {count_of(kept.queued, 'job')} waiting" if kept and kept.queued else ""
        yield Concern("look", f"Queue {queue} is paused{waits}.", _path("/jobs", queue=queue), queue, "paused")


def _of_tasks(counts: Sequence[TaskCounts]) -> Iterator[Concern]:
    for each in counts:
        hour = each.last_hour
        done = ended(hour)
        name, path = each.task or "(others)", _path("/failures", task=each.task, since="1h")
        if hour.failed and hour.failed >= done * _OFTEN:
            told = f"{count_of(hour.failed, 'job')} of task {name} failed in the last hour, of {done:,} that ended."
            yield Concern("bad", told, path, each.task, "failed", _first(each, lambda own: own.failed))
        if hour.crashed:
            told = f"The process of task {name} died {count_of(hour.crashed, 'time')} in the last hour."
            yield Concern("bad", told, "/consumers#died", each.task, "died", _first(each, lambda own: own.crashed))


def _first(counts: TaskCounts, number: Callable[[Counts], int]) -> float | None:
    """When the first minute began in which something happened."""
    minute = min((minute for minute, own in counts.minutes.items() if number(own)), default=None)
    return None if minute is None else minute * float(_MINUTE_S)


def _of_backlog(status: FleetStatus, flow: Flow) -> Iterator[Concern]:
    if status.broker.state != "running":
        return
    if status.flows:
        yield from _of_queues(status, flow.now)
        return
    waiting = sum(queue.queued for name, queue in status.queues.items() if name not in status.paused)
    if waiting >= _BACKLOG and flow.empty_in_s(waiting) is None:
        yield Concern("look", _backlog(waiting, "", flow.came_a_minute, flow.ended_a_minute), "/queues")


def _of_queues(status: FleetStatus, now: float) -> Iterator[Concern]:
    """The queues that do not get shorter, or in which nothing has moved for long."""
    told_already = {*status.paused, *status.unserved}
    for queue, flow in status.flows.items():
        waiting = status.queues[queue].queued if queue in status.queues else 0
        waited_s = flow.oldest_waiting_s or 0.0
        is_long = waiting >= _BACKLOG and flow.empty_in_s is None
        if queue not in told_already and waiting and (is_long or (waited_s >= _LONG_S and not flow.ended_per_s)):
            told = _backlog(waiting, queue, flow.came_per_s * _MINUTE_S, flow.ended_per_s * _MINUTE_S)
            path = _path("/jobs", queue=queue, state="queued")
            yield Concern("look", told, path, queue, "waits", now - waited_s)


def _backlog(waiting: int, queue: str, came: float, went: float) -> str:
    of = f" of queue {queue}" if queue else ""
    wait = f"{count_of(waiting, 'job')}{of} {'waits' if waiting == 1 else 'wait, and they do not get fewer'}"
    return f"{wait}: {came:,.0f} a minute come in, and {went:,.0f} end."


def _path(path: str, **query: str) -> str:
    return f"{path}?{urlencode({name: value for name, value in query.items() if value})}"
