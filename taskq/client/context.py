"""What a job can learn and report about itself: `current_job()`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

from taskq.client.reports import Reporter
from taskq.model.attempt import Reason
from taskq.model.errors import CpuTimeout, EnqueueError, JobTimeout, PayloadTooLarge, TaskQError
from taskq.model.job import Progress
from taskq.model.limits import MAX_CHECKPOINT_BYTES, MAX_CHILDREN, MAX_CHILDREN_BYTES, MAX_OUTPUT_LINE_BYTES
from taskq.protocol.codec import decode_result, encode_result
from taskq.protocol.link.output import JOB_MARK, RECORD_MARK
from taskq.protocol.ops import NO_START_OPTIONS, StartOptions
from taskq.protocol.payloads.filed import size_of, snapshot
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.usage import own_cpu_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskq.model.spec import Spec
    from taskq.protocol.submissions import Call


class CurrentJob:
    """The job that is running: `taskq.current_job()`.

    Attributes:
        id: the job's id, 32 hexadecimal digits.
        task: the name of its task.
        attempt: 1 for the first start, 2 for the second, and so on. Starts that crashed or snoozed count, too.
    """

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self.id = job.id.hex()
        self.task = job.task
        self.attempt = job.attempt
        self._pid = os.getpid()
        timeout_s = job.extra.get("timeout_s")
        self._over_at = None if timeout_s is None else job.started_at + timeout_s

    def __repr__(self) -> str:
        return f"<CurrentJob {self.id} {self.task} attempt {self.attempt}>"

    @property
    def meta(self) -> dict[str, str]:
        """A copy of the texts that travel with the job, by name: see `meta=` and `TaskQ.on_enqueue`."""
        return dict(self._job.extra.get("meta", {}))

    @cached_property
    def deadline(self) -> datetime | None:
        """When ``timeout=`` is over, in UTC; None for a job without a timeout. For a wait, use `time_left_s`."""
        left_s = self.time_left_s()
        return None if left_s is None else datetime.fromtimestamp(self._job.clock.time() + left_s, UTC)

    def time_left_s(self) -> float | None:
        """Returns the seconds until ``timeout=`` is over, negative after that; None for a job without a timeout."""
        return None if self._over_at is None else self._over_at - self._job.clock.monotonic()

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Reports how far the job is: shown by `Job.info`, ``taskq job``, ``taskq status`` and the log while it runs.

        A call takes a microsecond or two, so call it as often as you like: the latest report is sent ten times a
        second.

        Args:
            done: how much is done, in whatever unit.
            total: how much there is to do, if that is known.
            note: what the job is doing, up to 200 characters.

        Raises:
            ConfigError: these are not amounts, or the note is too long.
            TaskQError: the job has ended, or this is not the job's own process.
        """
        self._check_is_running("progress")
        if _channel is not None:
            _channel.reporter.tell(self._job.id, Progress(done, total, note))

    def checkpoint(self, data: Any) -> None:
        """Keeps a value for the next attempt, which finds it in `last_checkpoint`: where to go on, for example.

        When this returns, the value survives any death of this process; it is in the journal within 20 ms. It is kept
        until the job has succeeded or was cancelled. Each call replaces the value before.

        Args:
            data: any value that a job can return, up to 256 KiB when serialized.

        Raises:
            PayloadError: it cannot be serialized; the message names the place.
            PayloadTooLarge: it is larger than that.
            TaskQError: the job has ended, or this is not the job's own process.
        """
        self._check_is_running("checkpoint")
        packed = encode_result(self._job.id, data)
        if len(packed) > MAX_CHECKPOINT_BYTES:
            raise PayloadTooLarge(
                f"the checkpoint takes {len(packed):,} bytes, the limit is {MAX_CHECKPOINT_BYTES:,}: "
                "write it to a file and keep the path"
            )
        if _channel is not None:
            self._job.uninterrupted(partial(_channel.send_checkpoint, self._job.id, packed))
        self.last_checkpoint = data

    @cached_property
    def last_checkpoint(self) -> Any:
        """The value that `checkpoint` kept last, in this attempt or an earlier one; None if there is none."""
        packed = self._job.extra.get("checkpoint")
        return None if packed is None else decode_result(self._job.id, packed)

    def _check_is_running(self, method: str) -> None:
        if self._job.is_over:
            raise TaskQError(f"{method}() was called after the job had ended")
        if os.getpid() != self._pid:
            raise TaskQError(f"{method}() must be called in the job's own process, not in one that it forked")

    @cached_property
    def log(self) -> Any:
        """A structlog logger bound to this job: ``log.info("resized", width=640)``. `taskq logs` shows the event with
        its fields, and with the job's id, task and attempt."""
        import structlog  # takes 60-160 ms to import: only jobs that log this way pay for it

        return structlog.wrap_logger(
            _RecordLogger(),
            processors=[structlog.processors.format_exc_info, _name_traceback],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )


