"""The numbers that stand for bands (`taskq.gates.Band`) in the rows of the journal.

There may be a band for each key that ever was. The band of a key has a number while a queued job stands in it: a job
that waits for its time, or for another job, stands in the band of its task without a key until it is queued. So what
is kept of keys, here and in the journal, is bounded by the queued jobs and a constant.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import apsw
import msgpack

from taskq.gates import Band, Gate
from taskq.limits import KEPT_KEYS

# the second condition lets SQLite use the index of the queued jobs with keys
_IDLE = """SELECT value FROM json_each(?) WHERE NOT EXISTS
    (SELECT 1 FROM jobs WHERE state = 0 AND is_keyed = 1 AND band = value)"""


class BandNumbers:
    """All bands of a journal. Made anew after a rollback."""

    def __init__(self, db: apsw.Connection) -> None:
        """Reads what there is."""
        self._db = db
        self._numbers: dict[Band, int] = {}
        self._keyed: deque[Band] = deque()  # those of keys, in the order in which they are looked at
        for number, queue, priority, gates in db.execute("SELECT band, queue, priority, gates FROM bands"):
            self._keep(Band(queue, priority, tuple(Gate(*fields) for fields in msgpack.unpackb(gates))), number)

    def _keep(self, band: Band, number: int) -> None:
        self._numbers[band] = number
        if band.is_keyed:
            self._keyed.append(band)

    def of(self, band: Band) -> int:
        """The number of a band, which gets one if it has none. Its job is to be queued in the same transaction."""
        number = self._numbers.get(band)
        if number is None:
            fields = band.queue, band.priority, msgpack.packb(band.gates)
            self._db.execute("INSERT INTO bands (queue, priority, gates) VALUES (?, ?, ?)", fields)
            number = self._db.last_insert_rowid()
            self._keep(band, number)
        return number

    def known(self, band: Band) -> int | None:
        """The number of a band, if it has one."""
        return self._numbers.get(band)

    def by_number(self) -> dict[int, Band]:
        """All bands that have a number."""
        return {number: band for band, number in self._numbers.items()}

    def take_idle(self, limit: int) -> list[int]:
        """Takes out the bands of keys in which no job is queued, while there are more bands of keys than KEPT_KEYS. The
        caller removes their rows. Looks at `limit` of them, the next ones each time."""
        looked_at = min(limit, len(self._keyed) - KEPT_KEYS)
        if looked_at <= 0:
            return []
        bands = {self._numbers[band]: band for band in (self._keyed.popleft() for _ in range(looked_at))}
        found: list[Any] = self._db.execute(_IDLE, (json.dumps(list(bands)),)).fetchall()
        idle = [number for (number,) in found]
        for number in idle:
            del self._numbers[bands.pop(number)]
        self._keyed.extend(bands.values())
        return idle
