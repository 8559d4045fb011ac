"""Tasks that say what happens to them next, and tasks that continue where they were. See apps/jobs.py."""

from __future__ import annotations

import os
import signal
from typing import Any

from apps.jobs import die, pass_gate, record

from taskq import Cancel, JobTimeout, Retry, Snooze, TaskQ, current_job

q = TaskQ("retrying")


class Passing(Exception):
    """An error that passes."""


class Lasting(Passing):
    """An error that does not."""


def by_attempt(attempt: int, error: BaseException) -> float:
    """Waits for what the error says, or gives a wrong answer."""
    wish = error.args[0]
    if wish == "raise":
        raise RuntimeError("no idea")
    return "soon" if wish == "text" else 0.01 * attempt  # type: ignore[return-value]


@q.task(retries=3, backoff=[0.01, 0.02])
def fails_in_steps(path: str) -> None:
    record(path, "start")
    raise Passing("again")


@q.task(retries=2, backoff=by_attempt)
def fails_by_function(path: str, wish: str) -> int:
    record(path, "start")
    if current_job().attempt < 3:
        raise Passing(wish)
    return current_job().attempt


@q.task(retries=2, backoff=[0.01], retry_on=(Passing, ConnectionError), give_up_on=Lasting)
def chooses(path: str, kind: str) -> None:
    record(path, "start")
    raise {"passing": Passing, "lasting": Lasting, "other": ValueError, "connection": ConnectionResetError}[kind](kind)


@q.task(retries=1, backoff=[600])
def wants(path: str, what: str, delay: float = 0.01) -> str:
    """Says at its first start what it wants, past everything that catches exceptions."""
    record(path, what)
    if current_job().attempt > 1:
        return what
    try:
        match what:
            case "retry":
                raise Retry(delay, "the server is busy")
            case "snooze":
                raise Snooze(delay, "too early")
            case "cancel":
                raise Cancel("nobody wants it")
            case "plain cancel":
                raise Cancel
            case "wrong":
                raise Snooze(-1)
    except Exception as error:
        raise Passing("swallowed") from error
    return what


@q.task(retries=1, backoff=[0.01])
async def wants_async(path: str, what: str) -> str:
    return wants(path, what)


@q.task(retries=1, backoff=[0.01])
def snoozes_then_fails(path: str, snoozes: int) -> None:
    """Snoozes some times, then fails until it may not run again."""
    record(path, "start")
    if current_job().attempt <= snoozes:
        raise Snooze(0.01)
    raise Passing("at last")


@q.task(retries=0, max_crashes=3, crash_queue="big")
def dies_once(path: str, how: str) -> list[Any]:
    record(path, "start")
    if current_job().attempt == 1:
        die(how)
    return [current_job().attempt]


@q.task(retries=0, max_crashes=9)
def goes_on(path: str, steps: int, size: int = 0) -> list[int]:
    """Dies right after each checkpoint, and goes on behind it."""
    job = current_job()
    done = job.last_checkpoint or {"steps": []}
    record(path, str(len(done["steps"])))
    if len(done["steps"]) == steps:
        return done["steps"]  # type: ignore[no-any-return]
    job.checkpoint({"steps": [*done["steps"], job.attempt], "ballast": bytes(size)})
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@q.task(retries=3, backoff=[0.01])
def keeps(path: str, gate: str, how: str) -> Any:
    """Keeps something, and ends in one of several ways; its next attempt tells what it found."""
    job = current_job()
    if job.attempt > 1:
        return job.last_checkpoint
    job.checkpoint("first")
    job.checkpoint(("second", {1, 2}))
    assert job.last_checkpoint == ("second", {1, 2})
    record(path, "kept")
    match how:
        case "gate":
            pass_gate(gate)
        case "fail":
            raise Passing("now")
        case "snooze":
            raise Snooze(0.01)
    return "done"


@q.task(retries=0)
def keeps_badly(what: str) -> None:
    current_job().checkpoint(object() if what == "object" else bytes(300_000))


@q.task(retries=0, timeout=30)
def steps(path: str, gate: str, count: int) -> list[Any]:
    """Tells of many steps, then waits."""
    job = current_job()
    for number in range(count):
        job.progress(number + 1, count, f"step {number + 1}")
    record(path, "told")
    pass_gate(gate)
    assert job.deadline is not None
    return [job.time_left_s(), job.deadline.timestamp(), job.deadline.tzinfo is not None]


@q.task(retries=1, backoff=[0.01])
def tells_once(path: str, first: str, second: str) -> None:
    """Tells of progress in its first attempt only, and waits in both."""
    if current_job().attempt == 1:
        current_job().progress(1, 2)
    record(path, "start")
    pass_gate(first if current_job().attempt == 1 else second)
    if current_job().attempt == 1:
        raise Passing("again")


@q.task(retries=0)
def no_deadline() -> list[Any]:
    job = current_job()
    return [job.deadline, job.time_left_s(), job.last_checkpoint]


@q.task(retries=0)
def bad_progress(done: Any, total: Any, note: Any) -> None:
    current_job().progress(done, total, note)


@q.task(retries=0)
def speaks_from_a_fork() -> str:
    """A forked child must not speak on the consumer's socket."""
    job = current_job()
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            job.checkpoint(1)
        except Exception as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    return os.read(reader, 1000).decode()


@q.task(retries=1, timeout=0.2, backoff=[0.01])
def checkpoints_until_late(path: str) -> Any:
    """Is in the middle of a message, most of the time, when its time is over."""
    job = current_job()
    if job.attempt > 1:
        return len(job.last_checkpoint)
    record(path, "start")
    try:
        while True:
            job.checkpoint(bytes(200_000))
    except JobTimeout:
        record(path, "late")
        raise
