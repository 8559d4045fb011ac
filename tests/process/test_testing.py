"""`taskq.testing` and the pytest plugin: that they behave as a fleet does, and help where a test fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import ANY

import numpy as np
import pytest
from apps import in_process
from apps.in_process import (
    asks,
    chain,
    collect,
    count_to,
    family,
    hooked,
    hurries,
    looks,
    parent,
    q,
    ran,
    resumes,
    typed,
    unfit,
    work,
    work_async,
)
from fleet import APPS, Fleet, running, use
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from projects import SHOP, pytest_in

from taskq import (
    BadArguments,
    BrokerUnavailable,
    ConfigError,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobState,
    PayloadError,
    QueueFull,
    ResultTimeout,
    Retry,
    Settings,
    TaskQ,
    TaskQError,
    agather,
    as_completed,
    chord,
    current_job,
    gather,
    group,
    testing,
    wait_any,
)
from taskq import chain as in_turn
from taskq.client.options.call_options import Unique

pytestmark = pytest.mark.not_on_postgres("no queue is asked: taskq.testing")


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@pytest.fixture
def jobs() -> Iterator[testing.Jobs]:
    with testing.queue(q) as jobs:
        yield jobs


# -- inline


def test_inline_runs_where_it_is_enqueued() -> None:
    with testing.inline(q):
        job = work.enqueue("a")
        assert ran == ["a"]
        assert (job.state(), job.result(), job.wait(0)) == (JobState.SUCCEEDED, "a", True)
        assert job.info().attempts == 1


def test_inline_where_memory_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers whose /dev/shm is read-only."""
    monkeypatch.setattr("taskq.testing.fleet._MEMORY", "/proc")
    with testing.inline(q):
        assert work.enqueue("a").state() == JobState.SUCCEEDED


def test_inline_raises_what_a_job_raises_after_its_last_retry() -> None:
    with testing.inline(q) as jobs:
        with pytest.raises(ValueError, match="attempt 3 of a") as raised:
            work.enqueue("a", fails=9)
        assert ran == ["a"] * 3
        assert "in_process.py" in "".join(traceback.format_tb(raised.value.__traceback__))
        assert jobs.enqueued()[0].state == "failed"


def test_inline_retries_at_once() -> None:
    with testing.inline(q):
        assert work.enqueue("a", fails=2).result() == "a"
    assert ran == ["a"] * 3


def test_inline_as_in_production() -> None:
    with testing.inline(q, raise_errors=False):
        job = work.options(retries=0).enqueue("a", fails=1)
        with pytest.raises(JobFailed, match="ValueError: attempt 1 of a"):
            job.result()


def test_what_would_fail_in_production_fails_here() -> None:
    with testing.inline(q):
        with pytest.raises(PayloadError, match="cannot be serialized"):
            work.enqueue(object())  # type: ignore[arg-type]
        with pytest.raises(JobFailed, match="UnserializableResult"):
            unfit.enqueue()
        with pytest.raises(BadArguments, match="missing a required argument"):
            typed.enqueue(date(2026, 1, 2))  # type: ignore[call-arg]
        with pytest.raises(JobFailed, match="UnknownTask"):
            q.enqueue("nobody_knows_it")
        assert typed.enqueue(date(2026, 1, 2), Path("x")).result() == "date True"


def test_inline_inside_jobs() -> None:
    with testing.inline(q):
        assert family.enqueue(3).result() == ["child 0", "child 1", "child 2"]
        chain.enqueue(5)
    assert ran[3:] == [5, 4, 3, 2, 1, 0]


def test_jobs_without_an_end_are_reported(jobs: testing.Jobs) -> None:
    chain.enqueue(1_000)
    with pytest.raises(TaskQError, match="more than 500 jobs"):
        jobs.drain(limit=500)
    jobs.drain()
    job = descend.enqueue(1_000)
    with pytest.raises(TaskQError, match="50 jobs wait for one another"):
        job.result()


@q.task(retries=0)
def descend(left: int) -> None:
    descend.enqueue(left - 1).result()


