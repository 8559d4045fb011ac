"""Jobs that come after others: what becomes of one when some before it have ended. A pure rule for any engine."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from taskq.model.stored import StoredState


class Fate(Enum):
    """What becomes of a job when some of those before it have ended."""

    WAITS = auto()
    GOES = auto()
    CANCELLED = auto()


def becomes(ends: Iterable[tuple[StoredState, bool]], is_last: bool) -> Fate:
    """Returns what becomes of a job.

    Args:
        ends: how jobs before it ended, each with whether the job goes on if that one did not succeed.
        is_last: whether it waits for no other job.
    """
    if any(kept != StoredState.SUCCEEDED and not goes_on for kept, goes_on in ends):
        return Fate.CANCELLED  # at once: the other jobs that it waits for cannot change that
    return Fate.GOES if is_last else Fate.WAITS
