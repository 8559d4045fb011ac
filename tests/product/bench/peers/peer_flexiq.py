"""FlexiQ: a core in Rust, on SQLite."""

from __future__ import annotations

from collections.abc import Sequence

import board
import flexiq
import peer

_FRAME = 1_000

queue = flexiq.Queue(db_path=str(peer.DIRECTORY / "flexiq.db"), workers=2)
mark = queue.task(name="mark")(board.mark)
ping = queue.task(name="ping")(board.ping)


class Peer(peer.Peer):
    packages = ("flexiq",)
    has_bulk = True

    def workers(self) -> list[list[str]]:
        return [[peer.script("flexiq"), "worker", "--app", "peer_flexiq:queue", "--pool", "prefork"]]

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            mark.delay(number)

    def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _FRAME):
            mark.map([(number,) for number in numbers[start : start + _FRAME]])

    def round_trip(self) -> None:
        assert ping.delay().result(timeout=30) == 1
