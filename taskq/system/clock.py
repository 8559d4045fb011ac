"""The clock. Whatever looks at the time is handed one, so that a test can bring its own: nobody replaces `time`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time. The module `time` is one."""

    def time(self) -> float:
        """Seconds since 1970, for moments that outlive the process. The clock may be set, also back."""

    def monotonic(self) -> float:
        """Seconds since some moment, for spans and deadlines. They never go back."""


class ClientClock(Clock, Protocol):
    """The clock of whatever makes jobs, waits for them or runs them."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""

    def sleep(self, seconds: float, /) -> None:
        """Lets time pass."""


#: The real one.
SYSTEM_CLOCK: ClientClock = time


#: Even `timeout=0` waits so long, for the answer that the job ended already.
SHORTEST_WAIT_S = 0.05
#: The operating system's timers end at some hundred years.
_FOREVER_S = 1e9


class Deadline:
    """When a wait is over."""

    __slots__ = ("_at", "_clock")

    def __init__(self, timeout_s: float | None, clock: Clock) -> None:
        self._clock = clock
        self._at = None if timeout_s is None or timeout_s > _FOREVER_S else clock.monotonic() + timeout_s

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self._at is not None and self._clock.monotonic() >= self._at

    def left_s(self) -> float | None:
        """The seconds that are left; None for no end."""
        return None if self._at is None else max(0.0, self._at - self._clock.monotonic())

    def wait_s(self) -> float | None:
        """The seconds to wait for an answer that may be there already."""
        return None if self._at is None else max(SHORTEST_WAIT_S, self._at - self._clock.monotonic())
