"""What a fleet of two consumers takes while nothing happens."""

from __future__ import annotations

import time

from taskq.cli.bench.case import TASKQ, Case, Row, Values, at_most
from taskq.cli.bench.machine import cpu_s, family, memory_mb
from taskq.cli.bench.stage import Stage

_CONSUMERS = 2
#: What belongs to the start is over then: the guardian becomes a smaller program, and the first job's row is pruned.
_SETTLES_IN_S = 4.0


def _taskq(stage: Stage) -> Values:
    fleet = stage.own_fleet("idle", "--consumers", str(_CONSUMERS))
    fleet.app.noop.enqueue(1).result(timeout=30)
    time.sleep(_SETTLES_IN_S)
    status = fleet.q.client.status()
    fleet.q.client.close()  # nobody asks, and nobody is connected
    of_consumers = {consumer.pid for consumer in status.consumers}
    processes = family([fleet.pid])
    seconds = stage.amount(5, 1)
    before = cpu_s(processes)
    time.sleep(seconds)
    values = {"cpu": (cpu_s(processes) - before) / seconds * 100, "total": memory_mb(processes)}
    values["guardian"] = memory_mb(each for each in processes if each.pid == fleet.pid)
    values["broker"] = memory_mb(each for each in processes if each.pid == status.broker.pid)
    values["consumer"] = memory_mb(each for each in processes if each.pid in of_consumers) / _CONSUMERS
    values["others"] = values["total"] - values["guardian"] - values["broker"] - values["consumer"] * _CONSUMERS
    return values


CASE = Case(
    part="idle",
    title="An idle fleet of 2 consumers",
    rows=(
        Row("cpu", "CPU, of one core", "%", (), at_most(0.1, " %")),
        Row("total", "memory (PSS)", "MB", (), at_most(60, " MB")),
        Row("guardian", "memory of the guardian", "MB", (), at_most(10, " MB")),
        Row("broker", "memory of the broker", "MB"),
        Row("consumer", "memory of each consumer", "MB"),
        Row("others", "memory of other processes", "MB"),
    ),
    sides={TASKQ: _taskq},
    turns=3,
    quick_turns=1,
)
