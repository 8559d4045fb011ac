"""The conditions of a search for jobs, besides their state, task and queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taskq.model.info.job import JobInfo


class JobSearch(NamedTuple):
    """The conditions that jobs must meet; with the defaults, all do.

    Attributes:
        since, until: enqueued in this span, its end excluded, in seconds since 1970.
        attempts: at least this many attempts have ended.
        text: a part of the error of the last attempt, of the job's meta or of its keys. Upper and lower case differ.
    """

    since: float | None = None
    until: float | None = None
    attempts: int = 0
    text: str = ""


ALL_JOBS = JobSearch()


class FoundJobs(NamedTuple):
    """What a search has found in the time that it had.

    Attributes:
        jobs: the newest first.
        place: where to go on, as the `place` of another search; None if there are no more.
    """

    jobs: list[JobInfo]
    place: bytes | int | None
