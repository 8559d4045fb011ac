"""What a turn of the broker's loop costs depends on what happens in it, not on what exists. Counted, not timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from steps import steps

from taskq.broker.core.core import Core
from taskq.model.attempt import Attempts, Verdict, pack_success
from taskq.model.constraints import Constraints
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


def with_idle_consumers() -> Core:
    """Any of them could run a job."""
    core = few()
    for key in range(3, 503):
        core.joined(key, 0.0)
    return core


def with_consumers_of_other_queues() -> Core:
    """They are idle, and do not serve the queue of the job."""
    core = few()
    for key in range(3, 503):
        core.joined(key, 0.0, [f"q{key % 3}"])
    return core


def with_keys_in_order() -> Core:
    """Behind a job of each, another one waits."""
    core = few()
    core.joined(3, 0.0)
    for number in range(1_000):
        own = Constraints(order_key=f"k{number}")
        one, other = row(2 + 2 * number, "ordered"), row(3 + 2 * number, "ordered")
        one.constraints = other.constraints = own
        core.submitted([one, other])
    while core.dispatch(0.0, 0.0):
        core.joined(4 + core._consumers[3].next_number, 0.0)
    return core


def with_closed_rates() -> Core:
    """Each has a key of its own, that may start another job in an hour."""
    core = few()
    for number in range(1_000):
        own = Constraints(limit_key=f"k{number}")
        one, other = (row(2 + 2 * number + place, "rated", rate=(1, 3_600.0)) for place in range(2))
        one.constraints = other.constraints = own
        core.submitted([one, other])
        core.joined(3 + number, 0.0)
        core.dispatch(0.0, 0.0)
    assert core.ready.next_opening() is not None
    return core


#: And how many steps more may be taken where it exists: to make a queue anew that was forgotten, or to look whether a
#: rate opens by now. A hundred take two microseconds.
MANIES = {
    with_empty_queues: 350,
    with_paused_queues: 0,
    with_emptied_queues: 350,
    with_busy_consumers: 0,
    with_closed_limits: 0,
    with_idle_consumers: 0,
    with_consumers_of_other_queues: 0,
    with_keys_in_order: 0,
    with_closed_rates: 50,
}


@pytest.mark.parametrize("many", MANIES)
@pytest.mark.parametrize("job", [None, row(1_000_000)])
def test_a_turn_does_not_cost_more_where_more_exists(many: Callable[[], Core], job: JobRow | None) -> None:
    alone, among_many = (steps(partial(turn, core, job, 0.001)) for core in (few(), many()))
    assert among_many <= alone * 1.02 + MANIES[many]


def backlog(queues: int) -> Core:
    """Two busy consumers, and long jobs that wait in some queues."""
    core = few()
    core._measure({"t": [1_000_000]})
    for number in range(3 * MANY):
        core.submitted([row(2 + number, f"q{number % queues}")])
    assert len(core.dispatch(0.0, 0.0)) == 2
    return core


def exchange(core: Core, now: float) -> None:
    """Another job comes in; one ends, and the next one takes its place."""
    core.submitted([row(1_000_000, "q7")])
    assert core.dispatch(now, now) == []
    number = core.sent(1)
    core.settled(1, Attempts([number], [Verdict.SUCCEEDED], [1_000_000], [GOOD]), now, now)
    [batch] = core.dispatch(now, now)
    assert len(batch.rows) == 1


def test_a_turn_costs_the_same_however_many_queues_have_jobs() -> None:
    among_some, among_many = (steps(partial(exchange, backlog(queues), 0.001)) for queues in (100, MANY))
    assert among_many <= among_some * 1.02
