"""The results of Celery's tasks, their states and their chords, kept beside the queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any

from celery import Celery, states
from celery.app.backends import by_url
from celery.backends.base import KeyValueStoreBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError, TaskRevokedError, TimeLimitExceeded, TimeoutError, WorkerLostError
from celery.result import GroupResult, allow_join_result

from taskq.contrib.celery.fleet import fleet_of, needs_results
from taskq.model.errors import BrokerUnavailable, JobNotFound
from taskq.model.info.job import JobInfo
from taskq.model.job import JobState

#: How long to wait before looking again for what no job tells of, in seconds.
_LOOK_AGAIN_S = 0.05


def backend_of(app: Celery, **options: Any) -> Any:
    """Returns the backend of an application: the one that it names itself, unless that is a message broker."""
    if needs_results(app):
        return FleetBackend(app=app, **{**options, "url": None})
    backend, url = by_url(app.conf.result_backend, app.loader)
    return backend(app=app, url=url)


class FleetBackend(KeyValueStoreBackend):
    """Keeps results in the directory of the queue, and asks the fleet for ends of which no result tells."""

    persistent = True
    supports_native_join = True

    def __init__(self, app: Celery, **options: Any) -> None:
        super().__init__(app=app, **options)
        self._fleet = fleet_of(app)

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        return backend_of, (self.app,)

    # -- what the base class asks for

    def get(self, key: bytes) -> Any:
        return self._fleet.store.get(key)

    def mget(self, keys: Sequence[bytes]) -> list[Any]:
        return self._fleet.store.get_many(keys)

    def set(self, key: bytes, value: str | bytes) -> None:
        self._fleet.store.put(key, value)

    def delete(self, key: bytes) -> None:
        self._fleet.store.drop(key)

    def cleanup(self) -> None:
        """Drops what is older than `result_expires`; the task `celery.backend_cleanup` calls it once a day."""
        self._fleet.store.clean_up()

    # -- states and waiting

    def get_task_meta(self, task_id: str, cache: bool = True) -> Any:
        """What is known of a task. If its job has ended without a result (its process was killed, or somebody has
        cancelled it), that tells its state."""
        meta = super().get_task_meta(task_id, cache)
        if meta["status"] in states.READY_STATES:
            return meta
        ended = self._end_by_fleet(task_id)
        if ended is None:
            return meta
        meta = super().get_task_meta(task_id, cache)  # a task stores its result before its job ends
        return meta if meta["status"] in states.READY_STATES else ended

    def _end_by_fleet(self, task_id: str) -> dict[str, Any] | None:
        job_id = self._fleet.store.job_of(task_id)
        if job_id is None:
            return None
        try:
            info = self._fleet.q.job(job_id).info()
        except (JobNotFound, BrokerUnavailable):
            return None
        error: Exception
        if info.state == JobState.FAILED:
            state, error = states.FAILURE, lost(info)
        elif info.state in (JobState.CANCELLED, JobState.EXPIRED):
            state, error = states.REVOKED, TaskRevokedError(str(info.state))
        else:
            return None
        return {"status": state, "result": error, "traceback": None, "children": [], "task_id": task_id}

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> Any:
        """Waits for a task: the fleet says when its job has ended."""
        self._ensure_not_eager()
        give_up_at = inf if timeout is None else time.monotonic() + timeout
        while True:
            meta = self.get_task_meta(task_id)
            is_ready = meta["status"] in states.READY_STATES
            if on_interval and meta["status"] != states.SUCCESS:
                on_interval()  # raises the error of what came before, which tells more than that of this task
            if is_ready:
                return meta
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("The operation timed out.")
            self._wait_a_moment(task_id, min(interval or 0.5, left_s))

    def get_many(
        self,
        task_ids: Sequence[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Any], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
        READY_STATES: frozenset[str] = states.READY_STATES,
    ) -> Iterator[tuple[str, Any]]:
        """Yields what is known of tasks as they end, each with its id."""
        waiting = dict.fromkeys(task_ids)
        give_up_at = inf if timeout is None else time.monotonic() + timeout
        rounds = 0
        while waiting:
            for task_id in list(waiting):
                meta = self.get_task_meta(task_id)
                if meta["status"] in READY_STATES:
                    del waiting[task_id]
                    self._cache[task_id] = meta
                    if on_message is not None:
                        on_message(meta)
                    yield task_id, meta
            if not waiting:
                return
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"Operation timed out ({timeout})")
            if on_interval:
                on_interval()
            self._wait_a_moment(next(iter(waiting)), min(interval or 0.5, left_s))
            rounds += 1
            if max_iterations and rounds >= max_iterations:
                return

    def _wait_a_moment(self, task_id: str, longest_s: float) -> None:
        """Waits until the job of a task has ended, or for this time."""
        job_id = self._fleet.store.job_of(task_id)
        has_ended = True
        if job_id is not None:
            try:
                has_ended = self._fleet.q.job(job_id).wait(longest_s)
                if has_ended and self.get_state(task_id) in states.READY_STATES:
                    return
            except (JobNotFound, BrokerUnavailable):
                pass  # it is about to be enqueued, or to be taken in by a fleet
        if has_ended:
            time.sleep(min(_LOOK_AGAIN_S, longest_s))

    # -- chords

    def add_to_chord(self, group_id: str, result: Any) -> None:
        """`Task.add_to_chord`: one more task has to end before the body is called."""
        self._fleet.store.grow_chord(group_id)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """A chord begins. Celery calls this when it has sent the last task of the header, perhaps after some ended."""
        self._fleet.store.begin_chord(group_id, chord_size)

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Keeps the shape of a header that has groups in it; the results of others are in the order of the header."""
        self.ensure_chords_allowed()
        results = header_result_args[1]
        if type(results) in (list, tuple) and any(isinstance(each, GroupResult) for each in results):
            self.app.GroupResult(*header_result_args).save(backend=self)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """A task of a chord has ended: the last one calls the body."""
        if not request.group or not request.id or not request.chord:
            return
        position = inf if request.group_index is None else request.group_index
        encoded = self.encode([request.id, state, self.encode_result(result, state)])
        parts = self._fleet.store.end_part(request.group, request.id, position, encoded)
        if parts is None:
            return
        callback = maybe_signature(request.chord, app=self.app)
        try:
            callback.delay(self._joined(request.group, parts))
        except ChordError as error:
            self.chord_error_from_stack(callback, error)
        except Exception as error:
            self.chord_error_from_stack(callback, _chord_error(f"Join error: {error!r}", error))

    def _joined(self, group_id: str, parts: Sequence[Any]) -> list[Any]:
        header = GroupResult.restore(group_id, backend=self, app=self.app)
        if header is None:
            return [self._value_of_part(part) for part in parts]
        header.on_ready()
        with allow_join_result():
            joined: list[Any] = header.join_native(timeout=self.app.conf.result_chord_join_timeout, propagate=True)
        return joined

    def _value_of_part(self, part: Any) -> Any:
        task_id, state, value = self.decode(part)
        if state in states.EXCEPTION_STATES:
            value = self.exception_to_python(value)
        if state in states.PROPAGATE_STATES:
            raise _chord_error(f"Dependency {task_id} raised {value!r}", value)
        return value


def _chord_error(told: str, cause: BaseException) -> ChordError:
    error = ChordError(told)
    error.__cause__ = cause
    return error


def lost(info: JobInfo) -> Exception:
    """The exception of a task whose process did not live to tell of one."""
    error = info.error
    if error is not None and error.type == "TimedOut":
        return TimeLimitExceeded(error.message)
    told = "it is not known why" if error is None else f"{error.type}: {error.message}"
    return WorkerLostError(f"Worker exited prematurely: {told}")
