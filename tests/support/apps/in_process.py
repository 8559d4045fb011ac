"""Tasks for the tests of `taskq.testing`, which run them here and in real fleets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from taskq import Cancel, CurrentJob, JobTimeout, Retry, Snooze, TaskQ, current_job, gather

q = TaskQ("tests-in-process", url="/proc/nonexistent" if __name__ == "apps.in_process" else None)

#: What ran in this process.
ran: list[Any] = []


@q.task(retries=2)
def work(label: str, fails: int = 0) -> str:
    """Fails in its first attempts."""
    ran.append(label)
    attempt = current_job().attempt
    if attempt <= fails:
        raise ValueError(f"attempt {attempt} of {label}")
    return label


@q.task(retries=1)
def asks(*wishes: str) -> int:
    """Raises what is given for each attempt, and returns the number of the first attempt for which nothing is given."""
    attempt = current_job().attempt
    if attempt <= len(wishes):
        raise {"retry": Retry(delay=5), "snooze": Snooze(60), "cancel": Cancel(), "late": JobTimeout()}[
            wishes[attempt - 1]
        ]
    return attempt


@q.task
async def work_async(label: str) -> str:
    """The same, as a coroutine."""
    await asyncio.sleep(0)
    ran.append(current_job().id)
    return label


@q.task
def family(count: int) -> list[str]:
    """Enqueues others and waits for them."""
    children = gather([work.enqueue(f"child {number}") for number in range(count)])
    assert current_job().task == "family"
    return children


@q.task
def typed(day: date, path: Path, many: np.ndarray[Any, Any] | None = None) -> str:
    """Arguments that are cast."""
    return f"{type(day).__name__} {isinstance(path, Path)}"


@q.task(retries=0)
def unfit() -> object:
    """Returns something that cannot be serialized."""
    return object()


@q.task
def count_to(end: int) -> Iterator[int]:
    """Yields numbers."""
    yield from range(end)


@q.task
def chain(left: int) -> None:
    """Enqueues the next of a chain."""
    ran.append(left)
    if left:
        chain.enqueue(left - 1)


@q.task
def hurries() -> None:
    """Enqueues a job that is more urgent than those that wait."""
    work.options(priority=9).enqueue("urgent")


@q.task(retries=1)
def parent(label: str, fails: int = 0) -> None:
    """Enqueues a child for the case that it succeeds, in each attempt."""
    work.options(on_success=True).enqueue(f"child of {label}, attempt {current_job().attempt}")
    work.enqueue(label, fails).result()


@q.task(retries=2)
def resumes(fails: int) -> list[int]:
    """Continues where the last attempt was."""
    job = current_job()
    done: list[int] = job.last_checkpoint or []
    done = [*done, job.attempt]
    job.checkpoint(done)
    job.progress(len(done), fails + 1, "goes on")
    if job.attempt <= fails:
        raise ValueError("not yet")
    return done


@q.task
def collect(found: Any) -> list[Any]:
    """The step after others."""
    return found if isinstance(found, list) else [found]


hooked = TaskQ("tests-hooked", url="/proc/nonexistent" if __name__ == "apps.in_process" else None)


@hooked.on_consumer_start
def start() -> None:
    """What a consumer does first."""
    ran.append("start")


@hooked.on_consumer_stop
def stop() -> None:
    """And last."""
    ran.append("stop")


@hooked.middleware
def around(_job: CurrentJob) -> Iterator[None]:
    """Around each job."""
    ran.append("before")
    yield
    ran.append("after")


@hooked.task
def looks() -> tuple[float, float | None, str] | None:
    """Reports its progress, and looks at what others see of it."""
    ran.append("looks")
    current_job().progress(1, 2, "half")
    progress = hooked.job(current_job().id).info().progress
    return progress and (progress.done, progress.total, progress.note)
