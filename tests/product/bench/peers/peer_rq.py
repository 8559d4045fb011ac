"""RQ, with the worker that does not fork for each job."""

from __future__ import annotations

from collections.abc import Sequence

import board
import peer
from redis import Redis
from rq import Queue

_FRAME = 1_000


class Peer(peer.Peer):
    packages = ("rq", "redis")
    has_bulk = True

    def workers(self) -> list[list[str]]:
        command = [peer.script("rq"), "worker-pool", "-q", "-n", "2", "--url", peer.REDIS]
        return [[*command, "-w", "rq.worker.SimpleWorker"]]

    def open(self) -> None:
        self._queue = Queue(connection=Redis.from_url(peer.REDIS))

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._queue.enqueue(board.mark, number)

    def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _FRAME):
            some = numbers[start : start + _FRAME]
            self._queue.enqueue_many([Queue.prepare_data(board.mark, args=(number,)) for number in some])

    def round_trip(self) -> None:
        result = self._queue.enqueue(board.ping).latest_result(timeout=30)
        assert result is not None
        assert result.return_value == 1
