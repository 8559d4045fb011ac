"""An application with hooks that note what they do in the file $HOOKS. See apps/jobs.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from apps.jobs import append, record

from taskq import Cancel, CurrentJob, Snooze, TaskQ, current_job

q = TaskQ("hooked")
model: list[str] = []


def tell(line: str) -> None:
    """Notes what happens, in which process."""
    append(os.environ["HOOKS"], f"{line} {os.getpid()}")


@q.on_consumer_start
def load_model() -> None:
    if os.path.exists(os.environ["HOOKS"] + ".no-model"):
        raise FileNotFoundError("no model there")
    model.append(f"model of {os.getpid()}")
    tell("start")


@q.on_consumer_stop
def fail_to_unload() -> None:
    if os.environ.get("HOOK_FAILS") == "stop":
        raise RuntimeError("it does not unload")
    tell("stop-last")


@q.on_consumer_stop
def unload_model() -> None:
    tell("stop-first")


@q.middleware
def outer(job: CurrentJob) -> Iterator[None]:
    tell(f"outer-before-{job.task}")
    try:
        yield
    except BaseException as error:
        tell(f"outer-error-{type(error).__name__}")
        raise
    finally:
        tell("outer-after")


@q.middleware
@contextmanager
def inner(job: CurrentJob) -> Iterator[None]:
    tell(f"inner-before-{job.attempt}")
    try:
        yield
    except LookupError:
        tell("inner-keeps-it")
    except KeyError:
        tell("never")
    except ZeroDivisionError:
        raise Cancel("no numbers") from None
    if job.task == "late":
        raise Snooze(300, "not yet")


@q.task(retries=0)
def works(kind: str = "") -> str:
    tell("job")
    match kind:
        case "lookup":
            raise LookupError("lost")
        case "zero":
            raise ZeroDivisionError
    return model[0]


@q.task(retries=0)
async def works_async(kind: str = "") -> str:
    return works(kind)


@q.task
def late() -> None:
    record(os.environ["HOOKS"] + ".late", current_job().task)


@q.task(retries=0)
def takes_one(number: int) -> Any:
    return number
