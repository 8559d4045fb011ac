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
