"""The tasks of tests/postgres_soak.py. A job notes what it does, each in one write: what, label, id, attempt, process,
time and more."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskq import TaskQ, Unique, current_job

q = TaskQ("tests", url="/proc/nonexistent" if __name__ == "apps.soak_machines" else None)
CRASHES = 1_000


def _process() -> str:
    return f"{Path(os.environ['XDG_STATE_HOME']).name}.{os.getpid()}"


def _note(path: str, what: str, label: str, *more: object) -> None:
    job = current_job()
    words = what, label, job.id, job.attempt, _process(), time.monotonic(), *more
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    os.close(descriptor)


@contextmanager
def _noted(path: str, label: str) -> Iterator[None]:
    _note(path, "start", label)
    try:
        yield
    except BaseException:
        _note(path, "fail", label)
        raise
    _note(path, "end", label)


def _said() -> str:
    """What a job returns: who has decided its end."""
    return f"{_process()} {current_job().attempt}"


def _run(path: str, label: str, seconds: float, fails: int = 0) -> str:
    """Takes its time; the first attempts fail."""
    with _noted(path, label):
        time.sleep(seconds)
        if current_job().attempt <= fails:
            raise ValueError(label)
    return _said()


@q.task(max_crashes=CRASHES)
def work(path: str, label: str, seconds: float) -> str:
    """A job that succeeds."""
    return _run(path, label, seconds)


@q.task(max_crashes=CRASHES, queue="second")
def work_in_second(path: str, label: str, seconds: float) -> str:
    """One of a queue that is paused now and then."""
    return _run(path, label, seconds)


@q.task(max_crashes=CRASHES, retries=3, backoff=[0.1])
def fails_once(path: str, label: str) -> str:
    """A job whose first attempt fails."""
    return _run(path, label, 0.0, fails=1)


@q.task(max_crashes=CRASHES, retries=1, backoff=[0.1])
def fails(path: str, label: str) -> str:
    """A job that fails, again and again."""
    return _run(path, label, 0.0, fails=1_000_000)


@q.task(max_crashes=CRASHES)
def follow(_before: Any, path: str, label: str) -> str:
    """A job that comes after others."""
    return _run(path, label, 0.0)


@q.task(max_crashes=CRASHES)
def dies_once(path: str, label: str) -> str:
    """A job whose process dies."""
    _note(path, "start", label)
    if current_job().attempt == 1:
        _note(path, "death", label)
        os.kill(os.getpid(), signal.SIGKILL)
    _note(path, "end", label)
    return _said()


@q.task(max_crashes=CRASHES, retries=2, backoff=[0.1], timeout=1.5)
def hangs_once(path: str, label: str) -> str:
    """A job that takes too long at first."""
    return _run(path, label, 60.0 if current_job().attempt == 1 else 0.0)


@q.task(max_crashes=CRASHES, concurrency=2)
def two_at_once(path: str, label: str, seconds: float) -> str:
    return _run(path, label, seconds)


@q.task(max_crashes=CRASHES, concurrency=1, limit_by=["key"], retries=2, backoff=[0.1])
def one_of_key(path: str, label: str, seconds: float, key: str) -> str:
    return _run(path, label, seconds)


@q.task(max_crashes=CRASHES, ordered_by=["key"], retries=3, backoff=[0.1, 1.2])
def in_line(path: str, label: str, seconds: float, key: str, fails: int) -> str:
    return _run(path, label, seconds, fails)


@q.task(max_crashes=CRASHES, rate="20/5s")
def rated(path: str, label: str) -> str:
    return _run(path, label, 0.0)


@q.task(max_crashes=CRASHES, rate="4/5s", limit_by=["key"])
def rated_key(path: str, label: str, key: str) -> str:
    return _run(path, label, 0.0)


@q.task(max_crashes=CRASHES, resources={"gpu": 1})
def on_gpu(path: str, label: str, seconds: float) -> str:
    return _run(path, label, seconds)


@q.task(max_crashes=CRASHES, unique=Unique(by=["key"]))
def only_one(path: str, label: str, seconds: float, key: str) -> str:
    return _run(path, label, seconds)


@q.task(max_crashes=CRASHES)
def tick(path: str) -> str:
    """The job of a schedule."""
    return _run(path, f"tick-{current_job().id}", 0.0)


@q.task(max_crashes=CRASHES, retries=3, backoff=[0.1])
def parent(path: str, label: str, fails: int) -> str:
    """Enqueues another job for its success."""
    with _noted(path, label):
        child = f"{label}/{current_job().attempt}@{_process()}"
        job = work.options(on_success=True).enqueue(path, child, 0.0)
        _note(path, "child", label, child, job.id)
        time.sleep(0.02)
        if current_job().attempt <= fails:
            raise ValueError(label)
    return _said()


@q.task(max_crashes=CRASHES)
def items(path: str, label: str, count: int) -> Generator[str, None, str]:
    """Yields while it runs."""
    with _noted(path, label):
        for number in range(count):
            yield f"{label}:{number}"
            time.sleep(0.02)
    return _said()


@q.task(max_crashes=CRASHES, retries=3, backoff=[0.1])
def resumes(path: str, label: str, steps: int) -> str:
    """Goes on where it has been, tells of it, and fails on its way."""
    with _noted(path, label):
        job = current_job()
        done = job.last_checkpoint or 0
        _note(path, "found", label, done)
        for number in range(done + 1, steps + 1):
            job.checkpoint(number)
            _note(path, "kept", label, number)
            job.progress(number, steps, "on its way")
            time.sleep(0.02)
            if number == steps // 2 and job.attempt == 1:
                raise ValueError(label)
    return _said()
