"""Runs one job: finds the task, decodes the arguments, calls it, and turns whatever happens into an outcome.

The life of an attempt is a straight line with a closed set of ends: it succeeded; it failed, and may be run again; it
was refused, because running it again could not help; or it said what it wants itself (`Retry`, `Snooze`, `Cancel`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

from taskq.client.app import TaskQ
from taskq.client.context import CurrentJob, RunningJob, current_of, write_record
from taskq.client.options.call_options import PLAIN, CallOptions, as_delay_s
from taskq.client.options.functions import misfit
from taskq.client.task import Task
from taskq.consumer.exception_text import class_name, describe, text_of
from taskq.model.attempt import Ran, Verdict, pack_failure, pack_success
from taskq.model.errors import Cancel, ConfigError, PayloadError, Retry, Snooze
from taskq.model.job import JobError, JobState
from taskq.model.limits import MAX_ITEM_BYTES, MAX_ITEMS, MAX_ITEMS_BYTES
from taskq.model.units import text_of_bytes
from taskq.protocol.codec import CorruptPayload, decode_call, decode_result, encode_result, results_in
from taskq.protocol.ops import StartOptions
from taskq.protocol.payloads.filed import REFERENCE_BYTES, FiledPayload, size_of
from taskq.protocol.payloads.files import PayloadLost
from taskq.protocol.submissions import filed_among
from taskq.system.usage import data_limit, peak_bytes

_SUCCEEDED = Verdict.SUCCEEDED  # looked up once: 0.1 microseconds each time
#: The way from here to the user's code: these frames are left out of what a job's error tells.
_OWN_MODULES = (
    __name__,
    "taskq.client.context",
    "taskq.client.executors.pickled_calls",
    "taskq.contrib.celery.application",
    "taskq.contrib.celery.running",
    "taskq.consumer.main_thread",
    "taskq.consumer.threads",
    "taskq.consumer.coroutines",
    "taskq.consumer.event_loop",
)

#: Results that are among the arguments of a job are in the journal: longer than a broker takes to come back.
_RESULTS_TIMEOUT_S = 20.0
#: A job that took at least this long tells in which process it ran, and how much memory that had used.
LONG_S = 0.010
#: The verdict on an attempt, the seconds it took, and the outcome.
Ended = tuple[Verdict, float, bytes]
#: Takes what a generator yields: the job's id, the position, the encoded value.
OnItem = Callable[[bytes, int, bytes], None]
AnyTask = Task[..., Any]
_Prepared = tuple[AnyTask, list[Any], dict[str, Any]]


class Refused(Exception):
    """Ends an attempt that would fail again in the same way."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.error = JobError(reason, message)


