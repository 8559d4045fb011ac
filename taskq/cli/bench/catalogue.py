"""All cases, in the order in which they are measured."""

from __future__ import annotations

from taskq.cli.bench.cases import (
    bulk,
    changes,
    cpu,
    database,
    idle,
    loop,
    payload,
    producers,
    queues,
    roundtrip,
    single,
    spool,
    start,
    waiting,
    watch,
)

CASES = {
    module.CASE.part: module.CASE
    for module in (
        *(single, producers, roundtrip, bulk, cpu, payload, waiting, queues, spool, changes, start, idle, loop),
        *(watch, database),
    )
}
