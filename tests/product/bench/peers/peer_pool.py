"""multiprocessing.Pool: nothing is kept, nothing survives the process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

import board
import peer


class Peer(peer.Peer):
    is_in_process = True
    has_bulk = True

    def open(self) -> None:
        self._pool = multiprocessing.Pool(2)

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._pool.apply_async(board.mark, (number,))

    def enqueue_many(self, numbers: Sequence[int]) -> None:
        self._pool.map_async(board.mark, numbers)

    def round_trip(self) -> None:
        assert self._pool.apply_async(board.ping).get(30) == 1
