"""The tasks of tests/postgres_soak.py. A job notes its start and its end, each in one write: label, id, attempt, machine,
process and time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from taskq import TaskQ, current_job

q = TaskQ("tests", url="/proc/nonexistent" if __name__ == "apps.soak_machines" else None)


def _note(path: str, what: str, label: str) -> str:
    job, machine = current_job(), Path(os.environ["XDG_STATE_HOME"]).name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    line = f"{what} {label} {job.id} {job.attempt} {machine}.{os.getpid()} {time.monotonic()}\n"
    os.write(descriptor, line.encode())
    os.close(descriptor)
    return f"{machine}.{os.getpid()} {job.attempt}"


def _run(path: str, label: str, seconds: float) -> str:
    _note(path, "start", label)
    time.sleep(seconds)
    return _note(path, "end", label)


@q.task(max_crashes=1_000)
def work(path: str, label: str, seconds: float) -> str:
    """A job that succeeds."""
    return _run(path, label, seconds)


@q.task(max_crashes=1_000, retries=3, backoff=[0.1])
def fails_once(path: str, label: str) -> str:
    """A job whose first attempt fails."""
    _note(path, "start", label)
    if current_job().attempt == 1:
        _note(path, "fail", label)
        raise ValueError(label)
    return _note(path, "end", label)


@q.task(max_crashes=1_000)
def follow(_before: str, path: str, label: str) -> str:
    """A job that comes after another."""
    return _run(path, label, 0.0)
