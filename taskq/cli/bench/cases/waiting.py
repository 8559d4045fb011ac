"""Many jobs that wait: what they cost, and how fast they drain."""

from __future__ import annotations

from typing import Any

import psutil

from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least, at_most
from taskq.cli.bench.fleet import BenchFleet
from taskq.cli.bench.machine import memory_mb
from taskq.cli.bench.producers import rate, timed
from taskq.cli.bench.stage import Stage
from taskq.client.job import Job

_FEW = 10_000
_SLICE = 100_000
_FEW_WAIT = "10,000 waiting"
_SINGLE_JOBS = 300
#: A small backlog takes a tenth of a second only, so it is measured more often.
_REPEATS, _QUICK_REPEATS = 5, 2


def _many(stage: Stage) -> int:
    return stage.amount(1_000_000, 50_000)


def _fill(fleet: BenchFleet, count: int) -> Job[Any]:
    """Lets jobs wait behind a paused queue. Returns the last one; all of them would take memory."""
    fleet.q.pause("default")
    for start in range(0, count, _SLICE):
        last = fleet.app.noop.enqueue_many((n,) for n in range(min(_SLICE, count - start)))[-1]
    return last


def _broker_mb(fleet: BenchFleet) -> float:
    return memory_mb([psutil.Process(fleet.q.client.status().broker.pid)])


def _beside(fleet: BenchFleet) -> float:
    """Single enqueues to another queue, meanwhile."""
    other = fleet.app.noop.options(queue="other")
    return rate(lambda: other.enqueue(1), _SINGLE_JOBS)


def _taskq(stage: Stage) -> Values:
    fleet, count = stage.own_fleet("many"), _many(stage)
    enqueue_s = timed(lambda: _fill(fleet, count - 1))
    values = {"enqueue": count / enqueue_s, "memory": _broker_mb(fleet), "single": _beside(fleet)}
    fleet.stop()
    values["start"] = fleet.first_job()
    fleet.stop()
    fleet.start()
    values["drain"] = count / fleet.drain("default", fleet.app.noop.enqueue(1))
    return values


def _few(stage: Stage) -> Values:
    fleet = stage.own_fleet("few")
    enqueue_s = drain_s = 0.0
    repeats = stage.amount(_REPEATS, _QUICK_REPEATS)
    for _ in range(repeats):
        enqueue_s += timed(lambda: _fill(fleet, _FEW - 1))
        memory, single = _broker_mb(fleet), _beside(fleet)
        drain_s += fleet.drain("default", fleet.app.noop.enqueue(1))
    done = _FEW * repeats
    return {"enqueue": done / enqueue_s, "memory": memory, "single": single, "drain": done / drain_s}


CASE = Case(
    part="waiting",
    title="1,000,000 waiting jobs (with --quick 50,000)",
    rows=(
        Row("drain", "drain", "/s", (Limit(_FEW_WAIT, at_least(0.9)),)),
        Row("enqueue", "enqueue_many()", "/s", (Limit(_FEW_WAIT),)),
        Row("single", "single enqueue() to another queue", "/s", (Limit(_FEW_WAIT),)),
        Row("memory", "memory of the broker", "MB", (Limit(_FEW_WAIT),), at_most(200, " MB")),
        Row("start", "first job after a start", "s", (), at_most(0.3, " s")),
    ),
    sides={_FEW_WAIT: _few, TASKQ: _taskq},
    turns=2,
    quick_turns=1,
)
