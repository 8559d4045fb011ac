"""Many producers at once, each of which enqueues one job at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least
from taskq.cli.bench.producers import Action, Producers, together
from taskq.cli.bench.stage import Stage

_THREADS = (1, 8, 64)
_SOCKET = "socket + sync"


def _processes(stage: Stage) -> tuple[int, ...]:
    """64 processes take seconds to start."""
    return (1, 8) if stage.is_quick else (1, 8, 64)


def _jobs(stage: Stage, producers: int) -> int:
    """How many each of them enqueues; the fewer, the more they are."""
    return max(stage.amount(1_000, 400) * min(4, producers) // producers, 20)


def _rates(stage: Stage, of_thread: Callable[[int], Action], of_processes: Callable[[int], Producers]) -> Values:
    values: dict[str, float] = {}
    for count in _THREADS:
        each = _jobs(stage, count)
        actions = [partial(_repeat, of_thread(number), each) for number in range(count)]
        values[f"threads_{count}"] = count * each / together(actions)
    for count in _processes(stage):
        each = _jobs(stage, count)
        values[f"processes_{count}"] = count * each / of_processes(count).enqueue(each)
    values["threads"] = values["threads_64"] / values["threads_1"]
    return values


def _repeat(enqueue: Action, count: int) -> None:
    for _ in range(count):
        enqueue()


def _taskq(stage: Stage) -> Values:
    fleet = stage.own_fleet("held")
    fleet.q.pause("default")

    def enqueue() -> object:
        return fleet.app.noop.enqueue(1)

    found = _rates(stage, lambda _: enqueue, lambda count: stage.producers(count, "taskq", fleet.q.directory.path))
    fleet.drain("default", fleet.app.noop.enqueue(1))
    return found


def _bare(stage: Stage) -> Values:
    clients = stage.service_clients(max(_THREADS))
    path = stage.bare.path
    return _rates(stage, lambda number: clients[number].enqueue, lambda count: stage.producers(count, "service", path))


CASE = Case(
    part="producers",
    title="Several producers, one enqueue() at a time each, jobs held",
    rows=(
        *(
            Row(f"threads_{count}", f"{count} threads" if count > 1 else "1 thread", "/s", (Limit(_SOCKET),))
            for count in _THREADS
        ),
        Row("threads", "64 threads to 1", "x", (Limit(_SOCKET),), at_least(5, "x")),
        *(
            Row(f"processes_{count}", f"{count} processes" if count > 1 else "1 process", "/s", (Limit(_SOCKET),))
            for count in (1, 8, 64)
        ),
    ),
    sides={_SOCKET: _bare, TASKQ: _taskq},
    turns=3,
    quick_turns=1,
)
