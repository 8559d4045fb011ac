"""What it costs a fleet to be watched, and what those who watch take themselves.

They run all the time, and are stopped for the turns of the other side, so both sides differ in nothing else. The CPU
time of the fleet for each job does not depend on what else the machine does, but differs by some percent from turn to
turn. What an idle fleet uses for those who watch does not, so its share is steadier. Where all cores are busy, jobs a
second drop by more than that: by what those who watch take themselves.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least, at_most
from taskq.cli.bench.fleet import BenchFleet
from taskq.cli.bench.machine import cpu_s, family
from taskq.cli.bench.producers import timed
from taskq.cli.bench.stage import NotHere, Stage
from taskq.cli.bench.watchers import Watchers, missing_extras

_NOBODY = "nobody watches"
_HELD = "held"
_AT_ONCE = 20_000
_FAILED = 500
#: What came due while they were stopped is asked for at once; after this time they ask as always.
_SETTLES_IN_S = 1.0
_STARTS = 3


def _watched(stage: Stage) -> Values:
    fleet, watchers = _both(stage)
    watchers.go_on()
    time.sleep(_SETTLES_IN_S)
    with _Share(lambda: cpu_s(watchers.processes)) as own:
        values = _jobs(fleet, _window_s(stage))
    processes = family([fleet.pid])
    with _Share(lambda: cpu_s(processes)) as asked:
        time.sleep(_window_s(stage))
    watchers.rest()
    shares = {f"{key}_share": asked.percent / _cores_percent(values, key) * 100 for key in ("bulk", "single")}
    return {**values, **shares, "own": own.percent, "asked": asked.percent, "status": _status_ms(fleet)}


def _unwatched(stage: Stage) -> Values:
    fleet, watchers = _both(stage)
    watchers.rest()
    return _jobs(fleet, _window_s(stage))


def _window_s(stage: Stage) -> float:
    """For how long each kind of jobs is enqueued: until all who watch have asked again."""
    return stage.amount(50, 5) / 10


def _both(stage: Stage) -> tuple[BenchFleet, Watchers]:
    """A fleet with jobs that wait and jobs that have failed, and those who watch it."""
    missing = missing_extras()
    if missing:
        raise NotHere(f"it needs more: pip install 'taskq-fleet[{','.join(missing)}]'")

    def prepare(fleet: BenchFleet) -> None:
        fleet.q.pause(_HELD)
        held = fleet.app.noop.options(queue=_HELD)
        held.enqueue_many((n,) for n in range(stage.amount(100_000, 5_000)))
        fleet.app.fail.enqueue_many(() for _ in range(_FAILED))[-1].wait()

    fleet = stage.own_fleet("watched", "--log-level", "info", prepare=prepare)
    return fleet, stage.watchers(fleet.q.directory.path)


def _jobs(fleet: BenchFleet, window_s: float) -> dict[str, float]:
    """What jobs take in bulk and one by one."""
    noop = fleet.app.noop

    def bulk() -> int:
        noop.enqueue_many((n,) for n in range(_AT_ONCE))[-1].wait()
        return _AT_ONCE

    def single() -> int:
        noop.enqueue(1)
        return 1

    return _figures("bulk", fleet, window_s, bulk) | _figures("single", fleet, window_s, single)


def _figures(key: str, fleet: BenchFleet, window_s: float, enqueue: Callable[[], int]) -> dict[str, float]:
    """Enqueues for some time. Returns the jobs a second, and the CPU time of the fleet and of this process for each."""
    processes = family([fleet.pid])
    before_s, jobs = cpu_s(processes) + time.process_time(), 0
    began = time.perf_counter()
    while time.perf_counter() < began + window_s:
        jobs += enqueue()
    fleet.app.noop.enqueue(1).wait()  # behind all others
    took_s = time.perf_counter() - began
    used_s = cpu_s(processes) + time.process_time() - before_s
    return {key: jobs / took_s, f"{key}_cpu": used_s / jobs * 1e6}


def _cores_percent(values: Values, key: str) -> float:
    """How much of a core the fleet and its client used, in percent."""
    return values[key] * values[f"{key}_cpu"] / 1e6 * 100


def _status_ms(fleet: BenchFleet) -> float:
    """How long `taskq status` takes, without the start of Python."""

    def run(*arguments: str) -> float:
        command = [sys.executable, *arguments]
        return median(
            timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)) for _ in range(_STARTS)
        )

    return (run("-m", "taskq", "status", str(fleet.q.directory.path)) - run("-c", "")) * 1000


class _Share:
    """How much of one core something uses while a block runs.

    Args:
        used_s: the seconds of CPU time that it has used.
    """

    percent = 0.0

    def __init__(self, used_s: Callable[[], float]) -> None:
        self._used_s = used_s

    def __enter__(self) -> _Share:
        self._before = self._used_s(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        used_s, began = self._before
        self.percent = (self._used_s() - used_s) / (time.perf_counter() - began) * 100


CASE = Case(
    part="watch",
    title="Watched by a page, `taskq top`, Prometheus and `taskq logs`; 100,000 jobs wait (with --quick 5,000)",
    rows=(
        Row("bulk_cpu", "in bulk, CPU of fleet and client, a job", "us", (Limit(_NOBODY, at_most(1.03)),)),
        Row("single_cpu", "one by one, CPU of fleet and client, a job", "us", (Limit(_NOBODY, at_most(1.02)),)),
        Row("bulk", "in bulk, end to end", "/s", (Limit(_NOBODY, at_least(0.97)),)),
        Row("single", "one by one, jobs running", "/s", (Limit(_NOBODY, at_least(0.98)),)),
        Row("asked", "CPU of an idle fleet for them, of one core", "%"),
        Row("bulk_share", "that, of the CPU in bulk", "%", (), at_most(3, " %")),
        Row("single_share", "that, of the CPU one by one", "%", (), at_most(2, " %")),
        Row("own", "CPU of those who watch, of one core", "%"),
        Row("status", "`taskq status`, beside the start of Python", "ms", (), at_most(50, " ms")),
    ),
    sides={_NOBODY: _unwatched, TASKQ: _watched},
    turns=2,
    quick_turns=1,
)
