"""taskq: two consumers, all else as it is by default."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import board
import peer

from taskq import TaskQ

logging.getLogger("taskq").addHandler(logging.NullHandler())  # the first job waits for its fleet

q = TaskQ("peers", url=str(peer.DIRECTORY / "taskq"))
mark = q.task(board.mark)
ping = q.task(board.ping)


class Peer(peer.Peer):
    packages = ("taskq-fleet", "apsw")
    has_bulk = True
    q, mark, ping = q, mark, ping

    def workers(self) -> list[list[str]]:
        return [[peer.script("taskq"), "worker", "peer_taskq:q", "--consumers", "2"]]

    def hold(self) -> bool:
        self.q.pause("default")
        return True

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.mark.enqueue(number)

    def enqueue_many(self, numbers: Sequence[int]) -> None:
        self.mark.enqueue_many((number,) for number in numbers)

    def round_trip(self) -> None:
        assert self.ping.enqueue().result(timeout=30) == 1
