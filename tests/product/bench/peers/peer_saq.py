"""SAQ on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import board
import peer
from saq import Queue

queue = Queue.from_url(peer.REDIS)
_AT_ONCE = 100
_LISTEN_S = 0.05


async def mark(_context: Any, *, number: int) -> None:
    board.mark(number)


async def ping(_context: Any) -> int:
    return board.ping()


settings = {"queue": queue, "functions": [mark, ping]}


class Peer(peer.Peer):
    packages = ("saq", "redis")
    has_bulk = True  # many calls at once, on one loop

    def workers(self) -> list[list[str]]:
        return [[peer.script("saq"), "peer_saq.settings", "--workers", "2"]]

    def open(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(queue.connect())

    def close(self) -> None:
        self._loop.run_until_complete(queue.disconnect())

    def enqueue(self, numbers: Sequence[int]) -> None:
        async def run() -> None:
            for number in numbers:
                await queue.enqueue("mark", number=number)

        self._loop.run_until_complete(run())

    def enqueue_many(self, numbers: Sequence[int]) -> None:
        async def run() -> None:
            for start in range(0, len(numbers), _AT_ONCE):
                some = numbers[start : start + _AT_ONCE]
                await asyncio.gather(*(queue.enqueue("mark", number=number) for number in some))

        self._loop.run_until_complete(run())

    def round_trip(self) -> None:
        async def run() -> None:
            job = await queue.enqueue("ping")
            assert job is not None
            while not job.completed:  # the notice is missed if the job ends before this has subscribed to it
                with suppress(TimeoutError):
                    await job.refresh(_LISTEN_S)
                await job.refresh()
            assert job.result == 1

        self._loop.run_until_complete(run())
