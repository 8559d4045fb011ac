"""Room in a queue, as any engine decides it."""

from __future__ import annotations

import pytest

from taskq import QueueFull
from taskq.model.rules.room import check_room
from taskq.model.spec import Spec


@pytest.mark.parametrize(
    ("most", "waiting", "jobs", "fits"),
    [
        (None, 10**9, 10**6, True),
        (3, 0, 3, True),
        (3, 0, 4, False),
        (3, 2, 1, True),
        (3, 2, 2, False),
        (3, 3, 1, False),
        (3, 9, 0, True),
        (3, 9, -1, True),
    ],
)
def test_room_in_a_queue(most: int | None, waiting: int, jobs: int, fits: bool) -> None:
    """All that come in together fit, or none does. Who replaces another needs no room, even in a queue that is over
    its limit, which may have been lowered."""
    spec = Spec("bill", queue="mail", max_queued=most)
    if fits:
        check_room(spec, waiting, jobs)
        return
    with pytest.raises(QueueFull, match=rf"{waiting} jobs wait in the queue 'mail', and bill allows {most} there"):
        check_room(spec, waiting, jobs)
