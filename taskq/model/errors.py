"""Every error that taskq raises.

    TaskQError
    |-- EnqueueError              the call was not accepted
    |   |-- BadArguments          the task cannot be called with these arguments (also a TypeError)
    |   |-- PayloadError          arguments or a result that cannot be serialized (also a TypeError)
    |   |-- PayloadTooLarge       ... or that are larger than the limit (also a ValueError)
    |   |-- QueueFull             the fleet refuses new jobs for now
    |   `-- StoreFull             the disk is full
    |-- BrokerUnavailable         no fleet answers, and the spool cannot be written (also a ConnectionError)
    |-- ResultTimeout             the result did not come in time (also a TimeoutError)
    |-- JobFailed                 the job ended as failed; carries the remote type, message and traceback
    |-- JobCancelled              the job was cancelled before it started, or cancelled itself
    |-- JobNotFound               no job with this id is kept (also a LookupError)
    |-- JobStateError             a job's state does not allow what was asked for
    |-- ScheduleNotFound          there is no schedule of this name (also a LookupError)
    |-- ProtocolError             a peer sent bytes that are not this protocol
    |-- ConfigError               a setting, an option or a name that makes no sense
    |   |-- AppError              MODULE:ATTRIBUTE does not lead to a TaskQ object
    |   |-- DirectoryError        the queue's directory cannot be used
    |   `-- TooFewDescriptors     the limit on open files is too low for the fleet
    |-- AlreadyRunning            another fleet holds the directory
    `-- JournalError              the journal cannot be trusted or written

Four derive from BaseException instead, since they are meant for taskq and pass through the code of a job: JobTimeout,
which taskq raises in the job, and Retry, Snooze and Cancel, which a job raises to say what should happen to it. They
are not errors: the `except Exception` of the job, or of a library that it calls, must neither swallow them nor turn
them into failures. (Code that cleans up with `finally`, `with` or `except BaseException: ... raise` sees them like any
exception.)
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from taskq.model.limits import LONGEST_DELAY_S


class TaskQError(Exception):
    """The root of all errors of taskq."""


class EnqueueError(TaskQError):
    """A job was not accepted; nothing of it is stored."""


class BadArguments(EnqueueError, TypeError):
    """The task's function cannot be called with these arguments. The message shows its signature."""


class PayloadError(EnqueueError, TypeError):
    """A value cannot be serialized. The message names the place, such as ``args[0]['x']: socket``."""


class PayloadTooLarge(EnqueueError, ValueError):
    """A serialized value is larger than the limit in `taskq.model.limits`."""


class QueueFull(EnqueueError):
    """The fleet accepts no more jobs for now."""


class StoreFull(EnqueueError):
    """The disk that holds the journal is full."""


class BehindSpool(EnqueueError):
    """These jobs come after others in the spool. Only taskq's own clients see this: they spool such jobs, too."""


class BrokerUnavailable(TaskQError, ConnectionError):
    """No fleet answers. The message says which directory was tried and what to start."""


class ResultTimeout(TaskQError, TimeoutError):
    """The job had not ended when the time to wait ran out. The job itself goes on."""


class JobFailed(TaskQError):
    """The job ended as failed.

    Attributes:
        job_id: the job's id.
        error_type: the name of the remote exception's class, or of taskq's own reason (``Crashed``, ``TimedOut``,
            ``UnknownTask``, ``BadArguments``, ``ResultTooLarge``, ``UnserializableResult``, ``CorruptPayload``).
        error_message: the remote exception's text.
        error_traceback: the remote traceback as text, empty if there was none.
        error_module: the module of the remote exception's class, such as "requests.exceptions"; empty for taskq's own
            reasons.
        error_causes: what the remote exception came from, the nearest first, each as "module.Type: message".
        item: the number of its item in `Task.map`, counted from 0; None for other jobs.
    """

    item: int | None = None

    def __init__(
        self,
        job_id: str,
        error_type: str,
        error_message: str,
        error_traceback: str = "",
        error_module: str = "",
        error_causes: Sequence[str] = (),
    ) -> None:
        super().__init__(job_id, error_type, error_message, error_traceback, error_module, error_causes)
        self.job_id = job_id
        self.error_type = error_type
        self.error_message = error_message
        self.error_traceback = error_traceback
        self.error_module = error_module
        self.error_causes = tuple(error_causes)

    def __str__(self) -> str:
        told = f"{_item_told(self.item)}job {self.job_id} failed: {self.error_type}: {self.error_message}"
        if not self.error_traceback:
            return told
        return f"{told}\n\nThe traceback in the consumer:\n{self.error_traceback}"


