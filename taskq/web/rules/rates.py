"""How fast jobs come and go, and when a backlog is worked off. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.status import QueueFlow

_MINUTE_S = 60
#: Minutes over which a rate is told, the present one included, which is not over.
_RATE_MINUTES = 6
_LEAST_MINUTES = 0.25


@dataclass(frozen=True, slots=True)
class Flow:
    """How many jobs came in and ended, by minutes.

    Attributes:
        minutes: since 1970, the oldest first; the last one is not over.
        now: seconds since 1970.
        enqueued, succeeded, failed, other: how many in each of them; `other` were cancelled or expired.
        told: how fast jobs come and go, as the broker has seen it; None if it does not tell: then the last minutes do.
    """

    minutes: list[int]
    now: float
    enqueued: list[int]
    succeeded: list[int]
    failed: list[int]
    other: list[int]
    told: QueueFlow | None = None

    @property
    def came_a_minute(self) -> float:
        """Jobs that come in."""
        if self.told is not None:
            return self.told.came_per_s * _MINUTE_S
        return sum(self.enqueued[-_RATE_MINUTES:]) / self._minutes

    @property
    def ended_a_minute(self) -> float:
        """Jobs that end."""
        if self.told is not None:
            return self.told.ended_per_s * _MINUTE_S
        ended = (sum(each[-_RATE_MINUTES:]) for each in (self.succeeded, self.failed, self.other))
        return sum(ended) / self._minutes

    @property
    def _minutes(self) -> float:
        """How many minutes the rates are about: fewer while a queue is young."""
        first = self.minutes[-_RATE_MINUTES]
        columns = zip(self.minutes, self.enqueued, self.succeeded, self.failed, self.other, strict=True)
        used = (minute for minute, *counts in columns if any(counts))
        return max(self.now / _MINUTE_S - max(first, next(used, first)), _LEAST_MINUTES)

    def empty_in_s(self, backlog: int) -> float | None:
        """In how many seconds a backlog is worked off at this rate; None if it does not get smaller."""
        gain = self.ended_a_minute - self.came_a_minute
        if not backlog:
            return 0.0
        return backlog / gain * _MINUTE_S if gain > 0 else None


def together(flows: Iterable[QueueFlow]) -> QueueFlow | None:
    """How fast the jobs of all these queues come and go; None if there are none."""
    known = list(flows)
    if not known:
        return None
    return QueueFlow(sum(flow.came_per_s for flow in known), sum(flow.ended_per_s for flow in known))


def flow_of(counts: Iterable[TaskCounts], now: float, minutes: int = 60, told: QueueFlow | None = None) -> Flow:
    """Adds up the counts of tasks and queues by minutes.

    Args:
        now: seconds since 1970.
        minutes: how many, the present one included.
        told: see `Flow`.
    """
    this = int(now // _MINUTE_S)
    span = list(range(this - minutes + 1, this + 1))
    summed = dict.fromkeys(span, (0, 0, 0, 0))
    for each in counts:
        for minute, own in each.minutes.items():
            if minute in summed:
                came, good, bad, other = summed[minute]
                ended = own.cancelled + own.expired
                summed[minute] = came + own.enqueued, good + own.succeeded, bad + own.failed, other + ended
    columns = [[summed[minute][column] for minute in span] for column in range(4)]
    enqueued, succeeded, failed, cancelled = columns
    return Flow(span, now, enqueued, succeeded, failed, cancelled, told)


def added_up(counts: Iterable[TaskCounts]) -> Counts:
    """What happened in the last hour to all of these together."""
    total = Counts()
    for each in counts:
        total.merge(each.last_hour)
    return total


def ended(counts: Counts) -> int:
    """How many jobs ended."""
    return counts.succeeded + counts.failed + counts.cancelled + counts.expired
