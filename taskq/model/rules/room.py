"""Room in a queue: whether more jobs may come in. A pure rule for any engine."""

from __future__ import annotations

from taskq.model.errors import QueueFull
from taskq.model.spec import Spec


def check_room(spec: Spec, waiting: int, jobs: int) -> None:
    """Checks whether jobs may come into the queue of their spec.

    Args:
        spec: what these jobs have in common.
        waiting: how many jobs wait in the queue.
        jobs: how many would come in; 0 or fewer if at least as many give way.

    Raises:
        QueueFull: too many would wait.
    """
    most = spec.max_queued
    if most is not None and jobs > 0 and waiting + jobs > most:
        raise QueueFull(
            f"{waiting} jobs wait in the queue {spec.queue!r}, and {spec.task} allows {most} there "
            f'(max_queued=): try again later, or enqueue with when_full="wait"'
        )
