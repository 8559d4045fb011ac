"""The tasks of the tests of what the log tells: they print in odd ways, hang, and die."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a consumer has no other way to `apps`
from apps.jobs import pass_gate, record

from taskq import TaskQ, current_job

q = TaskQ("tests", url="/proc/nonexistent" if __name__ == "apps.telling" else None)


@q.task
def print_without_end(text: str, how: str = "print") -> None:
    """Leaves its last line without an end."""
    if how == "descriptor":
        os.write(1, text.encode())
    else:
        print(text, end="")


@q.task
def print_whole(text: str) -> None:
    print(text)


@q.task
def log_behind(text: str) -> None:
    """Writes an event behind text that has no line end."""
    os.write(2, text.encode())
    current_job().log.info("an event", size=3)


@q.task
def log_exceptions(length: int = 0) -> None:
    """Tells of an exception in the two ways that there are."""
    try:
        raise LookupError("!" * length + " no such thing")
    except LookupError:
        current_job().log.exception("by job log")
        logging.getLogger("app").exception("by logging")


@q.task
def wait_at(gate: str, path: str) -> None:
    record(path, "start")
    pass_gate(gate)
