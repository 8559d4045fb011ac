"""The numbers that stand for partitions (`taskq.model.partition.Partition`) in the rows of the journal.

There may be a partition for each key that was ever used. The partition of a key has a number while a queued job is in
it: a job that waits for its time, or for another job, is in the partition of its task without a key until it is queued.
So the number of keys that are kept, here and in the journal, is bounded by the queued jobs and a constant.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import apsw
import msgpack

from taskq.model.limits import KEPT_KEYS
from taskq.model.partition import Limit, Partition

# the second condition lets SQLite use the index of the queued jobs with keys
_IDLE = """SELECT value FROM json_each(?) WHERE NOT EXISTS
    (SELECT 1 FROM jobs WHERE state = 0 AND is_keyed = 1 AND band = value)"""


class PartitionNumbers:
    """All partitions of a journal. Made anew after a rollback."""

    def __init__(self, db: apsw.Connection) -> None:
        """Reads what there is."""
        self._db = db
        self._numbers: dict[Partition, int] = {}
        self._keyed: deque[Partition] = deque()  # those of keys, in the order in which they are looked at
        for number, queue, priority, limits in db.execute("SELECT band, queue, priority, gates FROM bands"):
            self._keep(Partition(queue, priority, tuple(Limit(*fields) for fields in msgpack.unpackb(limits))), number)

    def _keep(self, partition: Partition, number: int) -> None:
        self._numbers[partition] = number
        if partition.is_keyed:
            self._keyed.append(partition)

    def of(self, partition: Partition) -> int:
        """The number of a partition, which gets one if it has none. Its job is to be queued in the same transaction."""
        number = self._numbers.get(partition)
        if number is None:
            fields = partition.queue, partition.priority, msgpack.packb(partition.limits)
            self._db.execute("INSERT INTO bands (queue, priority, gates) VALUES (?, ?, ?)", fields)
            number = self._db.last_insert_rowid()
            self._keep(partition, number)
        return number

    def known(self, partition: Partition) -> int | None:
        """The number of a partition, if it has one."""
        return self._numbers.get(partition)

    def by_number(self) -> dict[int, Partition]:
        """All partitions that have a number."""
        return {number: partition for partition, number in self._numbers.items()}

    def take_idle(self, limit: int) -> list[int]:
        """Takes out the partitions of keys in which no job is queued, while there are more partitions of keys than
        KEPT_KEYS. The caller removes their rows. Looks at `limit` of them, the next ones each time."""
        looked_at = min(limit, len(self._keyed) - KEPT_KEYS)
        if looked_at <= 0:
            return []
        partitions = {
            self._numbers[partition]: partition for partition in (self._keyed.popleft() for _ in range(looked_at))
        }
        found: list[Any] = self._db.execute(_IDLE, (json.dumps(list(partitions)),)).fetchall()
        idle = [number for (number,) in found]
        for number in idle:
            del self._numbers[partitions.pop(number)]
        self._keyed.extend(partitions.values())
        return idle
