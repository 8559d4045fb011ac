"""What a job can know and say about itself: `current_job()`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from taskq.client.reports import Reporter
from taskq.model.attempt import Reason
from taskq.model.errors import CpuTimeout, EnqueueError, JobTimeout, PayloadTooLarge, TaskQError
from taskq.model.job import Progress
from taskq.model.limits import MAX_CHECKPOINT_BYTES, MAX_CHILDREN, MAX_CHILDREN_BYTES, MAX_OUTPUT_LINE_BYTES
from taskq.protocol.codec import decode_result, encode_result
from taskq.protocol.link.output import JOB_MARK, RECORD_MARK
from taskq.protocol.ops import CHECKPOINT, CPU_TIMEOUT, NO_START_OPTIONS, TIMEOUT, StartOptions
from taskq.system.usage import own_cpu_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskq.model.spec import Spec
    from taskq.protocol.submissions import Call


class Start(NamedTuple):
    """An attempt, as its consumer was told of it."""

    job_id: bytes
    task: str
    attempt: int
    extra: StartOptions
    at: float  # time.monotonic()
    cpu_s: float  # of the process before the job, if the job has a limit for it


class CurrentJob:
    """The job that this process is running.

    Attributes:
        id: the job's id, 32 hexadecimal digits.
        task: the name of its task.
        attempt: 1 for the first start, 2 for the next ... Starts that crashed or snoozed count as well.
    """

    def __init__(self, fields: tuple[Any, ...], concurrent: RunningJob | None = None) -> None:
        self._fields = fields
        self._concurrent = concurrent
        start = Start(*fields)
        self.id = start.job_id.hex()
        self.task = start.task
        self.attempt = start.attempt
        self._start = start
        self._pid = os.getpid()
        timeout_s = start.extra.get(TIMEOUT)
        self._over_at = None if timeout_s is None else start.at + timeout_s

    def __repr__(self) -> str:
        return f"<CurrentJob {self.id} {self.task} attempt {self.attempt}>"

    @cached_property
    def deadline(self) -> datetime | None:
        """When ``timeout=`` is over, in UTC; None for a job without. For a wait, `time_left_s` is what you want."""
        left_s = self.time_left_s()
        return None if left_s is None else datetime.now(UTC) + timedelta(seconds=left_s)

    def time_left_s(self) -> float | None:
        """The seconds until ``timeout=`` is over, less than 0 once it is; None for a job without."""
        return None if self._over_at is None else self._over_at - time.monotonic()

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tells how far the job is: seen in `Job.info`, ``taskq job``, ``taskq status`` and the log while it runs.

        Costs a microsecond or two, so call it as often as you like: ten times a second the latest is sent.

        Args:
            done: how much is done, in whatever unit.
            total: how much there is to do, if that is known.
            note: what the job is doing, up to 200 characters.

        Raises:
            ConfigError: these are not amounts, or the note is too long.
            TaskQError: the job has ended, or this is another process than the job's.
        """
        self._check_is_running("progress")
        if _channel is not None:
            _channel.reporter.tell(self._start.job_id, Progress(done, total, note))

    def checkpoint(self, data: Any) -> None:
        """Keeps something for the next attempt, which finds it in `last_checkpoint`: where to go on, for example.

        When this returns, it survives the death of this process in whatever way; it is in the journal within 20 ms.
        It is kept until the job has succeeded or was cancelled; each call replaces what was kept before.

        Args:
            data: any value that a job can return, up to 256 KiB when serialized.

        Raises:
            PayloadError: it cannot be serialized; the message names the place.
            PayloadTooLarge: it is larger than that.
            TaskQError: the job has ended, or this is another process than the job's.
        """
        self._check_is_running("checkpoint")
        packed = encode_result(self._start.job_id, data)
        if len(packed) > MAX_CHECKPOINT_BYTES:
            raise PayloadTooLarge(
                f"the checkpoint takes {len(packed):,} bytes, the limit is {MAX_CHECKPOINT_BYTES:,}: "
                "write it to a file and keep the path"
            )
        if _channel is not None:
            do = uninterrupted if self._concurrent is None else self._concurrent.uninterrupted
            do(partial(_channel.send_checkpoint, self._start.job_id, packed))
        self.last_checkpoint = data

    @cached_property
    def last_checkpoint(self) -> Any:
        """What `checkpoint` kept last, in this attempt or one before; None if nothing was kept."""
        packed = self._start.extra.get(CHECKPOINT)
        return None if packed is None else decode_result(self._start.job_id, packed)

    def _check_is_running(self, method: str) -> None:
        is_over = _running is not self._fields if self._concurrent is None else self._concurrent.is_over
        if is_over:
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
        pass  # what a job has put there; it is told when the job ends
    concurrent = _concurrent.get()
    os.write(2, f"{concurrent.mark if concurrent else ''}{RECORD_MARK}{line}\n".encode())


