"""The controlling terminal of this process, and when it went away.

A terminal that is closed sends SIGHUP to the leader of its session and to what runs in its foreground; a shell passes
it on to what it has started. `kill -HUP` sends the same signal, and Python does not say who sent it. So what counts is
whether the terminal has gone just now.
"""

from __future__ import annotations

import os
import select
import time

#: The end of a terminal and the signals that it causes come within this time of each other.
CLOSING_S = 0.5


class Terminal:
    """Watches the terminal on Linux. On other systems there seems to be none.

    Attributes:
        watch: becomes readable when the terminal goes; None if there is none.
    """

    def __init__(self, was_there: bool = False) -> None:
        """
        Args:
            was_there: whether this process had a terminal a moment ago.
        """
        self.watch: int | None = None
        self._gone_at: float | None = None
        try:
            self._descriptor = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            if was_there:
                self._gone_at = time.monotonic()
            return  # a service has none
        if not hasattr(select, "epoll"):
            os.close(self._descriptor)
            return
        self._epoll = select.epoll()
        self._epoll.register(self._descriptor, 0)  # its end is always reported; what is typed is not for us
        self.watch = self._epoll.fileno()

    def gone(self) -> None:
        """Notes that the terminal has gone: nothing is left to watch."""
        self._gone_at = time.monotonic()
        self.watch = None
        self._epoll.close()
        os.close(self._descriptor)

    @property
    def went_just_now(self) -> bool:
        """Whether a signal that comes now was caused by a terminal that was closed."""
        return self._gone_at is not None and time.monotonic() - self._gone_at < CLOSING_S