def test_inline_delays_take_no_time() -> None:
    with testing.inline(q) as jobs:
        before = jobs.now
        work.options(delay=timedelta(days=30)).enqueue("a")
        assert ran == ["a"]
        assert jobs.now - before == timedelta(days=30)


def test_inline_map_and_items() -> None:
    with testing.inline(q):
        assert list(work.map(["a", "b"])) == ["a", "b"]
        assert list(work.starmap([("a", 1), ("b", 0)])) == ["a", "b"]
        assert list(count_to.enqueue(3).items()) == [0, 1, 2]


def test_a_test_that_is_failed_inside_a_job_fails() -> None:
    with testing.inline(q, raise_errors=False), pytest.raises(KeyboardInterrupt):
        interrupted.enqueue()


@q.task
def interrupted() -> None:
    raise KeyboardInterrupt


# -- kept in memory


def test_nothing_runs_before_it_is_to(jobs: testing.Jobs) -> None:
    job = work.enqueue("a")
    assert job.state() == JobState.QUEUED
    assert ran == []
    assert jobs.drain() == {"succeeded": 1}
    assert job.state() == JobState.SUCCEEDED


def test_who_waits_has_it_run(jobs: testing.Jobs) -> None:
    first, second = work.enqueue("a"), work.options(retries=0).enqueue("b", 1)
    assert second.wait()
    with pytest.raises(JobFailed):
        second.result()
    assert first.result() == "a"
    assert {job.id for job in as_completed([first, second])} == {first.id, second.id}
    assert wait_any([first]).result() == "a"
    assert isinstance(gather([first, second], errors="return")[1], JobFailed)


def test_waiting_takes_time_of_the_test_alone(jobs: testing.Jobs) -> None:
    before = jobs.clock.time()
    job = work.options(delay=100).enqueue("a")
    with pytest.raises(ResultTimeout):
        job.result(timeout=60)
    assert job.state() == JobState.SCHEDULED
    assert job.result() == "a"
    assert jobs.clock.time() == before + 100


def test_a_wait_without_an_end_is_reported(jobs: testing.Jobs) -> None:
    q.pause("default")
    job = work.enqueue("a")
    with pytest.raises(TaskQError, match="Is a queue paused"):
        job.result()
    assert not job.wait(5)
    q.resume("default")
    assert job.result() == "a"


def test_the_clock_fires_what_is_due(jobs: testing.Jobs) -> None:
    job = work.options(delay=60).enqueue("a")
    jobs.clock.advance(59.9)
    assert jobs.drain() == {}
    jobs.clock.advance(0.1)
    assert job.state() == JobState.QUEUED
    assert jobs.drain() == {"succeeded": 1}


def test_retries_wait_as_in_production(jobs: testing.Jobs) -> None:
    job = work.enqueue("a", fails=2)
    assert jobs.drain() == {"scheduled": 1}
    assert 0.5 <= (job.info().due_at or 0) - jobs.clock.time() <= 1
    assert jobs.drain(1) == {"scheduled": 1}
    assert jobs.drain(inf) == {"succeeded": 1}
    assert job.info().attempts == 3


def test_what_jobs_raise_for_the_fleet_is_not_for_the_test(jobs: testing.Jobs) -> None:
    """Retry, Snooze, Cancel and JobTimeout are no Exceptions, as Ctrl-C is none; but the fleet heeds them."""
    retried, snoozed, cancelled, late = (asks.enqueue(wish) for wish in ("retry", "snooze", "cancel", "late"))
    assert jobs.drain() == {"scheduled": 3, "cancelled": 1}
    assert jobs.drain(5) == {"succeeded": 2}
    assert (retried.result(), late.result()) == (2, 2)
    assert snoozed.state() == "scheduled"
    assert jobs.drain(55) == {"succeeded": 1}
    with pytest.raises(JobCancelled):
        cancelled.result()


def test_inline_heeds_what_jobs_raise_for_the_fleet() -> None:
    with testing.inline(q):
        assert asks.enqueue("retry", "snooze").result() == 3
        assert asks.enqueue("cancel").state() == "cancelled"
        with pytest.raises(Retry):
            asks.enqueue("retry", "retry")  # it has one retry


