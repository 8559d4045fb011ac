"""Tasks for the tests of `taskq.testing`, which run them here and in real fleets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from taskq import TaskQ, current_job, gather

q = TaskQ("tests-rehearsed", url="/proc/nonexistent" if __name__ == "apps.rehearsed" else None)

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
    """Returns what cannot travel."""
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
    """Enqueues something more urgent than what waits."""
    work.options(priority=9).enqueue("urgent")
