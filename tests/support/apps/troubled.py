"""The tasks of a fleet in trouble: they crash, hang, flood, fail in five ways, and wait for many reasons."""

from __future__ import annotations

import ctypes
import json
import os
import time

from taskq import TaskQ, current_job

q = TaskQ("troubled", url="/proc/nonexistent" if __name__ == "apps.troubled" else None)


@q.task(queue="bulk", rate="50/s")
def record_hit(number: int) -> int:
    """One of very many."""
    return number


@q.task(retries=0)
def parse(text: str) -> object:
    """Fails in the library that it calls."""
    return json.loads(text)


@q.task(retries=0)
def charge(customer: int) -> int:
    """Fails, and says what came before."""
    try:
        return {1: 100}[customer]
    except KeyError as error:
        raise LookupError(f"customer {customer} has no account") from error


@q.task(retries=3, backoff=[3600])
def call_partner(order: int) -> None:
    """Fails, and is tried again in an hour."""
    print(f"calling the partner for order {order}")
    raise ConnectionError("503 from partner.example.com")


@q.task(timeout=0.2, retries=0)
def too_slow() -> None:
    """Runs for too long."""
    time.sleep(60)


@q.task(retries=0, max_crashes=1)
def resize(path: str) -> None:
    """Dies in C, with last words."""
    print(f"reading {path}", flush=True)
    ctypes.string_at(0)


@q.task(queue="stuck")
def hang(path: str) -> None:
    """Waits in C for ever, with the interpreter's lock: nothing in Python can end it."""
    mutex = ctypes.create_string_buffer(64)
    with open(path, "w") as file:
        file.write(f"{os.getpid()}\n")
    ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@q.task
def flood(lines: int) -> int:
    """Prints more than anybody wants to read."""
    for number in range(lines):
        print(f"line {number}")
    current_job().log.warning("flooded", lines=lines)
    return lines


@q.task(queue="slow", concurrency=1)
def export(gate: str) -> None:
    """Runs until its gate is opened; only one may."""
    current_job().progress(3, 10, "waiting for the gate")
    descriptor = os.open(gate, os.O_RDONLY)
    os.read(descriptor, 1)
    os.close(descriptor)


@q.task(queue="mail", rate="1/h")
def newsletter(to: str) -> None:
    """May start once an hour."""


@q.task
def report(*before: object) -> int:
    """Comes after others."""
    return len(before)


@q.periodic("10 3 * * *", name="nightly")
@q.task
def clean() -> None:
    """By the clock."""


@q.redact
def hide(task: str, args: list[object], kwargs: dict[str, object]) -> None:
    """No answer may show a password."""
    if "password" in kwargs:
        kwargs["password"] = "***"
