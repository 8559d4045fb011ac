"""Failures in groups: of one task, with one type of error, at one place. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from math import inf
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


@dataclass(slots=True)
class _Kind:
    """The failures of one kind.

    Attributes:
        failed_at, again_at: when jobs failed for good, and when attempts ended that were followed by another.
        newest: when the newest ended, and the id of its job.
        message, traceback: of the newest; the traceback of an older one if the newest has none.
        jobs: the ids of the newest jobs.
    """

    failed_at: list[float] = field(default_factory=list)
    again_at: list[float] = field(default_factory=list)
    newest: tuple[float, str] = (-inf, "")
    message: str = ""
    traceback: str = ""
    jobs: list[str] = field(default_factory=list)

    def add(self, error: JobError, at: float, job_id: str, *, is_final: bool) -> None:
        """Counts one."""
        (self.failed_at if is_final else self.again_at).append(at)
        is_newest = (at, job_id) >= self.newest  # ids sort by their time
        if job_id not in self.jobs:
            self.jobs.insert(0 if is_newest else len(self.jobs), job_id)
            del self.jobs[MOST_JOBS_TOLD:]
        text = error.traceback or "\n".join(error.output)
        if text and (is_newest or not self.traceback):
            self.traceback = text
        if is_newest:
            self.newest, self.message = (at, job_id), error.message

    def since(self, since: float) -> _Kind:
        """Those of them that ended at this time or later."""
        failed_at, again_at = ([at for at in times if at >= since] for times in (self.failed_at, self.again_at))
        return replace(self, failed_at=failed_at, again_at=again_at, jobs=list(self.jobs))

    def group(self, key: tuple[str, str, str], now: float) -> FailureGroup:
        """As it is told."""
        times = sorted([*self.failed_at, *self.again_at])

        def newer(span_s: float) -> int:
            return len(times) - bisect_left(times, now - span_s)

        return FailureGroup(
            *key,
            failed=len(self.failed_at),
            again=len(self.again_at),
            last_10_minutes=newer(_TEN_MINUTES_S),
            last_hour=newer(_HOUR_S),
            last_day=newer(_DAY_S),
            first_at=times[0],
            last_at=times[-1],
            message=self.message,
            traceback=self.traceback,
            jobs=list(self.jobs),
        )


class FailureGroups:
    """Collects failures. An attempt whose traceback is not known counts where its task has that type of error."""

    def __init__(self, now: float, since: float | None = None) -> None:
        """
        Args:
            now: seconds since 1970.
            since: count only what ended at this time or later.
        """
        self._now = now
        self._since = -inf if since is None else since
        self._kinds: dict[tuple[str, str, str], _Kind] = {}
        self._places: dict[tuple[str, str], str] = {}  # the first that came, of a task and a type of error
        self.failed = self.again = 0

    def at(self, now: float, since: float) -> FailureGroups:
        """A copy of these, as they are at another time, to which more can be added."""
        copy = FailureGroups(now, since)
        kinds = ((key, kind.since(since)) for key, kind in self._kinds.items())
        copy._kinds = {key: kind for key, kind in kinds if kind.failed_at or kind.again_at}
        copy._places = dict(self._places)
        copy.failed = sum(len(kind.failed_at) for kind in copy._kinds.values())
        copy.again = sum(len(kind.again_at) for kind in copy._kinds.values())
        return copy

    def add_jobs(self, infos: Iterable[JobInfo]) -> None:
        """Counts jobs that have failed for good."""
        for info in infos:
            at = info.finished_at or info.enqueued_at
            if info.error is not None and at >= self._since:
                self.failed += 1
                self._add(info.task, info.error, place_of(info.error), at, info.id, is_final=True)

    def add_attempt(self, task: str, error: JobError, at: float, job_id: str, *, is_final: bool = False) -> None:
        """Counts an attempt that was followed by another, or with which its job failed for good."""
        if at < self._since:
            return
        if is_final:
            self.failed += 1
        else:
            self.again += 1
        place = place_of(error) or self._places.get((task, error.type), "")
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
        self._places.setdefault((task, error.type), place)
        self._kinds.setdefault((task, error.type, place), _Kind()).add(error, at, job_id, is_final=is_final)

    def all(self) -> list[FailureGroup]:
        """The groups, the one that happened last first."""
        groups = [kind.group(key, self._now) for key, kind in self._kinds.items()]
        return sorted(groups, key=lambda group: -group.last_at)


def place_of(error: JobError) -> str:
    """The last place in the application's own code that an error tells; empty if it tells none."""
    return _place_in(error.traceback or "\n".join(error.output), is_traceback=bool(error.traceback))


@lru_cache(256)  # many jobs fail at one place
def _place_in(text: str, *, is_traceback: bool) -> str:
    found = [(match["path"], match["line"], match["name"]) for match in _FRAME.finditer(text)]
    if not is_traceback and _IS_STACK in text:
        found.reverse()
    own = [frame for frame in found if not _NOT_OURS.search(frame[0])]
    if not (own or found):
        return ""
    path, line, name = (own or found)[-1]
    return f"{path}:{line} in {name}"
