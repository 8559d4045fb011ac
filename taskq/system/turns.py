"""How long the turns of a loop take: a loop that is busy for long answers nobody meanwhile.

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
        self._span_s = 0.0  # the longest turn in this span
        self._span_ends_at = -inf
        self._before: deque[tuple[float, float]] = deque(maxlen=_SPANS)  # the end of a span, its longest turn

    def began(self, now: float) -> None:
        """The loop has woken up."""
        self._began_at = now
        self._cpu_at_first = self._cpu_s()
        self.number += 1

    def ended(self, now: float) -> None:
        """The loop is about to sleep."""
        took_s = now - self._began_at
        self._most_cpu_s = max(self._most_cpu_s, self._cpu_s() - self._cpu_at_first)
        if now >= self._span_ends_at:
            self._before.append((self._span_ends_at, self._span_s))
            self._span_s, self._span_ends_at = 0.0, now + _SPAN_S
        if took_s > self._span_s:
            self._span_s = took_s
            self._ever_s = max(self._ever_s, took_s)

    def longest(self, now: float) -> LongestTurns:
        """The longest turns that have ended."""
        recent = [took_s for ended_at, took_s in self._before if ended_at > now - _SPAN_S * _SPANS]
        if self._span_ends_at > now - _SPAN_S * _SPANS:
            recent.append(self._span_s)
        return LongestTurns(self._ever_s, max(recent, default=0.0), self._most_cpu_s)