def test_expiry(jobs: testing.Jobs) -> None:
    job, other = work.options(expires=30).enqueue("a"), work.options(delay=10, expires=30).enqueue("b")
    jobs.clock.advance(20)
    assert (job.state(), other.state()) == (JobState.QUEUED, JobState.QUEUED)
    jobs.clock.advance(10)
    assert (job.state(), other.state()) == (JobState.EXPIRED, JobState.EXPIRED)
    assert jobs.drain() == {}


def test_drain_raises_if_asked(jobs: testing.Jobs) -> None:
    work.options(retries=0).enqueue("a", 1)
    work.enqueue("b")
    with pytest.raises(ValueError, match="attempt 1 of a"):
        jobs.drain(raise_errors=True)
    assert ran == ["a", "b"]


def test_drain_runs_what_jobs_enqueue(jobs: testing.Jobs) -> None:
    chain.enqueue(100)
    assert jobs.drain() == {"succeeded": 101}


def test_priorities(jobs: testing.Jobs) -> None:
    for priority in (0, 5, -3, 5):
        work.options(priority=priority).enqueue(f"{priority}")
    jobs.drain()
    assert ran == ["5", "5", "0", "-3"]


def test_what_is_more_urgent_overtakes(jobs: testing.Jobs) -> None:
    hurries.options(priority=1).enqueue()
    work.enqueue_many([("a",), ("b",)])
    family.enqueue(1)
    hurries.enqueue()
    work.enqueue("c")
    jobs.drain()
    assert ran == ["urgent", "a", "b", "c", "child 0", "urgent"] or ran == [
        "urgent",
        "a",
        "b",
        "urgent",
        "c",
        "child 0",
    ]


def test_unique(jobs: testing.Jobs) -> None:
    once = work.options(unique=["label"])
    first, again, other = once.enqueue("a"), once.enqueue("a"), once.enqueue("b")
    assert (again == first, again.is_duplicate, other.is_duplicate) == (True, True, False)
    jobs.assert_enqueued(work, count=2)
    jobs.drain()
    assert once.enqueue("a") != first


def test_unique_for_a_time(jobs: testing.Jobs) -> None:
    once = work.options(unique=Unique(by="k", period=60))
    first = once.enqueue("a")
    jobs.drain()
    jobs.clock.advance(59)
    assert once.enqueue("a").is_duplicate
    jobs.clock.advance(2)
    second = once.enqueue("a")
    assert not second.is_duplicate
    assert once.enqueue("a") == second != first


def test_debounce(jobs: testing.Jobs) -> None:
    last = work.options(unique=Unique(by="k", replace=True), delay=10)
    early = last.enqueue("early")
    jobs.clock.advance(5)
    last.enqueue("late")
    assert early.state() == JobState.CANCELLED
    assert jobs.drain(9) == {}
    assert jobs.drain(1) == {"succeeded": 1}
    assert ran == ["late"]


def test_rates(jobs: testing.Jobs) -> None:
    work.options(rate="2/m").enqueue_many([(str(number),) for number in range(5)])
    assert jobs.drain() == {"succeeded": 2}
    jobs.clock.advance(59)
    assert jobs.drain() == {}
    jobs.clock.advance(2)
    assert jobs.drain() == {"succeeded": 2}
    before = jobs.clock.time()
    assert jobs.drain(inf) == {"succeeded": 1}
    assert jobs.clock.time() - before > 59


def test_schedules() -> None:
    app = TaskQ("tests-periodic", url="/proc/nonexistent")
    tick = app.periodic(every="1h", args=("tick",))(app.task(name="tick", retries=0)(ran.append))
    with testing.queue(app) as jobs:
        jobs.clock.advance(3 * 3600)
        jobs.assert_enqueued(tick, "tick", count=3)
        assert jobs.drain() == {"succeeded": 3}
        assert jobs.drain(7200) == {"succeeded": 2}
        assert jobs.drain(inf) == {}
    with testing.inline(app):
        app.enqueue("tick", "inline")
    assert ran == ["tick"] * 5 + ["inline"]


