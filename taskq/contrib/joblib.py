"""joblib: `import taskq.contrib.joblib`, then `with joblib.parallel_config("taskq"): ...`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from joblib import cpu_count, register_parallel_backend
from joblib._parallel_backends import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from taskq.client.executors.executor import QueueExecutor
from taskq.client.executors.futures import JobFuture
from taskq.client.executors.private import Executor


class TaskqBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs the calls of joblib on a fleet.

    By default that is a private one, which stays between calls of `Parallel` and ends with the program. Another may be
    given: ``joblib.parallel_config("taskq", executor=q.executor())``.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(self, executor: QueueExecutor | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._given = executor
        self._executor: QueueExecutor | None = None
        self._open: set[JobFuture[Any]] = set()  # threads add and discard: each step is one of the interpreter

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """The number of calls that run at once: -1 for one on each CPU, as everywhere in joblib."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs < 0:
            most = cpu_count() if self._given is None else self._given._max_workers
            return max(int(most) + 1 + n_jobs, 1)
        return n_jobs

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_options: Any) -> int:
        """Prepares a call of `Parallel`. Returns the number of calls that run at once."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._executor = self._given or _shared.executor(n_jobs, self._prepare_worker_env(n_jobs))
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> JobFuture[Any]:
        """Enqueues a batch of calls."""
        assert self._executor is not None
        future = self._executor.submit(func)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: JobFuture[Any]) -> Any:
        """The results of a batch."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancels what has not ended: a call has raised, or the reader of the results has stopped."""
        del ensure_ready  # the fleet is always ready
        assert self._executor is not None
        self._executor.cancel(list(self._open))

    def terminate(self) -> None:
        """The end of a call of `Parallel`: the fleet stays for the next one."""
        self._executor = None
        self.reset_batch_stats()


class _Shared:
    """The private fleet of this process: it is replaced when another number of workers is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        self._made_for: object = None

    def executor(self, workers: int, environment: Mapping[str, str]) -> Executor:
        """Returns the executor with this number of workers, and these variables."""
        wanted = (os.getpid(), workers, tuple(sorted(environment.items())))
        with self._lock:
            executor = self._executor
            if executor is None or self._made_for != wanted or executor._broken:
                if executor is not None and not executor._broken:
                    executor.shutdown(wait=False)
                executor = Executor(workers, initializer=_initializer(dict(environment)))
                self._executor, self._made_for = executor, wanted
            return executor

    def end(self) -> None:
        """Ends the fleet, if there is one."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def _initializer(environment: dict[str, str]) -> Callable[[], None]:
    """A function that travels with its code: to import this module would load NumPy before the variables are set."""

    def set_variables() -> None:
        os.environ.update(environment)

    return set_variables


def end_fleet() -> None:
    """Ends the private fleet of this program, if there is one; the next call of `Parallel` starts another."""
    _shared.end()


_shared = _Shared()
register_parallel_backend("taskq", TaskqBackend)
