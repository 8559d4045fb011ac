"""What the judge asks of the turns of the broker's loop, in rows that they write: no time is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from history import History

#: What a row takes at the least, of the work that a turn takes on; a few, such as those of successes, take a little less.
_ROW_US = 2.5
#: What cannot be cut: one submission of a client, which has at most 20 jobs, or one job's end, with at most 6 children.
_ONE_PIECE = 20


class Turn(NamedTuple):
    """A turn of the broker's loop.

    Attributes:
        turn_us: the work that it takes on, in microseconds.
        rows: how many rows it has written.
    """

    turn_us: float
    rows: int


NO_TURN = Turn(0.0, 0)


def turns_are_bounded(h: History) -> Iterator[str]:
    """I54: a turn of the broker's loop does no more than it takes on, and one thing that cannot be cut."""
    turn_us, rows = h.longest_turn
    most = turn_us / _ROW_US + _ONE_PIECE
    if rows > most:
        yield f"a turn wrote {rows} rows, and takes on {turn_us:g} us, for which {most:g} are enough"


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (turns_are_bounded,)