def _name_traceback(_logger: Any, _method: str, fields: Any) -> Any:
    """Gives structlog's text of an exception the name that the log shows as a block."""
    if "exception" in fields:
        fields["traceback"] = fields.pop("exception")
    return fields


class _RecordLogger:
    """Ends structlog's chain: writes each event as one marked line, which the broker reads and completes."""

    def _write(self, level: str, fields: dict[str, Any]) -> None:
        write_record(level, fields)

    def __getattr__(self, level: str) -> Any:
        if level.startswith("_"):
            raise AttributeError(level)
        return lambda **fields: self._write("error" if level in ("exception", "critical", "fatal") else level, fields)


def write_record(level: str, fields: dict[str, Any]) -> None:
    """Writes a structured event to this process's output, in one write so that threads do not mix."""
    line = json.dumps({"level": level, **fields}, default=repr)
    if len(line) > MAX_OUTPUT_LINE_BYTES - 2:
        line = json.dumps({"level": level, **{name: _shortened(value) for name, value in fields.items()}}, default=repr)
    if len(line) > MAX_OUTPUT_LINE_BYTES - 2:
        line = json.dumps({"level": level, "event": line[: MAX_OUTPUT_LINE_BYTES // 2] + " ..."})
    try:
        sys.stdout.flush()
    except Exception:
        pass  # the job has put something there; that is reported when the job ends
    job = running_job()
    this_process.has_written = True
    os.write(2, f"{job.mark if job else ''}{RECORD_MARK}{line}\n".encode())


def _shortened(value: Any) -> Any:
    """Cuts the middle out of a long text: a traceback begins with the place, and ends with the error."""
    each_end = MAX_OUTPUT_LINE_BYTES // 8
    if not isinstance(value, str) or len(value) <= 2 * each_end:
        return value
    return f"{value[:each_end]}\n... [{len(value) - 2 * each_end} characters left out]\n{value[-each_end:]}"


class Channel(Protocol):
    """How jobs speak to the broker."""

    reporter: Reporter

    def send_checkpoint(self, job_id: bytes, checkpoint: bytes) -> None:
        """Sends a checkpoint. When this returns, the broker will get it, whatever happens to this process."""


_channel: Channel | None = None  # written by `use_channel` alone: a consumer's, or that of a fleet in this process


def use_channel(channel: Channel | None) -> Channel | None:
    """Sets how the jobs of this process speak to the broker. Returns what they used before."""
    global _channel
    before, _channel = _channel, channel
    return before


class RunningJob:
    """A job that runs in this process. Its consumer makes one when it claims the job; the job's own code sees it as
    `current_job()`. Each executor has a kind of its own, which says how a time limit or a cancel interrupts that code.

    Attributes:
        number: counts the jobs sent to this process; see `taskq.protocol.link.counters`.
        started_at: when it was claimed (monotonic).
        slot: the slot of the consumer in which it runs.
        id, task, attempt, payload, extra: as the broker has sent them.
        children: what it has enqueued with ``on_success=True``.
        current: the `CurrentJob`, if the job has asked for it.
        is_over: whether the job has ended.
        has_process: whether it has the process for itself, so that limits of a process can be limits of the job.
        clock: the clock of `started_at`.
        rests: the beginnings of lines that it has not ended yet, by descriptor; used where jobs run side by side.
    """

    has_process = True
    clock: Clock = SYSTEM_CLOCK
    rests: dict[int, str] | None = None
    _cpu_s = 0.0  # of the process before the job, if the job has a limit for it

    def __init__(
        self,
        number: int,
        started_at: float,
        job_id: bytes,
        task: str,
        attempt: int,
        payload: bytes,
        extra: StartOptions = NO_START_OPTIONS,
    ) -> None:
        self.number = number
        self.slot = 0
        self.started_at = started_at
        self.id = job_id
        self.task = task
        self.attempt = attempt
        self.payload = payload
        self.extra = extra
        self.children: Sequence[tuple[Spec, Call]] = ()
        self.current: CurrentJob | None = None
        self.is_over = False
        if extra and "cpu_timeout_s" in extra:
            self._cpu_s = own_cpu_s()

    @property
    def mark(self) -> str:
        """The text that begins each line of its output, where jobs run side by side."""
        return "" if self.has_process else f"{JOB_MARK}{self.number}{JOB_MARK}"

    def run_code(self, call: Callable[..., Any], *args: Any) -> Any:
        """Runs the job's own code, ``call(job, *args)``: a time limit interrupts this, and nothing else."""
        return call(self, *args)

    def close(self) -> None:
        """Makes sure that nothing is interrupted any more. Called when the job has failed, in whatever way."""

    def uninterrupted(self, action: Callable[[], None]) -> None:
        """Does something that no time limit may interrupt: half of a message would confuse the broker."""
        action()

    def end(self) -> None:
        """Notes that the job has ended. Called only if the job has used `current_job`; otherwise setting `is_over` is
        enough."""
        self.is_over = True
        self.current = None  # they hold each other, and the arguments
        if _channel is not None:
            _channel.reporter.forget(self.id)

    def timeout_error(self, reason: int) -> JobTimeout:
        """Returns the exception to raise in a job that has to end: for its time, or because it was cancelled."""
        if reason == Reason.CANCELLED:
            return JobTimeout("the job was cancelled")
        if reason == Reason.CPU_TIMEOUT and "cpu_timeout_s" in self.extra:
            limit_s, used_s = self.extra["cpu_timeout_s"], own_cpu_s() - self._cpu_s
            return CpuTimeout(f"the job may use {limit_s:g} s of CPU time; it used {used_s:.2f} s")
        return JobTimeout(f"the job ran longer than its timeout of {self.extra.get('timeout_s', 0):g} s")


class Process:
    """A process in which jobs run.

    Attributes:
        job: the job that has it for itself, so that all threads it starts know it. Written by the main thread of a
            consumer with one slot.
        was_forked: whether a job has forked it. Then it does not speak for the job, and is not a consumer.
        has_written: whether Python's standard streams, or our own log, have written something since this was set to
            False, as a consumer does when a job has ended. Written by whatever thread writes.
    """

    def __init__(self) -> None:
        self.job: RunningJob | None = None
        self.was_forked = False
        self.has_written = False


this_process = Process()
#: Which of several jobs runs in this context: its coroutines, their tasks and `asyncio.to_thread` know it.
_of_context: ContextVar[RunningJob | None] = ContextVar("taskq_running_job", default=None)
job_of_context = _of_context.get
set_job_of_context = _of_context.set


def running_job() -> RunningJob | None:
    """Returns the job that runs here, or None."""
    return _of_context.get() or this_process.job


def keep_back(flow: Sequence[tuple[Spec, Call]]) -> None:
    """Keeps jobs until the running one has succeeded; they are dropped if it does not.

    Raises:
        TaskQError: no job runs here.
        EnqueueError: these are too many.
    """
    job = running_job()
    if job is None or this_process.was_forked:
        raise TaskQError("on_success=True can only be used inside a job: no job runs here")
    kept = [*job.children, *flow]
    if len(kept) > MAX_CHILDREN or sum(size_of(call.payload) for _, call in kept) > MAX_CHILDREN_BYTES:
        raise EnqueueError(
            f"one job may enqueue {MAX_CHILDREN:,} jobs and {MAX_CHILDREN_BYTES:,} bytes of arguments with "
            "on_success=True: enqueue some that enqueue the others"
        )
    for _, call in flow:
        snapshot(call.payload)
    job.children = kept


def current_job() -> CurrentJob:
    """Returns the job that is running: its id, attempt, deadline and a bound logger. It reports progress and keeps
    checkpoints.

    With `--threads`, a thread that the job itself has started does not know the job, unless it was started through
    `asyncio.to_thread` or `contextvars.copy_context().run`.

    Raises:
        TaskQError: called outside a job.
    """
    job = running_job()
    if job is None:
        raise TaskQError("current_job() was called outside a job")
    return current_of(job)


def current_of(job: RunningJob) -> CurrentJob:
    """Returns a job as its own code sees it. It is made when the job asks for it, which most jobs do not."""
    if job.current is None:
        job.current = CurrentJob(job)
    return job.current
