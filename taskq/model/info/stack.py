"""What clients learn about the stack of a consumer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskq.model.info.status import ConsumerStatus


@dataclass(frozen=True, slots=True)
class ConsumerStack:
    """Where the threads of a consumer are.

    Attributes:
        consumer: the number of the consumer.
        pid: the id of its process.
        task: the task of the job that it has been running for the longest time, or None.
        job_id: that job, or None.
        running_s: for how many seconds it has been running, or None.
        stack: the frames of its threads as lines of text, the newest call first; empty if it is idle.
    """

    consumer: int
    pid: int
    task: str | None
    job_id: str | None
    running_s: float | None
    stack: str


def stack_of(number: int, event: Mapping[str, Any], consumer: ConsumerStatus | None) -> ConsumerStack:
    """Returns the stack that a consumer wrote to the log.

    Args:
        number: of the consumer.
        event: `consumer.stacks`.
        consumer: what it did when it was asked, if that is known.
    """
    job_id = event.get("job_id") or (consumer.job_id if consumer else None)
    running_s = consumer.running_s if consumer and consumer.job_id == job_id else None
    task = event.get("task") or (consumer.task if consumer else None)
    return ConsumerStack(number, event["pid"], task, job_id, running_s, event.get("output", ""))
