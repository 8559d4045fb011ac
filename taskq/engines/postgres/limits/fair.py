"""Which part of a limit is a fleet's, while others wait for some of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

#: How long a fleet waits before those that have more than their part make room for it. So they take turns that are
#: long beside the time that it takes to hand something over.
TURN_S: Final = 0.25


class Claim(NamedTuple):
    """What another fleet has of a limit, and for how many seconds it has been waiting for more; None: it does not."""

    amount: int
    waits_s: float | None

    @property
    def is_heard(self) -> bool:
        """Whether it has waited long enough for others to make room."""
        return self.waits_s is not None and self.waits_s >= TURN_S


def part_of(amount: int, waits_s: float | None, others: Sequence[Claim]) -> int:
    """How much of a limit a fleet may have: all of it, unless another has waited for some.

    Those that want more have equal parts; what is left over goes to those that have waited longest. Those that do not
    wait keep what they have, if it is less than that.

    Args:
        amount: of the whole limit.
        waits_s: for how many seconds the fleet has been waiting itself; None: it has not.
    """
    waiting = [each for each in others if each.is_heard]
    if not waiting:
        return amount
    content = sorted(each.amount for each in others if not each.is_heard and each.amount)
    left, count = amount, 1 + len(waiting) + len(content)
    for own in content:
        if own * count > left:
            break  # it has more than its part, as the next ones have
        left, count = left - own, count - 1
    part, rest = divmod(left, count)
    before = sum(1 for each in waiting if (each.waits_s or 0.0) > (waits_s or 0.0))
    return part + (before < rest)
