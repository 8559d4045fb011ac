"""Runs one job: finds the task, decodes the arguments, calls, and makes an outcome of whatever happens.

The life of an attempt is a straight line with a closed set of ends: it succeeded, it failed (and may be run again), it
was refused, for running it again could not help, or it said itself what it wants (`Retry`, `Snooze`, `Cancel`).
"""

from __future__ import annotations

import inspect
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from taskq import context
from taskq.app import Task, TaskQ
from taskq.codec import CorruptPayload, decode_call, encode_result
from taskq.errors import Cancel, JobTimeout, PayloadError, Retry, Snooze
from taskq.limits import MAX_PAYLOAD_BYTES
from taskq.model import JobError
from taskq.outcome import Verdict, pack_failure, pack_success
from taskq.retries import NO_RETRY_RULES, RetryRules
from taskq.usage import data_limit, text_of_bytes
from taskq.wire import MEMORY_LIMIT, Extra

NO_EXTRA: Extra = {}

_SUCCEEDED = Verdict.SUCCEEDED  # looked up once: 0.1 microseconds each time


class _Refused(Exception):
    """Ends an attempt that would fail again in the same way."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.error = JobError(reason, message)


class Runner:
    """Runs the jobs of one process, one at a time."""

    def __init__(self, app: TaskQ) -> None:
        self._tasks = app.tasks
        self._middleware = app.hooks.middleware
        self._event_loop: Any = None
        #: Whether user code runs right now, for the soft signal of a timeout. Read by the signal handler.
        self.is_in_job = False

    def run(
        self, job_id: bytes, task_name: str, attempt: int, payload: bytes, extra: Extra = NO_EXTRA
    ) -> tuple[Verdict, float, bytes]:
        """Runs a job to its end, whatever that is; never raises.

        Returns:
            The verdict, the seconds it took, and the outcome.
        """
        started_at = time.time()
        start = time.monotonic()
        context.begin(job_id, task_name, attempt, extra, start)
        delay_s = None
        try:
            result = self._result(job_id, task_name, payload, extra)
            duration_s = time.monotonic() - start
            return _SUCCEEDED, duration_s, pack_success(started_at, duration_s, result)
        except _Refused as refusal:
            verdict, error = Verdict.REFUSED, refusal.error
        except BaseException as raised:
            # also SystemExit and KeyboardInterrupt: a job ends itself, not the consumer
            verdict, error, delay_s = self._end_by(raised, task_name, attempt, extra)
        finally:
            self.is_in_job = False
            context.end()
        duration_s = time.monotonic() - start
        return verdict, duration_s, pack_failure(started_at, duration_s, error, delay_s)

    def _end_by(
        self, raised: BaseException, task_name: str, attempt: int, extra: Extra
    ) -> tuple[Verdict, JobError, float | None]:
        """What an exception of the job makes of its attempt: verdict, error, and the delay that it wants."""
        task = self._tasks.get(task_name)
        rules = NO_RETRY_RULES if task is None else task.retry_rules
        if isinstance(raised, Snooze):
            return Verdict.SNOOZED, JobError("Snoozed", raised.reason or f"for {raised.delay:g} s"), raised.delay
        if isinstance(raised, Cancel):
            reason = f": {raised.reason}" if raised.reason else ""
            return Verdict.CANCELLED, JobError("Cancelled", f"cancelled by itself{reason}"), None
        memory_limit = extra.get(MEMORY_LIMIT)
        if memory_limit is not None and isinstance(raised, MemoryError):
            text = f"the job may use {text_of_bytes(memory_limit)} of memory, and asked for more"
            return Verdict.FAILED, replace(describe(raised), type="MemoryLimit", message=text), None
        if rules.gives_up(raised):
            return Verdict.REFUSED, describe(raised), None
        if isinstance(raised, Retry) and raised.delay is not None:
            return Verdict.FAILED, describe(raised), raised.delay
        return Verdict.FAILED, describe(raised), _delay_s(rules, attempt, raised)

    def _result(self, job_id: bytes, task_name: str, payload: bytes, extra: Extra) -> bytes | None:
        task = self._tasks.get(task_name)
        if task is None:
            known = ", ".join(sorted(self._tasks)) or "none"
            raise _Refused("UnknownTask", f"this application has no task {task_name!r} (it has: {known:.500})")
        try:
            args, kwargs = decode_call(job_id, payload)
        except CorruptPayload as error:
            raise _Refused("CorruptPayload", f"the arguments were damaged on their way or on disk: {error}") from error
        if task.caster.converts:
            args, kwargs = self._cast(task, args, kwargs)
        call = self._call_within if self._middleware else self._call
        if extra and MEMORY_LIMIT in extra:
            with data_limit(extra[MEMORY_LIMIT]):
                value = call(task, args, kwargs)
        else:
            value = call(task, args, kwargs)
        if value is None:
            return None  # most jobs are run for their effect
        try:
            result = encode_result(job_id, value)
        except PayloadError as error:
            raise _Refused("UnserializableResult", str(error)) from error
        if len(result) > MAX_PAYLOAD_BYTES:
            raise _Refused(
                "ResultTooLarge",
                f"the result takes {len(result):,} bytes, the limit is {MAX_PAYLOAD_BYTES:,}: "
                "write it to a file and return the path",
            )
        return result

    def _cast(self, task: Task[..., Any], args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        try:
            return task.caster.cast(args, kwargs)
        except Exception as error:
            raise _Refused("BadArguments", f"{task.name}: {type(error).__name__}: {error}") from error

    def _call_within(self, task: Task[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The call, and the application's middleware around it."""
        job = context.current_job()
        value, raised = None, None
        self.is_in_job = True
        try:
            with ExitStack() as stack:
                for make in self._middleware:
                    stack.enter_context(make(job))
                try:
                    value = self._call(task, args, kwargs)
                except BaseException as error:
                    raised = error
                    raise
        finally:
            self.is_in_job = False
        if raised is not None:
            raise raised  # a middleware kept it to itself, which makes no success of it
        return value

    def _call(self, task: Task[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        self.is_in_job = True
        try:
            if task.is_async:
                return self._run_coroutine(task.function(*args, **kwargs))
            return task.function(*args, **kwargs)
        except TypeError as error:
            # raised by the call itself, not inside: then the arguments do not fit the function
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                misfit = _misfit(task.function, args, kwargs)
                if misfit:
                    raise _Refused("BadArguments", f"{task.name}: {misfit}") from error
            raise
        finally:
            self.is_in_job = False

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        import asyncio  # takes 40-70 ms to import: only applications with async tasks pay for it

        if self._event_loop is None:
            self._event_loop = asyncio.Runner()
        try:
            return self._event_loop.run(coroutine)
        except BaseException:
            # a timeout may have left the coroutine unfinished: a new loop for the next job, this one cleaned up
            event_loop, self._event_loop = self._event_loop, None
            event_loop.close()
            raise


def _delay_s(rules: RetryRules, attempt: int, raised: BaseException) -> float | None:
    try:
        return rules.delay_s(attempt, raised)
    except BaseException as error:
        # the job's error is what counts, and a retry what was wanted: the default delay serves
        text = f"the task's backoff function failed ({type(error).__name__}: {error}): the default delay is taken"
        context.write_record("error", {"event": text})
        return None


def _misfit(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> str:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:
        return ""  # a builtin without a signature
    return ""


def describe(raised: BaseException) -> JobError:
    """An exception as text. Survives exceptions whose own text cannot be made."""
    name = "TimedOut" if type(raised) is JobTimeout else type(raised).__qualname__
    try:
        message = str(raised)
    except BaseException as error:
        message = f"<its str() raised {type(error).__name__}>"
    if isinstance(raised, SystemExit):
        message = f"the job called sys.exit({message}); return or raise an exception instead"
    return JobError(name, message, _traceback(raised))


def _traceback(raised: BaseException) -> str:
    frames = raised.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") == __name__:
        frames = frames.tb_next  # the user's own frames only
    try:
        return "".join(traceback.format_exception(type(raised), raised, frames, limit=-50))
    except BaseException as error:
        return f"<the traceback could not be made: {type(error).__name__}>"


def flush_output() -> None:
    """Writes out what the job left in the buffers of its standard streams."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass  # the job replaced or closed it
