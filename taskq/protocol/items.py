"""What a generator among the tasks yields: the answer to READ_ITEMS.

    answer  := [items, nil or [state, outcome or nil]]

There are items, or the job has ended and there are no more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskq.model.attempt import read_outcome
from taskq.model.errors import ProtocolError
from taskq.model.job import JobState
from taskq.protocol.answers import ok_frame
from taskq.protocol.endings import Ending


def items_frame(request: int, items: Sequence[bytes], state: JobState, outcome: bytes | None) -> bytes:
    """Makes the answer to a reader of items.

    Args:
        items: from the position that was asked for on; if there are none, the job has ended.
        state, outcome: of the job; sent if there are no items.
    """
    return ok_frame(request, (items, None if items else (state.value, outcome)))


def read_items_answer(value: Any) -> tuple[list[bytes], Ending | None]:
    """Reads the value in the answer: the items, and how the job ended, or None if there may be more items.

    Raises:
        ProtocolError: it is not such an answer.
    """
    try:
        items, end = value
        if end is None:
            return list(items), None
        state, outcome = end
        return list(items), Ending(JobState(state), read_outcome(outcome or b""))
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"not an answer to a reader of items: {value!r:.50}") from error
