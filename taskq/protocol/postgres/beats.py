"""What a fleet tells with its beats, for clients of the database: its status, what it runs, and what it could run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgpack

from taskq.model.info.status import ConsumerStatus, FleetStatus
from taskq.protocol.status import status_of, status_value


class RunningJob(NamedTuple):
    """A job that runs.

    Attributes:
        attempt: the number of the attempt.
        started_at: when it began, in seconds since 1970, by the clock of its machine.
        progress: done, total and note, if it said so.
        consumer: the number of the consumer that runs it, if that is known.
    """

    attempt: int
    started_at: float
    progress: tuple[float, float | None, str] | None = None
    consumer: int | None = None


class Told(NamedTuple):
    """What a fleet tells.

    Attributes:
        status: its status.
        running: the jobs that run, by id.
        queues: the queues that it serves; empty for all.
        of_consumers: the queues of those consumers, by number, that serve others than the fleet.
        resources: how much it has of each.
        tasks: the names of its application's tasks, one a line; empty if they are not known.
    """

    status: FleetStatus
    running: Mapping[bytes, RunningJob]
    queues: tuple[str, ...] = ()
    of_consumers: Mapping[int, tuple[str, ...]] = {}
    resources: Mapping[str, int] = {}
    tasks: bytes = b""

    @property
    def is_going(self) -> bool:
        """Whether it starts jobs."""
        return self.status.broker.state == "running"

    @property
    def is_calm(self) -> bool:
        """Whether nothing runs, and no consumer comes or goes."""
        status = self.status
        return (
            bool(status.consumers) and not status.not_started and all(each.state == "idle" for each in status.consumers)
        )

    def serves(self, queue: str) -> bool:
        """Whether it serves a queue, by its settings."""
        every = [self.queues, *self.of_consumers.values()]
        return any(not queues or queue in queues for queues in every)

    def has_task(self, task: str) -> bool:
        """Whether its application has a task, as far as is known."""
        return not self.tasks or task.encode() in self.tasks.split(b"\n")

    def ready(self, queue: str | None = None) -> Iterator[ConsumerStatus]:
        """The consumers that get jobs (of a queue)."""
        for consumer in self.status.consumers:
            queues = self.of_consumers.get(consumer.number, self.queues)
            if consumer.state in ("idle", "running") and (queue is None or not queues or queue in queues):
                yield consumer


def pack_told(told: Told) -> bytes:
    """What is kept in `beats.status`: the status, as before there was more to tell, and the rest in a list."""
    packed: bytes = msgpack.packb({**status_value(told.status), "told": list(told[1:])})
    return packed


def read_told(packed: bytes) -> Told:
    """Reads that; a fleet of an older version told its status alone. Raises ProtocolError."""
    value: dict[str, Any] = msgpack.unpackb(packed, strict_map_key=False, use_list=False)
    running, *others = value.get("told", ({},))
    jobs = {job_id: RunningJob(*each[:4]) for job_id, each in running.items()}
    return Told(status_of(value), jobs, *others[:4])
