"""Which ids are new to the journal without a look into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from taskq.model.job import first_id_at
from taskq.system.clock import Clock

#: Ids whose time lies further ahead are not those of a clock that runs a little fast.
_FUTURE_S = 86_400.0
_AFTER_ALL_IDS = b"\xff" * 17


class KnownIds:
    """The gap between two known ids in which no job is known. Made anew after a rollback.

    Ids sort by time, so new ones fall between the newest that is known and those of the far future, and need no
    look-up. The latter come from a clock that was wrong, or from somebody who made them up; without a limit to what
    counts as newest, one of them would have all later ones looked up.
    """

    def __init__(self, db: apsw.Connection, clock: Clock) -> None:
        """Finds the gap."""
        self._db = db
        self._clock = clock
        self.look()

    def look(self) -> None:
        """Finds the gap anew, after ids came that do not all lie in it, or not before the horizon."""
        self._horizon = first_id_at(self._clock.time() + _FUTURE_S)
        self._from = self._id("SELECT max(id) FROM jobs WHERE id < ?") or b""
        self._to = self._id("SELECT min(id) FROM jobs WHERE id >= ?") or _AFTER_ALL_IDS

    def _id(self, sql: str) -> bytes | None:
        found: Any = self._db.execute(sql, (self._horizon,)).fetchone()
        job_id: bytes | None = found[0]
        return job_id

    def without_new(self, ids: Sequence[bytes]) -> list[bytes]:
        """Those of some ids that may be known."""
        start, end = self._from, self._to
        return [job_id for job_id in ids if not start < job_id < end]

    def are_new(self, ids: Sequence[bytes]) -> bool:
        """Whether none of these ids is known, and none of them stands there twice."""
        return self._from < min(ids) and max(ids) < self._to and len(set(ids)) == len(ids)

    def took_in(self, ids: Sequence[bytes]) -> None:
        """Jobs with these ids, which were new, are stored."""
        newest = max(ids)
        if newest < self._horizon:
            self._from = newest
        else:
            self.look()
