"""Jobs with constraints, in real fleets: when they run, in which order, how many at once, and which of them are the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apps import constraints
from fleet import Fleet, Gate, running, starts, use, wait_until

from taskq import ConfigError, JobCancelled, JobFailed, JobState, QueueFull, TaskQ, Unique

APP = f"{Path(constraints.__file__)}:q"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet for all tests of this file that leave it as they found it."""
    with running(Fleet(tmp_path_factory.mktemp("constraints") / "queue", APP, resources=(("gpu", 1),))) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def _used(request: pytest.FixtureRequest) -> None:
    if "own" not in request.fixturenames:
        use(constraints.q, request.getfixturevalue("fleet").home)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The directory of a fleet that a test starts itself."""
    home = tmp_path / "queue"
    use(constraints.q, home)
    return home


@pytest.fixture
def told(tmp_path: Path) -> str:
    """The file to which jobs tell that they ran."""
    return str(tmp_path / "told")


def labels(path: str) -> list[str]:
    """What ran, in order."""
    return [start.label for start in starts(Path(path))]


# -- when


@pytest.mark.parametrize("how", ["delay", "timedelta", "at"])
def test_never_early(told: str, how: str) -> None:
    due_at = time.time() + 0.3
    options = {"delay": 0.3} if how == "delay" else {"delay": timedelta(seconds=0.3)}
    task = (
        constraints.note.options(at=datetime.fromtimestamp(due_at, UTC))
        if how == "at"
        else constraints.note.options(**options)
    )  # type: ignore[typeddict-item]
    job = task.enqueue(told, "x")
    assert job.state() is JobState.SCHEDULED or time.time() >= due_at
    assert job.result(timeout=20) >= due_at


def test_scheduled_jobs_outlive_the_broker(own: Path, told: str) -> None:
    with running(Fleet(own, APP)) as fleet:
        due_at = time.time() + 1.0
        job = constraints.note.options(delay=1.0, priority=3).enqueue(told, "x")
        fleet.kill(fleet.broker_pid)
        assert job.result(timeout=20) >= due_at


def test_a_job_that_did_not_start_in_time_expires(own: Path, told: str, make_gate: Callable[[], Gate]) -> None:
    """Told at once when its time is over, though nobody had a look at it; and one that started is left alone."""
    gate = make_gate()
    with running(Fleet(own, APP, consumers=1)) as fleet:
        held = constraints.hold.options(expires=5).enqueue(told, gate.path)
        wait_until(lambda: held.state() is JobState.RUNNING, "it runs")
        late = [constraints.note.options(expires=0.2).enqueue(told, "late") for _ in range(3)]
        waits = constraints.note.options(delay=10, expires=11).enqueue(told, "waits")
        for job in late:
            with pytest.raises(JobFailed, match=r"Expired: it was not started in time"):
                job.result(timeout=20)
            assert job.state() is JobState.EXPIRED
        assert waits.cancel()
        gate.open()
        held.result(timeout=20)
        fleet.wait_for_totals(expired=3)
        assert labels(told) == ["holds"]


def test_the_log_tells_which_jobs_expired(own: Path, told: str, gate: Gate) -> None:
    with running(Fleet(own, APP, consumers=1)) as fleet:
        held = constraints.hold.enqueue(told, gate.path)
        late = constraints.note.options(expires=0.2).enqueue(told, "late")
        fleet.wait_for("job.expired", job_id=late.id)
        gate.open()
        held.result(timeout=20)


def test_expiry_outlives_the_broker(own: Path, told: str, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    fleet = Fleet(own, APP, consumers=1)
    with running(fleet):
        held = constraints.hold.enqueue(told, gate.path)
        wait_until(lambda: held.state() is JobState.RUNNING, "it runs")
        late = constraints.note.options(expires=0.5).enqueue(told, "late")
        fleet.kill(fleet.broker_pid)
        assert late.wait(timeout=20)
        assert late.state() is JobState.EXPIRED
        gate.open()


# -- order


def test_higher_priorities_first_and_equal_ones_in_order(own: Path, told: str) -> None:
    with running(Fleet(own, APP, consumers=1)):
        constraints.q.pause("default")  # else the first ones would be sent before the later ones are there
        jobs = [
            constraints.note.options(priority=priority).enqueue(told, f"{priority}.{number}")
            for number in range(3)
            for priority in (0, 5, -5)
        ]
        constraints.q.resume("default")
        for job in jobs:
            job.result(timeout=20)
    ran = labels(told)
    assert ran == sorted(ran, key=lambda label: (-int(label.split(".")[0]), label.split(".")[1]))
    assert len(ran) == 9


def test_lanes_serve_their_queues_only(own: Path, told: str, make_gate: Callable[[], Gate]) -> None:
    """A lane that is busy with long jobs holds up no other."""
    gate = make_gate()
    with running(Fleet(own, APP, consumers=0, lanes=((("slow",), 1), (("default", "mail"), 1)))) as fleet:
        held = [constraints.hold.options(queue="slow").enqueue(told, gate.path) for _ in range(3)]
        for queue in ("default", "mail"):
            constraints.note.options(queue=queue).enqueue(told, queue).result(timeout=20)
        nobody = constraints.note.options(queue="other").enqueue(told, "other")
        assert [job.state() for job in held[1:]] == [JobState.QUEUED] * 2
        gate.open()
        for job in held:
            job.result(timeout=20)
        assert nobody.state() is JobState.QUEUED
        assert len({start.pid for start in starts(Path(told)) if start.label == "holds"}) == 1
        assert nobody.cancel()
        assert fleet.status()["queues"]["slow"]["queued"] == 0


def test_queues_share_by_weight(own: Path, told: str, make_gate: Callable[[], Gate]) -> None:
    """With 3 to 1 a queue gets three quarters of the time while both have jobs."""
    gate = make_gate()
    with running(Fleet(own, APP, consumers=1, weights=(("high", 3.0),))):
        constraints.two.enqueue(told + ".0", 0.02).result(timeout=20)  # now it is known how long they take
        held = constraints.hold.enqueue(told, gate.path)
        wait_until(lambda: held.state() is JobState.RUNNING, "it runs")
        jobs = [
            constraints.two.options(queue=queue, concurrency=None).enqueue(f"{told}.{queue}", 0.02)
            for queue in ("high", "low")
            for _ in range(60)
        ]
        gate.open()
        for job in jobs[:60]:
            job.result(timeout=20)
        last_at = max(float(line[2:]) for line in Path(f"{told}.high").read_text().splitlines())
        lines = Path(f"{told}.low").read_text().splitlines()
        done = sum(line.startswith("-") and float(line[2:]) < last_at for line in lines)
        assert 10 <= done <= 32, "a third of 60, and what is in batches"


# -- once


def test_one_winner_among_many_producers(told: str, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: constraints.only.enqueue("a", told, gate.path), range(40)))
    assert len({job.id for job in jobs}) == 1
    assert sum(not job.is_duplicate for job in jobs) == 1
    other = constraints.only.enqueue("b", told, gate.path)
    assert not other.is_duplicate
    gate.open()
    assert [job.result(timeout=20) for job in jobs] == ["a"] * 40
    assert other.result(timeout=20) == "b"
    assert sorted(labels(told)) == ["a", "b"]
    assert not constraints.only.enqueue("a", told, gate.path).is_duplicate, "it has ended"


def test_unique_keys_outlive_the_broker(own: Path, told: str, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    with running(Fleet(own, APP)) as fleet:
        first = constraints.only.enqueue("a", told, gate.path)
        fleet.kill(fleet.broker_pid)
        second = wait_until(lambda: constraints.only.enqueue("a", told, gate.path), "it is taken in")
        gate.open()
        if second.is_duplicate:
            assert second == first
        else:  # it was spooled, so its id was told before anybody could know
            with pytest.raises(JobCancelled):
                second.result(timeout=20)
        assert first.result(timeout=20) == "a"


def test_unique_until_the_start(told: str, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    first = constraints.until_start.enqueue("a", told, gate.path)
    wait_until(lambda: first.state() is JobState.RUNNING, "it runs")
    blocker = constraints.until_start.enqueue("b", told, gate.path)
    wait_until(lambda: blocker.state() is JobState.RUNNING, "it runs")
    second, third = (constraints.until_start.enqueue("a", told, gate.path) for _ in range(2))
    assert second != first
    assert third == second
    gate.open()
    assert second.result(timeout=20) == "a"


def test_a_throttle_counts_also_what_has_ended() -> None:
    first = constraints.throttled.enqueue("a")
    first.result(timeout=20)
    assert constraints.throttled.enqueue("a") == first
    assert constraints.throttled.enqueue("b") != first


def test_a_debounced_job_runs_once_with_the_last_arguments() -> None:
    jobs = [constraints.debounced.enqueue("a", label) for label in ("first", "second", "third")]
    assert jobs[-1].result(timeout=20) == "third"
    for job in jobs[:-1]:
        with pytest.raises(JobCancelled):
            job.result(timeout=20)


def test_many_at_once_some_of_them_the_same() -> None:
    jobs = constraints.throttled.enqueue_many([(f"n{number % 30}",) for number in range(300)])
    assert sum(not job.is_duplicate for job in jobs) == 30
    assert [job.result(timeout=20) for job in jobs] == [f"n{number % 30}" for number in range(300)]


def test_asyncio_is_told_of_duplicates_too(told: str, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()

    async def main() -> list[bool]:
        jobs = [await constraints.only.aenqueue("async", told, gate.path) for _ in range(2)]
        gate.open()
        await jobs[0]
        return [job.is_duplicate for job in jobs]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == [False, True]


# -- limits


def most_at_once(path: str) -> int:
    """From lines of + and - with their times."""
    events = sorted((float(at), kind) for kind, at in map(str.split, Path(path).read_text().splitlines()))
    count = most = 0
    for _, kind in events:
        count += 1 if kind == "+" else -1
        most = max(most, count)
    return most


def test_concurrency_holds_and_holds_up_nobody(own: Path, told: str, gate: Gate) -> None:
    """Two run at once on four consumers; other jobs go past those that wait."""
    with running(Fleet(own, APP, consumers=4)):
        limited = constraints.two.enqueue_many([(told, 0.05, gate.path)] * 30)
        others = [constraints.note.enqueue(told + ".others", "x") for _ in range(20)]
        for job in others:
            job.result(timeout=20)
        gate.open()
        for job in limited:
            job.result(timeout=20)
        assert most_at_once(told) == 2


def test_concurrency_of_each_key(own: Path, told: str, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    with running(Fleet(own, APP, consumers=3)):
        jobs = [constraints.by_account.enqueue(account, told, gate.path) for account in ("a", "a", "b", "a", "c")]
        wait_until(lambda: sorted(labels(told)) == ["a", "b", "c"], "one of each account runs")
        gate.open()
        for job in jobs:
            job.result(timeout=20)
        assert sorted(labels(told)) == ["a", "a", "a", "b", "c"]


def test_limits_outlive_deaths(own: Path, told: str) -> None:
    """A consumer that dies gives back what it took; a new broker counts anew, with no old consumer there."""
    with running(Fleet(own, APP, consumers=3)) as fleet:
        jobs = constraints.two.enqueue_many([(told, 0.1)] * 30)
        for _ in range(3):
            wait_until(lambda: fleet.status()["totals"]["succeeded"] > 2, "some have ended")
            fleet.kill_consumer()
        fleet.kill(fleet.broker_pid)
        for job in jobs:
            job.result(timeout=20)


def test_no_more_starts_than_the_rate_in_any_span() -> None:
    began = time.time()
    times = sorted(job.result(timeout=20) for job in constraints.rated.enqueue_many([()] * 8))
    assert times[2] - began < 2, "the first ones need not wait"
    assert all(later - earlier >= 1.9 for earlier, later in zip(times, times[3:], strict=False))


def test_a_rate_outlives_the_broker(own: Path) -> None:
    """A new one does not count anew."""
    with running(Fleet(own, APP)) as fleet:
        first = sorted(job.result(timeout=20) for job in constraints.rated.enqueue_many([()] * 3))
        fleet.stop()
        fleet.start()
        assert constraints.rated.enqueue().result(timeout=20) - first[0] >= 1.9


def test_strict_order_of_a_key_through_retries_and_kills(own: Path, told: str) -> None:
    with running(Fleet(own, APP, consumers=2)) as fleet:
        jobs = [
            constraints.ordered.enqueue(account, number, told, fails=number in (1, 4))
            for number in range(8)
            for account in ("a", "b")
        ]
        wait_until(lambda: fleet.totals()["retried"] >= 2, "one of each failed")
        assert labels(told) == ["a-0", "b-0"] or labels(told) == ["b-0", "a-0"]
        fleet.kill(fleet.broker_pid)
        for job in jobs:
            job.result(timeout=30)
    for account in ("a", "b"):
        ran = [label for label in labels(told) if label.startswith(account)]
        assert list(dict.fromkeys(ran)) == [f"{account}-{number}" for number in range(8)]


def test_a_resource_is_shared(told: str) -> None:
    jobs = constraints.on_gpu.enqueue_many([(told, 0.02)] * 10)
    for job in jobs:
        job.result(timeout=20)
    assert most_at_once(told) == 1


def test_a_full_queue_refuses_or_waits(make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    held = [constraints.few.enqueue(gate.path) for _ in range(2)]
    for job in held:
        wait_until(lambda job=job: job.state() is JobState.RUNNING, "it runs")
    constraints.few.enqueue_many([()] * 5)
    with pytest.raises(QueueFull, match=r"5 jobs wait in the queue 'small'.*when_full="):
        constraints.few.enqueue()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: constraints.few.options(when_full="wait").enqueue_many([()] * 12))
        gate.open()
        assert all(job.wait(20) for job in waiting.result(20))


def test_map_waits_for_room() -> None:
    """Its chunks alone are more than may wait."""
    assert len(list(constraints.few.options(when_full="wait").starmap([()] * 40, timeout=20))) == 40


# -- what makes no sense


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"delay": -1}, "delay=-1: use seconds"),
        ({"delay": "5"}, "delay='5': use seconds"),
        ({"expires": "soon"}, "expires='soon': use seconds"),
        ({"priority": "high"}, "priority='high': use a whole number"),
        ({"concurrency": 0}, "concurrency=0: use a whole number"),
        ({"rate": "fast"}, "rate='fast': use a number of starts"),
        ({"rate": "0/m"}, "use a number of starts"),
        ({"resources": ["gpu"]}, "use a dict"),
        ({"resources": {"gpu": 0}}, "is not a name with a whole number"),
        ({"limit_by": ["name"]}, "give concurrency= or rate= as well"),
        ({"ordered_by": ["nobody"]}, "the task has no parameter 'nobody' (it has: name)"),
        ({"unique": 5}, "use True (all arguments)"),
        ({"unique": "name"}, "write unique=['name'] for one of each name"),
        ({"unique": Unique(by="name", period=60)}, "unique='name' would be one key for all jobs of the task"),
        ({"concurrency": 1, "limit_by": "name"}, "write limit_by=['name']"),
        ({"ordered_by": "name"}, "write ordered_by=['name']"),
        ({"when_full": "drop"}, 'use "raise" or "wait"'),
        ({"when_full": "wait"}, "when_full= needs a queue with a limit: give max_queued= as well"),
        ({"max_queued": 0}, "max_queued=0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], told: str) -> None:
    app = TaskQ("options")
    with pytest.raises(ConfigError) as raised:
        app.task(name="t", **options)(lambda name: name)  # type: ignore[call-overload]
    assert told in str(raised.value)


def test_a_key_of_parameters_that_the_task_does_not_tell() -> None:
    function: Callable[..., Any] = max
    with pytest.raises(ConfigError, match=r"unique=\['key'\]: the parameters of the task are not known"):
        TaskQ("options").task(name="largest", unique=["key"])(function)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"at": datetime(2030, 1, 1)}, "has no time zone"),
        ({"at": 5}, "use a datetime with a time zone"),
        ({"at": datetime.now(UTC), "delay": 1}, "give one of them"),
    ],
)
def test_moments_that_make_no_sense(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        constraints.throttled.options(**options)  # type: ignore[typeddict-item]


def test_options_that_are_none() -> None:
    with pytest.raises(TypeError, match="no such option: 'priorty'; there are after, at, "):
        constraints.throttled.options(priorty=1)  # type: ignore[call-arg]


def test_one_moment_for_a_whole_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"options\(at=\.\.\.\)"):
        TaskQ("options").task(at=datetime.now(UTC))(lambda: None)


def test_what_would_expire_before_it_starts_is_refused() -> None:
    with pytest.raises(ConfigError, match="expire before it may start"):
        constraints.throttled.options(delay=10, expires=5).enqueue("x")


def test_map_needs_a_job_for_each_item() -> None:
    with pytest.raises(ConfigError, match="use enqueue_many"):
        list(constraints.throttled.map(["a"]))


def test_a_period_that_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="period=0"):
        Unique(period=0)
