"""How many of the frequent events get a line of their own. Pure: the time comes in with each call.

A fleet that runs 100,000 jobs per second cannot write a line (20 microseconds) for each. So the events of
`HIGH_RATE` are written one by one up to a rate; above it they are counted, and one ``job.summary`` per task and second
has the counts. All other events (failures, retries, crashes, timeouts ...) always get their line.

    job.succeeded   resize  ...   the first MAX_LINES_PER_S of each second
    job.summary     resize  succeeded 48210  mean 0.02 ms  max 1.3 ms

No job is in a line and in a summary, so both together add up to the number of jobs.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

MAX_LINES_PER_S = 100
"""The default rate, of all frequent events together: at 20 microseconds each, 0.2 % of one core."""

RESERVED_LINES_PER_S = 2
"""The lines per second that each task gets for each event even when the rate is used up: a task that runs
once an hour is not hidden by one that runs all the time."""

TASKS_MAX = 50
"""How many tasks have a summary of their own each second; the others share that of `OTHER_TASKS`."""

OTHER_TASKS = "(other tasks)"
WINDOW_S = 1.0

HIGH_RATE = {"job.enqueued": "enqueued", "job.started": "started", "job.succeeded": "succeeded"}
"""The events that may be counted, and the field of the summary with their number."""

Source = TypeVar("Source", bound=Hashable)


class _Counted:
    """What was counted but not written for one task since the last summary."""

    __slots__ = ("duration_max_s", "duration_total_s", "numbers")

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.duration_total_s = 0.0
        self.duration_max_s = 0.0


class JobLogThrottle:
    """Decides between a line and a count. One instance per broker."""

    def __init__(self, max_lines_per_s: int = MAX_LINES_PER_S) -> None:
        """
        Args:
            max_lines_per_s: lines per second for all frequent events together; 0 writes summaries only.
        """
        self._max_lines = max_lines_per_s
        self._reserved = min(RESERVED_LINES_PER_S, max_lines_per_s)
        self._budget_from_s = -1e18
        self._written = 0
        self._written_by: dict[tuple[str, str], int] = {}
        self._counted: dict[str, _Counted] = {}
        self._counted_from_s = 0.0

    def allow(self, event: str, task: str, now: float, duration_s: float = 0.0) -> bool:
        """Whether this event gets a line; if not, it is counted.

        Args:
            event: the event's name; events that are not in `HIGH_RATE` always get a line.
            task: the task's name.
            now: monotonic seconds.
            duration_s: how long the job ran, for ``job.succeeded``.
        """
        return self.allow_many(event, task, 1, now, duration_s, duration_s) == 1

    def succeeded_many(self, task: str, count: int, duration_total_s: float, duration_max_s: float, now: float) -> int:
        """`allow_many` for ``job.succeeded``."""
        return self.allow_many("job.succeeded", task, count, now, duration_total_s, duration_max_s)

    def allow_many(
        self,
        event: str,
        task: str,
        count: int,
        now: float,
        duration_total_s: float = 0.0,
        duration_max_s: float = 0.0,
    ) -> int:
        """How many of `count` events of one task get a line of their own; the others are counted.

        Args:
            event: the event's name.
            task: the task's name.
            count: how many there are.
            now: monotonic seconds.
            duration_total_s: the run times of all `count` jobs together; jobs that are counted get their share of it.
            duration_max_s: the longest of these run times.

        Returns:
            A number from 0 to `count`.
        """
        field = HIGH_RATE.get(event)
        if field is None:
            return count
        lines = self._take_lines(event, task, count, now)
        if lines < count:
            counted = self._counted_of(task, now)
            counted.numbers[field] = counted.numbers.get(field, 0) + count - lines
            counted.duration_total_s += duration_total_s * (count - lines) / count
            if duration_max_s > counted.duration_max_s:
                counted.duration_max_s = duration_max_s
        return lines

    def next_due(self) -> float | None:
        """When (monotonic seconds) `due` will return something; None if nothing is counted."""
        return self._counted_from_s + WINDOW_S if self._counted else None

    def due(self, now: float, flush: bool = False) -> list[dict[str, Any]]:
        """The summaries of what was counted, if a second has passed since the first of it.

        Args:
            now: monotonic seconds.
            flush: do not wait for the second to pass, since the broker stops.

        Returns:
            Fields for ``log.info("job.summary", **fields)``, one dict per task: ``task``; ``enqueued``,
            ``started`` and ``succeeded`` unless they are 0; with ``succeeded`` also ``duration_mean_ms``,
            ``duration_max_ms`` and ``duration_total_ms``; and ``window_s``, the time in which all this happened.
        """
        if not self._counted or (now < self._counted_from_s + WINDOW_S and not flush):
            return []
        window_s = round(max(now - self._counted_from_s, 0.0), 3)
        summaries = [_summary(task, counted, window_s) for task, counted in self._counted.items()]
        self._counted = {}
        return summaries

    def _take_lines(self, event: str, task: str, count: int, now: float) -> int:
        """Take up to `count` lines from this second's budget."""
        if now >= self._budget_from_s + WINDOW_S:
            self._budget_from_s = now
            self._written = 0
            self._written_by = {}
        by = self._written_by
        known = (task, event)
        if known not in by and len(by) >= TASKS_MAX * len(HIGH_RATE):
            known = (OTHER_TASKS, event)
        own = by.get(known, 0)
        free = max(self._max_lines - self._written, self._reserved - own, 0)
        lines = min(count, free)
        by[known] = own + lines
        self._written += lines
        return lines

    def _counted_of(self, task: str, now: float) -> _Counted:
        """The counts of the events of `task`."""
        if not self._counted:
            self._counted_from_s = now
        counted = self._counted.get(task)
        if counted is None:
            name = task if len(self._counted) < TASKS_MAX else OTHER_TASKS
            counted = self._counted.setdefault(name, _Counted())
        return counted


