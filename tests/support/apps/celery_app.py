"""An application of Celery, as people have it: nothing in it knows of taskq."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, signals
from celery.exceptions import Reject, SoftTimeLimitExceeded

app = Celery("shop", broker="redis://nowhere.invalid/0", backend="redis://nowhere.invalid/1")
app.conf.update(
    task_routes={"apps.celery_app.routed": {"queue": "mail", "priority": 7}},
    beat_schedule={"each-second": {"task": "apps.celery_app.note", "schedule": 1.0, "args": ("beat",)}},
    timezone="Europe/Berlin",
    result_extended=True,
)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def fail(*_args: Any) -> None:
    raise ArithmeticError("as wished")


def write(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


@app.task
def note(line: str, path: str | None = None) -> str:
    write(path or os.environ["CELERY_NOTES"], line)
    return line


@app.task(bind=True)
def routed(self: Task) -> tuple[str, int]:
    return self.request.delivery_info["routing_key"], self.request.delivery_info["priority"]


@app.task(bind=True, max_retries=3)
def third_time(self: Task) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0.05)
    return int(self.request.retries)


@app.task(bind=True, autoretry_for=(ArithmeticError,), max_retries=2, default_retry_delay=0)
def tried(self: Task, path: str) -> None:
    write(path, str(self.request.retries))
    raise ArithmeticError("again")


@app.task(bind=True)
def replaced(self: Task, x: int) -> None:
    raise self.replace(add.s(x, 1) | add.s(10))


@app.task(bind=True)
def tells_progress(self: Task, path: str) -> str:
    self.update_state(state="PROGRESS", meta={"done": 1})
    wait_for(path)
    return "done"


@app.task(acks_late=True)
def killed_once(path: str, value: int) -> int:
    """Kills its process the first time."""
    write(path, "start")
    if len(Path(path).read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@app.task(acks_late=True)
def plus(x: int, y: int) -> int:
    return x + y


@app.task
def killed(path: str) -> None:
    """Not declared as acks_late: so it must not be repeated."""
    write(path, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(acks_late=True)
def waits(started: str, path: str, value: int = 0) -> int:
    write(started, "start")
    wait_for(path)
    return value


@app.task(soft_time_limit=0.2)
def cleans_up() -> str:
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "not interrupted"


@app.task(time_limit=0.3)
def too_long() -> None:
    time.sleep(30)


@app.task(bind=True, acks_late=True)
def rejects_once(self: Task) -> bool:
    if not self.request.delivery_info["redelivered"]:
        raise Reject(requeue=True)
    return True


@app.task(ignore_result=True)
def ignored(path: str) -> int:
    write(path, "ran")
    return 1


def wait_for(path: str) -> None:
    """Waits until there is such a file."""
    while not Path(path).exists():
        time.sleep(0.01)


@signals.worker_process_init.connect
def tell_start(**_told: Any) -> None:
    if "CELERY_NOTES" in os.environ:
        write(os.environ["CELERY_NOTES"], "process")


@signals.task_success.connect(sender=add)
def tell_success(result: int, **_told: Any) -> None:
    if "CELERY_NOTES" in os.environ:
        write(os.environ["CELERY_NOTES"], f"success {result}")
