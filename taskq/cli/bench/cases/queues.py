"""Many queues: ones that are empty again, and ones that hold a job each."""

from __future__ import annotations

import time
from functools import partial

from taskq import group
from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least
from taskq.cli.bench.fleet import BenchFleet
from taskq.cli.bench.machine import cpu_s, family
from taskq.cli.bench.producers import rate, timed
from taskq.cli.bench.stage import Stage

_ONE = "1 queue"
_IDLE_S = 1.0
#: A workflow with more kinds of jobs does not fit into a frame.
_KINDS_TOGETHER = 400


def _jobs(stage: Stage) -> int:
    return stage.amount(800, 200)


def _spread(stage: Stage, fleet: BenchFleet) -> None:
    """Enqueues a job to each of many queues."""
    count = stage.amount(10_000, 1_000)
    for first in range(0, count, _KINDS_TOGETHER):
        numbers = range(first, min(count, first + _KINDS_TOGETHER))
        group(fleet.app.noop.options(queue=f"queue-{number}").step(number) for number in numbers).enqueue()


def _prepare_emptied(stage: Stage, fleet: BenchFleet) -> None:
    _spread(stage, fleet)
    fleet.finish(fleet.app.noop.enqueue(1))


def _single(stage: Stage, fleet: BenchFleet) -> float:
    found = rate(lambda: fleet.app.noop.enqueue(1), _jobs(stage))
    fleet.app.noop.enqueue(1).wait()
    return found


def _bulk(stage: Stage, fleet: BenchFleet) -> float:
    count = stage.amount(30_000, 10_000)

    def run() -> None:
        fleet.app.noop.enqueue_many((n,) for n in range(count))[-1].wait()

    return count / timed(run)


def _taskq(stage: Stage) -> Values:
    emptied = stage.own_fleet("emptied", prepare=partial(_prepare_emptied, stage))
    full = stage.own_fleet("full", "--queues", "default", prepare=partial(_spread, stage))  # nobody serves the others
    before = cpu_s(family([emptied.pid]))
    time.sleep(_IDLE_S)
    idle = (cpu_s(family([emptied.pid])) - before) / _IDLE_S * 100
    return {
        "emptied": _single(stage, emptied),
        "full": _single(stage, full),
        "bulk_emptied": _bulk(stage, emptied),
        "bulk_full": _bulk(stage, full),
        "idle": idle,
    }


def _one(stage: Stage) -> Values:
    fleet = stage.own_fleet("one")
    single, bulk = _single(stage, fleet), _bulk(stage, fleet)
    return {"emptied": single, "full": single, "bulk_emptied": bulk, "bulk_full": bulk}


_GOAL = (Limit(_ONE, at_least(0.95)),)

CASE = Case(
    part="queues",
    title="10,000 queues (with --quick 1,000): jobs in one of them",
    rows=(
        Row("emptied", "single enqueue(), others empty", "/s", _GOAL),
        Row("full", "single enqueue(), others full", "/s", _GOAL),
        Row("bulk_emptied", "enqueue_many(), others empty", "/s", _GOAL),
        Row("bulk_full", "enqueue_many(), others full", "/s", _GOAL),
        Row("idle", "CPU of the idle fleet", "%"),
    ),
    sides={_ONE: _one, TASKQ: _taskq},
    turns=3,
    quick_turns=1,
)
