"""Failures in groups: of one task, with one type of error, at one place. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from taskq.model.info.job import JobInfo
from taskq.model.job import JobError

#: The events of the log of attempts that were followed by another, unless they say `runs_again=False`.
AGAIN_EVENTS: Final = ("job.retrying", "job.crashed")
#: No more of the newest jobs of a group are told.
MOST_JOBS_TOLD: Final = 5
#: A frame in a traceback of Python, or in the stacks that it writes when a process dies.
_FRAME = re.compile(r'^ *File "(?P<path>[^"\n]+)", line (?P<line>\d+),? in (?P<name>\S+)', re.MULTILINE)
#: Paths that do not belong to an application.
_NOT_OURS = re.compile(r"/(site-packages|dist-packages|lib/python3[^/]*|taskq/consumer)/|^<(frozen|string)")
#: The first line of stacks, whose first frame is the one that was called last.
_IS_STACK = "most recent call first"
_TEN_MINUTES_S, _HOUR_S, _DAY_S = 600.0, 3_600.0, 86_400.0


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one kind.

    Attributes:
        task: the name of the task.
        type: the type of the error, such as "KeyError", "TimedOut" or "Crashed".
        place: the last place in the application's own code, as "path:line in function"; empty if that is not known.
        failed: how many jobs have failed for good, and are kept.
        again: how many attempts in the log were followed by another.
        last_10_minutes: how many of both there were in the last 10 minutes.
        last_hour: how many of both there were in the last hour.
        last_day: how many of both there were in the last 24 hours.
        first_at: when the first of them ended, in seconds since 1970.
        last_at: when the newest of them ended, in seconds since 1970.
        message: the message of the newest.
        traceback: the traceback of the newest, or the last lines that its process wrote; long ones are cut.
        jobs: the ids of the newest jobs; at most 5.
    """

    task: str
    type: str
    place: str
    failed: int = 0
    again: int = 0
    last_10_minutes: int = 0
    last_hour: int = 0
    last_day: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    message: str = ""
    traceback: str = ""
    jobs: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failures:
    """What fails.

    Attributes:
        groups: the failures of each kind, the one that happened last first.
        failed: how many failed jobs were counted.
        again: how many attempts in the log, followed by another, were counted.
        has_more: whether there are older failed jobs that were not counted.
        log_since: since when the log was read, in seconds since 1970.
    """

    groups: list[FailureGroup]
    failed: int
    again: int
    has_more: bool
    log_since: float


class FailureGroups:
    """Collects failures. An attempt whose traceback is not known counts where its task has that type of error."""

    def __init__(self, now: float, since: float | None = None) -> None:
        """
        Args:
            now: seconds since 1970.
            since: count only what ended at this time or later.
        """
        self._now = now
        self._since = since
        self._groups: dict[tuple[str, str, str], FailureGroup] = {}
        self.failed = self.again = 0

    def add_jobs(self, infos: Iterable[JobInfo]) -> None:
        """Counts jobs that have failed for good."""
        for info in infos:
            at = info.finished_at or info.enqueued_at
            if info.error is not None and (self._since is None or at >= self._since):
                self.failed += 1
                self._add(info.task, info.error, place_of(info.error), at, info.id, is_final=True)

    def add_attempt(self, task: str, error: JobError, at: float, job_id: str, *, is_final: bool = False) -> None:
        """Counts an attempt that was followed by another, or with which its job failed for good."""
        if self._since is not None and at < self._since:
            return
        if is_final:
            self.failed += 1
        else:
            self.again += 1
        place = place_of(error)
        if not place:
            alike = (key for key in self._groups if key[:2] == (task, error.type))
            place = next((key[2] for key in alike), "")
        self._add(task, error, place, at, job_id, is_final=is_final)

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Counts an attempt in the log: one of `AGAIN_EVENTS`, or `job.failed`."""
        kind, _, message = str(event.get("error", "")).partition(": ")
        try:
            at = datetime.fromisoformat(str(event.get("timestamp", ""))).timestamp()
        except ValueError:
            at = 0.0  # a line that somebody wrote by hand
        error = JobError(kind, message, str(event.get("traceback", "")))
        task, job_id = str(event.get("task", "")), str(event.get("job_id", ""))
        self.add_attempt(task, error, at, job_id, is_final=event.get("event") == "job.failed")

    def _add(self, task: str, error: JobError, place: str, at: float, job_id: str, *, is_final: bool) -> None:
        key = task, error.type, place
        group = self._groups.get(key) or FailureGroup(*key, first_at=at)
        is_newest = not group.jobs or (at, job_id) >= (group.last_at, group.jobs[0])  # ids sort by their time
        ago = self._now - at
        if job_id in group.jobs:
            jobs = group.jobs
        else:
            jobs = [job_id, *group.jobs] if is_newest else [*group.jobs, job_id]
        text = error.traceback or "\n".join(error.output)
        self._groups[key] = replace(
            group,
            failed=group.failed + is_final,
            again=group.again + (not is_final),
            last_10_minutes=group.last_10_minutes + (ago <= _TEN_MINUTES_S),
            last_hour=group.last_hour + (ago <= _HOUR_S),
            last_day=group.last_day + (ago <= _DAY_S),
            first_at=min(group.first_at, at),
            last_at=max(group.last_at, at),
            message=error.message if is_newest else group.message,
            traceback=text if text and (is_newest or not group.traceback) else group.traceback,
            jobs=jobs[:MOST_JOBS_TOLD],
        )

    def all(self) -> list[FailureGroup]:
        """The groups, the one that happened last first."""
        return sorted(self._groups.values(), key=lambda group: -group.last_at)


def place_of(error: JobError) -> str:
    """The last place in the application's own code that an error tells; empty if it tells none."""
    text = error.traceback or "\n".join(error.output)
    found = [(match["path"], match["line"], match["name"]) for match in _FRAME.finditer(text)]
    if not error.traceback and _IS_STACK in text:
        found.reverse()
    own = [frame for frame in found if not _NOT_OURS.search(frame[0])]
    if not (own or found):
        return ""
    path, line, name = (own or found)[-1]
    return f"{path}:{line} in {name}"
