"""How a consumer process begins, and what the broker starts it with."""

from __future__ import annotations

import gc
import signal
import socket
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from typing import NamedTuple

from taskq.protocol.link.counters import Counters
from taskq.protocol.link.unsent import Unsent
from taskq.system.place import Place

#: Sent in place of a batch: no more will come.
STOP = b""
#: The soft signal of a timeout. SIGALRM and SIGUSR1 stay free for the application.
TIMEOUT_SIGNAL = signal.SIGXCPU
#: Has a consumer write the stacks of all its threads, also while it hangs in C code. The broker sends it before a kill.
STACKS_SIGNAL = signal.SIGQUIT

#: Set in the environment of consumers (and of what they start), for scripts that would start a fleet when imported.
IN_CONSUMER = "TASKQ_IN_CONSUMER"


class Boot(NamedTuple):
    """What a consumer is started with. Written by the supervisor, handed over by inheritance."""

    program: str  # the module whose `run` is the consumer; imported in its process alone
    app: str
    place: Place
    title: str
    number: int  # of the consumer; one that takes the place of another has the same
    record: int  # its place in the flight recorder, which it shares with no other process
    slots: int  # how many jobs it runs at once
    syncs_files: bool  # whether the files of large results are to survive a loss of power
    parent_pid: int  # 0 if not known
    counters: Counters
    inbox: SimpleQueue[bytes]
    socket: socket.socket
    unsent: Unsent
    output: Connection
    open_files: int | None  # the soft limit on them, which the broker has raised for itself


def main(boot: Boot) -> None:
    """Runs a consumer: the target of its process."""
    gc.disable()  # nothing of what is imported now goes; `run` turns it on again
    import_module(boot.program).run(boot)
