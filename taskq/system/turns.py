"""How long the turns of a loop take, and what else is done again and again: a loop that is busy for long answers nobody
meanwhile.

A turn takes the CPU time of what it does, the time of its sync, and the time in which other processes have the core
that it waits for. Only the first is its own, so it is told apart.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple

_SPAN_S: Final = 10.0
_SPANS: Final = 6


class RecentTimes:
    """How long something took, in the last minute (and up to 10 seconds more)."""

    def __init__(self) -> None:
        self._ends_at = -inf  # of this span
        self._longest_s, self._sum_s, self._count = 0.0, 0.0, 0
        self._before: deque[tuple[float, float, float, int]] = deque(maxlen=_SPANS)  # the end of a span, then as above

    def note(self, took_s: float, now: float) -> None:
        """It has just taken this long."""
        if now >= self._ends_at:
            self._before.append((self._ends_at, self._longest_s, self._sum_s, self._count))
            self._longest_s, self._sum_s, self._count = 0.0, 0.0, 0
            self._ends_at = now + _SPAN_S
        if took_s > self._longest_s:
            self._longest_s = took_s
        self._sum_s += took_s
        self._count += 1

    def longest(self, now: float) -> float:
        """The longest time; 0 if it was not done."""
        return max((longest_s for longest_s, _, _ in self._recent(now)), default=0.0)

    def mean(self, now: float) -> float | None:
        """The mean of all times; None if it was not done."""
        recent = self._recent(now)
        count = sum(count for _, _, count in recent)
        return sum(sum_s for _, sum_s, _ in recent) / count if count else None

    def share(self, now: float) -> float:
        """The share of that minute that all of it took together; 0 if it was not done."""
        begins = [ends_at - _SPAN_S for ends_at, *_ in self._spans if ends_at > now - _SPAN_S * _SPANS]
        took_s = sum(sum_s for _, sum_s, _ in self._recent(now))
        return min(took_s / max(now - begins[0], took_s), 1.0) if begins and took_s else 0.0

    def _recent(self, now: float) -> list[tuple[float, float, int]]:
        return [own for ends_at, *own in self._spans if ends_at > now - _SPAN_S * _SPANS]  # type: ignore[misc]

    @property
    def _spans(self) -> list[tuple[float, float, float, int]]:
        return [*self._before, (self._ends_at, self._longest_s, self._sum_s, self._count)]


class LongestTurns(NamedTuple):
    """The seconds of the longest turns.

    Attributes:
        ever: since the loop began.
        last_minute: in the last minute (and up to 10 seconds more).
        cpu: the most CPU time that one turn has taken since the loop began.
    """

    ever: float
    last_minute: float
    cpu: float


class TurnTimes:
    """Measures the turns of a loop; the time in which it sleeps does not count. Used by that loop's thread alone."""

    def __init__(self, cpu_s: Callable[[], float] = time.thread_time) -> None:
        """No turn has begun.

        Args:
            cpu_s: the seconds of CPU time that this thread has used.
        """
        self._cpu_s = cpu_s
        self._cpu_at_first = inf
        self._most_cpu_s = 0.0
        self.number = 0  # of the turns that have begun
        self._began_at = inf  # no turn has begun
        self._ever_s = 0.0
        self._recent = RecentTimes()

    def began(self, now: float) -> None:
        """The loop has woken up."""
        self._began_at = now
        self._cpu_at_first = self._cpu_s()
        self.number += 1

    def ended(self, now: float) -> None:
        """The loop is about to sleep."""
        took_s = now - self._began_at
        self._most_cpu_s = max(self._most_cpu_s, self._cpu_s() - self._cpu_at_first)
        self._recent.note(max(took_s, 0.0), now)  # below 0: no turn has begun
        if took_s > self._ever_s:
            self._ever_s = took_s

    def busy_share(self, now: float) -> float:
        """The share of the last minute that turns took, with their syncs."""
        return self._recent.share(now)

    def longest(self, now: float) -> LongestTurns:
        """The longest turns that have ended."""
        return LongestTurns(self._ever_s, self._recent.longest(now), self._most_cpu_s)
