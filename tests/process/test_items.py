"""Generators among the tasks, with real fleets: their items while they run, through kills, retries and limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import Fleet, Gate, running, starts, url_of, wait_until

from taskq import ConfigError, Job, JobCancelled, JobFailed, JobNotFound, JobState, JobTimeout, ResultTimeout, TaskQ
from taskq.consumer.main_thread import SignalledJob
from taskq.consumer.runner import Runner
from taskq.model.attempt import Verdict, failure_in
from taskq.model.limits import MAX_ITEMS
from taskq.protocol.codec import decode_result, encode_call

DEADLINE_S = 60.0


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine on a loop of its own, with a deadline."""
    return asyncio.run(asyncio.wait_for(main, DEADLINE_S))


def items(job: Job[Any], **options: Any) -> list[Any]:
    """All items, by the blocking client."""
    return list(job.items(**{"timeout": 20, **options}))


def aitems(job: Job[Any], **options: Any) -> list[Any]:
    """All items, by the asyncio client."""

    async def main() -> list[Any]:
        return [item async for item in job.aitems(**{"timeout": 20, **options})]

    return run(main())


readers = pytest.mark.parametrize("items", [items, aitems])


@pytest.mark.usefixtures("shared")
@readers
@pytest.mark.parametrize("number", [0, 1, 5, 2_500])
def test_items_and_result(items: Any, number: int) -> None:
    job = jobs.count.enqueue(number)
    assert items(job) == list(range(number))
    assert items(job) == list(range(number)), "they are kept with the job"
    assert items(job, start=number // 2) == list(range(number // 2, number))
    assert items(job, start=number + 7) == []
    assert job.result(timeout=20) == f"{number} in all"


@pytest.mark.usefixtures("shared")
@readers
def test_async_generators(items: Any) -> None:
    job = jobs.acount.enqueue(300)
    assert items(job) == list(range(300))
    assert job.result(timeout=20) is None


@pytest.mark.usefixtures("shared")
@readers
def test_any_values_of_any_size(items: Any) -> None:
    values = [None, (1, {2}), bytes(2_000_000), "x", bytes(900_000), bytes(900_000), {"a": [1]}]
    job = jobs.yield_back.enqueue(values)
    assert items(job) == values
    assert items(job, start=2) == values[2:]


@pytest.mark.usefixtures("shared")
def test_items_before_a_failure() -> None:
    seen = jobs.yield_and_fail.enqueue([1, "b"]).items(timeout=20)
    assert [next(seen), next(seen)] == [1, "b"]
    with pytest.raises(JobFailed, match="no more"):
        next(seen)


@pytest.mark.usefixtures("shared")
def test_items_come_while_the_job_runs(gate: Gate, tmp_path: Path) -> None:
    job = jobs.yield_and_wait.enqueue(str(tmp_path / "yielded"), gate.path)
    seen = job.items(timeout=20)
    assert [next(seen) for _ in range(3)] == ["0 of 1", "1 of 1", "2 of 1"]
    wait_until(lambda: job.state() is JobState.RUNNING, "it is told that it runs")
    with pytest.raises(ResultTimeout, match=r"item 3 within 0.1 s"):
        list(job.items(start=3, timeout=0.1))
    gate.open()
    assert list(seen) == ["3 of 1", "4 of 1"]
    assert job.result(timeout=20) == 1


@pytest.mark.usefixtures("shared")
def test_many_read_one_job_on_one_loop(gate: Gate, tmp_path: Path) -> None:
    async def main() -> None:
        job = await jobs.yield_and_wait.aenqueue(str(tmp_path / "yielded"), gate.path)

        async def read(start: int) -> list[str]:
            return [item async for item in job.aitems(start=start)]

        reading = [asyncio.create_task(read(start)) for start in (0, 3, 3, 4)]
        with pytest.raises(ResultTimeout, match=r"item 4 within 0.1 s"):
            _ = [item async for item in job.aitems(start=4, timeout=0.1)]
        await asyncio.to_thread(starts, tmp_path / "yielded", 1)
        gate.open()
        rest = ["3 of 1", "4 of 1"]
        assert await asyncio.gather(*reading) == [[*(f"{n} of 1" for n in range(3)), *rest], rest, rest, rest[1:]]

    run(main())


@readers
def test_a_consumer_that_is_killed(home: Path, items: Any, gate: Gate, tmp_path: Path) -> None:
    """What was stored of the first attempt stays; the second goes on where that ended."""
    with running(Fleet(home, consumers=1)) as fleet:
        job = jobs.yield_and_wait.enqueue(str(tmp_path / "yielded"), gate.path)
        seen = job.items(timeout=20)
        first = [next(seen) for _ in range(3)]
        [pid] = fleet.consumer_pids()
        fleet.kill(pid)
        assert first + list(seen) == ["0 of 1", "1 of 1", "2 of 1", "3 of 2", "4 of 2"]
        assert items(job) == ["0 of 1", "1 of 1", "2 of 1", "3 of 2", "4 of 2"]
        assert job.result(timeout=20) == 2


def test_a_broker_that_is_killed(home: Path, gate: Gate, tmp_path: Path) -> None:
    with running(Fleet(home, consumers=1)) as fleet:
        job = jobs.yield_and_wait.enqueue(str(tmp_path / "yielded"), gate.path)

        async def read_on() -> list[str]:
            return [item async for item in job.aitems(start=3)]

        async def main() -> None:
            seen = job.items(timeout=20)
            first = [next(seen) for _ in range(3)]
            reading = asyncio.create_task(read_on())
            await asyncio.sleep(0)
            fleet.kill(fleet.broker_pid)
            rest = await asyncio.to_thread(list, seen)
            assert first + rest == ["0 of 1", "1 of 1", "2 of 1", "3 of 2", "4 of 2"]
            assert await reading == ["3 of 2", "4 of 2"]

        run(main())
        fleet.expected.add("broker.died")


@pytest.mark.usefixtures("shared")
@readers
def test_ends_that_are_no_success(items: Any) -> None:
    for how, reason in (("unserializable", "UnserializableItem"), ("large", "TooManyItems"), ("many", "TooManyItems")):
        job = jobs.yield_odd.enqueue(how)
        with pytest.raises(JobFailed, match=reason):
            items(job)
        with pytest.raises(JobFailed, match=reason):
            items(job, start=MAX_ITEMS)
        assert next(job.items()) == "first"
    with pytest.raises(JobNotFound):
        items(jobs.q.job("00" * 16))
    for start in (-1, "0", True):
        with pytest.raises(ConfigError, match="start="):
            items(job, start=start)
    with pytest.raises(JobFailed, match="BadArguments"):
        items(TaskQ("elsewhere", url_of(jobs.q.directory.path)).enqueue("count"))


@pytest.mark.usefixtures("shared")
def test_a_generator_that_takes_too_long(tmp_path: Path) -> None:
    job = jobs.yield_for_ever.enqueue(str(tmp_path / "cleaned"))
    with pytest.raises(JobFailed, match="TimedOut"):
        items(job)
    assert [start.label for start in starts(tmp_path / "cleaned", 1)] == ["cleaned"]


def test_a_timeout_between_two_items() -> None:
    """The signal does not interrupt an item that is being sent: the timeout is raised right behind it."""
    told: list[tuple[int, Any]] = []
    job_id = bytes(range(16))
    job = SignalledJob(1, time.monotonic(), job_id, "count", 1, encode_call(job_id, (5,), {}))

    def send(of: bytes, position: int, item: bytes) -> None:
        if position == 1:
            job.interrupt_code(JobTimeout("over"))
        told.append((position, decode_result(of, item)))

    verdict, _, outcome = Runner(jobs.q, send).run(job)
    assert told == [(0, 0), (1, 1)]
    assert (verdict, failure_in(outcome)[0].type) == (Verdict.FAILED, "TimedOut")


@pytest.mark.usefixtures("shared")
def test_a_generator_that_forks() -> None:
    job = jobs.yield_after_fork.enqueue()
    assert items(job) == [0, 1]
    assert job.result(timeout=20) == 2


@pytest.mark.usefixtures("shared")
def test_a_job_that_is_no_generator() -> None:
    assert items(jobs.add.enqueue(1)) == []


def test_a_cancelled_job_and_a_spooled_one(home: Path, gate: Gate, tmp_path: Path) -> None:
    spooled = jobs.count.enqueue(3)
    with pytest.raises(ResultTimeout):
        items(spooled, timeout=0)
    with running(Fleet(home, consumers=1)):
        assert items(spooled) == [0, 1, 2]
        jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
        starts(tmp_path / "held", 1)
        waiting = jobs.count.enqueue(3)
        assert waiting.cancel()
        with pytest.raises(JobCancelled):
            items(waiting)
        gate.open()


def test_items_without_a_result(start: Callable[..., Fleet]) -> None:
    start()
    job = jobs.count.options(result=False).enqueue(3)
    assert items(job) == [0, 1, 2]
    assert job.result(timeout=20) is None
