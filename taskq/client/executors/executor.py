"""An executor that hands its calls to a fleet: the contract of `concurrent.futures.Executor`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from functools import partial
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from taskq.client.executors.futures import JobFuture, Watcher
from taskq.client.executors.pickled_calls import CallTask, dump_call, name_of
from taskq.client.task import Enqueuer
from taskq.model.settings import default_consumers

P = ParamSpec("P")
T = TypeVar("T")

#: As many functions get an entry of their own in the meta of their jobs without being worked out again.
_MOST_NAMES = 256


class QueueExecutor(futures.Executor):
    """Runs calls as jobs of a fleet that runs already; get it by `TaskQ.executor`.

    A call whose worker is killed is run again. Jobs outlive this program; a program that ends without `shutdown` does
    not wait for them.
    """

    def __init__(self, task: Enqueuer[..., Any] | CallTask, max_workers: int | None = None) -> None:
        self._max_workers = max_workers or default_consumers()  # what dask reads
        self._task = task
        self._by_name: dict[str, Enqueuer[..., Any]] = {}
        self._watcher = Watcher(False, _nothing)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[T]:
        """Runs ``fn(*args, **kwargs)`` as a job. When this returns, the job is accepted.

        Returns:
            A future; its `job` is the handle of the job. Its exception is that of the call, with the remote traceback
            as the cause, or `taskq.JobFailed` for a call that killed its worker again and again.

        Raises:
            RuntimeError: the executor was shut down.
            BrokenExecutor: its fleet could not start, or has ended.
            TypeError, PicklingError: the function or an argument cannot be pickled.
            EnqueueError: the fleet does not accept the job.
        """
        return self._submit_many(fn, [dump_call(fn, args, kwargs)])[0]

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Runs a function for each item; returns an iterator over the results, in order.

        Args:
            timeout: seconds from this call on, after which the iterator raises TimeoutError.
            chunksize: the number of items that one job gets.
            buffersize: at most this many jobs are submitted and not yet read; by default all are submitted at once.

        Raises:
            The same as `submit`.
            ValueError: a size makes no sense.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        give_up_at = None if timeout is None else time.monotonic() + timeout
        items = zip(*iterables, strict=False)
        if chunksize == 1:
            calls = (dump_call(fn, args, {}) for args in items)
        else:
            calls = (dump_call(partial(_run_chunk, fn), (chunk,), {}) for chunk in _chunks(items, chunksize))
        opened = deque(self._submit_many(fn, list(islice(calls, buffersize))))
        more = partial(self._submit_many, fn)
        results = _results(opened, calls, more, give_up_at)
        return results if chunksize == 1 else (value for chunk in results for value in chunk)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls.

        Args:
            wait: whether to return only when all calls have ended.
            cancel_futures: whether to cancel the calls that have not started.
        """
        self._watcher.close()
        if cancel_futures:
            self._watcher.cancel(self._watcher.open(), running=False)
        if wait:
            self._watcher.join()

    def cancel(self, calls: Sequence[JobFuture[Any]]) -> None:
        """Cancels calls of this executor, also those that run, many at once; returns when all have ended."""
        self._watcher.cancel(calls, running=True)

    def _submit_many(self, fn: Callable[..., Any], calls: Sequence[bytes]) -> list[JobFuture[Any]]:
        if not calls:
            return []
        self._watcher.enter()
        made: list[JobFuture[Any]] = []
        try:
            self._start()
            task = self._task_for(fn)
            if len(calls) == 1:
                made = [JobFuture(task.enqueue(calls[0]))]
            else:
                made = [JobFuture(job) for job in task.enqueue_many([(call,) for call in calls])]
        finally:
            self._watcher.leave(made)
        return made

    def _start(self) -> None:
        self._watcher.start()

    def _task_for(self, fn: Callable[..., Any]) -> Enqueuer[..., Any]:
        """The task whose jobs tell the name of a function."""
        name = name_of(fn)
        task = self._by_name.get(name)
        if task is None:
            task = self._task.options(meta={"function": name})
            if len(self._by_name) < _MOST_NAMES:
                self._by_name[name] = task
        return task


def _nothing() -> None:
    """The fleet goes on."""


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


def _run_chunk(function: Callable[..., T], chunk: Iterable[Sequence[Any]]) -> list[T]:
    return [function(*args) for args in chunk]


def _results(
    opened: deque[JobFuture[Any]],
    calls: Iterator[bytes],
    submit_many: Callable[[Sequence[bytes]], list[JobFuture[Any]]],
    give_up_at: float | None,
) -> Iterator[Any]:
    """The results of calls in their order; cancels what is left when the reader stops."""
    try:
        while opened:
            future = opened[0]
            futures.wait([future], None if give_up_at is None else max(0.0, give_up_at - time.monotonic()))
            if not future.done():
                raise TimeoutError("the next result did not come in time")
            opened.extend(submit_many(list(islice(calls, 1))))
            del future  # the reader alone is to hold the result
            yield opened.popleft().result()
    finally:
        for future in opened:
            future.cancel()
