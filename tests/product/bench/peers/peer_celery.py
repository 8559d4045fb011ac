"""Celery on Redis, set up for speed."""

from __future__ import annotations

from collections.abc import Sequence

import board
import peer
from celery import Celery

app = Celery("peers", broker=peer.REDIS, backend=peer.REDIS)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=128,
    worker_send_task_events=False,
    worker_disable_rate_limits=True,
)
mark = app.task(name="mark", ignore_result=True)(board.mark)
ping = app.task(name="ping")(board.ping)


class Peer(peer.Peer):
    packages = ("celery", "kombu", "redis")

    def workers(self) -> list[list[str]]:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return [[peer.script("celery"), "-A", "peer_celery", "worker", "-c", "2", "-l", "ERROR", *quiet]]

    def enqueue(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            mark.delay(number)

    def round_trip(self) -> None:
        assert ping.delay().get(timeout=30) == 1
