"""Two machines lease from one queue: leases that are lost, outcomes that come late, an owner that is fenced off. The
broker's real loop and core, behind a scripted engine: what the fleet half must do for any shared engine."""

from __future__ import annotations

from collections import Counter

import pytest
from scripted import Machine, Queue, ScriptedEngine

from taskq.model.stored import StoredState


def life(queue: Queue, kind: type[ScriptedEngine] = ScriptedEngine) -> list[str]:
    """A machine leases three jobs, runs one, and is cut off and fenced off; another runs them; the first comes back with
    what it has done. Returns what was wrong."""
    first, second = Machine(queue, 1, kind), Machine(queue, 2, kind)
    ids = queue.add(3)
    first.turn()
    first.run()
    first.pool.begin()
    first.engine.is_cut_off = True
    first.turn(3)
    queue.fence_off(1)
    second.turn()
    while second.pool.waiting:
        second.run()
    first.pool.end(first.now)  # too late
    first.turn(3)
    first.engine.is_cut_off = False
    first.turn(4)
    while first.pool.waiting:
        first.run()
    ids += queue.add(1)
    first.turn(2)
    if first.pool.waiting:
        first.run()
    return wrong(queue, [first, second], ids)


def lost_answer(queue: Queue, kind: type[ScriptedEngine] = ScriptedEngine) -> list[str]:
    """The answer to a report is lost, and the report is sent again. Returns what was wrong."""
    machine = Machine(queue, 1, kind)
    ids = queue.add(2)
    machine.turn()
    machine.engine.loses_answers = True
    machine.run()
    assert not machine.engine.is_settled, "nobody knows whether it is durable"
    machine.engine.loses_answers = False
    machine.turn(2)
    machine.run()
    assert machine.engine.is_settled
    return wrong(queue, [machine], ids)


def wrong(queue: Queue, machines: list[Machine], ids: list[bytes]) -> list[str]:
    """What a judge sees in the end."""
    found = []
    told = Counter(job_id for machine in machines for job_id in machine.told.succeeded)
    ends = Counter(queue.ended)
    starts = Counter(job_id for machine in machines for job_id in machine.pool.starts)
    for number, job_id in enumerate(ids):
        entry = queue.entries[job_id]
        if entry.kept != StoredState.SUCCEEDED:
            found.append(f"job {number} has not ended")
        if ends[job_id] != 1:
            found.append(f"job {number} has ended {ends[job_id]} times")
        if told[job_id] != 1:
            found.append(f"job {number} was told as ended {told[job_id]} times")
        if entry.attempts != 1:
            found.append(f"job {number} has {entry.attempts} attempts that count")
        if starts[job_id] > 1 + (number == 1):  # the second one ran when its owner was fenced off
            found.append(f"job {number} started {starts[job_id]} times")
    return found


def test_what_a_fenced_owner_reports_is_not_believed_and_its_other_jobs_are_given_up() -> None:
    assert life(Queue()) == []


def test_a_report_whose_answer_was_lost_counts_once() -> None:
    assert lost_answer(Queue()) == []


class KeepsWhatItLost(ScriptedEngine):
    """A fenced owner runs on with what it had leased."""

    gives_back = False


class TellsBeforeTheAnswer(ScriptedEngine):
    """The log hears of an end before the queue has taken it."""

    tells_at_once = True


@pytest.mark.parametrize(
    ("queue", "kind", "expected"),
    [
        (Queue(is_fenced=False), ScriptedEngine, "has ended 2 times"),
        (Queue(), KeepsWhatItLost, "started 2 times"),
        (Queue(), TellsBeforeTheAnswer, "was told as ended 2 times"),
    ],
    ids=["a late outcome is believed", "a lost lease is kept", "told before it is taken"],
)
def test_planted_bugs_are_found(queue: Queue, kind: type[ScriptedEngine], expected: str) -> None:
    assert any(expected in line for line in life(queue, kind))


def test_a_report_that_is_applied_twice_is_found() -> None:
    assert any("has ended" in line for line in lost_answer(Queue(is_fenced=False, applies_once=False)))


def test_a_machine_that_hears_nothing_goes_on_with_what_it_has() -> None:
    """And keeps its reports until they can be sent."""
    queue = Queue()
    machine = Machine(queue, 1)
    ids = queue.add(3)
    machine.turn()
    machine.engine.is_cut_off = True
    for _ in ids:
        machine.run()
    assert queue.ended == machine.told.succeeded == []
    machine.engine.is_cut_off = False
    machine.turn(2)
    assert queue.ended == machine.told.succeeded == ids
    assert wrong(queue, [machine], ids) == []
