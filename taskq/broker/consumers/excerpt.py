"""What the log keeps of one job's output, so that a chatty job does not take more than its share of the log. Pure.

If it is little or comes slowly, all of it. Of a flood: the first lines; as time passes, the lines written last; and the
last lines of all when the job ends. Between them, the log says how many were left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from taskq.model.limits import MAX_LAST_LINES

#: What a job may write at once, and in each second that follows; and the most that is held back of its last lines.
FIRST_BYTES: Final = 512 * 1024
BYTES_PER_S: Final = 4 * 1024
LAST_BYTES: Final = 32 * 1024
#: What a line takes in the log besides its text.
_LINE_BYTES: Final = 300


class Portion(NamedTuple):
    """Lines to log now, and how many were left out before them."""

    left_out: int
    lines: list[str]


class Excerpt:
    """The output of one job: an allowance that grows with time, and the lines that wait for it."""

    __slots__ = ("_allowance", "_at", "_held", "_held_bytes", "_left_out", "last")

    def __init__(self, now: float) -> None:
        self._allowance: float = FIRST_BYTES
        self._at = now
        self._held: deque[str] | None = None  # made when it is needed: most jobs print little
        self._held_bytes = 0
        self._left_out = 0
        self.last: Sequence[str] = ()  # logged or not: for the case that the process dies

    def take(self, lines: Sequence[str], now: float, most: int) -> Portion:
        """Takes lines that were written.

        Args:
            lines: the lines.
            now: monotonic seconds.
            most: how many may be logged now; the others are held back.

        Returns:
            The lines to log now.
        """
        self.last = [*self.last, *lines[-MAX_LAST_LINES:]][-MAX_LAST_LINES:]
        told: list[str] = []
        if not self._held:
            self._grow(now)
        for line in lines:
            cost = len(line) + _LINE_BYTES
            if not self._held and cost <= self._allowance and len(told) < most:
                self._allowance -= cost
                told.append(line)
            else:
                self._hold(line, cost)
        return Portion(0, told)

    @property
    def holds_some(self) -> bool:
        """Whether lines are held back."""
        return bool(self._held)

    def due(self, now: float) -> Portion:
        """Returns what was held back, once enough time has passed. Call it from time to time."""
        if not self._held:
            return Portion(0, [])
        self._grow(now)
        if self._held_bytes > self._allowance:
            return Portion(0, [])
        self._allowance -= self._held_bytes
        return self.end()

    def end(self) -> Portion:
        """Returns the last lines of a job that has ended."""
        portion = Portion(self._left_out, list(self._held or ()))
        self._held = None
        self._held_bytes = self._left_out = 0
        return portion

    def _grow(self, now: float) -> None:
        self._allowance = min(FIRST_BYTES, self._allowance + (now - self._at) * BYTES_PER_S)
        self._at = now

    def _hold(self, line: str, cost: int) -> None:
        if self._held is None:
            self._held = deque()
        self._held.append(line)
        self._held_bytes += cost
        while self._held_bytes > LAST_BYTES:
            self._held_bytes -= len(self._held.popleft()) + _LINE_BYTES
            self._left_out += 1
