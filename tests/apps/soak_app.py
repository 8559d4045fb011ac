"""The jobs of the soak. Each notes what it does in a file of its process, in one write, so that a kill leaves whole
lines; the soak believes these files and not the fleet."""

from __future__ import annotations

import json
import os
import signal
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from taskq import TaskQ, current_job

q = TaskQ("soak")
NOTES = Path(os.environ.get("TASKQ_SOAK_NOTES", "."))
_notes: dict[int, int] = {}


def digest(number: int, size: int) -> str:
    """What a job was asked to do, in few letters."""
    return sha256(f"{number} {size}".encode()).hexdigest()[:12]


def note(*line: Any) -> None:
    """Writes a line to the file of this process."""
    pid = os.getpid()
    if pid not in _notes:
        _notes[pid] = os.open(NOTES / f"jobs-{pid}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(_notes[pid], json.dumps([*line, pid, time.monotonic()]).encode() + b"\n")


def _run(number: int, text: str, seconds: float, end: str) -> int:
    job = current_job()
    note("start", job.id, job.attempt, digest(number, len(text)))
    finish_at = time.perf_counter() + seconds
    while time.perf_counter() < finish_at:
        pass
    if end == "die" or (end == "die_once" and job.attempt == 1):
        note("death", job.id, job.attempt)
        os.kill(os.getpid(), signal.SIGKILL)
    fails = end == "fail" or (end == "fail_once" and job.attempt == 1)
    note("end", job.id, job.attempt, not fails)
    if fails:
        raise ValueError(f"as it was told: {number}")
    return number


@q.task(retries=2)
def work(number: int, text: str, seconds: float) -> int:
    """Works a little, and succeeds."""
    return _run(number, text, seconds, "")


@q.task(retries=1)
def fail(number: int, text: str, seconds: float) -> int:
    """Fails, again and again."""
    return _run(number, text, seconds, "fail")


@q.task(retries=2)
def fail_once(number: int, text: str, seconds: float) -> int:
    """Fails the first time."""
    return _run(number, text, seconds, "fail_once")


@q.task(retries=1, max_crashes=3)
def die(number: int, text: str, seconds: float) -> int:
    """Kills its process, again and again."""
    return _run(number, text, seconds, "die")


@q.task(retries=1, max_crashes=3)
def die_once(number: int, text: str, seconds: float) -> int:
    """Kills its process the first time."""
    return _run(number, text, seconds, "die_once")


LIMITS = {"work": (2, 3), "fail": (1, 3), "fail_once": (2, 3), "die": (1, 3), "die_once": (1, 3)}
