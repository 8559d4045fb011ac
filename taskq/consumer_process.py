"""How a consumer process begins. The broker imports this much of a consumer, and no more: it starts 25 ms earlier."""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from taskq.counters import Counters
from taskq.outbox import Unsent

#: Sent in place of a batch: no more will come.
STOP = b""
#: The soft signal of a timeout. SIGALRM and SIGUSR1 stay free for the application.
TIMEOUT_SIGNAL = signal.SIGXCPU


@dataclass(frozen=True)
class Boot:
    """What a consumer is started with. Written by the supervisor, handed over by inheritance."""

    app: str
    directory: Path
    title: str
    record: int
    seats: int  # how many jobs it runs at once
    parent_pid: int  # 0 if not known
    counters: Counters
    inbox: SimpleQueue[bytes]
    socket: socket.socket
    unsent: Unsent
    output: Connection


def main(boot: Boot) -> None:
    """Runs a consumer: the target of its process."""
    from taskq.consumer import run  # see above

    run(boot)
