"""A clock that is wrong, to hand to whatever looks at the time."""

from __future__ import annotations

import time


class WrongClock:
    """Goes as the clock of this machine does, but was set to another time."""

    def __init__(self, offset_s: int) -> None:
        """
        Args:
            offset_s: by how much it differs from the time of this machine.
        """
        self._offset_s = offset_s
        self.monotonic = time.monotonic
        self.sleep = time.sleep

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time() + self._offset_s

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns() + self._offset_s * 10**9
