"""A queue in a PostgreSQL database, beside a bare script that makes the same statements in the same batches there."""

from __future__ import annotations

from taskq.cli.bench.case import TASKQ, Case, Limit, Row, Values, at_least, at_most
from taskq.cli.bench.producers import percentiles_ms, repeat, timed
from taskq.cli.bench.stage import Stage

_BARE, _COMMITS = "bare script", "three commits"
_HELD = "held"


def _count(stage: Stage) -> int:
    return stage.amount(30_000, 6_000)


def _singles(stage: Stage) -> int:
    return stage.amount(500, 150)


def _taskq(stage: Stage) -> Values:
    fleet, count = stage.database_fleet, _count(stage)
    noop = fleet.app.noop
    bulk_s = timed(lambda: fleet.finish(noop.enqueue_many((n,) for n in range(count))[-1]))
    fleet.q.pause(_HELD)
    held = noop.options(queue=_HELD)
    jobs = []
    enqueue_s = timed(lambda: jobs.extend(held.enqueue_many((n,) for n in range(count))))
    single_s = repeat(lambda: held.enqueue(1), _singles(stage))
    drain_s = fleet.drain(_HELD, jobs[-1])
    found = {"bulk": count / bulk_s, "enqueue": count / enqueue_s, "drain": (count + len(single_s)) / drain_s}
    found["single"] = len(single_s) / sum(single_s)
    return found | percentiles_ms("trip", repeat(lambda: noop.enqueue(1).result(timeout=30), _singles(stage)))


def _bare(stage: Stage) -> Values:
    bare, count = stage.bare_database, _count(stage)

    def all_of_it() -> None:
        bare.enqueue_many(count)
        bare.wait()

    with bare.working():
        bulk_s = timed(all_of_it)
    enqueue_s = timed(lambda: bare.enqueue_many(count))
    single_s = repeat(bare.enqueue, _singles(stage))
    with bare.working():
        drain_s = timed(bare.wait)
    found = {"bulk": count / bulk_s, "enqueue": count / enqueue_s, "drain": (count + len(single_s)) / drain_s}
    return found | {"single": len(single_s) / sum(single_s)}


def _commits(stage: Stage) -> Values:
    return percentiles_ms("trip", repeat(stage.bare_database.three_commits, _singles(stage)))


CASE = Case(
    part="database",
    title="Jobs that do nothing in a PostgreSQL database",
    rows=(
        Row("bulk", "end to end, in bulk", "/s", (Limit(_BARE, at_least(0.55)),)),
        Row("drain", "drain what waits", "/s", (Limit(_BARE, at_least(0.6)),)),
        Row("enqueue", "enqueue_many(), jobs held", "/s", (Limit(_BARE, at_least(0.8)),)),
        Row("single", "enqueue(), jobs held", "/s", (Limit(_BARE, at_least(0.8)),)),
        Row("trip_p50", "enqueue() and result(), p50", "ms", (Limit(_COMMITS, at_most(1.5)),)),
        Row("trip_p99", "enqueue() and result(), p99", "ms", (Limit(_COMMITS),)),
    ),
    sides={_BARE: _bare, TASKQ: _taskq, _COMMITS: _commits},
)
