"""When a loop must turn next: functions that are called periodically, and the deadlines of the loop's parts."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

#: A function that is called with the time (monotonic).
Timed = Callable[[float], object]
#: Returns when a part has something to do for which nothing else wakes the loop (monotonic); None: never. It is called
#: with the time.
Moment = Callable[[float], float | None]
#: Tells whether a function has anything to do at a time.
Needed = Callable[[float], bool]


class Timers:
    """The deadlines of a loop, or of a part of it. Used by the broker's loop alone."""

    def __init__(self, *moments: Moment) -> None:
        self._moments = moments
        self._every_s: dict[Timed, float] = {}
        self._due: dict[Timed, float] = {}
        self._needed: dict[Timed, Needed] = {}
        self._resting: list[Timed] = []  # there was nothing for them to do when they were due
        self._next = inf  # when the first of the functions is due

    def every(self, seconds: float, function: Timed, first: float, is_needed: Needed | None = None) -> None:
        """Calls a function at a moment (monotonic), and again and again with this pause in seconds.

        Args:
            is_needed: whether it has anything to do. While it has not, it does not wake the loop.
        """
        self._every_s[function] = seconds
        self._due[function] = first
        if is_needed is not None:
            self._needed[function] = is_needed
        self._next = min(self._next, first)

    def hurry(self, function: Timed, now: float) -> None:
        """Calls a function in the next turn of the loop, so that others are served in between."""
        self._due[function] = self._next = now
        if function in self._resting:
            self._resting.remove(function)

    def run(self, now: float) -> None:
        """Calls the functions that are due."""
        if now < self._next:
            return
        for function, due in list(self._due.items()):
            if due > now:
                continue
            is_needed = self._needed.get(function)
            if is_needed is None or is_needed(now):
                self._due[function] = now + self._every_s[function]
                function(now)
            else:
                del self._due[function]
                self._resting.append(function)
        self._next = min(self._due.values(), default=inf)

    def timeout_s(self, now: float) -> float:
        """How long the loop may sleep if nothing arrives meanwhile."""
        if self._resting:
            self._end_rests(now)
        times = [at for moment in self._moments if (at := moment(now)) is not None]
        return max(0.0, min([*times, self._next]) - now)

    def _end_rests(self, now: float) -> None:
        for function in [each for each in self._resting if self._needed[each](now)]:
            self._resting.remove(function)
            self._due[function] = now + self._every_s[function]
            self._next = min(self._next, self._due[function])
