"""The outcome of an attempt: made by the consumer, or by the broker after a crash; stored as it is; read by clients.

    outcome := msgpack [started_at, duration_s, result, error, delay_s, consumer, pid, peak_bytes]

`result` is an opaque payload (taskq.protocol.codec), or nil for None; `error` the fields of a JobError, or nil;
`delay_s` is how long the attempt wants the job to wait, or nil if it did not say; `consumer` is the number of the
consumer that ran it, `pid` that of its process, and `peak_bytes` the most memory that this process had used by the
end; a short success does not tell these two. What is not known at the end is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from math import isfinite
from struct import Struct
from typing import Any, NamedTuple

import msgpack

from taskq.model.errors import ProtocolError, is_delay, is_from_signal_handler
from taskq.model.job import LAST_TIME, JobError
from taskq.model.limits import (
    MAX_CAUSE_CHARS,
    MAX_CAUSES,
    MAX_ERROR_MESSAGE_CHARS,
    MAX_FAILURE_BYTES,
    MAX_FRAME_BYTES,
    MAX_KEPT_ATTEMPT_BYTES,
    MAX_OUTPUT_LINE_BYTES,
    MAX_TRACEBACK_CHARS,
)


class Claim(NamedTuple):
    """A job that a consumer was running when its block was read."""

    number: int
    started_at: float


#: One packer kept: `msgpack.packb` makes one each time, 500 ns against 190. It holds no more than the plain values
#: above, so no code of a user runs inside, and no other thread gets the GIL in the middle of it.
_pack = msgpack.Packer().pack


class Verdict(IntEnum):
    """How a consumer judges an attempt; the broker decides what follows from it."""

    SUCCEEDED = 0
    FAILED = 1  #: the job raised or ran out of time: retried as the job allows
    REFUSED = 2  #: running it again cannot help (unknown task, wrong arguments, an error of `give_up_on`)
    SNOOZED = 3  #: the job asked to run later, and did not fail
    CANCELLED = 4  #: the job cancelled itself


class Attempts(NamedTuple):
    """Attempts that ended, as columns: so they travel from a consumer to the broker."""

    numbers: Sequence[int]  # as counted in `taskq.protocol.link.counters`
    verdicts: Sequence[int]  # see Verdict
    durations_us: Sequence[int]
    outcomes: Sequence[bytes]

    def between(self, begin: int, end: int | None) -> Attempts:
        """Some of them, by their positions."""
        numbers, verdicts, durations_us, outcomes = self
        return Attempts(numbers[begin:end], verdicts[begin:end], durations_us[begin:end], outcomes[begin:end])


class Outcome(NamedTuple):
    """An outcome, read. Times are seconds since 1970 and seconds."""

    started_at: float | None
    duration_s: float | None
    result: bytes | memoryview | None
    error: JobError | None
    delay_s: float | None = None
    consumer: int | None = None
    pid: int | None = None
    peak_bytes: int | None = None


class Ran(NamedTuple):
    """Where an attempt ran: see `Outcome`."""

    consumer: int | None = None
    pid: int | None = None
    peak_bytes: int | None = None


NOWHERE = Ran()


class Reason(IntEnum):
    """Why a running job has to end."""

    TIMEOUT = 0
    CPU_TIMEOUT = 1
    CANCELLED = 2


def pack_success(
    started_at: float, duration_s: float, result: bytes | None, consumer: int | None = None, ran: Ran = NOWHERE
) -> bytes:
    """Makes the outcome of an attempt that returned; None for the result None. The consumer takes two bytes.

    Args:
        ran: where it ran, in place of `consumer`, for an attempt that was long enough to tell more.
    """
    if ran is not NOWHERE:
        packed: bytes = _pack((started_at, duration_s, result, None, None, *ran))
    elif consumer is None:
        packed = _pack((started_at, duration_s, result, None))
    else:
        packed = _pack((started_at, duration_s, result, None, None, consumer))
    return packed


def pack_failure(
    started_at: float | None,
    duration_s: float | None,
    error: JobError,
    delay_s: float | None = None,
    ran: Ran = NOWHERE,
) -> bytes:
    """Makes the outcome of an attempt that did not; long texts are cut."""
    fields = error.to_wire()
    fields[0] = _clean(error.type, 200)
    fields[1] = _clean(error.message, MAX_ERROR_MESSAGE_CHARS)
    fields[2] = _clean(error.traceback, MAX_TRACEBACK_CHARS)
    fields[5] = [_clean(line, MAX_OUTPUT_LINE_BYTES) for line in error.output]
    if len(fields) > 6:
        fields[6] = _clean(error.module, 200)
        fields[7] = [_clean(cause, MAX_CAUSE_CHARS) for cause in error.causes[:MAX_CAUSES]]
    return _packed(started_at, duration_s, fields, delay_s, ran)


def _packed(started_at: float | None, duration_s: float | None, error: Any, delay_s: float | None, ran: Ran) -> bytes:
    later = [delay_s, *ran]
    while later and later[-1] is None:
        later.pop()
    packed: bytes = msgpack.packb((started_at, duration_s, None, error, *later))
    return packed


def unpack(outcome: bytes) -> Outcome:
    """Reads an outcome.

    Raises:
        ProtocolError: the bytes are none.
    """
    try:
        fields: list[Any] = msgpack.unpackb(outcome, max_bin_len=MAX_FRAME_BYTES, max_str_len=MAX_FRAME_BYTES)
        if not 4 <= len(fields) <= 8:
            raise TypeError(f"it has {len(fields)} fields")
        started_at, duration_s, result, error, delay_s, *ran = [*fields, None, None, None, None][:8]
        if result is not None and not isinstance(result, bytes):
            raise TypeError("its result is not a payload")
        if delay_s is not None and not is_delay(delay_s):
            raise TypeError("its delay is not a number of seconds")
        if not all(number is None or type(number) is int for number in ran):
            raise TypeError("its consumer, process or memory is not a number")
        if not all(moment is None or isinstance(moment, (int, float)) for moment in (started_at, duration_s)):
            raise TypeError("its times are not numbers of seconds")
        if not (abs(started_at or 0) < LAST_TIME and isfinite(duration_s or 0)):
            raise ValueError("its times are out of range")
        return Outcome(started_at, duration_s, result, None if error is None else _error_of(*error), delay_s, *ran)
    except Exception as error:
        if is_from_signal_handler(error):
            raise
        raise ProtocolError(f"not an outcome: {type(error).__name__}: {error}") from error


def read_outcome(outcome: bytes) -> Outcome:
    """Reads the outcome of a job for whoever asks about it. The broker does not decode successes: one that a job has
    scribbled over is told as an error, with that job alone."""
    try:
        return unpack(outcome)
    except ProtocolError as unreadable:
        told = f"the job succeeded, but what it returned cannot be read: {unreadable}"
        return Outcome(None, None, None, JobError("UnreadableOutcome", told))


_DOUBLE = Struct(">d")
_IS_DOUBLE = 0xCB


def started_at_of(outcome: bytes) -> float | None:
    """When the attempt started, in seconds since 1970, without reading the rest; None if the outcome does not tell."""
    if len(outcome) < 2 + _DOUBLE.size or outcome[1] != _IS_DOUBLE:
        return None
    started_at: float = _DOUBLE.unpack_from(outcome, 2)[0]
    return started_at if 0 <= started_at < LAST_TIME else None


def _error_of(
    type_: str,
    message: str,
    traceback: str,
    exit_code: int | None,
    signal: str | None,
    output: list[str],
    module: str = "",
    causes: Sequence[str] = (),
) -> JobError:
    if not all(isinstance(text, str) for text in (type_, message, traceback, signal or "", *output, module, *causes)):
        raise TypeError("an error with something other than text")
    if not (exit_code is None or isinstance(exit_code, int)) or not isinstance(output, list):
        raise TypeError("an error with fields of another type")
    return JobError(type_, message, traceback, exit_code, signal, output, module, list(causes))


def shortened(outcome: bytes, most_bytes: int = MAX_KEPT_ATTEMPT_BYTES) -> bytes:
    """The outcome for a list of attempts or of jobs: larger ones lose the result, and most of their error's text."""
    if len(outcome) <= most_bytes:
        return outcome
    started_at, duration_s, _, error, delay_s, *ran = read_outcome(outcome)
    if error is None:
        return without_result(outcome)
    output = [_clean(line, 200) for line in error.output[-5:]]
    message, traceback = _clean(error.message, most_bytes // 8), _clean(error.traceback, most_bytes // 4)
    causes = [_clean(cause, most_bytes // 32) for cause in error.causes[:3]]
    short = replace(error, message=message, traceback=traceback, output=output, causes=causes)
    return pack_failure(started_at, duration_s, short, delay_s, Ran(*ran))


def without_result(outcome: bytes) -> bytes:
    """The outcome without what the job returned, which may be large."""
    started_at, duration_s, result, error, delay_s, *ran = read_outcome(outcome)
    if result is None:
        return outcome
    return _packed(started_at, duration_s, error and error.to_wire(), delay_s, Ran(*ran))


def with_result(outcome: bytes, result: bytes) -> bytes:
    """The outcome with another payload as what the job returned."""
    fields: list[Any] = msgpack.unpackb(outcome, max_bin_len=MAX_FRAME_BYTES, max_str_len=MAX_FRAME_BYTES)
    fields[2] = result
    packed: bytes = msgpack.packb(fields)
    return packed


def machine_at(machines: Sequence[tuple[float, str]], at: float | None) -> str | None:
    """The machine on which jobs ran at a time, or None if it is not known.

    Args:
        machines: since when (seconds since 1970) jobs ran on each, in order.
        at: seconds since 1970.
    """
    position = 0 if at is None else bisect_right(machines, at, key=lambda machine: machine[0])
    return machines[position - 1][1] if position else None


def failure_in(outcome: bytes) -> tuple[JobError, float | None]:
    """The error in the outcome of an attempt that did not succeed, and the delay that it asked for: for the broker,
    which decodes no others.

    Raises:
        ProtocolError: there is none, or it is larger than `pack_failure` makes them.
    """
    if len(outcome) > MAX_FAILURE_BYTES:  # before a byte of it is decoded: it holds the broker's loop
        raise ProtocolError(f"a failure of {len(outcome):,} bytes, which is larger than a consumer makes them")
    found = unpack(outcome)
    if found.error is None:
        raise ProtocolError("a failure without an error")
    return found.error, found.delay_s


class Failure(NamedTuple):
    """An attempt that did not succeed, read."""

    verdict: Verdict
    error: JobError
    wish_s: float | None  # how long it wants the job to wait
    outcome: bytes


def read_failure(verdict: int, outcome: bytes, duration_us: int, consumer: int | None = None) -> Failure:
    """Reads how an attempt ended that did not succeed. What cannot be read is a failure as well, of that job alone.

    Args:
        consumer: the number of the consumer that reports it.
    """
    try:
        error, wish_s = failure_in(outcome)
        known = Verdict(verdict)
        if known is Verdict.SUCCEEDED or (known is Verdict.SNOOZED and not wish_s):
            raise ProtocolError(f"{known.name.lower()}, with a failure or without a delay")
        return Failure(known, error, wish_s, outcome)
    except (ProtocolError, ValueError) as unreadable:
        error = JobError("UnreadableOutcome", f"the consumer reported an end that cannot be read: {unreadable}")
        made = pack_failure(None, duration_us / 1e6, error, ran=Ran(consumer))
        return Failure(Verdict.FAILED, error, None, made)


def _clean(text: str, most: int) -> str:
    """Text that surely fits and packs: cut in its middle, lone surrogates escaped."""
    if len(text) > most:
        text = f"{text[: most // 2]}\n... {len(text) - most} characters left out ...\n{text[-most // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()


class Usage(NamedTuple):
    """What a process and its descendants use.

    Attributes:
        cpu_s: seconds of CPU time since it began, those of descendants that ended included.
        rss_bytes: resident memory, added up.
    """

    cpu_s: float
    rss_bytes: int
