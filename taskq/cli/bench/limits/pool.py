"""A process pool of the standard library: what jobs cost that nothing keeps safe."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from taskq.system.platform import die_with_parent


def _prepare() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which closes the pool


class Pool:
    """Some processes that run functions."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")  # this process may have threads
        self._executor = ProcessPoolExecutor(processes, context, _prepare)

    def close(self) -> None:
        """Ends the processes when they have done what they are at."""
        self._executor.shutdown(cancel_futures=True)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function, and returns its result."""
        return self._executor.submit(function, *arguments).result()

    def run(self, function: Callable[..., Any], arguments: Iterable[Any]) -> None:
        """Runs a function for each argument, handed over one by one, and waits until all have ended."""
        for future in [self._executor.submit(function, argument) for argument in arguments]:
            future.result()
