"""What a job can know of itself: `current_job()`."""

from __future__ import annotations

import json
import os
import sys
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from taskq.errors import TaskQError
from taskq.limits import MAX_OUTPUT_LINE_BYTES

#: Begins a line of output that is a structured event, as in RFC 7464; all other lines are taken as plain text.
RECORD_MARK = "\x1e"
#: Begins a line that tells which job wrote it, where several run in a process: the mark, the job's number, the mark.
JOB_MARK = "\x1d"


class CurrentJob:
    """The job that this process is running.

    Attributes:
        id: the job's id, 32 hexadecimal digits.
        task: the name of its task.
        attempt: 1 for the first start, 2 for the next ...
    """

    def __init__(self, job_id: bytes, task: str, attempt: int) -> None:
        self.id = job_id.hex()
        self.task = task
        self.attempt = attempt

    def __repr__(self) -> str:
        return f"<CurrentJob {self.id} {self.task} attempt {self.attempt}>"

    @cached_property
    def log(self) -> Any:
        """A structlog logger bound to this job: ``log.info("resized", width=640)``. `taskq logs` shows the event with
        its fields, and with the job's id, task and attempt."""
        import structlog  # takes 60-160 ms to import: only jobs that log this way pay for it

        return structlog.wrap_logger(
            _RecordLogger(),
            processors=[structlog.processors.format_exc_info],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )


class _RecordLogger:
    """Ends structlog's chain: writes each event as one marked line, which the broker reads and completes."""

    def _write(self, level: str, fields: dict[str, Any]) -> None:
        write_record(level, fields)

    def __getattr__(self, level: str) -> Any:
        if level.startswith("_"):
            raise AttributeError(level)
        return lambda **fields: self._write("error" if level in ("exception", "critical", "fatal") else level, fields)


def write_record(level: str, fields: dict[str, Any]) -> None:
    """Writes a structured event to this process's output, in one write so that threads do not mix."""
    line = json.dumps({"level": level, **fields}, default=repr)
    if len(line) > MAX_OUTPUT_LINE_BYTES - 2:
        line = json.dumps({"level": level, "event": line[: MAX_OUTPUT_LINE_BYTES // 2] + " ..."})
    sys.stdout.flush()
    seated = _seated.get()
    os.write(2, f"{seated.mark if seated else ''}{RECORD_MARK}{line}\n".encode())


_running: tuple[bytes, str, int] | None = None  # written by `taskq.runner` alone
_current: CurrentJob | None = None


def begin(job_id: bytes, task: str, attempt: int) -> None:
    """Notes which job runs from now on in this process."""
    global _running, _current  # noqa: PLW0603  one process runs one job at a time
    _running = job_id, task, attempt
    _current = None


def end() -> None:
    """Notes that no job runs."""
    global _running, _current  # noqa: PLW0603
    _running = _current = None


class Seated:
    """One of several jobs that run in this process: what `begin` notes for one that runs alone.

    It belongs to a context, so a job's coroutines, their tasks, and `asyncio.to_thread` know their job.
    """

    __slots__ = ("_job", "_running", "mark", "rests")

    def __init__(self, number: int, job_id: bytes, task: str, attempt: int) -> None:
        self.mark = f"{JOB_MARK}{number}{JOB_MARK}"
        self.rests: dict[int, str] = {}  # what it wrote of lines that have no end yet, by descriptor
        self._running = job_id, task, attempt
        self._job: CurrentJob | None = None

    def job(self) -> CurrentJob:
        """The job, for its own use."""
        if self._job is None:
            self._job = CurrentJob(*self._running)
        return self._job


_seated: ContextVar[Seated | None] = ContextVar("taskq_seated", default=None)
#: Which of several jobs runs in this context, or None; and the way to say so.
seated = _seated.get
sit = _seated.set


def current_job() -> CurrentJob:
    """The job that is running: its id, attempt and a bound logger.

    With `--threads` a thread that the job itself has started does not know it, unless by `asyncio.to_thread` or
    `contextvars.copy_context().run`.

    Raises:
        TaskQError: called outside a job.
    """
    global _current  # noqa: PLW0603  made when it is asked for: most jobs do not
    if _running is None:
        seated = _seated.get()
        if seated is not None:
            return seated.job()
        raise TaskQError("current_job() was called outside a job")
    if _current is None:
        _current = CurrentJob(*_running)
    return _current