def test_resources_of_the_fleet() -> None:
    needs = work.options(resources={"gpu": 1})
    with testing.queue(q, settings=Settings(consumers=1, resources=(("gpu", 1),))) as jobs:
        needs.enqueue("a")
        assert jobs.drain() == {"succeeded": 1}
    with testing.queue(q) as jobs:
        job = needs.enqueue("a")
        assert jobs.drain() == {}
        assert job.state() == JobState.QUEUED


def test_bounded_queues(jobs: testing.Jobs) -> None:
    bounded = work.options(max_queued=2)
    bounded.enqueue_many([("a",), ("b",)])
    with pytest.raises(QueueFull):
        bounded.enqueue("c")
    waits = work.options(max_queued=2, when_full="wait")
    waits.enqueue("c")  # its wait has the others run
    assert ran[:2] == ["a", "b"]


def test_map_waits_for_room(jobs: testing.Jobs) -> None:
    waits = work.options(max_queued=2, when_full="wait")
    assert len(list(waits.map("abcde"))) == 5


def test_workflows_wait_for_room(jobs: testing.Jobs) -> None:
    waits = work.options(max_queued=2, when_full="wait")
    waits.enqueue_many([("a",), ("b",)])
    waits.step("c").enqueue()
    assert ran[:2] == ["a", "b"]


def test_handles(jobs: testing.Jobs) -> None:
    job, failed = work.enqueue("a"), work.options(retries=0).enqueue("b", 1)
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result()
    jobs.drain()
    assert [info.state for info in q.jobs("failed")] == ["failed"]
    failed.retry()
    assert failed.state() == JobState.QUEUED
    failed.purge()
    with pytest.raises(JobNotFound):
        failed.state()
    assert q.status().totals.cancelled == 2


def test_jobs_inside_jobs(jobs: testing.Jobs) -> None:
    assert family.enqueue(3).result() == ["child 0", "child 1", "child 2"]
    with pytest.raises(TaskQError, match="outside a job"):
        current_job()