class JobCancelled(TaskQError):
    """The job was cancelled, so it has no result.

    Attributes:
        item: the same as in `JobFailed`.
    """

    item: int | None = None

    def __str__(self) -> str:
        return f"{_item_told(self.item)}{super().__str__()}"


def _item_told(item: int | None) -> str:
    return "" if item is None else f"item {item:,} (counted from 0): "


class JobNotFound(TaskQError, LookupError):
    """No job with this id is known: there never was one, or it is no longer kept."""

    @classmethod
    def of(cls, job_id: bytes) -> JobNotFound:
        """Returns the error for one job, with the same text wherever it occurs."""
        return cls(f"job {job_id.hex()} is not known here: it never was, or it is no longer kept")


class JobStateError(TaskQError):
    """The job's state does not allow what was asked for. The message says which state it is in, and which is needed."""


class ScheduleNotFound(TaskQError, LookupError):
    """There is no schedule of this name."""


class ProtocolError(TaskQError):
    """A peer sent something that is not a valid frame of this protocol."""


class ConfigError(TaskQError, ValueError):
    """A setting, an option or a name makes no sense. The message says what would."""


class BadJobId(ConfigError, JobNotFound):
    """What should be the id of a job cannot be one. So there is no such job: `except JobNotFound` covers both cases."""


class AppError(ConfigError):
    """MODULE:ATTRIBUTE or FILE.py:ATTRIBUTE does not lead to a TaskQ object."""


class DirectoryError(ConfigError):
    """The queue's directory cannot be used. The message names the path and the remedy."""


class TooFewDescriptors(ConfigError):
    """The limit on open files is too low for this number of consumers. The message says how many are needed."""


class AlreadyRunning(TaskQError):
    """Another fleet already runs on this directory."""


class JournalError(TaskQError):
    """The journal cannot be trusted or written; the broker stops rather than guess."""


class JobTimeout(BaseException):
    """Raised inside a job when its ``timeout=`` is over, or when it is cancelled. The job may catch it to clean up, for
    2 s; then its process is killed."""


class CpuTimeout(JobTimeout):
    """Raised inside a job when its ``cpu_timeout=`` is used up. Otherwise the same as `JobTimeout`."""


class Retry(BaseException):
    """Raised by a job: this attempt failed; run the job again. It counts against ``retries=``, like any failure.

    Attributes:
        delay: seconds to wait, or None for the task's ``backoff=``.
        reason: the text for the log and `JobInfo.error`.
    """

    def __init__(self, delay: float | None = None, reason: str = "") -> None:
        """
        Raises:
            ConfigError: the delay makes no sense.
        """
        if delay is not None and not is_delay(delay):
            raise ConfigError(f"Retry(delay={delay!r}): use seconds, 0 or more, or None for the task's backoff")
        super().__init__(reason or "the job asked for another attempt")
        self.delay = delay
        self.reason = reason


class Snooze(BaseException):
    """Raised by a job: not now; run the job again after a while. This is not a failure: no retry is spent.

    Attributes:
        delay: seconds to wait.
        reason: the text for the log and `JobInfo.error`.
    """

    def __init__(self, delay: float, reason: str = "") -> None:
        """
        Raises:
            ConfigError: the delay makes no sense.
        """
        if not is_delay(delay) or delay == 0:
            raise ConfigError(f"Snooze({delay!r}): use seconds greater than 0")
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Cancel(BaseException):
    """Raised by a job that is not wanted any more: it ends as cancelled. `Job.result` raises JobCancelled.

    Attributes:
        reason: the text for the log, `JobInfo.error` and JobCancelled.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def is_delay(value: object) -> bool:
    """Whether a value is a number of seconds that a job can wait."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LONGEST_DELAY_S


def is_from_signal_handler(error: BaseException) -> bool:
    """Whether an exception was raised by a signal handler: then it says nothing about the code that was running."""
    handlers = [handler for number in signal.valid_signals() if callable(handler := signal.getsignal(number))]
    codes = [getattr(handler, "__code__", getattr(type(handler).__call__, "__code__", None)) for handler in handlers]
    place = error.__traceback__
    while place is not None and place.tb_frame.f_code not in codes:
        place = place.tb_next
    return place is not None
