"""A consumer runs a message: Celery's own tracer does the work, and what becomes of it is told to taskq."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from types import FrameType
from typing import Any

from celery import Celery, Task, signals, states
from celery.app.task import Context
from celery.app.trace import TraceInfo, build_tracer
from celery.exceptions import Reject, SoftTimeLimitExceeded, TimeLimitExceeded

from taskq.client.context import CurrentJob, current_job
from taskq.contrib.celery.backend import lost
from taskq.contrib.celery.fleet import fleet_of
from taskq.contrib.celery.messages import Message, read_message, sender
from taskq.contrib.celery.options import MAX_CRASHES, limits_of, moment
from taskq.model.errors import Cancel, EnqueueError, JobTimeout

#: What tasks see as the name of their worker.
HOSTNAME = f"taskq@{socket.gethostname()}"
#: How close to its end a time limit counts as reached: the clocks are read one after the other.
_SLACK_S = 0.05


#: The modules between the consumer and the function of a task.
_BEFORE_TASK = (build_tracer.__module__, __name__)


class Running:
    """A task that runs, and the messages that it keeps back until its job ends: those that its end sends (the next step
    of a chain, the body of a chord, callbacks), and those that take its place (a retry, a replacement). They become
    jobs together with that end, so a task that is run again after a crash sends nothing twice."""

    def __init__(self, task: Task | None, task_id: str, soft_limit_s: float | None = None) -> None:
        """
        Args:
            task: None if all messages are kept back.
        """
        self.task = task
        self._task_id = task_id
        self._soft_limit_s = soft_limit_s
        self._is_begun = False
        self._has_returned = task is None
        self._kept: list[Message] = []
        self._known: tuple[Any, ...] = ()

    def keeps(self, message: Message) -> bool:
        """Takes a message, or returns False: it becomes a job at once."""
        if not self._has_returned and message.headers["id"] != self._task_id:
            return False
        self._kept.append(message)
        return True

    def returns(self, value: Any) -> None:
        """The task has returned this in an attempt that died before its job ended: it is not called again."""
        self._known = (value,)

    def call(self, task: Task, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls the function of a task."""
        if self._is_begun or task is not self.task:  # it calls another as a function
            return run(*args, **kwargs)
        self._is_begun = True
        if self._known:
            value = self._known[0]
        else:
            with _soft_limit(self._soft_limit_s):
                value = run(*args, **kwargs)
        self._has_returned = True
        return value

    def send_with_success(self) -> None:
        """The messages that were kept back become jobs when the running job has succeeded."""
        for message in self._kept:
            try:
                message.enqueue(on_success=True)
            except EnqueueError:  # they are too many
                message.enqueue()

    def send_now(self) -> None:
        """The messages that were kept back become jobs: the running job fails."""
        for message in self._kept:
            message.enqueue()


def watch(task: Task) -> None:
    """Lets `Running` know when the function of a task begins and ends, as Celery itself does for `autoretry_for`."""
    run = task.run

    @wraps(run)
    def watched(*args: Any, **kwargs: Any) -> Any:
        running = sender.get()
        return running.call(task, run, args, kwargs) if isinstance(running, Running) else run(*args, **kwargs)

    task.run = watched


@contextmanager
def keeping(running: Running) -> Iterator[Running]:
    """While the block runs, messages are offered to this task."""
    token = sender.set(running)
    try:
        yield running
    finally:
        sender.reset(token)


