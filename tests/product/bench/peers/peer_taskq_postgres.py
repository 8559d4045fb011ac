"""taskq with its queue in PostgreSQL: two consumers, all else as it is by default."""

from __future__ import annotations

import logging
import os
import subprocess

import board
import peer
import peer_taskq

from taskq import TaskQ

logging.getLogger("taskq").addHandler(logging.NullHandler())  # the first job waits for its fleet
os.environ["XDG_STATE_HOME"] = str(peer.DIRECTORY)
_host, _port, _user, _database = (part.split("=")[1] for part in peer.POSTGRES.split())

q = TaskQ("peers", url=f"postgresql://{_user}@{_host}:{_port}/{_database}")
mark = q.task(board.mark)
ping = q.task(board.ping)


class Peer(peer_taskq.Peer):
    packages = ("taskq-fleet", "psycopg")
    q, mark, ping = q, mark, ping

    def open(self) -> None:
        subprocess.run([peer.script("taskq"), "migrate", "peer_taskq_postgres:q"], check=True, capture_output=True)

    def workers(self) -> list[list[str]]:
        return [[peer.script("taskq"), "worker", "peer_taskq_postgres:q", "--consumers", "2"]]
