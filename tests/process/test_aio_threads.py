"""The asyncio client starts no thread, whatever it is asked, with and without a fleet; the spool alone has one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import Fleet, running

from taskq import (
    BrokerUnavailable,
    JobFailed,
    JobNotFound,
    JobState,
    JobStateError,
    ScheduleNotFound,
    aas_completed,
    agather,
    await_any,
    chain,
    group,
)

q = jobs.q


@contextmanager
def threads_forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No thread starts in the block; yields the names of those that did."""
    started: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", note)
        yield started
    assert started == []


async def items_of(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def every_operation() -> None:
    """Each pair of TaskQ, Task, Job, workflows, schedules and the functions that wait, at least once."""
    first = await jobs.add.aenqueue(1, 2)
    assert await first.await_(timeout=20)
    assert await first.aresult() == 3
    assert (await first.astate(), (await first.ainfo()).task) == (JobState.SUCCEEDED, "add")
    assert await (await q.aenqueue("add", 1)).aresult() == 2
    many = await jobs.add.aenqueue_many([(number,) for number in range(3_000)])
    assert await agather(many) == list(range(1, 3_001))
    assert len(await items_of(aas_completed(many[:10]))) == 10
    assert await (await await_any(many)).aresult() > 0
    assert await items_of(jobs.add.amap(range(100))) == list(range(1, 101))
    assert sorted(await items_of(jobs.add.astarmap([(1, 1), (2, 2)], ordered=False))) == [2, 4]
    assert await items_of((await jobs.count.aenqueue(3)).aitems()) == [0, 1, 2]
    failed = await jobs.fail.options(retries=0).aenqueue("as it must")
    with pytest.raises(JobFailed):
        await failed
    await failed.aretry()
    with pytest.raises(JobFailed):
        await failed
    assert await q.aretry_failed() == 1
    await failed.await_()
    assert [info.id for info in await q.ajobs("failed")] == [failed.id]
    await failed.apurge()
    delayed = await jobs.add.options(delay=3_600).aenqueue(1)
    assert await delayed.acancel()
    assert await q.apurge("cancelled") == 1
    whole = await group(jobs.add.step(number) for number in range(3)).aenqueue()
    assert await whole.aresults() == [1, 2, 3]
    assert (await whole.acounts(), await whole.aretry(), await whole.acancel()) == ({JobState.SUCCEEDED: 3}, 0, 0)
    last = await chain(jobs.add.step(1), jobs.add.step()).aenqueue()
    assert (await last, await last.aretry_all(), await last.acancel_all()) == (3, 0, 0)
    assert await q.apause("other") == ["other"]
    assert await q.aresume("other") == ["other"]
    assert (await q.astatus()).broker.state == "running"
    await schedules()


async def schedules() -> None:
    """Each pair of the schedules."""
    await q.schedules.aadd("nightly", jobs.add, "0 3 * * *", args=(1,))
    assert (await q.schedules.apause("nightly")).is_paused
    assert not (await q.schedules.aresume("nightly")).is_paused
    run = await q.schedules.arun("nightly")
    assert len(run.id) == 32
    assert [info.name for info in await q.schedules.alist()] == ["nightly"]
    await q.schedules.aremove("nightly")


def test_no_thread_with_a_fleet(shared: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    with threads_forbidden(monkeypatch):
        asyncio.run(asyncio.wait_for(every_operation(), 60))


async def every_question(known: str) -> None:
    """What a directory without a fleet can be asked."""
    job = q.job(known)
    assert (await job.ainfo()).state is JobState.FAILED
    assert [info.id for info in await q.ajobs()] == [known]
    assert (await q.astatus()).broker.state == "stopped"
    assert await q.apause("other") == ["other"]
    assert await q.aresume("other") == ["other"]
    await schedules()
    await job.aretry()
    with pytest.raises(JobStateError):
        await job.aretry()
    assert await job.acancel()
    assert await q.aretry_failed() == 0
    await job.apurge()
    with pytest.raises(JobNotFound):
        await job.apurge()
    with pytest.raises(ScheduleNotFound):
        await q.schedules.aremove("nightly")
    assert await q.apurge("queued") == 1  # of the schedule


def test_no_thread_without_a_fleet(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Fleet(home, consumers=1)):
        job = jobs.fail.options(retries=0).enqueue("as it must")
        job.wait(20)
    with threads_forbidden(monkeypatch):
        asyncio.run(asyncio.wait_for(every_question(job.id), 60))


@pytest.mark.not_on_postgres("a database is there without a fleet")
def test_no_thread_where_a_fleet_has_never_been(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only to look into the spool takes one."""
    asked: list[Callable[[], Any]] = [q.ajobs, q.astatus, q.schedules.alist, q.aretry_failed, lambda: q.apause("other")]
    for ask in asked:
        with threads_forbidden(monkeypatch), pytest.raises(BrokerUnavailable, match="no fleet answers"):
            asyncio.run(ask())


@pytest.mark.not_on_postgres("a database has no spool")
def test_the_spool_has_a_thread(home: Path) -> None:
    """To sync a file takes milliseconds, in which the loop goes on."""
    before = threading.active_count()

    async def main() -> int:
        await jobs.add.aenqueue(1)
        return threading.active_count()

    assert asyncio.run(main()) == before + 1