class Runner:
    """Runs the messages of an application, in a consumer."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._tracers: dict[str, Callable[..., Any]] = {}  # threads may add the same one twice

    def run(self, envelope: str, data: Any, content_type: str, encoding: str) -> None:
        """Runs a message, to the end of its task. Raises what the task raises."""
        job = current_job()
        request, args, kwargs = read_message(self._app, envelope, data, content_type, encoding)
        task = self._app.tasks[request["task"]]
        hard_s, soft_s = limits_of(self._app, request)
        request["hostname"] = HOSTNAME
        request["timelimit"] = request.get("timelimit") or [hard_s, soft_s]
        request["delivery_info"]["redelivered"] |= job.attempt > 1
        with keeping(Running(task, request["id"], soft_s)) as running:
            self._refuse_revoked(task, request)
            if job.attempt > 1:
                self._refuse_lost(job, running, task, request)
            try:
                self._trace(task, request, args, kwargs)
            except JobTimeout:
                self._end_interrupted(job, task, request, hard_s)
                raise
            except Exception:
                running.send_now()
                raise
            running.send_with_success()

    def _trace(self, task: Task, request: dict[str, Any], args: Any, kwargs: Any) -> None:
        tracer = self._tracers.get(task.name)
        if tracer is None:
            tracer = build_tracer(task.name, task, self._app.loader, HOSTNAME, app=self._app)
            self._tracers[task.name] = tracer
        try:
            told = tracer(request["id"], args, kwargs, request).info
        except Reject as reject:  # of `on_success` or `after_return`
            told = TraceInfo(states.REJECTED, reject)
        except (SystemExit, KeyboardInterrupt, MemoryError) as error:
            _fail(task, request, error)
            raise
        if told is None:
            return
        if told.state == states.FAILURE:
            raise _of_task(told.retval)
        if told.state == states.REJECTED:
            self._end_rejected(task, request, told.retval)

    def _end_rejected(self, task: Task, request: dict[str, Any], reject: Reject) -> None:
        if not reject.requeue:
            _fail(task, request, reject)
            raise reject
        signature = task.signature_from_request(Context(request), retries=request.get("retries") or 0)
        signature.set(redelivered=True)
        signature.apply_async()

    def _refuse_revoked(self, task: Task, request: dict[str, Any]) -> None:
        """Ends the job if its task was revoked, or has expired."""
        expires = moment(request.get("expires"))
        is_expired = expires is not None and expires < datetime.now(UTC)
        if is_expired or fleet_of(self._app).store.is_revoked(request["id"]):
            reason = "expired" if is_expired else "revoked"
            mark_as_revoked(task, request, reason, is_expired=is_expired)
            raise Cancel(f"the task was {reason}")

    def _refuse_lost(self, job: CurrentJob, running: Running, task: Task, request: dict[str, Any]) -> None:
        """Ends the job if its process was killed and the task must not be run again: for its time limit, for the
        last of several crashes, or because it is not declared as `acks_late`. Its result, its chord and its errbacks
        are told."""
        stored = task.AsyncResult(request["id"])
        if stored.state == states.SUCCESS:
            running.returns(stored.result)
            return
        info = fleet_of(self._app).q.job(job.id).info()
        is_over = info.error is not None and info.error.type == "TimedOut"
        if not is_over and task.acks_late and info.crashes <= MAX_CRASHES:
            return
        error = lost(info)
        _fail(task, request, error)
        raise error

    def _end_interrupted(self, job: CurrentJob, task: Task, request: dict[str, Any], hard_s: float | None) -> None:
        """taskq ends the job: for its time limit, or because somebody has cancelled it."""
        left_s = job.time_left_s()
        if left_s is not None and left_s <= _SLACK_S:
            error = TimeLimitExceeded(hard_s)
            _fail(task, request, error)
            raise error
        mark_as_revoked(task, request, "terminated", is_terminated=True)


def mark_as_revoked(
    task: Task, request: Mapping[str, Any], reason: str, *, is_expired: bool = False, is_terminated: bool = False
) -> None:
    """Stores that a task was revoked, and tells its chord and the signal `task_revoked`."""
    context = Context(request)
    task.backend.mark_as_revoked(request["id"], reason, request=context, store_result=not task.ignore_result)
    signals.task_revoked.send(
        sender=task, request=context, terminated=is_terminated, signum=None, expired=is_expired
    )  # fmt: skip


def _of_task(raised: Any) -> BaseException:
    """What a task has raised, with the frames of the task alone."""
    if not isinstance(raised, BaseException):
        return RuntimeError(str(raised))
    frames = raised.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in _BEFORE_TASK:
        frames = frames.tb_next
    return raised.with_traceback(frames or raised.__traceback__)


def _fail(task: Task, request: Mapping[str, Any], error: BaseException) -> None:
    """Does what Celery does when a task has failed: result, chord, errbacks, `on_failure` and `task_failure`."""
    try:
        raise error
    except BaseException:
        TraceInfo(states.FAILURE, error).handle_error_state(task, Context(request), eager=False)


@contextmanager
def _soft_limit(limit_s: float | None) -> Iterator[None]:
    """Raises SoftTimeLimitExceeded in the block after this time, where the main thread runs it."""
    if not limit_s or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_in_task(_signal: int, _frame: FrameType | None) -> None:
        raise SoftTimeLimitExceeded(limit_s)

    before = signal.signal(signal.SIGALRM, raise_in_task)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