class Runner:
    """Runs jobs to their ends, each in the thread that asks for it."""

    def __init__(self, app: TaskQ, on_item: OnItem | None = None, consumer: int | None = None) -> None:
        """
        Args:
            on_item: takes what generators yield.
            consumer: the number of this consumer, which its outcomes tell.
        """
        self._app = app
        self._clock = app.clock
        self._tasks = app.tasks
        self._engine = app.engine
        self._middleware = app.hooks.middleware
        self._code = self._call_within if self._middleware else self._call
        self._on_item = on_item
        self._consumer = consumer
        self._event_loop: Any = None

    def run(self, job: RunningJob) -> Ended:
        """Runs a job to its end, whatever that is; never raises.

        Returns:
            The verdict, the seconds it took, and the outcome.
        """
        started_at, start = self._clock.time(), self._clock.monotonic()
        try:
            task, args, kwargs = self._prepare(job)
            if job.extra and "memory_limit_bytes" in job.extra:
                with data_limit(job.extra["memory_limit_bytes"]):
                    value = job.run_code(self._code, task, args, kwargs)
            else:
                value = job.run_code(self._code, task, args, kwargs)
            result = None if value is None else self._encode(job, value)  # most jobs are run for their effect
            if job.children:
                self._write_children(job)
            duration_s = self._clock.monotonic() - start
            if duration_s >= LONG_S:
                return _SUCCEEDED, duration_s, pack_success(started_at, duration_s, result, ran=self.ran())
            return _SUCCEEDED, duration_s, pack_success(started_at, duration_s, result, self._consumer)
        except BaseException as raised:
            # also SystemExit and KeyboardInterrupt: a job ends itself, not the consumer
            job.close()
            return self.failure(job, raised, started_at, start)

    def failure(self, job: RunningJob, raised: BaseException, started_at: float, start: float) -> Ended:
        """The end of a job that raised. Never raises itself, whatever the code of that exception does."""
        try:
            verdict, error, delay_s = self._end_by(raised, job)
        except BaseException as misbehaved:
            message = f"<the exception cannot be read: that raised {class_name(misbehaved)}>"
            verdict, error, delay_s = Verdict.FAILED, JobError(class_name(raised), message), None
        duration_s = self._clock.monotonic() - start
        return verdict, duration_s, pack_failure(started_at, duration_s, error, delay_s, self.ran())

    def ran(self) -> Ran:
        """Where a job has just run. That takes a microsecond."""
        return Ran(self._consumer, os.getpid(), peak_bytes())

    def _end_by(self, raised: BaseException, job: RunningJob) -> tuple[Verdict, JobError, float | None]:
        """What an exception of the job makes of its attempt: verdict, error, and the delay that it wants."""
        kind = type(raised)  # it is asked, not the exception, whose `__class__` may say anything
        if issubclass(kind, Refused):
            return Verdict.REFUSED, raised.error, None  # type: ignore[attr-defined]
        if issubclass(kind, Cancel):
            reason = _reason(raised)
            return Verdict.CANCELLED, JobError("Cancelled", f"cancelled by itself{reason and f': {reason}'}"), None
        task = self._tasks.get(job.task)
        options = PLAIN if task is None else task.call_options
        if issubclass(kind, (Snooze, Retry)):
            return _end_by_wish(raised, options, job.attempt)
        error = describe(raised, _OWN_MODULES)
        memory_limit = job.extra.get("memory_limit_bytes")
        if memory_limit is not None and issubclass(kind, MemoryError):
            text = f"the job may use {text_of_bytes(memory_limit)} of memory, and asked for more"
            return Verdict.FAILED, replace(error, type="MemoryLimit", message=text), None
        if _gives_up(options, raised):
            return Verdict.REFUSED, error, None
        return Verdict.FAILED, error, _delay_s(options, job.attempt, raised)

    def _prepare(self, job: RunningJob) -> _Prepared:
        """Finds the task and reads the arguments."""
        extra = job.extra
        if extra and not job.has_process:
            _check_limits(extra)
        task = self._tasks.get(job.task)
        if task is None:
            known = ", ".join(sorted(self._tasks)) or "none"
            raise Refused("UnknownTask", f"this application has no task {job.task!r} (it has: {known:.500})")
        try:
            payload = (
                job.payload if len(job.payload) != REFERENCE_BYTES else self._app.payloads.read(job.id, job.payload)
            )
            results = self._results(payload) if extra and "follows" in extra else None
            args, kwargs = decode_call(job.id, payload, results)
        except PayloadLost as error:
            raise Refused("ArgumentsLost", f"the file with the arguments cannot be read: {error}") from error
        except CorruptPayload as error:
            raise Refused("CorruptPayload", f"the arguments were damaged on their way or on disk: {error}") from error
        if task.caster.converts:
            args, kwargs = _cast(task, args, kwargs)
        return task, args, kwargs

    def _results(self, payload: bytes | memoryview) -> dict[bytes, Any]:
        """The results of other jobs that are among the arguments, from the broker."""
        results: dict[bytes, Any] = {}
        ids = results_in(payload)
        if not ids:
            return results
        with self._app.client.watching(ids) as endings:
            while endings.waiting:
                job_id, ending = endings.next(_RESULTS_TIMEOUT_S)
                if ending is None or ending.state != JobState.SUCCEEDED:
                    told = "is not known any more" if ending is None else f"has {ending.state.value}"
                    raise Refused("ParentFailed", f"job {job_id.hex()}, whose result is an argument, {told}")
                if ending.outcome.error is not None:
                    told = f"job {job_id.hex()}, whose result is an argument, has none that can be read"
                    raise Refused("ParentFailed", told)
                result = ending.outcome.result
                results[job_id] = None if result is None else self._decode(job_id, result)
        return results

    def _decode(self, job_id: bytes, result: bytes | memoryview) -> Any:
        """The result of another job."""
        try:
            return decode_result(job_id, self._app.payloads.read(job_id, result))
        except PayloadLost as error:
            told = f"the result of job {job_id.hex()}, which is an argument, cannot be read: {error}"
            raise Refused("ParentFailed", told) from error

    def _encode(self, job: RunningJob, value: Any) -> bytes | None:
        if job.extra and "drop_result" in job.extra:
            return None
        try:
            result = encode_result(job.id, value, may_have_file=self._engine.has_payload_files)
        except PayloadError as error:
            raise Refused("UnserializableResult", str(error)) from error
        if type(result) is bytes and len(result) <= MAX_ITEM_BYTES:
            return result
        if size_of(result) > self._engine.max_payload_bytes:
            raise Refused(
                "ResultTooLarge",
                f"the result takes {size_of(result):,} bytes, the limit is {self._engine.max_payload_bytes:,}: "
                "write it to a file and return the path",
            )
        if isinstance(result, FiledPayload):
            self._app.payloads.write([result])
        return bytes(result)

    def _write_children(self, job: RunningJob) -> None:
        """Writes the large arguments of the jobs that the job has enqueued for the case that it succeeds."""
        self._app.payloads.write(filed_among(call for _, call in job.children))

    def _call(self, job: RunningJob, task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            value = task.function(*args, **kwargs)
        except TypeError as error:
            refuse_misfit(error, task, args, kwargs)
            raise
        if task.is_async:
            return self._run_coroutine(value)
        return self._exhaust(job, value) if task.is_generator else value

    def _call_within(self, job: RunningJob, task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The call, and the application's middleware around it."""
        with Around(self._middleware, job):
            return self._call(job, task, args, kwargs)

    def _exhaust(self, job: RunningJob, generator: Any) -> Any:
        """Runs a generator to its end, and tells what it yields. Returns what it returns."""
        items = Items(job, self._on_item)
        if hasattr(generator, "__anext__"):
            return self._run_coroutine(_exhaust_async(generator, items))
        return _exhaust_sync(generator, items)

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        import asyncio  # takes 40-70 ms to import: only applications with async tasks pay for it

        if self._event_loop is None:
            self._event_loop = asyncio.Runner()
        try:
            ended: list[tuple[Any, BaseException | None]] = []
            _run_to_the_end(self._event_loop.get_loop(), coroutine, ended)
            value, raised = ended[0]
            if raised is not None:
                raise raised
            return value
        except BaseException:
            # a timeout may have left the coroutine unfinished: a new loop for the next job, this one cleaned up
            event_loop, self._event_loop = self._event_loop, None
            event_loop.close()
            raise


def refuse_misfit(error: TypeError, task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Raises Refused if the arguments do not fit the function: then the call itself has raised, and nothing inside."""
    if error.__traceback__ is not None and error.__traceback__.tb_next is None:
        told = misfit(task.function, args, kwargs)
        if told is not None:
            raise Refused("BadArguments", f"{task.name}: {told}") from error


def _check_limits(extra: StartOptions) -> None:
    """Refuses limits that cannot be kept where jobs share a process: the system counts memory and CPU by process."""
    if "cpu_timeout_s" in extra or "memory_limit_bytes" in extra:
        option = "cpu_timeout" if "cpu_timeout_s" in extra else "memory_limit"
        raise Refused("NeedsOwnProcess", f"{option}= needs a fleet without --threads: put the job into a queue of such")


def _cast(task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    try:
        return task.caster.cast(args, kwargs)
    except Exception as error:
        raise Refused("BadArguments", f"{task.name}: {type(error).__name__}: {error}") from error


def _exhaust_sync(generator: Generator[Any, None, Any], items: Items) -> Any:
    try:
        while True:
            try:
                value = next(generator)
            except StopIteration as end:
                return end.value
            items.take(value)
    finally:
        generator.close()


async def _exhaust_async(generator: AsyncGenerator[Any, None], items: Items) -> None:
    try:
        async for value in generator:
            items.take(value)
    finally:
        await generator.aclose()


def _run_to_the_end(loop: Any, coroutine: Coroutine[Any, Any, Any], ended: list[Any]) -> None:
    """Runs a coroutine, also when it stops the loop itself, or the one before it has."""
    task = loop.create_task(_await(coroutine, ended))
    while not ended:
        try:
            loop.run_until_complete(task)
        except RuntimeError:  # it was stopped before the end
            if loop.is_closed() or task.done():
                raise


async def _await(coroutine: Coroutine[Any, Any, Any], ended: list[tuple[Any, BaseException | None]]) -> None:
    """Keeps what a coroutine returns or raises from asyncio, which looks into both: with an exception whose code
    misbehaves its loop would never end."""
    try:
        ended.append((await coroutine, None))
    except BaseException as raised:
        ended.append((None, raised))


class Around:
    """The middleware around one job. An error that it keeps to itself goes on: that makes no success of a failure."""

    def __init__(
        self,
        middleware: list[Callable[[CurrentJob], AbstractContextManager[None]]],
        job: RunningJob,
    ) -> None:
        self._middleware = middleware
        self._job = job
        self._stack = ExitStack()

    def __enter__(self) -> None:
        raised: BaseException | None = None
        with ExitStack() as stack:
            try:
                for make in self._middleware:
                    stack.enter_context(make(current_of(self._job)))
            except BaseException as error:
                raised = error
                raise
            self._stack = stack.pop_all()
        if raised is not None:
            raise raised

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, frames)


class Items:
    """What one attempt of a generator has yielded."""

    def __init__(self, job: RunningJob, on_item: OnItem | None) -> None:
        self._job = job
        self._on_item = on_item
        self._pid = os.getpid()
        self._count = 0
        self._bytes = 0

    def take(self, value: Any) -> None:
        """Sends a value, now or in a moment. No time limit interrupts that."""
        if self._on_item is None or os.getpid() != self._pid:
            return  # what a job forks does not speak for it
        self._job.uninterrupted(partial(self._send, self._on_item, value))

    def _send(self, on_item: OnItem, value: Any) -> None:
        try:
            item = encode_result(self._job.id, value)
        except PayloadError as error:
            raise Refused("UnserializableItem", f"item {self._count}: {error}") from error
        self._bytes += len(item)
        if self._count == MAX_ITEMS or self._bytes > MAX_ITEMS_BYTES or len(item) > MAX_ITEM_BYTES:
            raise Refused(
                "TooManyItems",
                f"item {self._count} takes {len(item):,} bytes, all so far {self._bytes:,}; the limits of a job are "
                f"{MAX_ITEMS:,} items, {MAX_ITEM_BYTES:,} bytes each and {MAX_ITEMS_BYTES:,} together",
            )
        on_item(self._job.id, self._count, item)
        self._count += 1


def _end_by_wish(raised: BaseException, options: CallOptions, attempt: int) -> tuple[Verdict, JobError, float | None]:
    """What a Retry or a Snooze makes of its attempt; a wish that makes no sense is the error that its `__init__` of
    ours would have raised."""
    error = describe(raised, _OWN_MODULES)
    try:
        wish_s = _wish_s(raised)
    except BaseException as wrong:
        error = replace(error, type=class_name(wrong), message=text_of(wrong))
        return Verdict.FAILED, error, _delay_s(options, attempt, raised)
    if issubclass(type(raised), Snooze):
        return Verdict.SNOOZED, JobError("Snoozed", _reason(raised) or f"for {wish_s:g} s"), wish_s
    return Verdict.FAILED, error, _delay_s(options, attempt, raised) if wish_s is None else wish_s


def _wish_s(raised: BaseException) -> float | None:
    """The seconds that a Retry or a Snooze wants to wait. A subclass may have called no `__init__`, or set anything.

    Raises:
        ConfigError: that is not a number of seconds which a job can wait. What else its own code raises, too.
    """
    delay: object = getattr(raised, "delay", None)
    name, is_snooze = class_name(raised), issubclass(type(raised), Snooze)
    if delay is None and not is_snooze:
        return None
    wish_s = as_delay_s(delay)
    if wish_s is not None and (wish_s > 0 or not is_snooze):
        return wish_s
    if is_snooze:
        raise ConfigError(
            f"{name}.delay is {delay!r:.100}: use seconds greater than 0, and call super().__init__(delay)"
        )
    raise ConfigError(f"{name}.delay is {delay!r:.100}: use seconds, 0 or more, or None for the task's backoff")


def _reason(raised: BaseException) -> str:
    """What a Snooze or a Cancel says of itself, if it does."""
    try:
        return text_of(getattr(raised, "reason", ""))
    except BaseException as error:
        return f"<its reason raised {class_name(error)}>"


def _gives_up(options: CallOptions, raised: BaseException) -> bool:
    try:
        return options.gives_up(raised)
    except BaseException as error:
        _tell_of_rule(
            f"the task's retry_on or give_up_on failed ({class_name(error)}: {text_of(error)}): it is retried"
        )
        return False


def _delay_s(options: CallOptions, attempt: int, raised: BaseException) -> float | None:
    try:
        return options.retry_delay_s(attempt, raised)
    except BaseException as error:
        # the job's error is what counts, and a retry what was wanted: the default delay serves
        told = f"{class_name(error)}: {text_of(error)}"
        _tell_of_rule(f"the task's backoff function failed ({told}): the default delay is taken")
        return None


def _tell_of_rule(text: str) -> None:
    try:
        write_record("error", {"event": text})
    except BaseException:
        pass  # the job has closed or replaced its output, and the end of the job is more than this
