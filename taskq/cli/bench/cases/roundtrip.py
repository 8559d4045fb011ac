"""A job and its result, one after the other, on an idle fleet."""

from __future__ import annotations

from taskq.cli.bench.app import noop
from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_most
from taskq.cli.bench.fleet import BenchFleet
from taskq.cli.bench.producers import percentiles_ms, repeat
from taskq.cli.bench.stage import Stage

_SKELETON, _POOL = "skeleton", "process pool"


def _count(stage: Stage) -> int:
    return stage.amount(500, 200)


def _of_fleet(key: str, fleet: BenchFleet, count: int) -> dict[str, float]:
    return percentiles_ms(key, repeat(lambda: fleet.app.noop.enqueue(1).result(timeout=30), count))


def _taskq(stage: Stage) -> Values:
    found = _of_fleet("synced", stage.fleet, _count(stage))
    found["tail"] = found["synced_p99"] / found["synced_p50"]
    return found | _of_fleet("unsynced", stage.own_fleet("unsynced", "--durability", "os"), _count(stage))


def _skeleton(stage: Stage) -> Values:
    found = percentiles_ms("synced", repeat(stage.skeleton_client.round_trip, _count(stage)))
    return found | {"tail": found["synced_p99"] / found["synced_p50"]}


def _pool(stage: Stage) -> Values:
    pool = stage.pool
    found = percentiles_ms("unsynced", repeat(lambda: pool.call(noop, 1), _count(stage)))
    return found | {key.replace("unsynced", "synced"): value for key, value in found.items()}


CASE = Case(
    part="roundtrip",
    title="enqueue() and result(), on an idle fleet (not synced: --durability os)",
    rows=(
        Row("synced_p50", "p50", "ms", (Limit(_SKELETON, at_most(1.35)), Limit(_POOL))),
        Row("synced_p99", "p99", "ms", (Limit(_SKELETON), Limit(_POOL))),
        Row("tail", "p99 to p50", "x", (Limit(_SKELETON),), at_most(2.5, "x")),
        Row("unsynced_p50", "p50, not synced", "ms", (Limit(_POOL, at_most(1.6)),)),
        Row("unsynced_p99", "p99, not synced", "ms", (Limit(_POOL),)),
    ),
    sides={_SKELETON: _skeleton, TASKQ: _taskq, _POOL: _pool},
)
