"""Dramatiq on Redis, with results for the round trip."""

from __future__ import annotations

from collections.abc import Sequence

import board
import dramatiq
import peer
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends.redis import RedisBackend

broker = RedisBroker(url=peer.REDIS)
broker.add_middleware(Results(backend=RedisBackend(url=peer.REDIS)))
dramatiq.set_broker(broker)
mark = dramatiq.actor(board.mark)
ping = dramatiq.actor(board.ping, store_results=True)


class Peer(peer.Peer):
    packages = ("dramatiq", "redis")

    def workers(self) -> list[list[str]]:
        return [[peer.script("dramatiq"), "peer_dramatiq", "-p", "2", "-t", "8", "--skip-logging"]]

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            mark.send(number)

    def round_trip(self) -> None:
        assert ping.send().get_result(block=True, timeout=30_000) == 1
