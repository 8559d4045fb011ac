"""Workflows and children, with real fleets: what comes after what, through failures, kills and restarts."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import Fleet, Gate, starts, wait_until

from taskq import (
    ConfigError,
    EnqueueError,
    GroupHandle,
    Job,
    JobCancelled,
    JobFailed,
    JobState,
    PayloadError,
    PayloadTooLarge,
    QueueFull,
    TaskQError,
    chain,
    chord,
    gather,
    group,
)

Start = Callable[..., Fleet]


def steps(count: int, path: Path | None = None, prefix: str = "") -> Any:
    """A chain that collects the labels of its steps."""
    labels = [f"{prefix}{number}" for number in range(count)]
    file = None if path is None else str(path)
    return chain(jobs.link.step([], labels[0], file), *(jobs.link.step(label, file) for label in labels[1:]))


# -- what they do


@pytest.mark.usefixtures("shared")
def test_a_chain_hands_results_on() -> None:
    handle = chain(jobs.add.step(1, 2), jobs.add.step(10), jobs.echo.step(), jobs.add.step(b=100)).enqueue()
    assert handle.result(timeout=20) == 113
    assert [job.result(timeout=20) for job in handle.all_jobs] == [3, 13, 13, 113]


@pytest.mark.usefixtures("shared")
def test_groups_and_chords_nest() -> None:
    ten = group(jobs.add.step(number) for number in range(10))
    assert ten.enqueue().results(timeout=20) == list(range(1, 11))
    assert chord(ten, jobs.echo.step()).enqueue().result(timeout=20) == list(range(1, 11))
    inner = group(jobs.add.step(1), chain(jobs.add.step(2), jobs.add.step(3)), group(jobs.add.step(4)))
    handle = chain(jobs.add.step(0), inner).enqueue()
    assert isinstance(handle, GroupHandle)
    assert handle.results(timeout=20) == [2, 6, [5]]
    assert len(handle.all_jobs) == 5
    assert len(handle.jobs) == 3
    assert chain(inner, jobs.echo.step()).enqueue().all_jobs  # without an input, the first get none
    assert chain(chord(ten, jobs.echo.step()), group(jobs.echo.step(), jobs.echo.step())).enqueue().results(20) == [
        list(range(1, 11)),
        list(range(1, 11)),
    ]
    assert chord([], jobs.echo.step()).enqueue().result(timeout=20) == []


@pytest.mark.usefixtures("shared")
def test_a_workflow_may_be_enqueued_again() -> None:
    flow = chain(jobs.add.step(1), jobs.add.step(2))
    assert [flow.enqueue().result(timeout=20) for _ in range(3)] == [4, 4, 4]


@pytest.mark.usefixtures("shared")
def test_asyncio() -> None:
    async def main() -> Any:
        handle = await chord([jobs.double.step(1), jobs.double.step(2)], jobs.echo.step()).aenqueue()
        members = await group(jobs.double.step(3), jobs.double.step(4)).aenqueue()
        last = await jobs.echo.aenqueue([handle, *members.jobs])
        return await handle, await members.aresults(20), await last

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ([2, 4], [6, 8], [[2, 4], 6, 8])


@pytest.mark.usefixtures("shared")
def test_a_step_without_input() -> None:
    assert chain(jobs.add.step(1), jobs.add.step(5).without_input()).enqueue().result(timeout=20) == 6
    assert chain(jobs.drop.step(1), jobs.add.step(5).without_input()).enqueue().result(timeout=20) == 6


@pytest.mark.usefixtures("shared")
def test_a_job_among_the_arguments_stands_for_its_result() -> None:
    one, two = jobs.add.enqueue(1), jobs.double.enqueue(4)
    value = {"a": [one, (two, {"b": one})], "c": frozenset([two])}
    assert jobs.echo.enqueue(value).result(timeout=20) == {"a": [2, (8, {"b": 2})], "c": frozenset([8])}
    assert jobs.add.enqueue(one, b=two).result(timeout=20) == 10
    many = jobs.add.enqueue_many([(one, number) for number in range(50)] + [(7, 7)])
    assert gather(many, timeout=20) == [*range(2, 52), 14]
    by_name = jobs.q.enqueue("add", jobs.q.job(one.id), 40)
    assert by_name.result(timeout=20) == 42
    assert jobs.echo.enqueue(jobs.q.job(jobs.note_nothing.enqueue().id)).result(timeout=20) is None


@pytest.mark.usefixtures("shared")
def test_large_results_are_handed_on() -> None:
    parts = [jobs.echo.enqueue(bytes([number]) * 1_500_000) for number in range(8)]
    sizes = jobs.sizes.enqueue(parts).result(timeout=30)
    assert sizes == [1_500_000] * 8


# -- parts that do not succeed


@pytest.mark.usefixtures("shared")
def test_what_comes_after_a_failed_step_is_cancelled_and_says_why() -> None:
    flow = chain(
        jobs.add.step(1), jobs.fail.step().without_input(), group(steps(2), jobs.add.step(1)), jobs.echo.step()
    )
    flow = chain(jobs.add.step(1), jobs.fail.step(), jobs.add.step(1), group(jobs.add.step(1), jobs.echo.step()))
    handle = chain(flow, jobs.echo.step()).enqueue()
    with pytest.raises(
        JobCancelled,
        match=f"was cancelled: job {handle.all_jobs[1].id} of fail, which it comes after, failed: LookupError: 2$",
    ):
        handle.result(timeout=20)
    assert handle.counts() == {JobState.SUCCEEDED: 1, JobState.FAILED: 1, JobState.CANCELLED: 4}
    info = handle.info()
    assert info.error is not None
    assert info.error.type == "ParentFailed"


@pytest.mark.usefixtures("shared")
def test_one_failed_member_ends_the_chord_before_the_others_have_ended(gate: Gate, tmp_path: Path) -> None:
    held = jobs.hold.step(gate.path, str(tmp_path / "held"))
    handle = chord([held, jobs.fail.step("no"), *[jobs.add.step(1)] * 5], jobs.echo.step()).enqueue()
    with pytest.raises(JobCancelled, match="of fail, which it comes after, failed: LookupError: no$"):
        handle.result(timeout=20)
    starts(tmp_path / "held", 1)
    wait_until(lambda: handle.all_jobs[0].state() is JobState.RUNNING, "it is told that it runs")
    gate.open()
    assert handle.all_jobs[0].wait(20)


@pytest.mark.usefixtures("shared")
def test_policies(gate: Gate, tmp_path: Path) -> None:
    bad, good = jobs.fail.enqueue("no"), jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    anyway = jobs.add.options(after={bad: "continue", good: "fail"}).enqueue(1)
    never = jobs.add.options(after=[bad]).enqueue(1)
    with pytest.raises(JobCancelled, match=bad.id):
        never.result(timeout=20)
    starts(tmp_path / "held", 1)
    assert anyway.state() is JobState.WAITING
    assert set(anyway.info().after) == {bad.id, good.id}
    assert good.info().before == [anyway.id]
    gate.open()
    assert anyway.result(timeout=20) == 2
    assert jobs.add.options(after=[bad]).enqueue(1).wait(20), "it had ended before"
    assert jobs.add.options(after={bad: "continue"}, delay=0.01).enqueue(1).result(timeout=20) == 2


@pytest.mark.usefixtures("shared")
def test_retries_come_before_the_next_step(tmp_path: Path) -> None:
    handle = chain(jobs.fail_once.step(str(tmp_path / "starts")), jobs.add.step(10)).enqueue()
    assert handle.result(timeout=20) == 12


# -- states, cancelling


def test_who_waits_is_told_and_can_be_cancelled(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    held = jobs.hold.step(gate.path, str(tmp_path / "held"))
    handle = chain(held, group(jobs.echo.step(), jobs.echo.step()), jobs.echo.step()).enqueue()
    starts(tmp_path / "held", 1)
    wait_until(lambda: handle.counts() == {JobState.RUNNING: 1, JobState.WAITING: 3}, "the states are told")
    assert jobs.q.status().queues["default"].waiting == 3
    first, one, two, last = handle.all_jobs
    assert set(last.info().after) == {one.id, two.id}
    assert set(first.info().before) == {one.id, two.id}
    assert one.cancel()
    with pytest.raises(JobCancelled, match=f"job {one.id} of echo, which it comes after, was cancelled"):
        last.result(timeout=20)
    assert two.state() is JobState.WAITING
    gate.open()
    assert two.result(timeout=20) == first.result(timeout=20)
    assert shared.status()["queues"].get("default", {"waiting": 0})["waiting"] == 0


def test_a_group_is_cancelled(shared: Fleet, make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    gates = [make_gate(), make_gate()]
    blockers = [jobs.hold.enqueue(gate.path, str(tmp_path / "held")) for gate in gates]
    starts(tmp_path / "held", 2)
    handle = group(chain(jobs.add.step(1), jobs.add.step(1)) for _ in range(5)).enqueue()
    assert handle.cancel() == 10
    assert handle.counts() == {JobState.CANCELLED: 10}
    for gate in gates:
        gate.open()
    gather(blockers, timeout=20)


@pytest.mark.not_on_postgres("a client cancels a job that no fleet has by itself, and no log tells it")
def test_the_log_tells_that_a_waiting_job_was_cancelled(shared: Fleet) -> None:
    job = jobs.add.options(delay=100).enqueue(1)
    assert job.cancel()
    wait_until(lambda: shared.count("job.cancelled", job_id=job.id) == 1, "the line, which comes after the answer")


@pytest.mark.usefixtures("shared")
def test_one_that_expires_while_it_waits(gate: Gate, tmp_path: Path) -> None:
    first = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    late = jobs.add.options(after=[first], expires=0.2).enqueue(1)
    after = jobs.add.options(after=[late]).enqueue(1)
    with pytest.raises(JobCancelled, match="which it comes after, expired"):
        after.result(timeout=20)
    assert late.state() is JobState.EXPIRED
    gate.open()
    first.result(timeout=20)


# -- again


@pytest.mark.usefixtures("shared")
def test_a_part_is_retried_and_what_came_after_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    flaky = jobs.fail_once.options(retries=0).step(str(path)).without_input()
    handle = chain(jobs.write.step(str(path), "first"), flaky, group(jobs.add.step(1), jobs.add.step(2))).enqueue()
    with pytest.raises(JobCancelled):
        handle.results(timeout=20)
    wait_until(lambda: handle.counts().get(JobState.CANCELLED) == 2, "both members cancelled")
    assert handle.retry() == 1
    assert handle.results(timeout=20) == [3, 4]
    assert handle.counts() == {JobState.SUCCEEDED: 4}
    assert [start.label for start in starts(path)] == ["first", "start", "start"], (
        "what has succeeded is not done again"
    )
    assert handle.retry() == 0


@pytest.mark.usefixtures("shared")
def test_what_was_cancelled_by_hand_stays_cancelled(tmp_path: Path) -> None:
    """Also if it was cancelled already, because of the one that is retried."""
    flaky = jobs.fail_once.options(retries=0).step(str(tmp_path / "starts"))
    first, second, third, fourth = chain(flaky, *[jobs.add.step(1)] * 3).enqueue().all_jobs
    with pytest.raises(
        JobCancelled, match=f"job {first.id} of fail_once, which it comes after, failed: ConnectionError: not yet$"
    ):
        third.result(timeout=20)
    assert third.cancel()
    first.retry()
    assert second.result(timeout=20) == 3
    assert [third.state(), fourth.state()] == [JobState.CANCELLED, JobState.CANCELLED]


@pytest.mark.usefixtures("shared")
def test_a_waiting_one_whose_predecessor_is_purged_is_cancelled(gate: Gate, tmp_path: Path) -> None:
    blocker = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    handle = chain(jobs.add.options(delay=100).step(1), jobs.add.step(1), jobs.add.step(1)).enqueue()
    handle.all_jobs[0].purge()
    with pytest.raises(JobCancelled, match=f"job {handle.all_jobs[0].id}, which it comes after, was cancelled"):
        handle.result(timeout=20)
    waiting = jobs.add.options(after=[blocker]).enqueue(1)
    waiting.purge()
    gate.open()
    blocker.result(timeout=20)


# -- what is refused


def test_errors_in_the_producer(shared: Fleet) -> None:
    enqueued = shared.totals()["enqueued"]
    with pytest.raises(EnqueueError, match="there is no job 0123456789abcdef0123456789abcdef to come after"):
        jobs.add.enqueue(jobs.q.job("0123456789abcdef" * 2))
    with pytest.raises(PayloadError, match=r"args\[0\].*result=False"):
        chain(jobs.drop.step(1), jobs.add.step()).enqueue()
    with pytest.raises(ConfigError, match="not a part of a workflow: use task.step"):
        chain(jobs.add, jobs.add.step())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no steps"):
        group().enqueue()
    with pytest.raises(ConfigError, match="is unique"):
        jobs.add.options(unique=True).step(1)
    with pytest.raises(ConfigError, match="policy"):
        jobs.add.options(after={jobs.q.job("00" * 16): "maybe"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="use a list of jobs"):
        jobs.add.options(after=jobs.q.job("00" * 16))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is not a job"):
        jobs.add.options(after=["00" * 16])
    with pytest.raises(ConfigError, match="give them with options"):
        jobs.q.task(after=[])
    with pytest.raises(TaskQError, match="no job runs here"):
        jobs.add.options(on_success=True).enqueue(1)
    full = jobs.add.options(max_queued=3, queue="narrow").step(1)
    with pytest.raises(QueueFull):
        group([jobs.add.step(1), *[full] * 4]).enqueue()
    shared.wait_for_totals(enqueued=enqueued)  # all or none


@pytest.mark.not_on_postgres("a database takes a workflow of any size")
@pytest.mark.usefixtures("shared")
def test_a_workflow_that_is_too_large_for_a_message() -> None:
    with pytest.raises(PayloadTooLarge, match="let a job of the workflow enqueue the rest"):
        group(jobs.echo.step(bytes(60_000)) for _ in range(80)).enqueue()


@pytest.mark.usefixtures("shared")
def test_a_large_workflow() -> None:
    members = [jobs.add.step(number) for number in range(3_000)]
    assert len(chord(members, jobs.echo.step()).enqueue().result(timeout=60)) == 3_000
    assert steps(400).enqueue().result(timeout=60) == [str(number) for number in range(400)]


# -- restarts, spool, kills


@pytest.mark.not_on_postgres("a database has no spool")
def test_without_a_fleet_a_workflow_waits_in_the_spool(start: Start, home: Path) -> None:
    handle = chord([jobs.add.step(1), steps(3)], jobs.echo.step()).enqueue()
    after = jobs.echo.enqueue([handle])
    assert len(list((home / "spool").iterdir())) == 2
    start()
    assert after.result(timeout=20) == [[2, ["0", "1", "2"]]]


@pytest.mark.not_on_postgres("a database has no spool")
def test_one_that_comes_after_a_spooled_one(start: Start, home: Path) -> None:
    """The fleet may not have looked into the spool yet."""
    first = jobs.add.enqueue(1)
    spooled = next((home / "spool").glob("*.jobs"))
    hidden = spooled.rename(spooled.with_suffix(".hidden"))
    start()
    hidden.rename(spooled)
    assert jobs.add.enqueue(first).result(timeout=20) == 3


def test_a_fleet_that_is_killed_while_a_step_runs(start: Start, gate: Gate, tmp_path: Path) -> None:
    fleet = start()
    handle = chain(
        jobs.hold.options(max_crashes=9).step(gate.path, str(tmp_path / "held")),
        group(jobs.echo.step(), jobs.fail.step()),
    ).enqueue()
    starts(tmp_path / "held", 1)
    fleet.kill_all()
    fleet.start()
    starts(tmp_path / "held", 2)
    gate.open()
    one, two = handle.jobs
    assert one.result(timeout=20) == handle.all_jobs[0].result(timeout=20)
    with pytest.raises(JobFailed):
        two.result(timeout=20)


def test_a_job_that_takes_the_fleet_down_cancels_what_comes_after(start: Start, tmp_path: Path) -> None:
    """The start of the next fleet ends it as failed: from the flight recorder, and with it those after it."""
    fleet = start()
    killer = jobs.last_words.options(max_crashes=1)
    handle = chain(killer.step(str(tmp_path / "starts"), "kill fleet"), jobs.echo.step(), jobs.echo.step()).enqueue()
    fleet.wait_for_end()
    fleet.start()
    with pytest.raises(
        JobCancelled, match=f"job {handle.all_jobs[0].id} of last_words, which it comes after, failed: Crashed: "
    ):
        handle.result(timeout=20)


@pytest.mark.usefixtures("home")
def test_a_fleet_does_not_drain_before_all_heard_of_an_end(start: Start) -> None:
    """The links from each of two to each of many are too many for one commit: between two of these nothing runs."""
    two, many = group(jobs.add.step(1), jobs.add.step(2)), group(jobs.echo.step() for _ in range(2_500))
    chain(two, many).enqueue()
    fleet = start(consumers=1, drain=True)
    fleet.wait_for_end()
    stopped = fleet.wait_for("fleet.stopped")
    assert (stopped["queued"], stopped["waiting"], stopped["succeeded"]) == (0, 0, 2_502)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", ["consumers", "broker"])
def test_kills_in_the_middle(start: Start, tmp_path: Path, who: str) -> None:
    """Each step succeeds once, in its order, whoever is killed."""
    fleet = start()
    path = tmp_path / "starts"
    flows: list[Job[Any]] = []
    expected: list[list[str]] = []
    for number in range(60):
        parts = [steps(4, path, f"{number}.{part}.") for part in range(3)]
        flows.append(chord(parts, jobs.flatten.step()).enqueue())
        expected.append([f"{number}.{part}.{step}" for part in range(3) for step in range(4)])
    for kill in range(1, 6):
        starts(path, 100 * kill)
        if who == "broker":
            fleet.kill(fleet.broker_pid)
        else:
            fleet.kill_consumer(kill)
    assert gather(flows, timeout=100) == expected
    fleet.wait_for_totals(succeeded=60 * 13, enqueued=60 * 13, failed=0, cancelled=0)
    by_label = itertools.groupby(sorted(starts(path)), key=lambda start: start.label)
    assert all(len({start.job_id for start in group}) == 1 for _, group in by_label), "a step is one job"


# -- children


def children(path: Path) -> Counter[str]:
    """The labels of the children that ran, by how often."""
    return Counter(start.label for start in starts(path) if start.label != "born")


@pytest.mark.usefixtures("shared")
def test_children_commit_with_the_success(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    assert jobs.bear.enqueue(str(path), "chain").result(timeout=20) == 1
    starts(path, 6)
    wait_until(lambda: sum(children(path).values()) == 5, "all children")
    assert children(path) == {"1.0": 1, "1.1": 1, "1.2": 1, "1.chain": 1, "1.last": 1}


@pytest.mark.usefixtures("shared")
def test_unique_children(tmp_path: Path) -> None:
    """Of several keys: none of them is an error of the consumer that sends them."""
    path = tmp_path / "starts"
    assert jobs.bear.enqueue(str(path), "unique").result(timeout=20) == 1
    wait_until(lambda: sum(children(path).values()) == 3, "all children")
    assert children(path) == {"1.0": 1, "1.1": 1, "1.2": 1}


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_failed_attempt_leaves_no_children(shared: Fleet, tmp_path: Path, how: str) -> None:
    path = tmp_path / "starts"
    enqueued = shared.totals()["enqueued"]
    assert jobs.bear.enqueue(str(path), how).result(timeout=20) == 2
    wait_until(lambda: sum(children(path).values()) == 3, "all children")
    assert children(path) == {"2.0": 1, "2.1": 1, "2.2": 1}
    shared.wait_for_totals(enqueued=enqueued + 4)


def test_a_timeout_leaves_no_children(shared: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    enqueued = shared.totals()["enqueued"]
    job = jobs.bear.options(timeout=0.3, retries=0).enqueue(str(path), "wait")
    with pytest.raises(JobFailed, match="TimedOut"):
        job.result(timeout=20)
    jobs.add.enqueue(1).result(timeout=20)
    shared.wait_for_totals(enqueued=enqueued + 2)


def test_many_children(shared: Fleet, tmp_path: Path) -> None:
    enqueued = shared.totals()["enqueued"]
    jobs.bear.enqueue(str(tmp_path / "starts"), "", 2_000).result(timeout=20)
    shared.wait_for_totals(enqueued=enqueued + 2_001)  # with the parent's own end, which was told
    wait_until(lambda: sum(children(tmp_path / "starts").values()) == 2_000, "all children")


def test_children_of_several_at_once(start: Start, tmp_path: Path) -> None:
    fleet = start(consumers=1, threads=4)
    path = tmp_path / "starts"
    parents = [jobs.bear.enqueue(str(path), how) for how in ("", "raise", "chain", "")]
    coroutines = [jobs.abear.options(retries=0).enqueue(str(path), how) for how in ("yes", "raise")]
    assert gather(parents, timeout=20) == [1, 2, 1, 1]
    coroutines[0].result(timeout=20)
    with pytest.raises(JobFailed):
        coroutines[1].result(timeout=20)
    wait_until(lambda: sum(children(path).values()) == 15, "all children")
    fleet.wait_for_totals(enqueued=6 + 15)
    assert children(path)["yes"] == 1


@pytest.mark.timeout(300)
def test_children_through_kills(start: Start, tmp_path: Path) -> None:
    """A sequence of jobs, each of which makes the next: none is lost, none is made twice."""
    fleet = start()
    path = tmp_path / "starts"
    lines = 4
    jobs.enqueue_next.options(max_crashes=50).enqueue_many([(str(path), 80)] * lines)
    for kill in range(1, 6):
        starts(path, 50 * kill)
        if kill % 2:
            fleet.kill_consumer()
        else:
            fleet.kill(fleet.broker_pid)
    expected = {JobState.SUCCEEDED: lines * 81}
    wait_until(lambda: Counter(job.state for job in jobs.q.jobs(limit=None)) == expected, "the ends of all lines", 60)
    fleet.wait_for_totals(enqueued=lines * 81, succeeded=lines * 81)
    ends = [start.job_id for start in starts(path) if start.label == "0"]
    assert len(set(ends)) == lines
