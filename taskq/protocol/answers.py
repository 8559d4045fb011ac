"""Answers of the broker, as clients read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from taskq.model import errors
from taskq.model.attempt import Outcome, read_outcome
from taskq.model.errors import ProtocolError, ResultTimeout, TaskQError
from taskq.model.info import Attempt, JobInfo
from taskq.model.job import JobState, Progress, enqueued_at
from taskq.protocol.frames import Message
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Call


class ConnectionLost(TaskQError):
    """The connection ended or was refused; whether the last request arrived is unknown."""


class BrokerSilent(ConnectionLost):
    """The broker is there, and does not answer."""


class EarlierId(bytes):
    """The id of a job that was there before, in place of that of a new one, which was left out: see `unique=`."""

    __slots__ = ()


class Ending(NamedTuple):
    """How a job ended."""

    state: JobState
    outcome: Outcome


def value_of(message: Message, request: int) -> Any:
    """The value in the answer to a request.

    Raises:
        TaskQError: what the broker says went wrong, as the class that it names.
    """
    envelope, body = message
    if envelope[0] == Op.ERROR and envelope[1] in (0, request):
        raise error_of(envelope)
    if envelope[0] != Op.OK or envelope[1] != request:
        raise ProtocolError(f"an answer out of turn: {envelope[:2]}")
    return msgpack.unpackb(body, max_map_len=100_000, max_array_len=100_000) if len(body) else envelope[2]


def ids_of(calls: Sequence[Call], answer: Any) -> list[bytes]:
    """The ids of the jobs that stand for these calls now, from the answer to their submission."""
    if not isinstance(answer, list):
        return [call.id for call in calls]
    earlier = {new: EarlierId(before) for new, before in answer}
    return [earlier.get(call.id, call.id) for call in calls]


def error_of(envelope: list[Any]) -> TaskQError:
    """The error in an ERROR frame. Only names in `taskq.model.errors` are looked up; nothing is imported."""
    _, _, name, message = envelope
    found = getattr(errors, name, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, TaskQError) and found is not errors.JobFailed:
        return found(message)
    return TaskQError(f"{name}: {message}")


def ending_of(message: Message) -> tuple[bytes, Ending | None]:
    """The id and the ending in a RESULT frame; None if the broker does not know the job."""
    envelope, body = message
    _, job_id, state = envelope
    if not state:
        return job_id, None
    return job_id, Ending(JobState(state), read_outcome(bytes(body)))


def info_of(fields: list[Any]) -> JobInfo:
    """A JobInfo from the answer to INFO, or from one of those in the answer to JOBS."""
    job_id, task, queue, state, attempts, crashes, due_at, started_at, finished_at, outcome, progress, *more = fields
    history, after, before = more or ([], [], [])
    last = read_outcome(outcome) if outcome else Outcome(None, None, None, None)
    return JobInfo(
        id=job_id.hex(),
        task=task,
        queue=queue,
        state=JobState(state),
        attempts=attempts,
        crashes=crashes,
        enqueued_at=enqueued_at(job_id),
        started_at=started_at or last.started_at,
        finished_at=finished_at,
        due_at=due_at,
        duration_s=last.duration_s,
        error=last.error,
        progress=None if progress is None else Progress(*progress),
        history=[_attempt(number, read_outcome(kept)) for number, kept in history],
        after=[parent.hex() for parent in after],
        before=[child.hex() for child in before],
    )


def _attempt(number: int, outcome: Outcome) -> Attempt:
    return Attempt(number, outcome.started_at, outcome.duration_s, outcome.error)


#: An answer of the broker: items, and the state and outcome of a job that has ended and has no more.
_Answer = tuple[list[bytes], tuple[str, bytes | None] | None]


def checked(answer: Any) -> _Answer:
    """The broker's answer, if it is one."""
    try:
        items, end = answer
        return list(items), end
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"not an answer to a reader of items: {answer!r:.50}") from error


def ending_at(end: tuple[str, bytes | None]) -> Ending:
    """How the job ended."""
    state, outcome = end
    return Ending(JobState(state), read_outcome(outcome or b""))


def late(job_id: bytes, start: int, timeout_s: float | None) -> ResultTimeout:
    """The error that tells which item did not come."""
    return ResultTimeout(f"job {job_id.hex()} has not yielded item {start} within {timeout_s:g} s; it goes on")