def test_threads(jobs: testing.Jobs) -> None:
    results: list[list[str]] = []

    def client(name: str) -> None:
        results.append(gather([work.enqueue(f"{name}{number}") for number in range(20)]))

    threads = [threading.Thread(target=client, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(map(len, results)) == [20] * 4
    assert len(ran) == 80


def test_large_amounts(jobs: testing.Jobs) -> None:
    work.enqueue_many([(str(number),) for number in range(5_000)])
    assert jobs.drain() == {"succeeded": 5_000}
    assert ran == [str(number) for number in range(5_000)]


# -- asyncio


def test_many_jobs_and_queues_with_asyncio(jobs: testing.Jobs) -> None:
    async def main() -> None:
        made = await work.aenqueue_many([("a",), ("b",)])
        assert [info.id for info in await q.ajobs("queued")] == [made[1].id, made[0].id]
        assert await q.apause("default") == ["default"]
        assert jobs.drain() == {}
        assert await q.aresume("default") == ["default"]
        jobs.drain()
        assert await q.aretry_failed() == 0
        assert await q.apurge("succeeded") == 2
        assert await q.ajobs() == []

    asyncio.run(main())


@pytest.mark.parametrize("mode", [testing.inline, testing.queue])
def test_asyncio(mode: Any) -> None:
    async def main() -> None:
        job = await work_async.aenqueue("a")
        assert await job == "a"
        assert ran == [job.id]
        assert (await job.ainfo()).state == JobState.SUCCEEDED
        assert await agather(await work.aenqueue_many([("b",), ("c",)])) == ["b", "c"]
        assert [item async for item in (await count_to.aenqueue(3)).aitems()] == [0, 1, 2]
        assert not await job.acancel()
        assert work_async.enqueue("d").result() == "d"  # a job that blocks, in a loop

    with mode(q):
        asyncio.run(main())
        assert work_async.enqueue("e").result() == "e"


# -- what jobs have to do with one another

modes = pytest.mark.parametrize("mode", [testing.inline, testing.queue])


@modes
def test_a_job_after_another(mode: Any) -> None:
    with mode(q) as jobs:
        first = work.enqueue("first")
        second = work.options(after=[first]).enqueue("second")
        assert second.result() == "second"
        jobs.drain()
        assert ran == ["first", "second"]


def test_a_job_after_one_that_fails(jobs: testing.Jobs) -> None:
    first = work.options(retries=0).enqueue("first", 1)
    second = work.options(after=[first]).enqueue("second")
    third = work.options(after={first: "continue"}).enqueue("third")
    assert second.state() is JobState.WAITING
    jobs.drain()
    assert ran == ["first", "third"]
    with pytest.raises(JobCancelled):
        second.result()
    assert third.result() == "third"


@modes
def test_workflows(mode: Any) -> None:
    with mode(q):
        assert in_turn(work.step("a"), collect.step()).enqueue().result() == ["a"]
        assert group(work.step(label) for label in "bc").enqueue().results() == ["b", "c"]
        assert chord((work.step(label) for label in "def"), collect.step()).enqueue().result() == ["d", "e", "f"]
        assert ran == list("abcdef")


@modes
def test_workflows_with_asyncio(mode: Any) -> None:
    async def main() -> Any:
        return await (await in_turn(work.step("a"), collect.step()).aenqueue())

    with mode(q):
        assert asyncio.run(main()) == ["a"]


def test_many_after_one(jobs: testing.Jobs) -> None:
    first = work.enqueue("first")
    work.options(after=[first]).enqueue_many((str(number),) for number in range(3000))
    assert jobs.drain() == {"succeeded": 3001}


@modes
def test_children_of_those_that_succeed(mode: Any) -> None:
    """What an attempt that fails has enqueued for its success is never there."""
    with mode(q, raise_errors=False) as jobs:
        parent.enqueue("a", 3)
        parent.enqueue("b")
        jobs.drain(inf)
        found = sorted(job.arguments["label"] for job in jobs.enqueued(work))
        assert found == ["a", "a", "b", "child of b, attempt 1"]
        assert [label for label in ran if label.startswith("child")] == ["child of b, attempt 1"]


@modes
def test_checkpoints(mode: Any) -> None:
    with mode(q):
        assert resumes.enqueue(2).result() == [1, 2, 3]


@modes
def test_progress_middleware_and_hooks(mode: Any) -> None:
    """Those of a consumer run once, around all that the block runs."""
    with mode(hooked):
        assert ran == [], "nothing has to run yet"
        assert looks.enqueue().result() == (1, 2, "half")
        looks.enqueue().result()
    assert ran == ["start", "before", "looks", "after", "before", "looks", "after", "stop"]


# -- what was enqueued


def test_asserts(jobs: testing.Jobs) -> None:
    work.options(queue="mail", priority=3, delay=60).enqueue("a", fails=0)
    [found] = jobs.assert_enqueued(work, "a")
    assert (found.task, found.queue, found.priority, found.delay) == ("work", "mail", 3, 60)
    assert found.arguments == {"label": "a", "fails": 0}
    assert found.state == "scheduled"
    jobs.assert_enqueued("work", label="a")
    jobs.assert_enqueued(work, ANY, fails=0, queue="mail", priority=3, delay=timedelta(minutes=1), state="scheduled")
    jobs.assert_enqueued(work, count=1)
    jobs.assert_not_enqueued(work, "b")
    jobs.assert_not_enqueued(work, queue="default")
    jobs.assert_not_enqueued(chain)


def test_assert_enqueued_of_a_builtin_that_does_not_tell_its_parameters() -> None:
    app, function = TaskQ("builtins"), cast(Callable[..., Any], max)
    largest = app.task(name="largest", unique=True)(function)
    with testing.queue(app) as jobs:
        first, second = largest.enqueue(1, 2), largest.enqueue(1, 2)
        assert first == second, "a key can be made of the arguments nevertheless"
        jobs.assert_enqueued(largest, 1, 2, count=1)
        assert first.result() == 2


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("b",), {}),
        ((), {"fails": 1}),
        ((), {"queue": "other"}),
        ((), {"delay": 1}),
        ((), {"count": 2}),
        (("a",), {"state": "failed"}),
    ],
)
def test_asserts_fail(jobs: testing.Jobs, args: Any, kwargs: Any) -> None:
    work.enqueue("a", fails=0)
    with pytest.raises(AssertionError, match=r"these were:\n  work\(label='a', fails=0\)  queue=default queued"):
        jobs.assert_enqueued(work, *args, **kwargs)


