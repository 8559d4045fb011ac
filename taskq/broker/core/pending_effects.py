"""What the core has decided and nobody has carried out yet, in portions for a turn of the loop each. Pure."""

from __future__ import annotations

from collections import deque

from taskq.model import limits
from taskq.model.effects import NO_EFFECTS, Effects


class PendingEffects:
    """Used by the core alone."""

    def __init__(self) -> None:
        self.current = Effects()  # to which is added
        self._full: deque[Effects] = deque()  # what was decided before that; each is enough for a turn

    @property
    def has_some(self) -> bool:
        """Whether there is something to be carried out."""
        return bool(self._full or self.current)

    @property
    def has_enough(self) -> bool:
        """Whether a turn has enough to do."""
        return bool(self._full) or self.current.work_us >= limits.TURN_US

    @property
    def next_us(self) -> float:
        """About how long it takes to carry out what `take_some` returns, in microseconds."""
        return (self._full[0] if self._full else self.current).work_us

    def cut(self) -> None:
        """Begins a new portion if this one is enough for a turn. Called between two jobs."""
        if self.current.work_us >= limits.TURN_US:
            self._full.append(self.current)
            self.current = Effects()

    def take_some(self) -> Effects:
        """Takes the first portion."""
        if self._full:
            return self._full.popleft()
        if not self.current:
            return NO_EFFECTS
        taken, self.current = self.current, Effects()
        return taken

    def take_all(self) -> Effects:
        """Takes everything."""
        taken = self.take_some()
        while self.has_some:
            taken.add(self.take_some())
        return taken
