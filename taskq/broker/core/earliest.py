"""The earliest of many moments, for a loop that asks for it in each turn. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf


class Earliest:
    """When the first of many things is due. It is not computed anew each time: `bring_forward` must be told what makes
    one of the moments earlier, or adds one. What puts a moment off, or removes it, need not be told: the moments are
    looked at when the one that was the earliest has come, and the earliest of them counts from then on."""

    __slots__ = ("_moments", "at")

    def __init__(self, moments: Callable[[], Iterable[float | None]]) -> None:
        """
        Args:
            moments: tells all of them; None is one that does not come.
        """
        self._moments = moments
        self.at = inf  #: Before this, none of the moments comes.

    def bring_forward(self, at: float | None) -> None:
        """A moment may be earlier than the others."""
        if at is not None and at < self.at:
            self.at = at

    def is_due(self, now: float) -> bool:
        """Whether one of the moments has come."""
        if now < self.at:
            return False
        self.at = min((at for at in self._moments() if at is not None), default=inf)
        return self.at <= now

    def moment(self, now: float) -> float:
        """When the first comes, or a moment before that; infinity if none does. One that has come is told exactly."""
        if now >= self.at:
            self.is_due(now)
        return self.at

    def next(self, now: float) -> float | None:
        """The same; None if none comes."""
        at = self.moment(now)
        return None if at == inf else at
