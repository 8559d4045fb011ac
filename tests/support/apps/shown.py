"""Jobs that a dashboard has to show: of all kinds, and some that try to be more than text."""

from __future__ import annotations

import os
import signal
from typing import Any

from taskq import TaskQ

q = TaskQ("shown")

#: What a job must never become in a page.
SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>"


@q.task(queue="images")
def thumbnail(path: str, size: int = 256) -> dict[str, Any]:
    """Returns what looks like a page."""
    return {"path": path, "size": size, "html": SCRIPT}


@q.task(queue="mail", retries=0)
def send_mail(to: str, password: str = "") -> None:
    """Fails, with a message that looks like a page, and prints one."""
    print(SCRIPT, flush=True)
    raise ConnectionError(f"{SCRIPT} refused {to}")


@q.task(retries=0, max_crashes=1)
def crash(label: str) -> None:
    """Dies, with last words."""
    print(f"last words of {label} {SCRIPT}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def pass_gate(path: str) -> None:
    """Waits until the test opens a gate."""
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 1)
    os.close(descriptor)


@q.task(queue="slow", concurrency=1)
def hold(gate: str) -> str:
    """Runs until its gate is opened."""
    pass_gate(gate)
    return "held"


@q.task
def step(*before: Any) -> int:
    """A step of a workflow."""
    return len(before)


@q.periodic("0 3 * * *", name="nightly")
@q.task
def clean() -> None:
    """Does nothing, by the clock."""


@q.redact
def hide(task: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """No page may show a password."""
    if "password" in kwargs:
        kwargs["password"] = "***"
