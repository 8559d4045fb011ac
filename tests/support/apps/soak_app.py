"""The jobs of the soak. Each notes what it does in a file of its process, in one write, so that a kill leaves whole
lines; the soak believes these files and not the fleet."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from taskq import Retry, TaskQ, current_job

q = TaskQ("soak")
NOTES = Path(os.environ.get("TASKQ_SOAK_NOTES", "."))
if (NOTES / "broken").exists() and "soak_producer" not in sys.argv[0]:
    raise ImportError("this version of the application does not work")
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


class TooMany(Retry):
    """A request that cannot be read."""

    def __init__(self, after: object) -> None:
        super().__init__()
        self.delay = after  # type: ignore[assignment]


@q.task(retries=1)
def unreadable(number: int, text: str, seconds: float) -> int:
    """Ends in a way that cannot be understood."""
    _run(number, text, seconds, "fail_once")
    raise TooMany(("30", -0.5, float("nan"))[number % 3])


@q.task(retries=1, timeout=1)
def hang(number: int, text: str, seconds: float) -> int:
    """Never ends by itself."""
    job = current_job()
    note("start", job.id, job.attempt, digest(number, len(text)))
    try:
        time.sleep(3600.0)
    finally:
        note("end", job.id, job.attempt, False)
    return number


@q.task(retries=1, timeout=1)
def hang_in_c(number: int, text: str, seconds: float) -> int:
    """Never ends, and ignores signals: its process has to be killed."""
    job = current_job()
    note("start", job.id, job.attempt, digest(number, len(text)))
    note("death", job.id, job.attempt)
    mutex, libc = ctypes.create_string_buffer(64), ctypes.PyDLL(None)  # which keeps the interpreter's lock
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
    raise AssertionError("nobody unlocks it")


@q.task(retries=1, max_crashes=2)
def steal(number: int, text: str, seconds: float) -> int:
    """Takes the descriptors of its consumer for files of its own."""
    job = current_job()
    note("start", job.id, job.attempt, digest(number, len(text)))
    note("death", job.id, job.attempt)
    for descriptor in range(3, 64):
        if descriptor not in _notes.values():
            try:
                os.close(descriptor)
            except OSError:
                pass
    for _ in range(48):
        os.open(os.devnull, os.O_RDWR)
    return number


@q.task(retries=1)
def chatter(number: int, text: str, seconds: float) -> int:
    """Prints without end, and without a newline at the end."""
    for line in range(2_000):
        print(f"job {number} says line {line} of many")
    print("and no more", end="")
    return _run(number, text, seconds, "")


@q.task(retries=2, concurrency=1, limit_by=["text"])
def limited(number: int, text: str, seconds: float) -> int:
    """One of its key at a time; most keys are new."""
    return _run(number, text, seconds, "")


@q.task(retries=2, ordered_by=["text"])
def ordered(number: int, text: str, seconds: float) -> int:
    """In the order of its key; most keys are new."""
    return _run(number, text, seconds, "fail_once" if number % 50 == 0 else "")


@q.task(retries=2, rate="200/s")
def rated(number: int, text: str, seconds: float) -> int:
    """At most 200 starts in a second."""
    return _run(number, text, seconds, "")


@q.task(retries=2, priority=9)
def urgent(number: int, text: str, seconds: float) -> int:
    """Has the highest priority."""
    return _run(number, text, seconds, "")


#: Retries, crashes, and whether there is a time limit.
LIMITS = {
    **dict.fromkeys(("work", "fail_once", "limited", "ordered", "rated", "urgent"), (2, 3)),
    **dict.fromkeys(("fail", "die", "die_once", "unreadable", "chatter"), (1, 3)),
    **dict.fromkeys(("hang", "hang_in_c"), (1, 3, True)),
    "steal": (1, 2),
}
