"""How much the simulated broker takes on in a turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from taskq.model import limits


@contextmanager
def small_turns(turn_us: float) -> Iterator[None]:
    """Has a turn take on so little that what is left for the next ones is tried, too."""
    usual, limits.TURN_US = limits.TURN_US, turn_us
    try:
        yield
    finally:
        limits.TURN_US = usual