def test_asserts_fail_with_a_clear_text(jobs: testing.Jobs) -> None:
    with pytest.raises(AssertionError, match=r"no work\(label='b', ...\) queue='mail' was enqueued; nothing was"):
        jobs.assert_enqueued(work, "b", queue="mail")
    work.enqueue_many([(str(number),) for number in range(30)])
    with pytest.raises(AssertionError, match=r"work\(label='7', ...\) was enqueued(.|\n)*and 10 more"):
        jobs.assert_not_enqueued(work, "7")
    with pytest.raises(ConfigError, match="do not fit work"):
        jobs.assert_enqueued(work, colour="red")
    with pytest.raises(ConfigError, match="is not a task"):
        jobs.assert_enqueued(in_process.current_job)  # type: ignore[arg-type]


def test_arguments_are_compared_as_the_function_gets_them(jobs: testing.Jobs) -> None:
    typed.enqueue(date(2026, 1, 2), Path("x"), np.arange(3))
    jobs.assert_enqueued(typed, date(2026, 1, 2), Path("x"), np.arange(3))
    jobs.assert_not_enqueued(typed, date(2026, 1, 2), Path("x"), np.arange(4))
    assert isinstance(jobs.enqueued(typed)[0].arguments["path"], Path)


def test_what_was_enqueued_stays_when_it_ran(jobs: testing.Jobs) -> None:
    work.enqueue("a")
    jobs.drain()
    jobs.assert_enqueued(work, "a", state="succeeded")
    jobs.clear()
    assert jobs.enqueued() == []
    work.enqueue("b")
    assert [job.arguments["label"] for job in jobs.enqueued(work)] == ["b"]


def test_inline_tells_what_was_enqueued() -> None:
    with testing.inline(q) as jobs:
        family.enqueue(2)
        jobs.assert_enqueued(work, count=2, state="succeeded")


# -- switching


def test_everything_is_as_before() -> None:
    with testing.queue(q):
        job = work.enqueue("a")
    with pytest.raises(BrokerUnavailable):
        job.state()
    with testing.queue(q), pytest.raises(JobNotFound):
        job.state()


def test_two_applications_share_a_clock() -> None:
    other_q = TaskQ("tests-other", url="/proc/nonexistent")
    echo = other_q.task(name="echo")(str)
    with testing.queue(q) as ours, testing.queue(other_q) as theirs:
        work.options(delay=60).enqueue("a")
        other = echo.options(delay=30).enqueue("b")
        theirs.clock.advance(60)
        assert other.state() == JobState.QUEUED
        assert ours.drain() == {"succeeded": 1}
        assert theirs.drain() == {"succeeded": 1}


def test_time_goes_forward(jobs: testing.Jobs) -> None:
    with pytest.raises(TaskQError, match="forward"):
        jobs.clock.advance(-1)


# -- as a fleet does


class Step(NamedTuple):
    """One enqueue of a program."""

    kind: str
    fails: int
    retries: int
    priority: int
    delay: float
    key: int | None


STEPS = st.builds(
    Step,
    st.sampled_from(["run", "expire", "cancel"]),
    st.integers(0, 2),
    st.integers(0, 1),
    st.integers(-1, 1),
    st.sampled_from([0.0, 0.2]),
    st.none() | st.integers(0, 2),
)


