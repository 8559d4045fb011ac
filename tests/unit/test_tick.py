"""What a turn of the broker's loop costs depends on what happens in it, not on what exists. Counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from steps import steps
from turns import WALL, Peer, Turns

from taskq.broker.core.core import Core
from taskq.model.attempt import Attempts, Verdict, pack_success
from taskq.model.constraints import Constraints
from taskq.model.job import JobRow, new_job_ids
from taskq.model.schedule import NO_JOB, Schedule
from taskq.model.spec import Spec
from taskq.protocol.codec import encode_call
from taskq.protocol.ops import Op
from taskq.protocol.requests import PutSchedule

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
MANIES: dict[Callable[[], Core], int] = {
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


def backlog(queues: int, **options: Any) -> Core:
    """Busy consumers, and long jobs that wait in some queues."""
    core = few()
    core._run_times.ended({"t": [1_000_000]})
    for number in range(3 * MANY):
        core.submitted([row(2 + number, f"q{number % queues}", **options)])
    assert core.dispatch(0.0, 0.0)
    while core.dispatch(0.0, 0.0):
        pass
    return core


def exchange(core: Core, now: float, **options: Any) -> None:
    """Another job comes in; one ends, and the next one takes its place."""
    core.submitted([row(1_000_000, "q7", **options)])
    assert core.dispatch(now, now) == []
    key = next(key for key in (1, 2) if not core.holds_nothing(key))
    core.settled(key, Attempts([core.sent(key)], [Verdict.SUCCEEDED], [1_000_000], [GOOD]), now, now)
    [batch] = core.dispatch(now, now)
    assert len(batch.rows) == 1


@pytest.mark.parametrize("options", [{}, {"resources": (("gpu", 1),)}, {"concurrency": 1}])
def test_a_turn_costs_the_same_however_many_queues_have_jobs(options: dict[str, Any]) -> None:
    """Also if they share a limit, at which most of them wait."""
    counted = [steps(partial(exchange, backlog(queues, **options), 0.001, **options)) for queues in (100, MANY)]
    assert counted[1] <= counted[0] * 1.02


# -- the engine


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Turns]:
    turns = Turns(tmp_path / "home")
    turns.core.joined(1, 0.0)
    with closing(turns.store):
        yield turns


def job_of_a_turn(turns: Turns, peer: Peer) -> None:
    """A job comes in, and ends."""
    turns.submit(peer, list(new_job_ids(1)))
    turns.turn()
    [batch] = turns.core.dispatch(turns.now, turns.now)
    turns.core.settled(1, Attempts([batch.first], [Verdict.SUCCEEDED], [10], [GOOD]), turns.now, turns.now)
    turns.now += 0.05
    turns.turn()


def cost(turns: Turns) -> int:
    """The steps of a turn in which nothing is due by time; what was is done before."""
    for _ in range(15):  # counts are stored of a hundred tasks at a time
        turns.now += 3.0
        job_of_a_turn(turns, Peer())
    return steps(partial(job_of_a_turn, turns, Peer()))


def in_some_turns(turns: Turns) -> None:
    """Each takes on a bounded amount of work."""
    for _ in range(500):
        turns.turn()


def hourly(turns: Turns) -> None:
    """Schedules, each with its own time."""
    fields = encode_call(NO_JOB, (), {})
    for number in range(1_000):
        schedule = Schedule(f"s{number}", Spec("t", "q"), fields, every_s=3_600.0, jitter_s=3_000.0)
        turns.ask(Peer(), PutSchedule(schedule.to_wire()))
    in_some_turns(turns)


def watched(turns: Turns) -> None:
    """Clients that wait for jobs."""
    turns.core.pause({"q"})
    ids = list(new_job_ids(1_000))
    turns.submit(Peer(), ids, Spec("t", "q"))
    turns.turn()
    for job_id in ids:
        turns.watch(Peer(), [job_id])
    in_some_turns(turns)


def counted(turns: Turns) -> None:
    """Tasks of which something was counted."""
    turns.core.pause({"q"})
    for number in range(1_000):
        turns.submit(Peer(), list(new_job_ids(1)), Spec(f"t{number}", "q"))
    in_some_turns(turns)
    turns.now += 2.0
    turns.turn()


@pytest.mark.parametrize("more", [hourly, watched, counted])
def test_a_turn_of_the_engine_does_not_cost_more_where_more_exists(turns: Turns, more: Callable[[Turns], None]) -> None:
    alone = cost(turns)
    more(turns)
    assert cost(turns) <= alone * 1.02 + 100


def test_a_fire_of_a_schedule_does_not_cost_more_where_there_are_more(turns: Turns) -> None:
    fields = encode_call(NO_JOB, (), {})
    turns.ask(Peer(), PutSchedule(Schedule("often", Spec("t", "q"), fields, every_s=10.0).to_wire()))
    turns.turn()

    def fire() -> int:
        turns.now += 10.0
        turns.turn()  # prunes, and looks into the spool
        scheduler, due = turns.engine.scheduler, turns.engine.scheduler.next_fire_at
        assert due is not None
        turns.now = due - WALL
        count = steps(turns.turn)
        assert scheduler.next_fire_at is not None
        assert scheduler.next_fire_at >= due
        return count

    fire()
    alone = fire()
    hourly(turns)
    fire()
    assert fire() <= alone * 1.05


def test_producers_are_answered_before_the_fleet_and_the_log_are_informed(turns: Turns) -> None:
    """They wait for the disk alone."""
    peer, answered = Peer(), []
    turns.core.submitted = lambda _rows: answered.append(len(peer.answers))  # type: ignore[method-assign]
    turns.submit(peer, list(new_job_ids(1)))
    turns.turn()
    assert answered == [1]


def test_who_waits_for_a_job_is_informed_before_the_log(turns: Turns) -> None:
    """And in between, the next jobs are sent."""
    peer, ids = Peer(), list(new_job_ids(1))
    turns.submit(peer, ids)
    turns.turn()
    turns.watch(peer, ids)
    turns.turn()
    [batch] = turns.core.dispatch(turns.now, turns.now)
    turns.core.settled(1, Attempts([batch.first], [Verdict.SUCCEEDED], [10], [GOOD]), turns.now, turns.now)
    peer.answers.clear()
    turns.engine.step(turns.now)
    assert [envelope[0] for envelope, _ in peer.answers] == [Op.RESULT]
    counts = {task: pair for task, _, pair in turns.engine.committer.counting.counts}
    assert counts["t"].at(int((WALL + turns.now) // 60)).succeeded == 0
    turns.engine.report(turns.now)
    assert counts["t"].at(int((WALL + turns.now) // 60)).succeeded == 1


def ends_together(**options: Any) -> int:
    """How many steps it takes to note that 500 jobs have ended."""
    core = few()
    spec = Spec("t", **options)
    core.submitted([JobRow(seq, seq.to_bytes(16, "big"), spec, b"x", 0, 0) for seq in range(2, 2_500)])
    core._run_times.ended({"t": [1] * 1_000})
    (key, first, rows), *_ = core.dispatch(0.001, 0.001)
    if len(rows) < 500:  # as long as nothing is known of it
        core.settled(key, ends(first, len(rows)), 0.002, 0.002)
        (key, first, rows), *_ = core.dispatch(0.002, 0.002)
    assert len(rows) >= 500, len(rows)
    return steps(partial(core.settled, key, ends(first, 500), 0.004, 0.004))


def ends(first: int, count: int) -> Attempts:
    """A report of successes."""
    numbers = list(range(first, first + count))
    return Attempts(numbers, [Verdict.SUCCEEDED] * count, [1] * count, [GOOD] * count)


def test_jobs_leave_their_limit_together() -> None:
    """A batch of small jobs costs little more under a limit than without: by job it was five times as much."""
    assert ends_together(concurrency=2) < 1.25 * ends_together()
