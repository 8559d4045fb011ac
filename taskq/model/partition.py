"""Partitions: the waiting jobs of one queue that share a priority and limits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from taskq.model.constraints import Constraints
from taskq.model.spec import Spec


class Limit(NamedTuple):
    """A limit, as jobs name it. `kind` and `name` tell which one; the amount is that of the job that asks."""

    kind: str
    name: str
    amount: int
    period_s: float = 0.0


class Partition(NamedTuple):
    """What jobs that wait together have in common."""

    queue: str
    priority: int = 0
    limits: tuple[Limit, ...] = ()

    @property
    def is_keyed(self) -> bool:
        """Whether it is that of a key: neither tasks nor resources have a space in their names."""
        return any(" " in limit.name for limit in self.limits)


class Load(NamedTuple):
    """Waiting jobs of a partition that there is room for in memory.

    Attributes:
        after: only those with a higher sequence number: the others are there.
        limit: the most jobs.
        max_bytes: no more when payloads of this size are together (at least one job).
    """

    partition: Partition
    after: int
    limit: int
    max_bytes: int


def partition_of(spec: Spec, constraints: Constraints | None) -> Partition:
    """The partition of a job."""
    if constraints is None or not constraints.is_keyed:
        return _partition(spec, None, None)
    return _partition(spec, constraints.limit_key, constraints.order_key)


@lru_cache(maxsize=16_384)
def _partition(spec: Spec, limit_key: str | None, order_key: str | None) -> Partition:
    subject = spec.task if limit_key is None else f"{spec.task} {limit_key}"
    limits = []
    if order_key is not None:
        limits.append(Limit("order", f"{spec.task} {order_key}", 1))
    if spec.concurrency is not None:
        limits.append(Limit("concurrency", subject, spec.concurrency))
    if spec.rate is not None:
        limits.append(Limit("rate", subject, *spec.rate))
    limits += [Limit("resource", name, amount) for name, amount in spec.resources]
    return Partition(spec.queue, spec.priority, tuple(limits))


#: When each slot of a rate began, and how many starts it had; ascending. Monotonic seconds in a running fleet, where
#: somebody may set the clock; seconds since 1970 in a store.
Starts = Sequence[tuple[float, int]]
