"""The answer to COUNTS: what happened to the jobs of each task and queue, in portions."""

from __future__ import annotations

from typing import Any, Final

from taskq.model.errors import ProtocolError, is_from_signal_handler
from taskq.model.info.counts import FleetCounts, TaskCounts
from taskq.model.limits import MIB

#: One answer has no more pairs of a task and a queue, and few more bytes, than these: making it takes a few
#: milliseconds.
_MOST_PAIRS: Final = 200
_MOST_BYTES: Final = MIB


def counts_value(counts: FleetCounts, after: list[str] | None) -> list[Any]:
    """The counts as they travel: of each task and queue, their names, and minutes with packed counts.

    Args:
        after: the names at which the last answer ended; None: begin.

    Returns:
        A portion of them, by name; and where it ended if there are more, else None.
    """
    told: list[Any] = []
    size = 0
    for task, queue, pair in counts:
        if after is not None and [task, queue] <= after:
            continue
        if len(told) == _MOST_PAIRS or size >= _MOST_BYTES:
            return [told, told[-1][:2]]
        packed = pair.packed()
        size += sum(len(own) for _, own in packed)
        told.append([task, queue, packed])
    return [told, None]


def counts_of(value: Any) -> tuple[list[TaskCounts], list[str] | None]:
    """Reads the answer: a portion of the counts, and where to go on.

    Raises:
        ProtocolError: it is none.
    """
    try:
        told, after = value
        return [TaskCounts.of(task, queue, minutes) for task, queue, minutes in told], after
    except Exception as error:
        if is_from_signal_handler(error):
            raise
        raise ProtocolError(f"these are not counts: {error}") from error
