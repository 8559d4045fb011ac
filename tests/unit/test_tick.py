"""What a turn of the broker's loop costs depends on what happens in it, not on what exists. Counted, not timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from steps import steps

from taskq.broker.core.core import Core
from taskq.model.attempt import Attempts, Verdict, pack_success
from taskq.model.job import JobRow
from taskq.model.spec import Spec

GOOD = pack_success(1.0, 0.001, None)
MANY = 5_000


def row(seq: int, queue: str = "default", **options: Any) -> JobRow:
    """A job that waits."""
    return JobRow(seq, seq.to_bytes(16, "big"), Spec("t", queue, **options), b"x", 0, 0)


def turn(core: Core, job: JobRow | None, now: float) -> None:
    """What the loop asks of the core in a turn in which a job comes in, or none, and in the next, in which it ends."""
    if job is not None:
        core.submitted([job])
    for answer in (core.dispatch(now, now), []):
        if core.has_effects:
            core.take_effects()
        for load in core.loads():
            core.loaded(load.partition, [], is_all=True)
        core.ready.open_due(now)
        core.recalls(now), core.looks(now)
        assert not core.is_check_due(now)
        core.next_recall(now), core.next_look(now), core.next_time_check(now), core.ready.next_opening()
        assert not core.must_load
        for key, first, rows in answer:
            assert rows == [job]
            core.settled(key, Attempts([first], [Verdict.SUCCEEDED], [10], [GOOD]), now, now)


def few() -> Core:
    """A fleet of two consumers, one queue that was used."""
    core = Core(capacities={"gpu": 1})
    core.joined(1, 0.0)
    core.joined(2, 0.0)
    turn(core, row(1), 0.0)
    return core


def with_empty_queues() -> Core:
    """Each has had a job."""
    core = few()
    for number in range(MANY):
        turn(core, row(2 + number, f"q{number}"), 0.0)
    return core


def with_paused_queues() -> Core:
    """In each a job waits."""
    core = few()
    core.pause({f"q{number}" for number in range(MANY)})
    for number in range(MANY):
        core.submitted([row(2 + number, f"q{number}")])
    return core


def with_emptied_queues() -> Core:
    """The job of each was cancelled."""
    core = few()
    rows = [row(2 + number, f"q{number}") for number in range(MANY)]
    for one in rows:
        core.submitted([one])
    for one in rows:
        core.ready.drop(one)
    return core


def with_busy_consumers() -> Core:
    """Each runs a job that has a limit of time."""
    core = few()
    for key in range(3, 503):
        core.joined(key, 0.0)
        core.submitted([row(key, timeout_s=60.0)])
        assert len(core.dispatch(0.0, 0.0)) == 1
    return core


def with_closed_limits() -> Core:
    """Jobs wait for a resource that another one has."""
    core = few()
    core.joined(3, 0.0)
    for priority in range(1_000):
        core.submitted([row(2 + priority, "gpu", resources=(("gpu", 1),), priority=priority)])
    assert len(core.dispatch(0.0, 0.0)) == 1
    return core


MANIES = (with_empty_queues, with_paused_queues, with_emptied_queues, with_busy_consumers, with_closed_limits)


@pytest.mark.parametrize("many", MANIES)
@pytest.mark.parametrize("job", [None, row(1_000_000)])
def test_a_turn_does_not_cost_more_where_more_exists(many: Callable[[], Core], job: JobRow | None) -> None:
    alone, among_many = (steps(partial(turn, core, job, 0.001)) for core in (few(), many()))
    assert among_many <= alone * 1.02
