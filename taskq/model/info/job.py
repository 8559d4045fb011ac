"""What clients learn about a job. The broker does not use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from taskq.model.job import JobError, JobState, Progress


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a job that has ended.

    Attributes:
        number: 1 for the first.
        started_at: seconds since 1970, or None if nobody knows (its process died).
        duration_s: how long it took, or None.
        error: why it did not succeed, or None if it did. Long texts are cut; the whole error of the last attempt is
            that of the job.
        machine: the name of the machine on which it ran, or None if that is not known.
        consumer: the number of the consumer that ran it, as in `taskq status` and the log, or None if that is not
            known. A consumer that takes the place of another has the same number.
        pid: the id of the process that ran it, or None if that is not known, as of an attempt that succeeded in less
            than 10 ms.
        peak_bytes: the most resident memory that this process had used by the end of it, or None if that is not known.
            Of one that died, what was seen up to a second before.
    """

    number: int
    started_at: float | None
    duration_s: float | None
    error: JobError | None
    machine: str | None = None
    consumer: int | None = None
    pid: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class JobArguments:
    """The arguments of a job.

    Attributes:
        args: the positional arguments, before they are converted as the task's annotations say.
        kwargs: the keyword arguments.
        size_bytes: how many bytes they take where they are stored.
        left_out: why they are not shown, or None if they are.
    """

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    size_bytes: int = 0
    left_out: str | None = None


@dataclass(frozen=True, slots=True)
class JobInfo:
    """All that is known of a job.

    Attributes:
        id: the job's id, 32 hexadecimal digits, which sort by the time of enqueueing.
        task: the name of its task; empty while a job that waits in the spool has not been taken in.
        queue: the name of its queue; empty as `task`.
        state: where it is in its life.
        attempts: starts so far, the running one included.
        crashes: how many of them ended with the death of the process.
        enqueued_at: when it was enqueued, in seconds since 1970.
        started_at: when its last attempt began, in seconds since 1970, or None.
        finished_at: when it reached its final state, in seconds since 1970, or None.
        due_at: when a scheduled job becomes queued, in seconds since 1970.
        duration_s: how long the last ended attempt took.
        error: why the last ended attempt did not succeed, with the exit code or signal of a crash.
        progress: how far the running attempt is, if it said so.
        history: the ended attempts, oldest first; of more than 40 the first 20 and the last 20. Empty in lists of
            jobs.
        after: ids of jobs that it comes after (at most 100; known until it has succeeded, or was cancelled).
        before: ids of jobs that come after it and have not ended (at most 100).
        meta: the texts that travel with it, by name; see `meta=`.
        arguments: what it was called with, if that was asked for, or None.
    """

    id: str
    task: str
    queue: str
    state: JobState
    attempts: int
    crashes: int
    enqueued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    due_at: float | None = None
    duration_s: float | None = None
    error: JobError | None = None
    progress: Progress | None = None
    history: list[Attempt] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)
    arguments: JobArguments | None = None
