"""Jobs that compute: how much of the CPU time that others leave is theirs.

Each job uses a known time of its own thread's CPU clock, so neither the speed of the machine nor what else runs on it
is taken for overhead: 100 % is all the CPU time that the consumers could have had.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from taskq.cli.bench.app import burn
from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least
from taskq.cli.bench.machine import CpuMeter
from taskq.cli.bench.stage import Stage

_POOL = "process pool"
_MS = (0.2, 2.0, 20.0)
#: What the jobs of one measurement take together on each consumer.
_SECONDS, _QUICK_SECONDS = 1.5, 0.3
#: Before that, as much is run that processes have started, imported and allocated what they need.
_WARM_UP_SECONDS = 0.15
#: One by one it takes longer than that if jobs are short.
_MOST_ONE_BY_ONE, _MOST_ONE_BY_ONE_QUICK = 4_000, 1_000
_BULK_GOALS = {0.2: at_least(92, " %"), 2.0: at_least(97, " %")}
_SINGLE_GOALS = {2.0: at_least(90, " %")}


def _efficiency(stage: Stage, milliseconds: float, run: Callable[[float, int], object], most: int = 1_000_000) -> float:
    """The CPU time of the jobs, of which there are at most so many, in percent of what was there for them."""
    seconds = _QUICK_SECONDS if stage.is_quick else _SECONDS
    count = min(most, round(seconds * stage.consumers / milliseconds * 1000))
    run(milliseconds, min(most, round(_WARM_UP_SECONDS * stage.consumers / milliseconds * 1000)))
    with CpuMeter() as meter:
        run(milliseconds, count)
    left_s = min(stage.consumers * meter.wall_s, (os.cpu_count() or 1) * meter.wall_s - meter.others_s)
    return count * milliseconds / 1000 / left_s * 100


def _taskq(stage: Stage) -> Values:
    fleet = stage.fleet

    def bulk(milliseconds: float, count: int) -> None:
        fleet.finish(fleet.app.burn.enqueue_many((milliseconds,) for _ in range(count))[-1])

    def single(milliseconds: float, count: int) -> None:
        fleet.finish([fleet.app.burn.enqueue(milliseconds) for _ in range(count)][-1])

    found = {f"bulk_{each}": _efficiency(stage, each, bulk) for each in _MS}
    most = stage.amount(_MOST_ONE_BY_ONE, _MOST_ONE_BY_ONE_QUICK)
    return found | {f"single_{each}": _efficiency(stage, each, single, most) for each in _MS}


def _pool(stage: Stage) -> Values:
    def run(milliseconds: float, count: int) -> None:
        stage.pool.run(burn, [milliseconds] * count)

    found = {each: _efficiency(stage, each, run) for each in _MS}
    return {f"{how}_{each}": value for how in ("bulk", "single") for each, value in found.items()}


CASE = Case(
    part="cpu",
    title="Jobs that compute: their share of the CPU time that others leave",
    rows=tuple(
        Row(f"{how}_{each}", f"{each:g} ms, {words}", "%", (Limit(_POOL),), goals.get(each))
        for how, words, goals in (("bulk", "enqueue_many()", _BULK_GOALS), ("single", "one by one", _SINGLE_GOALS))
        for each in _MS
    ),
    sides={_POOL: _pool, TASKQ: _taskq},
    turns=3,
    quick_turns=1,
)
