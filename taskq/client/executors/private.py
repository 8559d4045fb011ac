"""`taskq.Executor`: an executor with a fleet of its own, which lives as long as the executor."""

from __future__ import annotations

import atexit
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from taskq.client.app import TaskQ
from taskq.client.executors.executor import QueueExecutor
from taskq.client.executors.futures import Watcher
from taskq.client.executors.pickled_calls import INITIALIZER, PRIVATE_NAME, dump, register
from taskq.model.errors import TaskQError
from taskq.model.settings import Settings, default_consumers

#: The application of its consumers.
_APPLICATION = "taskq.client.executors.private_app:q"
#: Ended jobs are only kept until their futures have the results.
_KEEP_RESULTS_S = 600.0
_FLEET_ENDED = "the executor's fleet has ended: somebody has stopped or killed its guardian"


class Executor(QueueExecutor):
    """A `concurrent.futures.Executor` with a private fleet: worker processes under supervision.

    As `ProcessPoolExecutor`, but lambdas, closures and functions of the running script can be submitted, and a worker
    that is killed breaks nothing: its call is run again, and after three deaths its future fails alone. The fleet
    starts with the first call. It ends with `shutdown`, with the `with` block, or with the program, which waits for the
    calls that are left. What calls print goes to the fleet's log.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
    ) -> None:
        """
        Args:
            max_workers: the number of worker processes; by default one for each CPU that this process may use.
            initializer, initargs: a function that each worker calls before its first call, and its arguments.
            max_tasks_per_child: replace a worker after this number of calls.

        Raises:
            ValueError: a number is not greater than 0.
            TypeError: the initializer is not callable.
            ConfigError: cloudpickle is not installed.
        """
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_tasks_per_child is not None and max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._settings = Settings(
            consumers=max_workers or default_consumers(),
            max_jobs=max_tasks_per_child,
            durability="memory",
            keep_results_s=_KEEP_RESULTS_S,
            stderr_level="critical",
        )
        self._initializer = None if initializer is None else dump((initializer, initargs))
        self._fleet = _PrivateFleet()
        super().__init__(register(self._fleet.app), self._settings.consumers)
        self._watcher = Watcher(True, self._fleet.end)
        self._starting = threading.Lock()
        self._finalizer = weakref.finalize(self, self._watcher.close)
        self._finalizer.atexit = False
        atexit.register(_finish, weakref.ref(self._watcher))

    @property
    def _broken(self) -> str:
        """Why no call can run any more; empty if they can."""
        return self._watcher.broken

    def _start(self) -> None:
        with self._starting:
            if self._fleet.is_running:
                return
            try:
                pid_file = self._fleet.start(self._settings, self._initializer)
            except TaskQError as error:
                self._watcher.break_all(str(error))
                raise BrokenExecutor(str(error)) from error
            self._watcher.start()
            self._watcher.watch_descriptor(pid_file, partial(self._watcher.break_all, _FLEET_ENDED))


class _PrivateFleet:
    """A fleet in a temporary directory."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.is_running, self.guardian_pid = False, 0
        folder = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="taskq-executor-", ignore_cleanup_errors=True)
        )
        self.app = TaskQ(PRIVATE_NAME, Path(folder, "queue"))

    def start(self, settings: Settings, initializer: bytes | None) -> int:
        """Starts it. Returns a descriptor that can be read when it has ended."""
        if initializer is not None:
            self.app.directory.create()
            Path(self.app.directory.path, INITIALIZER).write_bytes(initializer)
        from taskq.client.fleet import RunningFleet  # imports multiprocessing; the executor may never get a call

        fleet = RunningFleet(self.app, settings, reference=_APPLICATION)
        self._stack.enter_context(fleet)
        self.is_running, self.guardian_pid = True, fleet.guardian_pid
        descriptor = os.pidfd_open(self.guardian_pid)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def end(self) -> None:
        """Ends it, and removes its directory."""
        self._stack.close()


def _finish(reference: weakref.ref[Watcher]) -> None:
    """At the end of the program: waits for the calls that are left."""
    watcher = reference()
    if watcher is not None:
        watcher.close()
        watcher.join()
