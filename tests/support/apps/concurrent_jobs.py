"""Jobs that run side by side with others, and use what `current_job` offers. See apps/jobs.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from apps.jobs import pass_gate

from taskq import CurrentJob, JobTimeout, Retry, TaskQ, current_job

q = TaskQ("tests-concurrent-jobs")


@q.middleware
def tells_its_end(job: CurrentJob) -> Iterator[None]:
    ended_by = "nothing"
    try:
        yield
    except BaseException as error:
        ended_by = type(error).__name__
        raise
    finally:
        job.log.info("around", ended_by=ended_by, same=job is current_job())


def _keep_and_go_on(number: int) -> list[Any]:
    job = current_job()
    if job.last_checkpoint is None:
        job.checkpoint({"number": number})
        raise Retry(delay=0)
    return [job.last_checkpoint["number"], job.attempt, job.deadline is not None, job.time_left_s()]


@q.task(timeout=60)
def keeps(number: int) -> list[Any]:
    return _keep_and_go_on(number)


@q.task(timeout=60)
async def keeps_async(number: int) -> list[Any]:
    return _keep_and_go_on(number)


def _keep_until_interrupted() -> list[Any]:
    job, count = current_job(), 0
    if job.last_checkpoint is not None:
        return [job.attempt, job.last_checkpoint]
    try:
        while True:
            count += 1
            job.checkpoint("x" * 50_000)
    except JobTimeout:
        job.checkpoint("cleaned up")
        raise
    finally:
        job.log.info("kept", count=count)


@q.task(timeout=0.4, backoff=[0])
def sends() -> list[Any]:
    return _keep_until_interrupted()


@q.task(timeout=0.4, backoff=[0])
async def sends_async() -> list[Any]:
    return _keep_until_interrupted()


@q.task
def half_way(gate: str) -> None:
    current_job().progress(1, 2, "half")
    pass_gate(gate)


@q.task
async def part(number: int, gate: str) -> None:
    current_job().progress(number, 10, f"part {number}")
    await asyncio.to_thread(pass_gate, gate)


@q.task(cpu_timeout=5)
def computes() -> None:
    pass


@q.task(memory_limit="1GB")
async def takes_memory() -> None:
    pass