def _shortened(value: Any) -> Any:
    """A long text without its middle: a traceback begins with where it was, and ends with what it was."""
    each_end = MAX_OUTPUT_LINE_BYTES // 8
    if not isinstance(value, str) or len(value) <= 2 * each_end:
        return value
    return f"{value[:each_end]}\n... [{len(value) - 2 * each_end} characters left out]\n{value[-each_end:]}"


class Channel(Protocol):
    """How jobs speak to the broker."""

    reporter: Reporter

    def send_checkpoint(self, job_id: bytes, checkpoint: bytes) -> None:
        """Sends a checkpoint: it is in the broker's hands, whatever becomes of this process, when this returns."""


#: What the running job has enqueued for the case that it succeeds; see `keep_back`.
children: list[tuple[Spec, Call]] = []
_has_forked = False
_running: tuple[Any, ...] | None = (
    None  # the fields of a Start: to make one takes 200 ns; written by `taskq.consumer.runner`
)
_current: CurrentJob | None = None
_channel: Channel | None = None  # written by `use_channel` alone: a consumer's, or that of a fleet in this process
_sending_thread = 0  # the thread of a job that is in the middle of a message
_late: JobTimeout | None = None  # what waits for the end of that message


def use_channel(channel: Channel | None) -> Channel | None:
    """Says how the jobs of this process speak to the broker. Returns what they used before."""
    global _channel
    before, _channel = _channel, channel
    return before


def begin(job_id: bytes, task: str, attempt: int, extra: StartOptions, now: float) -> None:
    """Notes which job runs from now on in this process, and since when (monotonic)."""
    global _running, _current  # noqa: PLW0603  one process runs one job at a time
    _running = job_id, task, attempt, extra, now, own_cpu_s() if CPU_TIMEOUT in extra else 0.0
    _current = None


def end() -> None:
    """Notes that no job runs."""
    global _running, _current  # noqa: PLW0603
    if _current is not None and _channel is not None:
        _channel.reporter.forget(_current._start.job_id)
    _running = _current = None


def uninterrupted(action: Callable[[], None]) -> None:
    """Does what no time limit may interrupt: half of a message would confuse the broker. For jobs that run alone."""
    global _sending_thread, _late  # noqa: PLW0603
    _sending_thread = threading.get_ident()
    try:
        action()
    finally:
        _sending_thread = 0
        late, _late = _late, None
        if late is not None:
            raise late


def timeout_error(reason: int) -> JobTimeout:
    """What to raise in the job that runs, since it is to end."""
    if _running is None:
        return JobTimeout("the job is to end")
    start = Start(*_running)
    if reason == Reason.CPU_TIMEOUT and CPU_TIMEOUT in start.extra:
        limit_s, used_s = start.extra[CPU_TIMEOUT], own_cpu_s() - start.cpu_s
        return CpuTimeout(f"the job may use {limit_s:g} s of CPU time, it used {used_s:.2f} s")
    return JobTimeout(timeout_text(reason, start.extra))


