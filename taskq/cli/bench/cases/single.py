"""One job at a time from one thread, as a web application enqueues."""

from __future__ import annotations

from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least
from taskq.cli.bench.producers import percentiles_ms, repeat
from taskq.cli.bench.stage import Stage

_HELD = "held"


def _rate_and_times(key: str, seconds: list[float]) -> dict[str, float]:
    return {key: len(seconds) / sum(seconds), **percentiles_ms(key, seconds)}


def _jobs(stage: Stage) -> int:
    return stage.amount(1_500, 600)


def _taskq(stage: Stage) -> Values:
    fleet = stage.fleet
    fleet.q.pause(_HELD)
    held = fleet.app.noop.options(queue=_HELD)
    values = _rate_and_times("held", repeat(lambda: held.enqueue(1), _jobs(stage)))
    fleet.drain(_HELD, held.enqueue(1))
    values |= _rate_and_times("running", repeat(lambda: fleet.app.noop.enqueue(1), _jobs(stage)))
    fleet.finish(fleet.app.noop.enqueue(1))
    return values


def _bare(stage: Stage) -> Values:
    return _rate_and_times("held", repeat(stage.bare_client.enqueue, _jobs(stage)))


def _skeleton(stage: Stage) -> Values:
    client = stage.skeleton_client
    values = _rate_and_times("running", repeat(client.enqueue, _jobs(stage)))
    client.wait()
    return values


_SOCKET, _SKELETON = "socket + sync", "skeleton"

CASE = Case(
    part="single",
    title="One enqueue() at a time, durable on return",
    rows=(
        Row("held", "jobs held", "/s", (Limit(_SOCKET, at_least(0.7)),)),
        Row("held_p50", "jobs held, p50", "ms", (Limit(_SOCKET),)),
        Row("held_p99", "jobs held, p99", "ms", (Limit(_SOCKET),)),
        Row("running", "jobs running", "/s", (Limit(_SKELETON, at_least(1)),)),
        Row("running_p50", "jobs running, p50", "ms", (Limit(_SKELETON),)),
        Row("running_p99", "jobs running, p99", "ms", (Limit(_SKELETON),)),
    ),
    sides={_SOCKET: _bare, _SKELETON: _skeleton, TASKQ: _taskq},
)
