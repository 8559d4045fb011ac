"""Tasks with options: when they run, how often, and with which others. See apps/jobs.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a consumer has no other way to `apps`
from apps.jobs import append, pass_gate, record

from taskq import TaskQ, Unique, current_job

q = TaskQ("tests-constraints", url="/proc/nonexistent" if __name__ == "apps.constraints" else None)


@q.task
def note(path: str, label: str) -> float:
    """Notes that it ran. Returns the time."""
    now = time.time()
    record(path, label)
    return now


@q.task
def hold(path: str, gate: str) -> None:
    """Runs until the gate opens."""
    record(path, "holds")
    pass_gate(gate)


@q.task(unique=["name"])
def only(name: str, path: str, gate: str) -> str:
    """One for each name."""
    record(path, name)
    pass_gate(gate)
    return name


@q.task(unique=Unique(by=["name"], until="start"))
def until_start(name: str, path: str, gate: str) -> str:
    """One that waits for each name."""
    record(path, name)
    pass_gate(gate)
    return name


@q.task(unique=Unique(by=["name"], period=1000))
def throttled(name: str) -> str:
    """One in a long time for each name."""
    return name


@q.task(unique=Unique(by=["name"], replace=True), delay=0.3)
def debounced(name: str, label: str) -> str:
    """The last one counts."""
    return label


@q.task(concurrency=2)
def two(path: str, seconds: float, gate: str = "") -> None:
    """At most two at once, whatever the number of consumers."""
    append(path, f"+ {time.monotonic()}")
    if gate:
        pass_gate(gate)
    time.sleep(seconds)
    append(path, f"- {time.monotonic()}")


@q.task(concurrency=1, limit_by=["account"])
def by_account(account: str, path: str, gate: str) -> None:
    """One at a time for each account."""
    record(path, account)
    pass_gate(gate)


@q.task(rate="3/2s")
def rated() -> float:
    """Three in two seconds."""
    return time.time()


@q.task(ordered_by=["account"], retries=2, max_crashes=3)
def ordered(account: str, number: int, path: str, fails: bool = False) -> None:
    """In order, even if one of them fails at first."""
    if fails and current_job().attempt == 1:
        raise ValueError("the first time")
    record(path, f"{account}-{number}")


@q.task(resources={"gpu": 1})
def on_gpu(path: str, seconds: float) -> None:
    """Needs the gpu."""
    append(path, f"+ {time.monotonic()}")
    time.sleep(seconds)
    append(path, f"- {time.monotonic()}")


@q.task(max_queued=5, queue="small")
def few(gate: str = "") -> None:
    """At most five wait."""
    if gate:
        pass_gate(gate)
