"""What any engine promises its clients and its fleet, asked by `QueueApi` and a scripted fleet; each engine is a line in
`places.ENGINES`. What only one journal promises is in test_journal.py."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from scripted_fleet import SPEC, ScriptedFleet

from taskq.model.attempt import Verdict, pack_failure, pack_success
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.errors import (
    ConfigError,
    EnqueueError,
    JobNotFound,
    JobStateError,
    QueueFull,
    ResultTimeout,
    ScheduleNotFound,
)
from taskq.model.info.search import JobSearch
from taskq.model.info.status import QueueStatus
from taskq.model.job import JobError, JobState, new_job_ids
from taskq.model.schedule import NO_JOB, Misfire, Overlap, Schedule
from taskq.model.spec import Spec
from taskq.protocol.codec import encode_call
from taskq.protocol.submissions import Call
from taskq.testing.consumers import submissions_of

ONE_TRY = Spec("t", retries=0)
SOON = Schedule("soon", SPEC, encode_call(NO_JOB, (), {}), every_s=60.0)


def states(fleet: ScriptedFleet, ids: list[bytes]) -> list[JobState]:
    """The states of jobs, as a client is told."""
    return [fleet.client.info(job_id).state for job_id in ids]


def failed(fleet: ScriptedFleet, count: int, spec: Spec = ONE_TRY) -> list[bytes]:
    """Jobs that have failed for good."""
    ids, consumer = fleet.add(count, spec), fleet.consumer()
    for job_id in ids:
        assert consumer.begin() == job_id
        consumer.fail()
    consumer.leave()
    return ids


def with_parents(fleet: ScriptedFleet, *parents: bytes, goes_on: bool = False) -> bytes:
    """A job that comes after others."""
    [job_id] = fleet.add(1, after=tuple((parent, goes_on) for parent in parents))
    return job_id


# -- submitting


def test_jobs_run_in_the_order_in_which_they_came(fleet: ScriptedFleet) -> None:
    ids = [*fleet.add(3), *fleet.add(2)]
    assert fleet.run_all() == ids
    assert states(fleet, ids) == [JobState.SUCCEEDED] * 5


def test_urgent_jobs_run_first(fleet: ScriptedFleet) -> None:
    usual, urgent = fleet.add(2), fleet.add(2, Spec("t", priority=5))
    assert fleet.run_all() == [*urgent, *usual]


def test_what_is_sent_again_is_taken_in_once(fleet: ScriptedFleet) -> None:
    calls = fleet.calls(2)
    for _ in range(2):
        assert fleet.client.submit(SPEC, calls) == [call.id for call in calls]
    assert len(fleet.run_all()) == 2


@pytest.mark.needs("a look at the arguments of a known id")
def test_an_id_that_is_used_with_other_arguments_is_refused(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    with pytest.raises(EnqueueError, match="other arguments"):
        fleet.client.submit(SPEC, [Call(job_id, b"another"), *fleet.calls(1)])
    assert fleet.run_all() == [job_id]


@pytest.mark.needs("max_queued")
def test_jobs_that_do_not_fit_a_queue_are_refused_and_none_is_taken_in(fleet: ScriptedFleet) -> None:
    spec = Spec("t", max_queued=3)
    ids = fleet.add(2, spec)
    with pytest.raises(QueueFull, match="2 jobs wait"):
        fleet.add(2, spec)
    ids += fleet.add(1, spec)
    assert fleet.run_all() == ids


@pytest.mark.needs("max_queued")
def test_who_waits_for_room_gets_in_when_there_is_some(fleet: ScriptedFleet) -> None:
    spec = Spec("t", max_queued=1)
    [first] = fleet.add(1, spec)
    fleet.client.cancel(first, False)
    assert len(fleet.client.submit(spec, fleet.calls(1), True)) == 1


def test_a_job_is_not_run_before_its_time(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1, due_at=fleet.clock.time() + 30.0)
    assert states(fleet, [job_id]) == [JobState.SCHEDULED]
    assert fleet.run_all() == []
    fleet.let_pass(30.0)
    assert fleet.run_all() == [job_id]


def test_a_job_that_is_not_started_in_time_expires(fleet: ScriptedFleet) -> None:
    ids = fleet.add(2, expires_at=fleet.clock.time() + 30.0)
    fleet.let_pass(31.0)
    assert states(fleet, ids) == [JobState.EXPIRED] * 2
    assert fleet.run_all() == []
    assert fleet.told.events.count("job.expired") == 2


def test_the_meta_of_a_job_travels_with_it(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1, meta=(("tenant", "acme"),))
    assert fleet.client.info(job_id).meta == {"tenant": "acme"}


# -- unique jobs


@pytest.mark.needs("unique")
def test_a_job_keeps_others_with_its_key_out_until_it_has_ended(fleet: ScriptedFleet) -> None:
    first, again = fleet.add(1, unique=UniqueKey("key")), fleet.add(1, unique=UniqueKey("key"))
    assert again == first
    consumer = fleet.consumer()
    consumer.begin()
    assert fleet.add(1, unique=UniqueKey("key")) == first
    consumer.succeed()
    assert fleet.add(1, unique=UniqueKey("key")) != first


@pytest.mark.needs("unique")
def test_a_key_that_counts_until_the_start_is_free_while_its_job_runs(fleet: ScriptedFleet) -> None:
    key = UniqueKey("key", until_start=True)
    [first] = fleet.add(1, unique=key)
    assert fleet.add(1, unique=key) == [first]
    fleet.consumer().begin()
    assert fleet.add(1, unique=key) != [first]


@pytest.mark.needs("unique")
def test_a_throttle_keeps_jobs_out_for_its_period_also_after_the_end(fleet: ScriptedFleet) -> None:
    key = UniqueKey("key", period_s=60.0)
    first = fleet.add(1, unique=key)
    fleet.run_all()
    assert fleet.add(1, unique=key) == first
    fleet.let_pass(60.0)
    assert fleet.add(1, unique=key) != first


@pytest.mark.needs("unique")
def test_a_debounce_runs_the_last_job_alone_once_calls_have_ceased(fleet: ScriptedFleet) -> None:
    calls = []
    for _ in range(3):
        calls += fleet.add(1, unique=UniqueKey("key", replaces=True), due_at=fleet.clock.time() + 10.0)
        fleet.let_pass(6.0)
    assert fleet.run_all() == []
    fleet.let_pass(5.0)
    assert fleet.run_all() == calls[-1:]


# -- flows


@pytest.mark.needs("after")
def test_a_flow_is_taken_in_as_a_whole(fleet: ScriptedFleet) -> None:
    first, second = fleet.calls(2)
    second = second._replace(constraints=Constraints(after=((first.id, False),)))
    fleet.client.submit_flow([(SPEC, first), (Spec("other"), second)])
    assert states(fleet, [first.id, second.id]) == [JobState.QUEUED, JobState.WAITING]
    assert fleet.run_all() == [first.id, second.id]


@pytest.mark.needs("max_queued in a flow", "after")
def test_a_flow_one_of_whose_jobs_has_no_room_is_refused_as_a_whole(fleet: ScriptedFleet) -> None:
    fleet.add(1, Spec("full", "small"))
    first, second = fleet.calls(2)
    with pytest.raises(QueueFull):
        fleet.client.submit_flow([(SPEC, first), (Spec("full", "small", max_queued=1), second)])
    for job_id in (first.id, second.id):
        with pytest.raises(JobNotFound):
            fleet.client.info(job_id)


@pytest.mark.needs("after")
def test_a_flow_that_is_sent_again_is_taken_in_once(fleet: ScriptedFleet) -> None:
    first, second = fleet.calls(2)
    for _ in range(2):
        fleet.client.submit_flow([(SPEC, first), (Spec("other"), second)])
    assert sorted(fleet.run_all()) == sorted([first.id, second.id])


@pytest.mark.needs("after")
def test_a_job_comes_after_all_that_it_names(fleet: ScriptedFleet) -> None:
    parents = fleet.add(2)
    last = with_parents(fleet, *parents)
    assert fleet.client.info(last).after == [parent.hex() for parent in parents]
    assert fleet.run_all() == [*parents, last]


@pytest.mark.needs("after")
def test_a_job_that_waits_for_others_for_too_long_expires_and_those_after_it_are_cancelled(
    fleet: ScriptedFleet,
) -> None:
    [parent] = fleet.add(1)
    [late] = fleet.add(1, after=((parent, False),), expires_at=fleet.clock.time() + 30.0)
    last = with_parents(fleet, late)
    fleet.let_pass(31.0)
    fleet.let_pass(10.0)
    assert states(fleet, [late, last]) == [JobState.EXPIRED, JobState.CANCELLED]
    assert fleet.run_all() == [parent]
    assert states(fleet, [late, last]) == [JobState.EXPIRED, JobState.CANCELLED]


@pytest.mark.needs("after")
def test_a_job_after_one_that_is_not_known_is_refused(fleet: ScriptedFleet) -> None:
    [unknown] = new_job_ids(1)
    with pytest.raises(EnqueueError, match="there is no job"):
        with_parents(fleet, unknown)
    assert fleet.run_all() == []


@pytest.mark.needs("after")
def test_jobs_after_one_that_failed_are_cancelled_unless_they_go_on(fleet: ScriptedFleet) -> None:
    [parent] = fleet.add(1, ONE_TRY)
    follows, goes_on = with_parents(fleet, parent), with_parents(fleet, parent, goes_on=True)
    after_that = with_parents(fleet, follows)
    consumer = fleet.consumer()
    consumer.begin()
    consumer.fail()
    fleet.turn(2)
    assert states(fleet, [follows, after_that, goes_on]) == [JobState.CANCELLED, JobState.CANCELLED, JobState.QUEUED]
    assert fleet.told.events.count("job.cancelled") == 2


@pytest.mark.needs("after", "the return of jobs that were cancelled because of a failed one")
def test_jobs_that_were_cancelled_with_a_failed_one_come_back_with_its_retry(fleet: ScriptedFleet) -> None:
    [parent] = fleet.add(1, ONE_TRY)
    child = with_parents(fleet, parent)
    consumer = fleet.consumer()
    consumer.begin()
    consumer.fail()
    fleet.client.retry(parent)
    assert states(fleet, [parent, child]) == [JobState.QUEUED, JobState.WAITING]
    assert consumer.begin() == parent
    consumer.succeed()
    assert consumer.begin() == child


@pytest.mark.needs("after", "the return of jobs that were cancelled because of a failed one")
def test_all_that_was_cancelled_with_a_failed_job_comes_back_but_what_needs_others_or_was_not_wanted(
    fleet: ScriptedFleet,
) -> None:
    """A diamond comes back whole; what comes after another failed job, too, waits for the retry of that; and what
    somebody has cancelled since stays so."""
    parent, other, unwanted_parent = failed(fleet, 3)
    fleet.client.retry_all(None, None)
    left, right, goes_on = (
        with_parents(fleet, parent),
        with_parents(fleet, parent),
        with_parents(fleet, parent, goes_on=True),
    )
    last, needs_both = with_parents(fleet, left, right), with_parents(fleet, right, other)
    unwanted = with_parents(fleet, unwanted_parent)
    consumer = fleet.consumer()
    for _ in range(3):
        assert consumer.begin() in (parent, other, unwanted_parent)
        consumer.fail()
    fleet.turn(2)
    cancelled = [left, right, last, needs_both, unwanted]
    assert states(fleet, cancelled) == [JobState.CANCELLED] * 5
    assert fleet.client.cancel(unwanted, False)
    fleet.client.retry(unwanted_parent)
    fleet.client.retry(parent)
    assert states(fleet, [*cancelled, goes_on]) == ["waiting", "waiting", "waiting", "cancelled", "cancelled", "queued"]
    fleet.client.retry(other)
    assert states(fleet, [needs_both]) == [JobState.WAITING]
    consumer.leave()
    ran = fleet.run_all()
    assert sorted(ran) == sorted([goes_on, unwanted_parent, parent, other, left, right, last, needs_both])
    assert ran.index(last) > max(ran.index(left), ran.index(right))
    assert ran.index(needs_both) > max(ran.index(right), ran.index(other))


@pytest.mark.needs("on_success")
def test_what_a_job_has_enqueued_is_let_in_as_anything_else(fleet: ScriptedFleet) -> None:
    """A unique one that is left out is noted as cancelled, since its producer knows its id; one after an unknown job is
    refused; there is room for what was accepted; and none comes before the success."""
    key, small = UniqueKey("key"), Spec("small", "small", max_queued=1)
    [parent], [holder], [fits] = fleet.add(1), fleet.add(1, unique=key), fleet.add(1, small)
    consumer = fleet.consumer()
    assert consumer.begin() == parent
    [left_out], [after_parent] = fleet.calls(1, unique=key), fleet.calls(1, after=((parent, False),))
    [refused] = fleet.calls(1, after=((next(new_job_ids(1)), False),))
    too_many, follows = fleet.calls(1)[0], fleet.calls(1)[0]
    follows = follows._replace(constraints=Constraints(after=((after_parent.id, False),)))
    for call in (left_out, after_parent):
        with pytest.raises(JobNotFound):
            fleet.client.info(call.id)
    flows = [[(SPEC, left_out)], [(SPEC, after_parent)], [(SPEC, follows), (small, too_many)], [(SPEC, refused)]]
    consumer.succeed(children=[each for flow in flows for each in submissions_of(flow)])
    fleet.turn(2)
    assert states(fleet, [left_out.id, too_many.id]) == [JobState.CANCELLED, JobState.QUEUED]
    assert "same unique key" in fleet.client.info(left_out.id).error.message
    with pytest.raises(JobNotFound):
        fleet.client.info(refused.id)
    consumer.leave()
    assert set(fleet.run_all()) == {holder, fits, after_parent.id, follows.id, too_many.id}


@pytest.mark.needs("on_success")
def test_jobs_that_a_job_has_enqueued_come_with_its_success(fleet: ScriptedFleet) -> None:
    [parent] = fleet.add(1)
    consumer, children = fleet.consumer(), fleet.calls(2)
    consumer.begin()
    consumer.succeed(children=submissions_of([(SPEC, call) for call in children]))
    assert states(fleet, [parent, children[1].id]) == ["succeeded", "queued"]
    assert consumer.begin() == children[0].id
    consumer.succeed()
    assert consumer.begin() == children[1].id


@pytest.mark.needs("after")
def test_what_comes_after_one_that_has_ended_starts_at_once(fleet: ScriptedFleet) -> None:
    [parent] = fleet.add(1)
    fleet.run_all()
    child = with_parents(fleet, parent)
    assert fleet.run_all() == [child]


@pytest.mark.needs("after")
def test_thousands_of_jobs_after_one_are_all_released(fleet: ScriptedFleet) -> None:
    [parent] = fleet.add(1)
    children = fleet.add(2_100, after=((parent, False),))
    consumer = fleet.consumer()
    consumer.begin()
    consumer.succeed()
    fleet.turn(30)
    assert {info.state for info in fleet.client.find(JobState.QUEUED, None, None, None, 5_000).jobs} == {
        JobState.QUEUED
    }
    assert fleet.client.status().queues["default"] == QueueStatus(queued=len(children))


# -- what becomes of an attempt


def test_a_success_is_told_with_its_result_after_it_is_durable(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    waiting = fleet.client.begin(fleet.client.queue.wait(job_id, None))
    consumer = fleet.consumer()
    consumer.begin()
    consumer.succeed(b"result")
    ending = waiting.result()
    assert (ending.state, ending.outcome.result) == (JobState.SUCCEEDED, b"result")
    assert fleet.told.succeeded == [job_id]


def test_a_failed_attempt_is_followed_by_another_after_a_delay(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1, Spec("t", retries=1, backoff_s=(30.0,)))
    consumer = fleet.consumer()
    consumer.begin()
    consumer.fail()
    assert states(fleet, [job_id]) == [JobState.SCHEDULED]
    assert consumer.begin() is None
    fleet.let_pass(30.0)
    assert consumer.begin() == job_id
    consumer.fail()
    info = fleet.client.info(job_id)
    assert (info.state, info.attempts, len(info.history)) == (JobState.FAILED, 2, 2)
    assert info.error is not None
    assert info.error.message == "no"


def test_an_attempt_may_say_when_the_next_one_is(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    consumer = fleet.consumer()
    consumer.begin()
    consumer.fail(delay_s=7.0)
    fleet.let_pass(6.0)
    assert consumer.begin() is None
    fleet.let_pass(1.0)
    assert consumer.begin() == job_id


def test_a_job_that_waits_for_its_next_attempt_does_not_expire_and_costs_nothing(fleet: ScriptedFleet) -> None:
    spec = Spec("t", retries=1, backoff_s=(60.0,))
    [job_id] = fleet.add(1, spec, expires_at=fleet.clock.time() + 30.0)
    consumer = fleet.consumer()
    assert consumer.begin() == job_id
    consumer.fail()
    fleet.let_pass(40.0)
    assert states(fleet, [job_id]) == [JobState.SCHEDULED]
    assert fleet.engine.next_at(fleet.clock.now) > fleet.clock.now, "the loop has nothing to do"
    fleet.let_pass(20.0)
    assert consumer.begin() == job_id
    consumer.succeed()
    assert states(fleet, [job_id]) == [JobState.SUCCEEDED]


def test_a_job_that_was_refused_is_not_tried_again(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    consumer = fleet.consumer()
    consumer.begin()
    consumer.fail(Verdict.REFUSED)
    assert states(fleet, [job_id]) == [JobState.FAILED]


def test_a_snooze_is_not_a_failure(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1, ONE_TRY)
    consumer = fleet.consumer()
    for _ in range(3):
        assert consumer.begin() == job_id
        consumer.fail(Verdict.SNOOZED, delay_s=5.0)
        fleet.let_pass(5.0)
    consumer.begin()
    consumer.succeed()
    assert states(fleet, [job_id]) == [JobState.SUCCEEDED]


def test_a_job_may_cancel_itself(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    consumer = fleet.consumer()
    consumer.begin()
    consumer.fail(Verdict.CANCELLED)
    assert states(fleet, [job_id]) == [JobState.CANCELLED]


def test_a_death_is_charged_to_the_job_that_ran_and_to_no_other(fleet: ScriptedFleet) -> None:
    first, second = fleet.add(2)
    consumer = fleet.consumer()
    consumer.begin()
    consumer.die()
    assert [fleet.client.info(job_id).crashes for job_id in (first, second)] == [1, 0]
    assert sorted(fleet.run_all()) == sorted([first, second])


def test_a_job_that_kills_its_process_again_and_again_is_set_aside(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1, Spec("t", max_crashes=2))
    for _ in range(2):
        consumer = fleet.consumer()
        assert consumer.begin() == job_id
        consumer.die()
    info = fleet.client.info(job_id)
    assert (info.state, info.crashes) == (JobState.FAILED, 2)
    assert info.error is not None
    assert info.error.signal == "SIGKILL"


@pytest.mark.parametrize("deaths", [1, 3])
def test_attempts_that_end_before_the_first_of_them_is_durable_are_all_known(fleet: ScriptedFleet, deaths: int) -> None:
    """A job whose process dies runs again at once, and its next attempts end while the database is slow or the disk is
    full."""
    [job_id] = fleet.add(1, Spec("t", max_crashes=9))
    consumer = fleet.consumer()
    assert consumer.begin() == job_id
    for _ in range(deaths):
        consumer.die_unsettled()
        consumer = fleet.consumer()
        fleet.dispatch()
        assert consumer.begin() == job_id
    consumer.succeed()
    info = fleet.client.info(job_id)
    assert (info.state, info.attempts, info.crashes) == (JobState.SUCCEEDED, deaths + 1, deaths)
    assert [attempt.number for attempt in info.history] == [*range(1, deaths + 2)]
    assert [attempt.error and attempt.error.type for attempt in info.history] == ["Crashed"] * deaths + [None]
    assert fleet.run_all() == []


def test_each_attempt_tells_where_it_ran_also_when_its_fleet_is_gone(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1, Spec("t", retries=0))
    consumer = fleet.consumer()
    consumer.begin()
    consumer.fail()
    consumer.leave()
    fleet.client.retry(job_id)
    assert fleet.run_all() == [job_id]
    another = fleet.die()
    machines = [attempt.machine for attempt in another.client.info(job_id).history]
    assert machines == [os.uname().nodename] * 2


def test_what_was_taken_back_and_is_reported_all_the_same_does_not_count(fleet: ScriptedFleet) -> None:
    ids = fleet.add(2)
    silent = fleet.consumer()
    fleet.turn(2)
    numbers = [number for number, _ in silent.sent]
    assert numbers
    fleet.take_back_all(fleet.clock.now)
    for number in numbers:
        silent.report(number, Verdict.SUCCEEDED, pack_success(0.0, 0.0, b"late"))
    fleet.turn(2)
    assert "consumer.confused" in fleet.told.events
    assert fleet.told.succeeded == []
    silent.die()
    assert sorted(fleet.run_all()) == sorted(ids)


def test_a_report_that_comes_twice_counts_once(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1, Spec("t", retries=5))
    consumer = fleet.consumer()
    consumer.begin()
    consumer.fail()
    consumer.report(consumer.begun, Verdict.FAILED, pack_failure(0.0, 0.0, JobError("ValueError", "again")))
    fleet.turn(2)
    assert fleet.client.info(job_id).attempts == 1


# -- limits


@pytest.mark.needs("concurrency")
def test_no_more_jobs_run_at_once_than_their_task_allows(fleet: ScriptedFleet) -> None:
    fleet.add(3, Spec("t", concurrency=2))
    consumers = [fleet.consumer() for _ in range(3)]
    assert sum(consumer.begin() is not None for consumer in consumers) == 2
    next(consumer for consumer in consumers if consumer.running).succeed()
    assert sum(consumer.begin() is not None for consumer in consumers if not consumer.running) == 1


@pytest.mark.needs("ordered_by")
def test_jobs_with_an_order_key_run_one_after_the_other_also_over_a_retry(fleet: ScriptedFleet) -> None:
    first, second = fleet.add(2, Spec("t", retries=1, backoff_s=(5.0,)), order_key="k")
    one, two = fleet.consumer(), fleet.consumer()
    assert (one.begin(), two.begin()) == (first, None)
    one.fail()
    assert (one.begin(), two.begin()) == (None, None), "the first one is to run again before the second"
    one.leave()
    two.leave()
    fleet.let_pass(5.0)
    assert fleet.run_all() == [first, second]


@pytest.mark.needs("rate")
def test_no_more_jobs_start_in_a_time_than_their_task_allows(fleet: ScriptedFleet) -> None:
    fleet.add(3, Spec("t", rate=(2, 60.0)))
    assert len(fleet.run_all()) == 2
    fleet.let_pass(61.0)
    assert len(fleet.run_all()) == 1


# -- schedules


@pytest.mark.needs("periodic")
def test_a_schedule_fires_once_for_each_of_its_times(fleet: ScriptedFleet) -> None:
    info = fleet.client.put_schedule(SOON)
    assert info.next_at is not None
    assert fleet.run_all() == []
    fleet.let_pass(info.next_at - fleet.clock.time())
    assert len(fleet.run_all()) == 1
    assert fleet.run_all() == []
    [after] = fleet.client.schedules()
    assert (after.last_at, after.next_at) == (info.next_at, info.next_at + 60.0)


@pytest.mark.needs("periodic")
def test_the_times_at_which_no_fleet_ran_are_made_up_for_as_the_schedule_says(fleet: ScriptedFleet) -> None:
    policies: list[Misfire] = ["skip", "once", "all"]
    for misfire in policies:
        fleet.client.put_schedule(replace(SOON, name=misfire, spec=Spec(misfire), misfire=misfire))
    fleet.clock.now += 60.0 - fleet.clock.time() % 60.0 + 4 * 60.0 + 30.0  # five times pass, the last one 30 s ago
    again = fleet.die()
    again.turn(5)
    tasks = [info.task for info in again.client.find(None, None, None, None, None).jobs]
    assert {task: tasks.count(task) for task in policies} == {"skip": 0, "once": 1, "all": 5}
    next_at = {info.next_at for info in again.client.schedules()}
    assert next_at == {again.clock.time() // 60.0 * 60.0 + 60.0}


@pytest.mark.needs("periodic", "after")
def test_fires_while_the_last_job_runs_are_left_out_or_kept_back_as_the_schedule_says(fleet: ScriptedFleet) -> None:
    overlaps: list[Overlap] = ["allow", "skip", "buffer_one"]
    for overlap in overlaps:
        fleet.client.put_schedule(replace(SOON, name=overlap, spec=Spec(overlap), overlap=overlap))
    for _ in range(3):
        fleet.let_pass(60.0)
    jobs = fleet.client.find(None, None, None, None, None).jobs
    made = {overlap: [info for info in jobs if info.task == overlap] for overlap in overlaps}
    assert {overlap: len(of) for overlap, of in made.items()} == {"allow": 3, "skip": 1, "buffer_one": 2}
    assert sorted(info.state for info in made["buffer_one"]) == [JobState.QUEUED, JobState.WAITING]
    assert len(fleet.run_all()) == 6


@pytest.mark.needs("periodic")
def test_a_schedule_declared_in_code_is_that_of_the_code_and_may_be_paused(fleet: ScriptedFleet) -> None:
    fleet.engine.declare("app:q", [msgpack.packb(SOON.to_wire())])
    fleet.turn(2)
    with pytest.raises(ConfigError, match="declared in the code"):
        fleet.client.put_schedule(SOON)
    with pytest.raises(ConfigError, match="declared in the code"):
        fleet.client.remove_schedule("soon")
    fleet.client.pause_schedule("soon", True)
    changed = replace(SOON, every_s=30.0)
    fleet.engine.declare("app:q", [msgpack.packb(changed.to_wire())])
    fleet.turn(2)
    [info] = fleet.client.schedules()
    assert (info.every, info.is_paused) == (30.0, True)
    again = fleet.die()
    again.turn(2)
    assert [(info.every, info.is_paused) for info in again.client.schedules()] == [(30.0, True)]


@pytest.mark.needs("periodic")
def test_the_schedule_of_an_application_that_nobody_runs_rests_and_may_be_removed(fleet: ScriptedFleet) -> None:
    fleet.engine.declare("one:q", [msgpack.packb(SOON.to_wire())])
    fleet.turn(2)
    fleet.engine.declare("two:q", [])
    fleet.turn(2)
    fleet.let_pass(120.0)
    assert fleet.run_all() == []
    fleet.client.remove_schedule("soon")
    assert fleet.client.schedules() == []


@pytest.mark.needs("periodic")
def test_a_schedule_that_is_paused_does_not_fire(fleet: ScriptedFleet) -> None:
    fleet.client.put_schedule(SOON)
    assert fleet.client.pause_schedule("soon", True).is_paused
    fleet.let_pass(300.0)
    assert fleet.run_all() == []
    assert not fleet.client.pause_schedule("soon", False).is_paused
    fleet.let_pass(60.0)
    assert len(fleet.run_all()) == 1


@pytest.mark.needs("periodic")
def test_a_schedule_can_be_run_at_any_time_and_removed(fleet: ScriptedFleet) -> None:
    fleet.client.put_schedule(SOON)
    [call] = fleet.calls(1)
    fleet.client.run_schedule("soon", call.id)
    assert fleet.run_all() == [call.id]
    fleet.client.remove_schedule("soon")
    assert fleet.client.schedules() == []
    with pytest.raises(ScheduleNotFound):
        fleet.client.remove_schedule("soon")


@pytest.mark.needs("periodic")
def test_the_schedules_of_an_application_are_taken_over_and_given_up(fleet: ScriptedFleet) -> None:
    fleet.engine.declare("app:q", [msgpack.packb(SOON.to_wire())])
    fleet.turn(2)
    assert [(info.name, info.is_declared) for info in fleet.client.schedules()] == [("soon", True)]
    fleet.engine.declare("app:q", [])
    fleet.turn(2)
    assert fleet.client.schedules() == []


# -- pause


def test_a_paused_queue_takes_jobs_and_runs_none(fleet: ScriptedFleet) -> None:
    early = fleet.add(1)
    assert fleet.client.pause(["default"], True, "me") == ["default"]
    assert fleet.client.pause(["default"], True, "me") == []
    late = fleet.add(1)
    assert fleet.run_all() == []
    assert fleet.client.status().paused == ["default"]
    assert fleet.client.pause([], False, "me") == ["default"]
    assert fleet.run_all() == [*early, *late]


# -- cancel


def test_a_queued_or_scheduled_job_is_cancelled_at_once(fleet: ScriptedFleet) -> None:
    [queued] = fleet.add(1)
    [scheduled] = fleet.add(1, due_at=fleet.clock.time() + 5.0)
    assert [fleet.client.cancel(job_id, False) for job_id in (scheduled, queued)] == [True] * 2
    assert states(fleet, [scheduled, queued]) == [JobState.CANCELLED] * 2
    fleet.let_pass(10.0)
    assert fleet.run_all() == []


@pytest.mark.needs("after")
def test_a_job_that_has_not_started_is_cancelled_at_once(fleet: ScriptedFleet) -> None:
    [queued] = fleet.add(1)
    [scheduled] = fleet.add(1, due_at=fleet.clock.time() + 5.0)
    waiting = with_parents(fleet, scheduled)
    ids = [waiting, scheduled, queued]
    assert [fleet.client.cancel(job_id, False) for job_id in ids] == [True] * 3
    assert states(fleet, ids) == [JobState.CANCELLED] * 3
    fleet.let_pass(10.0)
    assert fleet.run_all() == []


def test_a_job_that_was_sent_and_has_not_begun_is_taken_back(fleet: ScriptedFleet) -> None:
    first, second = fleet.add(2)
    consumer = fleet.consumer()
    consumer.begin()
    assert fleet.client.cancel(second, False)
    consumer.succeed()
    assert consumer.begin() is None
    assert states(fleet, [first, second]) == [JobState.SUCCEEDED, JobState.CANCELLED]


def test_a_job_that_runs_is_stopped_only_if_that_is_wanted(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    consumer = fleet.consumer()
    consumer.begin()
    assert not fleet.client.cancel(job_id, False)
    cancelling = fleet.client.begin(fleet.client.queue.cancel(job_id, True))
    fleet.turn()
    assert fleet.stopped == [job_id]
    consumer.fail()
    assert cancelling.result()
    assert states(fleet, [job_id]) == [JobState.CANCELLED]


def test_a_job_that_succeeds_while_it_is_being_cancelled_has_succeeded(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    consumer = fleet.consumer()
    consumer.begin()
    cancelling = fleet.client.begin(fleet.client.queue.cancel(job_id, True))
    fleet.turn()
    consumer.succeed()
    assert not cancelling.result()


def test_a_job_that_has_ended_stays_as_it_is(fleet: ScriptedFleet) -> None:
    [done, cancelled] = fleet.add(2)
    fleet.client.cancel(cancelled, False)
    fleet.run_all()
    assert [fleet.client.cancel(job_id, True) for job_id in (done, cancelled)] == [False, True]
    assert states(fleet, [done, cancelled]) == [JobState.SUCCEEDED, JobState.CANCELLED]


# -- retry


def test_a_retried_job_has_all_its_tries_again(fleet: ScriptedFleet) -> None:
    [job_id] = failed(fleet, 1)
    fleet.client.retry(job_id)
    assert states(fleet, [job_id]) == [JobState.QUEUED]
    fleet.run_all()
    info = fleet.client.info(job_id)
    assert (info.state, info.attempts) == (JobState.SUCCEEDED, 2)


def test_only_a_failed_job_can_be_retried(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    with pytest.raises(JobStateError, match="is queued"):
        fleet.client.retry(job_id)
    with pytest.raises(JobNotFound):
        fleet.client.retry(bytes(16))


def test_all_failed_jobs_of_a_task_are_retried(fleet: ScriptedFleet) -> None:
    failed(fleet, 3)
    failed(fleet, 1, Spec("other", retries=0))
    assert fleet.client.retry_all("t", None) == 3
    assert fleet.client.retry_all(None, None) == 1
    assert fleet.client.retry_all(None, None) == 0


# -- purge


def test_a_purged_job_is_gone(fleet: ScriptedFleet) -> None:
    queued, running = fleet.add(2)
    fleet.client.purge(queued)
    with pytest.raises(JobNotFound):
        fleet.client.info(queued)
    consumer = fleet.consumer()
    assert consumer.begin() == running
    with pytest.raises(JobStateError, match="is running"):
        fleet.client.purge(running)


def test_jobs_of_a_state_are_purged_up_to_a_time(fleet: ScriptedFleet) -> None:
    failed(fleet, 2)
    fleet.let_pass(100.0)
    before = fleet.clock.time()
    [young] = failed(fleet, 1)
    assert fleet.client.purge_all(JobState.FAILED, None, None, before) == 2
    assert states(fleet, [young]) == [JobState.FAILED]


@pytest.mark.needs("a purge of what was sent and has not begun")
def test_jobs_that_wait_are_purged_and_those_that_run_are_not(fleet: ScriptedFleet) -> None:
    running, *_ = fleet.add(5)
    consumer = fleet.consumer()
    assert consumer.begin() == running
    assert fleet.client.purge_all(JobState.QUEUED, None, None, None) == 4
    consumer.succeed()
    assert consumer.begin() is None


def test_ended_jobs_are_kept_for_a_time_and_failed_ones_for_good(fleet: ScriptedFleet) -> None:
    [fails] = failed(fleet, 1)
    [succeeds] = fleet.add(1)
    fleet.run_all()
    fleet.let_pass(3_700.0)
    assert states(fleet, [fails]) == [JobState.FAILED]
    with pytest.raises(JobNotFound):
        fleet.client.info(succeeds)


# -- looking


def test_jobs_are_listed_newest_first_by_state_task_and_queue(fleet: ScriptedFleet) -> None:
    one, two = fleet.add(2)
    [other] = fleet.add(1, Spec("other", "slow"))
    fleet.client.cancel(one, False)

    def listed(state: JobState | None = None, task: str | None = None, queue: str | None = None) -> list[str]:
        return [info.id for info in fleet.client.find(state, task, queue, None, None).jobs]

    assert listed() == [other.hex(), two.hex(), one.hex()]
    assert listed(JobState.CANCELLED) == [one.hex()]
    assert listed(task="t") == [two.hex(), one.hex()]
    assert listed(queue="slow") == [other.hex()]
    assert [info.id for info in fleet.client.find(None, None, None, two, 1).jobs] == [one.hex()]


def test_jobs_are_searched_by_time_attempts_errors_and_meta(fleet: ScriptedFleet) -> None:
    failed(fleet, 1)
    fleet.let_pass(10.0)
    since = fleet.clock.time() - 1.0
    [found] = fleet.add(1, meta=(("tenant", "acme"),))

    def count(**search: Any) -> int:
        return len(fleet.client.find(None, None, None, None, None, JobSearch(**search)).jobs)

    assert [count(), count(since=since), count(until=since), count(attempts=1)] == [2, 1, 1, 1]
    assert [count(text="acme"), count(text="no"), count(text="nowhere")] == [1, 1, 0]
    [info] = fleet.client.find(None, None, None, None, None, JobSearch(text="acme")).jobs
    assert info.id == found.hex()


def test_the_status_counts_jobs_that_are_queued_run_or_are_scheduled(fleet: ScriptedFleet) -> None:
    fleet.add(3)
    fleet.add(1, Spec("t", "slow"), due_at=fleet.clock.time() + 60.0)
    fleet.consumer().begin()
    fleet.let_pass(5.0)
    queues = fleet.client.status().queues
    assert queues["default"] == QueueStatus(queued=2, running=1)
    assert queues["slow"] == QueueStatus(scheduled=1)


@pytest.mark.needs("after", "at once: which jobs run")
def test_the_status_counts_jobs_by_queue_and_state(fleet: ScriptedFleet) -> None:
    first, *_ = fleet.add(3)
    fleet.add(1, Spec("t", "slow"), due_at=fleet.clock.time() + 60.0)
    with_parents(fleet, first)
    fleet.consumer().begin()
    queues = fleet.client.status().queues
    assert queues["default"] == QueueStatus(waiting=1, queued=2, running=1)
    assert queues["slow"] == QueueStatus(scheduled=1)


@pytest.mark.needs("at once: counts")
def test_counts_tell_what_happened_to_the_jobs_of_each_task(fleet: ScriptedFleet) -> None:
    failed(fleet, 1)
    fleet.add(2, Spec("other"))
    fleet.run_all()
    counts = {each.task: each.total for each in fleet.client.counts()}
    assert (counts["t"].enqueued, counts["t"].failed, counts["t"].succeeded) == (1, 1, 0)
    assert (counts["other"].enqueued, counts["other"].started, counts["other"].succeeded) == (2, 2, 2)


def test_each_job_counts_once_as_enqueued_and_once_as_ended(fleet: ScriptedFleet) -> None:
    """Also one that is retried by hand, and those that end without being run."""
    [again] = failed(fleet, 1)
    parent, *_ = failed(fleet, 2, Spec("parent", retries=0))
    fleet.client.retry(again)
    fleet.run_all()
    [is_late] = fleet.add(1, Spec("late"), expires_at=fleet.clock.time() + 1.0)
    [unwanted] = fleet.add(1, Spec("unwanted"))
    fleet.client.cancel(unwanted, also_running=False)
    [called_off] = fleet.client.submit(Spec("child"), fleet.calls(1, after=((parent, False),)))
    key = UniqueKey("k", replaces=True)
    fleet.add(1, Spec("unique"), unique=key, due_at=fleet.clock.time() + 60.0)
    fleet.add(1, Spec("unique"), unique=key, due_at=fleet.clock.time() + 60.0)
    fleet.add(3, Spec("waits"), due_at=fleet.clock.time() + 60.0)
    fleet.let_pass(6.0)
    fleet.let_pass(3.0)
    assert states(fleet, [is_late, unwanted, called_off]) == [JobState.EXPIRED, JobState.CANCELLED, JobState.CANCELLED]
    counts = {each.task: each.total for each in fleet.client.counts()}
    found = {
        task: (own.enqueued, own.succeeded, own.failed, own.cancelled, own.expired, own.retried)
        for task, own in counts.items()
    }
    assert found == {
        "t": (1, 1, 1, 0, 0, 1),
        "parent": (2, 0, 2, 0, 0, 0),
        "late": (1, 0, 0, 0, 1, 0),
        "unwanted": (1, 0, 0, 1, 0, 0),
        "child": (1, 0, 0, 1, 0, 0),
        "unique": (2, 0, 0, 1, 0, 0),
        "waits": (3, 0, 0, 0, 0, 0),
    }
    totals = fleet.client.status().totals
    assert (totals.enqueued, totals.succeeded, totals.failed) == (11, 1, 3)
    assert (totals.cancelled, totals.expired, totals.retried) == (3, 1, 1)


def test_the_status_tells_how_fast_jobs_come_and_go(fleet: ScriptedFleet) -> None:
    fleet.let_pass(30.0)
    fleet.let_pass(6.0)
    added = fleet.add(40)
    consumer = fleet.consumer()
    for _ in range(10):
        consumer.begin()
        consumer.succeed()
    consumer.leave()
    for _ in range(4):
        fleet.let_pass(2.5)
    flow = fleet.client.status().flows["default"]
    assert flow.came_per_s == pytest.approx(4 * flow.ended_per_s, abs=0.01)
    assert 10 / 60.0 <= flow.ended_per_s <= 10 / 10.0, flow
    assert (flow.trend, flow.empty_in_s) == ("growing", None)
    assert flow.oldest_waiting_s == pytest.approx(10.0, abs=1.5)
    assert flow.oldest_waiting_job == added[10].hex()
    assert fleet.run_all()
    for _ in range(20):
        fleet.let_pass(2.5)
    assert not any(flow.came_per_s for flow in fleet.client.status().flows.values())


@pytest.mark.needs("items")
def test_items_come_while_the_job_runs_and_end_with_it(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    consumer, stream = fleet.consumer(), fleet.client.queue.items(job_id, 0, None)
    consumer.begin()
    reading = fleet.client.begin(stream.next())
    fleet.turn()
    fleet.core.yielded(consumer.key, job_id, 0, [b"one", b"two"])
    assert list(reading.result()) == [b"one", b"two"]
    reading = fleet.client.begin(stream.next())
    consumer.succeed()
    assert list(reading.result()) == []
    assert stream.ending is not None
    assert stream.ending.state == JobState.SUCCEEDED


def test_who_watches_is_told_of_each_end_once_and_of_unknown_jobs(fleet: ScriptedFleet) -> None:
    ended, ends = fleet.add(2)
    fleet.client.cancel(ended, False)
    with fleet.client.watching([ended, ends, bytes(16)]) as watched:
        early = dict(watched.next(1.0) for _ in range(2))
        assert early[bytes(16)] is None
        assert early[ended] is not None
        fleet.run_all()
        job_id, ending = watched.next(1.0)
        assert job_id == ends
        assert ending is not None
        assert ending.state == JobState.SUCCEEDED
        with pytest.raises(ResultTimeout):
            watched.next(1.0)


def test_a_wait_ends_in_time(fleet: ScriptedFleet) -> None:
    [job_id] = fleet.add(1)
    with pytest.raises(ResultTimeout, match="has not ended within 5 s"):
        fleet.client.wait(job_id, 5.0)
    with pytest.raises(JobNotFound):
        fleet.client.wait(bytes(16), 5.0)


# -- order, and refusals


def test_the_requests_of_a_turn_take_effect_in_their_order(fleet: ScriptedFleet) -> None:
    client, [call] = fleet.client, fleet.calls(1)
    submitted = client.begin(client.queue.submit(SPEC, [call]))
    cancelled = client.begin(client.queue.cancel(call.id, False))
    purged = client.begin(client.queue.purge(call.id))
    unknown = client.begin(client.queue.cancel(call.id, False))
    fleet.turn(2)
    assert submitted.result() == [call.id]
    assert cancelled.result()
    purged.result()
    with pytest.raises(JobNotFound):
        unknown.result()


@pytest.mark.needs("max_queued")
def test_a_place_that_a_cancel_frees_is_taken_in_the_same_turn(fleet: ScriptedFleet) -> None:
    client, spec = fleet.client, Spec("t", max_queued=1)
    [first] = fleet.add(1, spec)
    refused = client.begin(client.queue.submit(spec, fleet.calls(1)))
    cancelled = client.begin(client.queue.cancel(first, False))
    taken = client.begin(client.queue.submit(spec, calls := fleet.calls(1)))
    with pytest.raises(QueueFull):
        refused.result()
    assert cancelled.result()
    assert taken.result() == [calls[0].id]


def test_two_who_retry_a_job_in_one_turn_run_it_once(fleet: ScriptedFleet) -> None:
    """And one of them cancels another that both have retried."""
    client, [runs, is_cancelled] = fleet.client, failed(fleet, 2)
    asked = [client.begin(client.queue.retry(job_id)) for _ in range(2) for job_id in (runs, is_cancelled)]
    cancelled = client.begin(client.queue.cancel(is_cancelled, False))
    for first in asked[:2]:
        first.result()
    for second in asked[2:]:
        with pytest.raises(JobStateError):
            second.result()
    assert cancelled.result()
    assert states(fleet, [runs, is_cancelled]) == [JobState.QUEUED, JobState.CANCELLED]
    assert fleet.run_all() == [runs]


@pytest.mark.needs("unique", "periodic")
def test_what_is_refused_leaves_nothing_half_done(fleet: ScriptedFleet) -> None:
    """A run of a schedule with an id that is taken does not count as its last, and jobs with another one's id and other
    arguments take no key from anybody."""
    client, key = fleet.client, UniqueKey("key", replaces=True)
    [taken], [holder] = fleet.add(1), fleet.add(1, unique=key)
    client.put_schedule(SOON)
    with pytest.raises(EnqueueError):
        client.run_schedule("soon", taken)
    [other] = fleet.calls(1, unique=key)
    with pytest.raises(EnqueueError):
        client.submit(SPEC, [Call(taken, b"another", other.constraints), other])
    assert client.schedules()[0].last_job_id is None
    assert fleet.run_all() == [taken, holder]


# -- another broker


def test_results_delays_and_pauses_outlive_the_broker(fleet: ScriptedFleet) -> None:
    done, queued, cancelled = fleet.add(3)
    consumer = fleet.consumer()
    assert consumer.begin() == done
    fleet.client.cancel(cancelled, False)
    consumer.succeed(b"result")
    [scheduled] = fleet.add(1, due_at=fleet.clock.time() + 60.0)
    fleet.client.pause(["paused"], True, "me")
    again = fleet.die()
    assert states(again, [done, queued, cancelled, scheduled]) == ["succeeded", "queued", "cancelled", "scheduled"]
    assert again.client.wait(done, 1.0).outcome.result == b"result"
    assert again.client.status().paused == ["paused"]
    assert again.run_all() == [queued]
    again.let_pass(60.0)
    assert again.run_all() == [scheduled]


@pytest.mark.needs("unique", "periodic", "after")
def test_all_that_was_answered_outlives_the_broker(fleet: ScriptedFleet) -> None:
    client = fleet.client
    done, parent, cancelled = fleet.add(3)
    consumer = fleet.consumer()
    assert consumer.begin() == done
    client.cancel(cancelled, False)
    consumer.succeed(b"result")
    child = with_parents(fleet, parent)
    [scheduled] = fleet.add(1, due_at=fleet.clock.time() + 60.0)
    [unique] = fleet.add(1, Spec("t", "paused"), unique=UniqueKey("key"))
    client.put_schedule(SOON)
    client.pause(["paused"], True, "me")
    again = fleet.die()
    ids = [done, parent, cancelled, child, scheduled, unique]
    expected = ["succeeded", "queued", "cancelled", "waiting", "scheduled", "queued"]
    assert states(again, ids) == expected
    assert again.client.wait(done, 1.0).outcome.result == b"result"
    assert again.add(1, unique=UniqueKey("key")) == [unique]
    assert [info.name for info in again.client.schedules()] == ["soon"]
    assert again.client.status().paused == ["paused"]
    assert again.run_all() == [parent, child]


def test_a_job_that_ran_when_the_fleet_died_is_charged_once(fleet: ScriptedFleet) -> None:
    first, second = fleet.add(2)
    fleet.consumer().begin()
    again = fleet.die()
    assert [again.client.info(job_id).crashes for job_id in (first, second)] == [1, 0]
    assert sorted(again.run_all()) == sorted([first, second])


# -- large payloads


def large_call(fleet: ScriptedFleet) -> Call:
    """A call whose arguments have a file of their own."""
    [job_id] = new_job_ids(1, fleet.clock.time_ns())
    return Call(job_id, encode_call(job_id, (bytes(100_000),), {}, may_have_file=True))


def files_of(fleet: ScriptedFleet) -> list[str]:
    """The files of large payloads."""
    return sorted(os.listdir(fleet.client.queue.payloads.folder))


def files_soon(fleet: ScriptedFleet) -> list[str]:
    """Those that are still there a moment later: an engine need not remove them with each commit."""
    for _ in range(2):
        fleet.let_pass(1.0)
    return files_of(fleet)


@pytest.mark.needs("files of payloads")
def test_large_arguments_are_there_until_the_job_has_succeeded(fleet: ScriptedFleet) -> None:
    call = large_call(fleet)
    fleet.client.submit(SPEC, [call])
    [name] = files_of(fleet)
    assert name.startswith(f"{call.id.hex()}-arguments-")
    consumer = fleet.consumer()
    assert consumer.begin() == call.id
    consumer.fail()
    consumer.leave()
    assert files_of(fleet) == [name]
    fleet.let_pass(60.0)
    assert fleet.run_all() == [call.id]
    assert files_soon(fleet) == []


@pytest.mark.needs("files of payloads")
def test_a_job_without_its_large_arguments_is_refused(fleet: ScriptedFleet) -> None:
    call = large_call(fleet)
    with pytest.raises(EnqueueError, match="is gone"):
        fleet.client.submit(SPEC, [Call(call.id, bytes(call.payload)), *fleet.calls(1)])
    assert fleet.run_all() == []


@pytest.mark.needs("files of payloads")
def test_large_payloads_go_with_their_job(fleet: ScriptedFleet) -> None:
    calls = [large_call(fleet) for _ in range(2)]
    fleet.client.submit(ONE_TRY, calls)
    consumer = fleet.consumer()
    for _ in calls:
        consumer.begin()
        consumer.fail()
    assert len(files_of(fleet)) == 2
    fleet.client.purge(calls[0].id)
    assert [name[:32] for name in files_soon(fleet)] == [calls[1].id.hex()]
    fleet.client.retry(calls[1].id)
    fleet.client.cancel(calls[1].id, False)
    assert files_soon(fleet) == []
