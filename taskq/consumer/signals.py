"""Signals of a consumer process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

_Handler = Callable[[int, FrameType | None], None]


def handle_signals(handlers: dict[int, _Handler]) -> None:
    """Sets signal handlers for this process alone: what a job forks begins with the default handlers, as usual.
    (`multiprocessing.Pool` ends its workers with SIGTERM and waits for their end.)

    A signal may reach a child before it has changed its handlers, and CPython forgets signals that arrive so early. So
    they are blocked around the fork, and arrive when the handlers are right.
    """
    for number, handler in handlers.items():
        signal.signal(number, handler)
    mask = threading.local()

    def before_fork() -> None:
        mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)

    def after_fork() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.before)

    def after_fork_in_child() -> None:
        for number, handler in handlers.items():
            if signal.getsignal(number) == handler:  # and not one of the job's own
                signal.signal(number, signal.SIG_DFL)
        after_fork()

    os.register_at_fork(before=before_fork, after_in_parent=after_fork, after_in_child=after_fork_in_child)


def ignore(_signal: int, _frame: FrameType | None) -> None:
    pass
