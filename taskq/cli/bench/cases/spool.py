"""Jobs that are enqueued while no fleet runs."""

from __future__ import annotations

import time

from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least
from taskq.cli.bench.producers import rate
from taskq.cli.bench.stage import Stage

_HELD, _WITH_FLEET = "held", "with a fleet"


def _jobs(stage: Stage) -> int:
    return stage.amount(2_000, 500)


def _taskq(stage: Stage) -> Values:
    fleet, count = stage.stopped_fleet(), _jobs(stage)
    single = rate(lambda: fleet.app.noop.enqueue(1), count)
    start = time.perf_counter()
    fleet.start()
    while any(queue.queued or queue.running for queue in fleet.q.client.status().queues.values()):
        time.sleep(0.005)
    taken_in_s = time.perf_counter() - start
    fleet.close()
    return {"single": single, "taken_in": count / taken_in_s}


def _with_fleet(stage: Stage) -> Values:
    fleet = stage.fleet
    fleet.q.pause(_HELD)
    held = fleet.app.noop.options(queue=_HELD)
    single = rate(lambda: held.enqueue(1), _jobs(stage))
    fleet.drain(_HELD, held.enqueue(1))
    return {"single": single}


CASE = Case(
    part="spool",
    title="Without a fleet: jobs in the spool",
    rows=(
        Row("single", "single enqueue()", "/s", (Limit(_WITH_FLEET, at_least(0.5)),)),
        Row("taken_in", "taken in and run, with the start", "/s"),
    ),
    sides={_WITH_FLEET: _with_fleet, TASKQ: _taskq},
    turns=3,
    quick_turns=1,
)
