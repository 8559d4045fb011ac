"""When a loop must turn next: functions that are called periodically, and the deadlines of the loop's parts."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

#: A function that is called with the time (monotonic).
Timed = Callable[[float], object]
#: Returns when a part has something to do for which nothing else wakes the loop (monotonic); infinity: never. It is
#: called with the time.
Moment = Callable[[float], float]
#: Tells whether a function has anything to do at a time.
Needed = Callable[[float], bool]
#: A loop that turns often asks only now and then whether there is something to do for functions that had nothing to do.
_ASK_EVERY_S = 0.02


class Timers:
    """The deadlines of a loop, or of a part of it. Used by the broker's loop alone."""

    def __init__(self, *moments: Moment) -> None:
        self._moments = moments
        self._every_s: dict[Timed, float] = {}
        self._due: dict[Timed, float] = {}
        self._needed: dict[Timed, Needed] = {}
        self._resting: list[Timed] = []  # there was nothing for them to do when they were due
        self._next = inf  # when the first of the functions is due
        self._ask_at = -inf  # when to ask again whether these are needed

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

    def next_at(self, now: float) -> float:
        """When the first of all is due (monotonic), or before now; infinity: never."""
        first = self._next
        if self._resting:
            if now >= self._ask_at:
                self._ask_at = now + _ASK_EVERY_S
                self._end_rests(now)
                first = self._next
            elif self._ask_at < first:
                first = self._ask_at
        for moment in self._moments:
            at = moment(now)
            if at < first:
                first = at
        return first

    def timeout_s(self, now: float) -> float:
        """How long the loop may sleep if nothing arrives meanwhile."""
        at = self.next_at(now)
        return at - now if at > now else 0.0

    def _end_rests(self, now: float) -> None:
        for function in [each for each in self._resting if self._needed[each](now)]:
            self._resting.remove(function)
            self._due[function] = now + self._every_s[function]
            self._next = min(self._next, self._due[function])
