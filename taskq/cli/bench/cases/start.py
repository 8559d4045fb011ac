"""From the command, or from the death of a consumer, to a job that is done."""

from __future__ import annotations

import os
import signal
import time

from taskq.cli.bench.app import noop
from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_most
from taskq.cli.bench.limits.pool import Pool
from taskq.cli.bench.stage import Stage

_POOL = "process pool"


def _taskq(stage: Stage) -> Values:
    fleet = stage.stopped_fleet()
    values = {"start": fleet.first_job()}
    fleet.stop()
    fleet.start()
    start = time.perf_counter()
    for consumer in fleet.q.client.status().consumers:
        os.kill(consumer.pid, signal.SIGKILL)
    fleet.app.noop.enqueue(1).result(timeout=60)
    values["replaced"] = time.perf_counter() - start
    fleet.close()
    return values


def _pool(stage: Stage) -> Values:
    start = time.perf_counter()
    pool = Pool(stage.consumers)
    try:
        pool.call(noop, 1)
        return {"start": time.perf_counter() - start}
    finally:
        pool.close()


CASE = Case(
    part="start",
    title="How soon a job is done",
    rows=(
        Row("start", "first job after `taskq worker`", "s", (Limit(_POOL),), at_most(0.3, " s")),
        Row("replaced", "all consumers killed, to the next job", "s", (), at_most(0.3, " s")),
    ),
    sides={_POOL: _pool, TASKQ: _taskq},
    quick_turns=1,
)
