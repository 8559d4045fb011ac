"""What is told of jobs: the answers to INFO (one job, all that is known) and JOBS (a list, and where to go on).

The broker sends outcomes as they are stored, and does not decode them: the client does, and makes a `JobInfo` of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from taskq.model.attempt import Outcome, read_outcome
from taskq.model.info.job import Attempt, JobInfo
from taskq.model.job import JobState, Progress, enqueued_at

#: The fields of `JobFields` that those in a list have, unless a later one says something.
_LISTED = 11


class JobFields(NamedTuple):
    """A job as it travels to a client: the fields, in this order.

    Attributes:
        id, task, queue, state, attempts, crashes, due_at, started_at, finished_at: as in `JobInfo`.
        outcome: of the last ended attempt, as made by `taskq.model.attempt`, without the result; or None.
        progress: done, total and note of the running attempt, if it said so.
        history: the ended attempts: their numbers and outcomes.
        after, before: the ids of neighbours, as in `JobInfo`.
        meta: as in `JobInfo`; None for none.
    """

    id: bytes
    task: str
    queue: str
    state: str
    attempts: int = 0
    crashes: int = 0
    due_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    outcome: bytes | None = None
    progress: tuple[float, float | None, str] | None = None
    history: Sequence[tuple[int, bytes]] = ()
    after: Sequence[bytes] = ()
    before: Sequence[bytes] = ()
    meta: Mapping[str, str] | None = None

    def listed(self) -> tuple[Any, ...]:
        """The fields of a job in a list."""
        return self if self.meta else self[:_LISTED]


#: The answer to JOBS: the jobs, each with the fields of those in a list; and where to go on, or None for the end.
JobsAnswer = tuple[list[tuple[Any, ...]], int | None]


def info_of(answer: Sequence[Any]) -> JobInfo:
    """Reads the answer to INFO, or one of the jobs in the answer to JOBS."""
    fields = JobFields(*answer)
    last = read_outcome(fields.outcome) if fields.outcome else Outcome(None, None, None, None)
    return JobInfo(
        id=fields.id.hex(),
        task=fields.task,
        queue=fields.queue,
        state=JobState(fields.state),
        attempts=fields.attempts,
        crashes=fields.crashes,
        enqueued_at=enqueued_at(fields.id),
        started_at=fields.started_at or last.started_at,
        finished_at=fields.finished_at,
        due_at=fields.due_at,
        duration_s=last.duration_s,
        error=last.error,
        progress=None if fields.progress is None else Progress(*fields.progress),
        history=[_attempt(number, read_outcome(outcome)) for number, outcome in fields.history],
        after=[parent.hex() for parent in fields.after],
        before=[child.hex() for child in fields.before],
        meta=dict(fields.meta or {}),
    )


def _attempt(number: int, outcome: Outcome) -> Attempt:
    return Attempt(number, outcome.started_at, outcome.duration_s, outcome.error)
