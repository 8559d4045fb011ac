"""Starts the two processes that a guardian needs, even before it knows what for.

This module imports next to nothing, so that `taskq worker` has both at work while it still imports its command line.
Each process reads from a socket what it is to do, and ends if the socket is closed first.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

#: When a broker is killed, multiprocessing's helper process removes its semaphores, and would give a warning of it.
_QUIET = "ignore:resource_tracker:UserWarning"
_BROKER = "import gc, sys; gc.disable(); from taskq.broker.process import main; main(int(sys.argv[1]))"
_READER = "import sys; from taskq.broker.stopped import main; main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))"
_SMALL_GUARDIAN = "import sys; from taskq.broker.small import main; main(sys.argv[1])"
_RESOLVER = "import sys; from taskq.consumer.resolve import main; main(sys.argv[2], int(sys.argv[1]))"

#: Keeps messages whole. macOS has only streams here, in which the few short messages arrive whole as well.
_MESSAGES = socket.SOCK_SEQPACKET if sys.platform.startswith("linux") else socket.SOCK_STREAM


class Child:
    """A process, and our end of the socket to it."""

    def __init__(
        self, program: str, *arguments: str, options: tuple[str, ...] = (), kind: int, group: int | None
    ) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", program, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            process_group=group,
        )
        theirs.close()


def spawn_broker() -> Child:
    """Starts a broker, which waits for its settings. Ctrl-C goes to the guardian, which passes it on in its own way."""
    return Child(_BROKER, options=("-W", _QUIET), kind=_MESSAGES, group=0)


def spawn_resolver(app: str) -> Child:
    """Starts a process that imports an application to learn its name and directory (user code, hence not done here)."""
    return Child(_RESOLVER, app, kind=socket.SOCK_STREAM, group=None)


def spawn_reader(path: str, patience_s: float) -> Child:
    """Starts a process that answers for a directory whose fleet does not run.

    Args:
        patience_s: how long it waits for a fleet that is ending, or that starts and will answer.
    """
    return Child(_READER, path, str(patience_s), options=("-W", _QUIET), kind=socket.SOCK_STREAM, group=0)


_early_brokers: list[Child] = []  # at most one
_early_resolvers: dict[str, Child] = {}  # at most one, by application


def start_early(app: str | None) -> None:
    """Starts both for the guardian that this process is going to run, unless the command line is not valid."""
    _early_brokers.append(spawn_broker())
    if app:
        _early_resolvers[app] = spawn_resolver(app)


def take_broker() -> Child:
    """The broker that was started early, or a new one."""
    return _early_brokers.pop() if _early_brokers else spawn_broker()


def take_resolver(app: str) -> Child:
    """The resolver that was started early for this application, or a new one."""
    return _early_resolvers.pop(app, None) or spawn_resolver(app)


def become_small(told: str, descriptors: Sequence[int]) -> None:
    """Has this process, a guardian, go on as a smaller program; it does not return then.

    Args:
        told: what that program needs to know.
        descriptors: what it inherits.

    Raises:
        OSError: this program goes on.
    """
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, [sys.executable, "-c", _SMALL_GUARDIAN, told])
    finally:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
