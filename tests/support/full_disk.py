"""A journal whose disk is full at times."""

from __future__ import annotations

from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.errors import StoreFull


class Tight(SQLiteStore):
    """Its disk is full at the next `refusals` commits."""

    refusals = 0

    def commit(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise StoreFull("no room")
        super().commit()
