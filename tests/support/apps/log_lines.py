"""The tasks of the tests of what the log says of jobs: they print in odd ways, hang, and die."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a consumer has no other way to `apps`
from apps.jobs import block_forever_in_c, die, pass_gate, record

from taskq import JobTimeout, TaskQ, current_job

q = TaskQ("tests", url="/proc/nonexistent" if __name__ == "apps.log_lines" else None)


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
    """Logs an exception in both ways that there are."""
    try:
        raise LookupError("!" * length + " no such thing")
    except LookupError:
        current_job().log.exception("by job log")
        logging.getLogger("app").exception("by logging")


@q.task(retries=0)
def chat(lines: int, how: str = "", width: int = 0) -> None:
    """Prints very much, and then ends in one of several ways."""
    for number in range(lines):
        print(f"chatter {number}".ljust(width))
    if how == "raise":
        raise ValueError("no more")
    die(how)


@q.task
def wait_at(gate: str, path: str) -> None:
    print(f"waiting at {gate}")
    record(path, "start")
    pass_gate(gate)


@q.task(timeout=0.3, retries=1, backoff=[0.1])
def hang_once(path: str, gate: str) -> None:
    """Is interrupted at its first start."""
    record(path, "start")
    if current_job().attempt == 1:
        pass_gate(gate)


@q.task(retries=0)
def note_why_it_ends(path: str) -> None:
    """Tells what it was interrupted with, in a thread as well."""
    record(path, "start")
    try:
        while True:
            time.sleep(0.01)
    except JobTimeout as timeout:
        Path(path + ".why").write_text(f"{timeout}\n")
        raise


@q.task(timeout=0.3, retries=0)
def hang_in_c(path: str) -> None:
    record(path, "start")
    print("going in")
    block_forever_in_c()


@q.task(retries=0, max_crashes=1)
def crash(how: str, lines: int) -> None:
    """Dies with last words."""
    for number in range(lines):
        print(f"word {number}")
    die(how)
