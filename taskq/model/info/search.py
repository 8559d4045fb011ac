"""The conditions of a search for jobs, besides their state, task and queue."""

from __future__ import annotations

from typing import NamedTuple


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
