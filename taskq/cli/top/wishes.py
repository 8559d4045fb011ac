"""What upper-case keys do, and what is asked before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from getpass import getuser

from taskq.cli.top.snapshot import Target
from taskq.client.app import TaskQ
from taskq.model.errors import ConfigError
from taskq.model.info.words import count_of

RETRY, CANCEL, PAUSE = "R", "C", "P"


@dataclass(frozen=True, slots=True)
class Wish:
    """Something to be done.

    Attributes:
        question: what is asked before.
        does: does it, and returns what was done, in a sentence. Raises TaskQError if it cannot be done.
    """

    question: str
    does: Callable[[], str]


def wish_of(key: str, target: Target | None, q: TaskQ) -> Wish:
    """What a key means for a row.

    Raises:
        ConfigError: nothing; the message says what the key is for.
    """
    match key, target:
        case "R", Target(kind="job" | "event", job_id=str(job_id)) if job_id:
            return Wish(f"Retry job {job_id}?", lambda: _retry(q, job_id))
        case "R", Target(kind="failures" | "task", task=str(task)) if task:
            return Wish(f"Retry all failed jobs of task {task}?", lambda: _retry_all(q, task))
        case "C", Target(kind="job" | "consumer" | "event", job_id=str(job_id)) if job_id:
            return Wish(f"Cancel job {job_id}? If it runs, it is stopped.", lambda: _cancel(q, job_id))
        case "P", Target(kind="schedule", schedule=name, is_paused=is_paused):
            verb = "Resume" if is_paused else "Pause"
            return Wish(f"{verb} schedule {name}?", lambda: _pause_schedule(q, name, not is_paused))
        case "P", Target(kind="queue" | "task" | "job", queue=str(queue)) if queue:
            is_paused = target is not None and target.is_paused
            verb = "Resume" if is_paused else "Pause"
            told = "" if is_paused else " Running jobs may finish, and no other job starts."
            return Wish(f"{verb} queue {queue}?{told}", lambda: _pause(q, queue, not is_paused))
    raise ConfigError(_FOR[key])


_FOR = {
    "R": "R retries a failed job, or all of a task or a kind of failure: choose one of them first",
    "C": "C cancels a job: choose one first",
    "P": "P pauses and resumes queues and schedules: choose one first",
}


def _retry(q: TaskQ, job_id: str) -> str:
    q.job(job_id).retry()
    return f"job {job_id} is queued again"


def _retry_all(q: TaskQ, task: str) -> str:
    return f"{count_of(q.retry_failed(task=task), 'job')} of task {task} queued again"


def _cancel(q: TaskQ, job_id: str) -> str:
    is_cancelled = q.job(job_id).cancel()
    return f"job {job_id} {'is cancelled' if is_cancelled else 'had ended already'}"


def _pause(q: TaskQ, queue: str, is_paused: bool) -> str:
    changed = q.client.pause([queue], is_paused, f"{getuser()}, in taskq top")
    already = "" if changed else " already"
    return f"queue {queue} {'is paused' if is_paused else 'runs'}{already}"


def _pause_schedule(q: TaskQ, name: str, is_paused: bool) -> str:
    if is_paused:
        q.schedules.pause(name)
    else:
        q.schedules.resume(name)
    return f"schedule {name} {'is paused' if is_paused else 'runs'}"
