"""Many jobs that do nothing: enqueued with enqueue_many, to their end, and from a full queue."""

from __future__ import annotations

from taskq.cli.bench.app import noop
from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least
from taskq.cli.bench.machine import CpuMeter
from taskq.cli.bench.producers import timed
from taskq.cli.bench.stage import Stage

_SKELETON, _POOL = "skeleton", "process pool"


def _count(stage: Stage) -> int:
    return stage.amount(60_000, 20_000)


def _taskq(stage: Stage) -> Values:
    fleet, count = stage.fleet, _count(stage)
    with CpuMeter() as meter:
        bulk_s = timed(lambda: fleet.finish(fleet.app.noop.enqueue_many((n,) for n in range(count))[-1]))
    fleet.q.pause("default")
    jobs = []
    enqueue_s = timed(lambda: jobs.extend(fleet.app.noop.enqueue_many((n,) for n in range(count))))
    return {
        "bulk": count / bulk_s,
        "cpu": meter.ours_s / count * 1e6,
        "enqueue": count / enqueue_s,
        "drain": count / fleet.drain("default", jobs[-1]),
    }


def _skeleton(stage: Stage) -> Values:
    client, count = stage.skeleton_client, _count(stage)
    with CpuMeter() as meter:
        bulk_s = timed(lambda: client.run(count))
    with stage.skeleton.held():
        enqueue_s = timed(lambda: client.enqueue_many(count))
    return {
        "bulk": count / bulk_s,
        "cpu": meter.ours_s / count * 1e6,
        "enqueue": count / enqueue_s,
        "drain": count / timed(client.wait),
    }


def _pool(stage: Stage) -> Values:
    count = _count(stage) // 10
    with CpuMeter() as meter:
        seconds = timed(lambda: stage.pool.run(noop, range(count)))
    return {"bulk": count / seconds, "cpu": meter.ours_s / count * 1e6}


CASE = Case(
    part="bulk",
    title="Jobs that do nothing, by enqueue_many()",
    rows=(
        Row("bulk", "end to end", "/s", (Limit(_SKELETON, at_least(0.55)), Limit(_POOL))),
        Row("cpu", "CPU of all processes, a job", "us", (Limit(_SKELETON), Limit(_POOL))),
        Row("enqueue", "enqueue only, jobs held", "/s", (Limit(_SKELETON),)),
        Row("drain", "drain what waits", "/s", (Limit(_SKELETON, at_least(0.65)),)),
    ),
    sides={_SKELETON: _skeleton, TASKQ: _taskq, _POOL: _pool},
)