def play(program: list[Step]) -> list[tuple[str, int, bool]]:
    """Enqueues; returns how each job ended, after how many attempts, and whether it was a duplicate."""
    q.pause("paused")
    jobs = []
    for number, step in enumerate(program):
        options: dict[str, Any] = {"retries": step.retries, "priority": step.priority, "delay": step.delay}
        if step.key is not None:
            options["unique"] = Unique(by=f"{step.kind} {step.key}", period=1_000)
        if step.kind != "run":
            options["queue"] = "paused"
        if step.kind == "expire":
            options["expires"] = 0.4
        jobs.append(work.options(**options).enqueue(str(number), step.fails))
        if step.kind == "cancel":
            jobs[-1].cancel()
    gather(jobs, timeout=30, errors="return")
    infos = [job.info() for job in jobs]
    return [(info.state.value, info.attempts, job.is_duplicate) for info, job in zip(infos, jobs, strict=True)]


def test_programs_end_as_in_a_real_fleet(tmp_path: Path) -> None:
    with running(Fleet(tmp_path / "queue", f"{APPS / 'in_process.py'}:q")) as fleet:
        before = q.directory
        use(q, fleet.home)

        @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(st.lists(STEPS, min_size=3, max_size=10))
        def compare(program: list[Step]) -> None:
            real = play(program)
            for info in q.jobs(limit=None):
                q.job(info.id).purge()
            with testing.queue(q):
                assert play(program) == real

        try:
            compare()
        finally:
            use(q, before.path)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_programs_end_as_their_steps_say(program: list[Step]) -> None:
    seen: set[tuple[str, int]] = set()
    with testing.queue(q):
        ended = play(program)
    for step, (state, attempts, is_duplicate) in zip(program, ended, strict=True):
        assert is_duplicate == ((step.kind, step.key) in seen)
        if step.key is not None:
            seen.add((step.kind, step.key))
        if is_duplicate:
            continue
        if step.kind == "run":
            assert state == ("failed" if step.fails > step.retries else "succeeded")
            assert attempts == min(step.fails, step.retries) + 1
        else:
            assert (state, attempts) == ("expired" if step.kind == "expire" else "cancelled", 0)


# -- pytest


SHOP_TESTS = """
import os
import pytest
from shop import double, q

def test_inline(taskq_inline):
    assert double.enqueue(4).result() == 8
    with pytest.raises(RuntimeError):
        double.enqueue(13)

def test_queue(taskq_queue):
    double.enqueue(4)
    taskq_queue.assert_enqueued(double, 4)
    assert taskq_queue.drain() == {"succeeded": 1}

def test_fleet(taskq_fleet, tmp_path):
    assert taskq_fleet is q
    assert list(double.map(range(10))) == list(range(0, 20, 2))
    assert (tmp_path / "taskq" / "journal.db").exists()

def test_helpful(taskq_queue):
    double.enqueue(5)
    taskq_queue.assert_enqueued(double, 6)
"""
CONFTEST = """
import pytest
from shop import q

@pytest.fixture
def taskq_app():
    return q
"""


@pytest.mark.parametrize("names_it", ["in the settings", "with a fixture"])
def test_fixtures(tmp_path: Path, names_it: str) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(SHOP_TESTS)
    if names_it == "in the settings":
        (tmp_path / "pytest.ini").write_text("[pytest]\ntaskq_app = shop:q\n")
    else:
        (tmp_path / "conftest.py").write_text(CONFTEST)
    said = pytest_in(tmp_path)
    assert "3 passed" in said, said
    assert "1 failed" in said, said
    assert "no double(number=6) was enqueued; these were:" in said.replace(", ...", ""), said
    assert "double(number=5)  queue=default queued" in said


def test_fixtures_without_an_application(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(taskq_queue): pass\n")
    assert "Set taskq_app =" in pytest_in(tmp_path)


def test_the_plugin_is_light() -> None:
    """Every run of pytest loads it."""
    program = "import sys, pytest; before = set(sys.modules); import taskq.testing.pytest_plugin; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert set(run.stdout.split()) == {"taskq", "taskq.testing", "taskq.testing.pytest_plugin"}
