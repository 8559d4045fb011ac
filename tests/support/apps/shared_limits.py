"""Tasks with limits that hold over several machines. Each job sees for itself whether its limit holds: it takes a lock
of the kernel, which is free again as soon as its process is dead. See apps/jobs.py."""

from __future__ import annotations

import fcntl
import os
import time

from apps.jobs import append, pass_gate

from taskq import TaskQ, current_job

q = TaskQ("tests", url="/proc/nonexistent" if __name__ == "apps.shared_limits" else None)
PLACES = 3


def _place(path: str, count: int) -> str:
    """Takes one of some places; "none" if there is none left."""
    for number in range(count):
        descriptor = os.open(f"{path}.place{number}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return f"{descriptor}"  # open until `_leave`, or until the process dies
    return "none"


def _leave(place: str) -> None:
    if place != "none":
        os.close(int(place))


@q.task(concurrency=PLACES, max_crashes=50, retries=0)
def one_of_few(path: str, number: int, duration_s: float = 0.05) -> None:
    place = _place(path, PLACES)
    append(path, f"few start {number} {place}")
    time.sleep(duration_s)
    append(path, f"few end {number} {place}")
    _leave(place)


@q.task(ordered_by=["key"], max_crashes=50, retries=3, backoff=[0.05, 1.2])
def in_line(path: str, key: str, number: int) -> None:
    """Every fourth one fails at first, and one of them a second time: then its fleet gives the others back meanwhile."""
    place = _place(f"{path}.{key}", 1)
    append(path, f"line-{key} start {number} {place}")
    try:
        time.sleep(0.03)
        if number % 4 == 1 and current_job().attempt <= (2 if number == 1 else 1):
            raise ValueError("not yet")
        append(path, f"line-{key} end {number} {place}")
    finally:
        _leave(place)


@q.task(concurrency=1, limit_by=["key"], max_crashes=50)
def hold(gate: str, path: str, key: str, number: int) -> None:
    append(path, f"hold-{key} start {number} {os.getpid()}")
    pass_gate(gate)


@q.task
def hold_shared(gate: str, path: str, number: int) -> None:
    append(path, f"shared start {number} {os.getpid()}")
    pass_gate(gate)


@q.task(rate="6/3s")
def rated(path: str, number: int) -> None:
    append(path, f"rated start {number} {os.getpid()}")


@q.task(resources={"gpu": 1})
def on_gpu(path: str, number: int) -> None:
    append(path, f"gpu start {number} {os.getpid()}")