class LineLimit(Generic[Source]):
    """Decides which lines of a flood are reported: some of each source in a second; the others are counted."""

    def __init__(self, max_lines_per_s: int) -> None:
        """
        Args:
            max_lines_per_s: how many lines of one source are reported in a second.
        """
        self._max_lines = max_lines_per_s
        self._until_s = -1e18  # the end of the second in which lines are counted now
        self._seen: dict[Source, int] = {}
        self._dropped: dict[Source, int] = {}

    def allow(self, source: Source, now: float) -> bool:
        """Whether a line of this source is reported; if not, it is counted.

        Args:
            source: whose line it is.
            now: monotonic seconds.
        """
        if now >= self._until_s and not self._dropped:
            self._until_s = now + WINDOW_S
            self._seen = {}
        count = self._seen[source] = self._seen.get(source, 0) + 1
        if count <= self._max_lines:
            return True
        self._dropped[source] = self._dropped.get(source, 0) + 1
        return False

    def seen(self, source: Source, now: float) -> int:
        """How many lines of this source there were in this second.

        Args:
            source: whose lines.
            now: monotonic seconds.
        """
        return self._seen.get(source, 0) if now < self._until_s else 0

    def next_due(self) -> float | None:
        """When (monotonic seconds) `take_dropped` will return something; None if nothing is counted."""
        return self._until_s if self._dropped else None

    def take_dropped(self, now: float, flush: bool = False) -> dict[Source, int]:
        """How many lines of each source were not reported, if their second is over.

        Args:
            now: monotonic seconds.
            flush: do not wait for the second to pass, since the broker stops.
        """
        if now < self._until_s and not flush:
            return {}
        dropped, self._dropped = self._dropped, {}
        return dropped


def _summary(task: str, counted: _Counted, window_s: float) -> dict[str, Any]:
    """The fields of one ``job.summary``."""
    fields: dict[str, Any] = {"task": task, **counted.numbers}
    succeeded = counted.numbers.get("succeeded", 0)
    if succeeded:
        fields["duration_mean_ms"] = round(counted.duration_total_s * 1000 / succeeded, 3)
        fields["duration_max_ms"] = round(counted.duration_max_s * 1000, 3)
        fields["duration_total_ms"] = round(counted.duration_total_s * 1000, 3)
    fields["window_s"] = window_s
    return fields
