"""Huey on SQLite, which syncs each commit by default."""

from __future__ import annotations

from collections.abc import Sequence

import board
import huey as package
import peer

huey = package.SqliteHuey("peers", filename=str(peer.DIRECTORY / "huey.db"))
mark = huey.task()(board.mark)
ping = huey.task()(board.ping)


class Peer(peer.Peer):
    packages = ("huey",)

    def workers(self) -> list[list[str]]:
        return [[peer.script("huey_consumer"), "peer_huey.huey", "-q", "-k", "process", "-w", "2"]]

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            mark(number)

    def round_trip(self) -> None:
        assert ping().get(blocking=True, timeout=30) == 1
