"""The clock of a test: it stands still until it is moved."""

from __future__ import annotations

import time as real_time
from typing import Protocol

from taskq.model.errors import TaskQError


class Timed(Protocol):
    """Something that acts as time passes: a fleet."""

    def look_at_the_clock(self) -> None:
        """Does what is due."""

    def next_moment(self, *, with_schedules: bool) -> float | None:
        """Returns when something happens by itself next, in seconds since 1970."""

    def run_next(self) -> bytes | None:
        """Runs one job, if there is one that may start. Returns its id."""

    def run_until(self, moment: float) -> None:
        """Runs jobs until a moment, and moves the clock on to whatever comes by then."""


class Clock:
    """Time that stands still until it is moved. It starts with the second in which it was made.

    It is a `taskq.system.clock.ClientClock`, handed to the fleets and clients of a test.
    """

    def __init__(self) -> None:
        self._us = int(real_time.time()) * 1_000_000
        self.fleets: list[Timed] = []

    def time(self) -> float:
        """Seconds since 1970."""
        return self._us / 1_000_000

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return self._us * 1_000

    def monotonic(self) -> float:
        """The same as `time`: this clock is never set back."""
        return self._us / 1_000_000

    def sleep(self, seconds: float) -> None:
        """Lets time pass for whoever waits, while the fleets run their jobs.

        Args:
            seconds: how long.
        """
        until = self.time() + seconds
        for fleet in self.fleets:
            fleet.run_until(until)
        self.move_to(until)

    def advance(self, seconds: float) -> None:
        """Lets time pass, in which no job starts: jobs that become due are queued, and late ones expire.

        Args:
            seconds: how long; 0 or more.

        Raises:
            TaskQError: it is negative.
        """
        if not seconds >= 0:
            raise TaskQError(f"advance({seconds!r}): time goes forward only")
        self.move_to(self.time() + seconds)

    def next_moment(self, *, with_schedules: bool = True) -> float | None:
        """Returns when something happens by itself next, in seconds since 1970; None if nothing does.

        Args:
            with_schedules: whether the fires of periodic schedules count, which never end.
        """
        found = (fleet.next_moment(with_schedules=with_schedules) for fleet in self.fleets)
        moments = [at for at in found if at is not None]
        return max(min(moments), self.time()) if moments else None

    def move_to(self, moment: float) -> None:
        """Moves on to a moment (seconds since 1970), and stops on the way wherever something happens."""
        while True:
            stop = self.next_moment()
            if stop is None or stop >= moment:
                break
            self._set(stop)
        self._set(moment)

    def _set(self, moment: float) -> None:
        before = self._us
        us = round(moment * 1_000_000)
        self._us = max(before, us if us / 1_000_000 >= moment else us + 1)
        for fleet in self.fleets:
            fleet.look_at_the_clock()
        if self._us == before and (self.next_moment() or moment + 1) <= self.time():
            self._us += 1  # something is due and does not happen yet: no moment is met twice
