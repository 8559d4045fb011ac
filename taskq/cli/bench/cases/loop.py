"""For how long the broker's loop answers nobody, while many jobs come in, are cancelled, purged, listed and run.

The goal is for what the loop does itself. The turn that lasts longest also has a sync in it, and waits for a core that
consumers and this program have: that depends on the disk and on how many processes are busy.
"""

from __future__ import annotations

from taskq.cli.bench.case import TASKQ, Case, Row, Values, at_most
from taskq.cli.bench.stage import Stage

_CANCELS = 1_000


def _taskq(stage: Stage) -> Values:
    fleet = stage.stopped_fleet()  # a broker keeps that figure from its start on
    fleet.start()
    fleet.q.pause("default")
    jobs = fleet.app.noop.enqueue_many((n,) for n in range(stage.amount(100_000, 20_000)))
    for job in jobs[:_CANCELS]:
        job.cancel()
    fleet.q.purge("cancelled")
    fleet.q.jobs(task="none")
    fleet.drain("default", jobs[-1])
    broker = fleet.q.client.status().broker
    fleet.close()
    return {"cpu": (broker.longest_turn_cpu_s or 0.0) * 1e3, "longest": (broker.longest_turn_s or 0.0) * 1e3}


CASE = Case(
    part="loop",
    title="The broker's loop, with 100,000 waiting jobs (with --quick 20,000)",
    rows=(
        Row("cpu", "longest turn, CPU", "ms", (), at_most(10, " ms")),
        Row("longest", "longest turn, with sync and waits", "ms", ()),
    ),
    sides={TASKQ: _taskq},
    turns=3,
    quick_turns=1,
)
