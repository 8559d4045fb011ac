"""Jobs that are cancelled and retried one by one, by 64 threads at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values
from taskq.cli.bench.producers import together
from taskq.cli.bench.stage import Stage
from taskq.client.job import Job

_SOCKET = "socket + sync"
_THREADS = 64


def _each(stage: Stage) -> int:
    return stage.amount(40, 15)


def _rate(jobs: Sequence[Job[Any]], change: Callable[[Job[Any]], object]) -> float:
    def change_some(number: int) -> None:
        for job in jobs[number::_THREADS]:
            change(job)

    return len(jobs) / together([partial(change_some, number) for number in range(_THREADS)])


def _taskq(stage: Stage) -> Values:
    fleet, count = stage.own_fleet("held"), _THREADS * _each(stage)
    failed = fleet.app.fail.enqueue_many(() for _ in range(count))
    fleet.finish(failed[-1])
    fleet.q.pause("default")
    retries = _rate(failed, lambda job: job.retry())
    cancels = _rate(failed, lambda job: job.cancel())
    fleet.q.resume("default")
    return {"cancels": cancels, "retries": retries}


def _bare(stage: Stage) -> Values:
    clients, each = stage.service_clients(_THREADS), _each(stage)

    def enqueue_some(number: int) -> None:
        for _ in range(each):
            clients[number].enqueue()

    seconds = together([partial(enqueue_some, number) for number in range(_THREADS)])
    return {"cancels": each * _THREADS / seconds, "retries": each * _THREADS / seconds}


CASE = Case(
    part="changes",
    title="Cancels and retries, one by one from 64 threads (the limit enqueues)",
    rows=(
        Row("cancels", "job.cancel()", "/s", (Limit(_SOCKET),)),
        Row("retries", "job.retry()", "/s", (Limit(_SOCKET),)),
    ),
    sides={_SOCKET: _bare, TASKQ: _taskq},
    turns=3,
    quick_turns=1,
)