def timeout_text(reason: int, extra: StartOptions) -> str:
    """What a job is told that is to end: for its time, or since it was cancelled."""
    if reason == Reason.CANCELLED:
        return "the job was cancelled"
    return f"the job ran longer than its timeout of {extra.get(TIMEOUT, 0):g} s"


def interrupt(timeout: JobTimeout) -> None:
    """Raises in the job, from a signal handler; if it is in the middle of a message, then behind that."""
    global _late  # noqa: PLW0603
    if _sending_thread == threading.get_ident():
        _late = timeout
    else:
        raise timeout


class RunningJob:
    """One of several jobs that run in this process: what `begin` notes for one that runs alone.

    It belongs to a context, so a job's coroutines, their tasks, and `asyncio.to_thread` know their job.

    Attributes:
        is_over: whether the job has ended.
        uninterrupted: does what no time limit may interrupt, in the way of the job's thread or coroutine.
    """

    __slots__ = ("_job", "_running", "children", "is_over", "mark", "rests", "uninterrupted")

    def __init__(
        self, number: int, job_id: bytes, task: str, attempt: int, extra: StartOptions = NO_START_OPTIONS
    ) -> None:
        self.mark = f"{JOB_MARK}{number}{JOB_MARK}"
        self.rests: dict[int, str] = {}  # what it wrote of lines that have no end yet, by descriptor
        self.children: list[tuple[Spec, Call]] = []
        self.is_over = False
        self.uninterrupted: Callable[[Callable[[], None]], None] = uninterrupted
        self._running = job_id, task, attempt, extra, time.monotonic(), 0.0
        self._job: CurrentJob | None = None

    def job(self) -> CurrentJob:
        """The job, for its own use."""
        if self._job is None:
            self._job = CurrentJob(self._running, self)
        return self._job

    def end(self) -> None:
        """Notes that the job has ended."""
        self.is_over = True
        if self._job is not None and _channel is not None:
            _channel.reporter.forget(self._running[0])


_concurrent: ContextVar[RunningJob | None] = ContextVar("taskq_concurrent", default=None)
#: Which of several jobs runs in this context, or None; and the way to say so.
concurrent = _concurrent.get
sit = _concurrent.set


def keep_back(flow: Sequence[tuple[Spec, Call]]) -> None:
    """Keeps jobs until the running one has succeeded; they are dropped if it does not.

    Raises:
        TaskQError: no job runs here.
        EnqueueError: these are too many.
    """
    concurrent = _concurrent.get() if _running is None else None
    if _has_forked or (_running is None and concurrent is None):
        raise TaskQError("on_success=True is for what a job enqueues: no job runs here")
    kept = children if concurrent is None else concurrent.children
    size = sum(len(call.payload) for _, call in (*kept, *flow))
    if len(kept) + len(flow) > MAX_CHILDREN or size > MAX_CHILDREN_BYTES:
        raise EnqueueError(
            f"one job may enqueue {MAX_CHILDREN:,} jobs and {MAX_CHILDREN_BYTES:,} bytes of arguments with "
            "on_success=True: enqueue some that enqueue the others"
        )
    kept.extend(flow)


def forget_children() -> None:
    """This process was forked by a job: it is not the one that tells how that ends."""
    global _has_forked  # noqa: PLW0603
    _has_forked = True
    children.clear()


def current_job() -> CurrentJob:
    """The job that is running: its id, attempt, deadline and a bound logger; it tells of progress and keeps
    checkpoints.

    With `--threads` a thread that the job itself has started does not know it, unless by `asyncio.to_thread` or
    `contextvars.copy_context().run`.

    Raises:
        TaskQError: called outside a job.
    """
    global _current  # noqa: PLW0603  made when it is asked for: most jobs do not
    if _running is None:
        concurrent = _concurrent.get()
        if concurrent is not None:
            return concurrent.job()
        raise TaskQError("current_job() was called outside a job")
    if _current is None:
        _current = CurrentJob(_running)
    return _current
