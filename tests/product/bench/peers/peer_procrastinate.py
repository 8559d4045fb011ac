"""procrastinate on PostgreSQL. It keeps no results: a round trip ends with the mark of its job."""

from __future__ import annotations

import time
from collections.abc import Sequence

import board
import peer
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

_FRAME = 1_000
_LAST = board.MOST_JOBS - 1

app = App(connector=PsycopgConnector(conninfo=peer.POSTGRES))


@app.task(name="mark")
async def mark(number: int) -> None:
    board.mark(number)


class Peer(peer.Peer):
    packages = ("procrastinate", "psycopg")
    has_bulk = True

    def workers(self) -> list[list[str]]:
        return [[peer.script("procrastinate"), "--app", "peer_procrastinate.app", "worker"]] * 2

    def open(self) -> None:
        self._replaced = app.replace_connector(SyncPsycopgConnector(conninfo=peer.POSTGRES))
        client = self._replaced.__enter__()
        client.open()
        client.schema_manager.apply_schema()
        self._mark = client.tasks["mark"]

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._mark.defer(number=number)

    def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _FRAME):
            self._mark.batch_defer(*({"number": number} for number in numbers[start : start + _FRAME]))

    def round_trip(self) -> None:
        board.marks()[_LAST] = 0
        self.enqueue([_LAST])
        while not board.marks()[_LAST]:
            time.sleep(0.0001)
