"""The numbers that the database gives to what many jobs have in common: specs, and partitions.

Whoever has a connection keeps the numbers. A number is looked up in a transaction of its own: one that stays open would
hold up everyone else who needs the same new row.

There is a partition for each key that jobs have, so those with limits are removed when they are not used any more: when
nobody has looked up their number for an hour, and there is no job. Numbers are kept for less than that. Where one is
used all the same, by a transaction that stayed open, brokers make the row again: see
`taskq.engines.postgres.limits.unused`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf
from typing import Final

import msgpack

from taskq.model.partition import Limit, Partition
from taskq.model.spec import Spec
from taskq.protocol.postgres.arrays import byteas, ints, texts
from taskq.protocol.postgres.plans import Plan, Query, Step

#: For how many seconds the number of a partition with limits is kept; and for how many a look-up need not be noted.
KEPT_S: Final = 600.0

_FIND_SPECS = "SELECT fields, spec FROM taskq.specs WHERE fields = ANY($1::bytea[])"
_ADD_SPECS = "INSERT INTO taskq.specs (fields) SELECT unnest($1::bytea[]) ORDER BY 1 ON CONFLICT DO NOTHING"
_FIND_PARTITIONS = f"""
    WITH found AS MATERIALIZED (
        SELECT p.queue, p.priority, p.limits, p.partition, p.used_at FROM taskq.partitions p
        JOIN unnest($1::text[], $2::int[], $3::bytea[]) AS n(queue, priority, limits) USING (queue, priority, limits)),
    stale AS MATERIALIZED (
        SELECT partition FROM taskq.partitions WHERE partition IN (
            SELECT partition FROM found
            WHERE limits <> '\\x90' AND used_at < taskq.now_() - interval '{KEPT_S} seconds')
        FOR NO KEY UPDATE SKIP LOCKED),
    used AS (UPDATE taskq.partitions p SET used_at = taskq.now_() FROM stale WHERE p.partition = stale.partition)
    SELECT queue, priority, limits, partition FROM found"""
_ADD_PARTITIONS = """
    INSERT INTO taskq.partitions (queue, priority, limits, used_at)
    SELECT n.*, taskq.now_() FROM unnest($1::text[], $2::int[], $3::bytea[]) AS n ORDER BY 1, 2, 3
    ON CONFLICT DO NOTHING"""


class Kinds:
    """The numbers that are known, of specs and of partitions. Any thread may use it."""

    def __init__(self) -> None:
        self.specs: dict[Spec, int] = {}
        self.partitions: dict[Partition, int] = {}
        self._forget_at = -inf  # monotonic

    def forget_old(self, now: float) -> None:
        """Forgets the numbers of partitions that may be removed, now and then; to be called before some are used.

        Args:
            now: monotonic.
        """
        if now >= self._forget_at:
            self._forget_at = now + KEPT_S
            self.partitions = {
                partition: number for partition, number in self.partitions.items() if not partition.limits
            }

    def forget(self) -> None:
        """Forgets all numbers: a server that was away may have come back with older tables."""
        self.specs, self.partitions = {}, {}


def number_specs(specs: Sequence[Spec], *, commits: bool = True) -> Plan[dict[Spec, int]]:
    """Finds the numbers of specs, or gives them some.

    Args:
        commits: False: the plan goes on. Its transaction is to be short, as others wait for it.
    """
    packed = {pack_spec(spec): spec for spec in specs}
    fields = byteas(list(packed))
    [found] = yield Step(Query(_FIND_SPECS, (fields,)))
    if len(found) < len(packed):
        _, found = yield Step(Query(_ADD_SPECS, (fields,)), Query(_FIND_SPECS, (fields,)), commits=commits)
    return {packed[bytes(of)]: number for of, number in found}


def number_partitions(partitions: Sequence[Partition], *, commits: bool = True) -> Plan[dict[Partition, int]]:
    """Finds the numbers of partitions, or gives them some; see `number_specs`."""
    columns = (
        texts([partition.queue for partition in partitions]),
        ints([partition.priority for partition in partitions]),
        byteas([pack_limits(partition) for partition in partitions]),
    )
    [found] = yield Step(Query(_FIND_PARTITIONS, columns))
    if len(found) < len(partitions):
        _, found = yield Step(Query(_ADD_PARTITIONS, columns), Query(_FIND_PARTITIONS, columns), commits=commits)
    return {Partition(queue, priority, read_limits(bytes(limits))): number for queue, priority, limits, number in found}


def pack_spec(spec: Spec) -> bytes:
    """A spec as it stands in its row."""
    packed: bytes = msgpack.packb(spec.to_wire())
    return packed


@lru_cache(maxsize=16_384)
def read_spec(fields: bytes) -> Spec:
    """The opposite of `pack_spec`."""
    return Spec.from_wire(msgpack.unpackb(fields))


def pack_limits(partition: Partition) -> bytes:
    """The limits of a partition as they stand in its row."""
    packed: bytes = msgpack.packb(partition.limits)
    return packed


def read_limits(limits: bytes) -> tuple[Limit, ...]:
    """The opposite of `pack_limits`."""
    return tuple(Limit(*fields) for fields in msgpack.unpackb(limits))
