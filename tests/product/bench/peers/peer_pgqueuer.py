"""PgQueuer on PostgreSQL, with asyncpg, its faster driver, and what its pages say for short jobs: larger batches, and
`pgq autovac`. It keeps no results: a round trip ends with the mark of its job."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import asyncpg
import board
import peer
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

_FRAME = 1_000
_LAST = board.MOST_JOBS - 1
_BATCH = int(os.environ.get("PEERS_BATCH", "100"))


async def _connect() -> asyncpg.Connection:
    return await asyncpg.connect(
        **dict(part.split("=") for part in peer.POSTGRES.replace("dbname", "database").split())
    )


async def work() -> None:
    """What `pgq run` does, which version 1.6.0 does not with typer 0.29."""
    own = PgQueuer(AsyncpgDriver(await _connect()))

    @own.entrypoint("mark")
    async def mark(job: Job) -> None:
        board.mark(int(job.payload or b"0"))

    await own.run(batch_size=_BATCH)


class Peer(peer.Peer):
    packages = ("pgqueuer", "asyncpg")
    has_bulk = True

    def workers(self) -> list[list[str]]:
        return [[sys.executable, __file__]] * 2

    def open(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._queries = Queries(AsyncpgDriver(self._loop.run_until_complete(_connect())))
        self._loop.run_until_complete(self._queries.install())
        host, port, user, database = (part.split("=")[1] for part in peer.POSTGRES.split())
        there = {"PGHOST": host, "PGPORT": port, "PGUSER": user, "PGDATABASE": database}
        subprocess.run([peer.script("pgq"), "autovac"], env={**os.environ, **there}, check=True, capture_output=True)

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._loop.run_until_complete(self._queries.enqueue("mark", b"%d" % number))

    def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _FRAME):
            part = numbers[start : start + _FRAME]
            names, payloads = ["mark"] * len(part), [b"%d" % number for number in part]
            self._loop.run_until_complete(self._queries.enqueue(names, payloads, [0] * len(part)))

    def round_trip(self) -> None:
        board.marks()[_LAST] = 0
        self.enqueue([_LAST])
        while not board.marks()[_LAST]:
            time.sleep(0.0001)


if __name__ == "__main__":
    asyncio.run(work())
