"""What clients learn about jobs: the answers to INFO (all about one job), WHY (why one does not run), and JOBS (a
list, and where to go on).

The broker sends outcomes as they are stored, and does not decode them: the client does, and makes a `JobInfo` of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from taskq.model.attempt import Outcome, read_outcome
from taskq.model.errors import ProtocolError
from taskq.model.info.why import LimitState, OtherJob, Reason, WhyInfo
from taskq.model.job import JobState, Progress, enqueued_at
from taskq.model.limits import MAX_SHOWN_ARGUMENTS_BYTES
from taskq.protocol.answers import known
from taskq.protocol.payloads.filed import is_reference, size_of

if TYPE_CHECKING:
    from taskq.model.info.job import JobArguments, JobInfo

#: The fields of `JobFields` that those in a list have, unless a later one says something.
_LISTED = 11


class JobFields(NamedTuple):
    """A job as it travels to a client: the fields, in this order.

    Attributes:
        id, task, queue, state, attempts, crashes, due_at, started_at, finished_at: as in `JobInfo`.
        outcome: of the last ended attempt, as made by `taskq.model.attempt`, without the result; or None.
        progress: done, total and note of the running attempt, if it said so.
        history: the ended attempts: their numbers, outcomes, and the names of the machines on which they ran, or None.
        after, before: the ids of neighbours, as in `JobInfo`.
        meta: as in `JobInfo`; None for none.
        payload: its arguments, if they are wanted and not too large, else their size in bytes; None: not wanted.
    """

    id: bytes
    task: str
    queue: str
    state: str
    attempts: int = 0
    crashes: int = 0
    due_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    outcome: bytes | None = None
    progress: tuple[float, float | None, str] | None = None
    history: Sequence[tuple[int, bytes, str | None]] = ()
    after: Sequence[bytes] = ()
    before: Sequence[bytes] = ()
    meta: Mapping[str, str] | None = None
    payload: bytes | int | None = None

    def listed(self) -> tuple[Any, ...]:
        """The fields of a job in a list."""
        return self if self.meta else self[:_LISTED]


#: The answer to JOBS: the jobs, each with the fields of those in a list; and where to go on, or None for the end.
JobsAnswer = tuple[list[tuple[Any, ...]], int | None]


def info_of(answer: Sequence[Any]) -> JobInfo:
    """Reads the answer to INFO, or one of the jobs in the answer to JOBS."""
    from taskq.model.info.job import Attempt, JobInfo

    fields = JobFields(*answer)
    last = read_outcome(fields.outcome) if fields.outcome else Outcome(None, None, None, None)
    return JobInfo(
        id=fields.id.hex(),
        task=fields.task,
        queue=fields.queue,
        state=JobState(fields.state),
        attempts=fields.attempts,
        crashes=fields.crashes,
        enqueued_at=enqueued_at(fields.id),
        started_at=fields.started_at or last.started_at,
        finished_at=fields.finished_at,
        due_at=fields.due_at,
        duration_s=last.duration_s,
        error=last.error,
        progress=None if fields.progress is None else Progress(*fields.progress),
        history=[
            Attempt(
                number,
                ended.started_at,
                ended.duration_s,
                ended.error,
                machine,
                ended.consumer,
                ended.pid,
                ended.peak_bytes,
            )
            for number, outcome, machine in fields.history
            for ended in (read_outcome(outcome),)
        ],
        after=[parent.hex() for parent in fields.after],
        before=[child.hex() for child in fields.before],
        meta=dict(fields.meta or {}),
        arguments=None if fields.payload is None else _arguments(fields.id, fields.payload),
    )


def why_value(info: WhyInfo) -> dict[str, Any]:
    """Why a job does not run, as it travels."""
    return asdict(info)


def why_of(value: Any) -> WhyInfo:
    """Reads the answer to WHY.

    Raises:
        ProtocolError: it is not one.
    """
    try:
        reasons = [_reason(told) for told in value["reasons"]]
        return replace(known(WhyInfo, value), state=JobState(value["state"]), reasons=reasons)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ProtocolError(f"this does not say why a job waits: {type(error).__name__}: {error}") from error


def _reason(told: Mapping[str, Any]) -> Reason:
    limit = told.get("limit")
    jobs = [known(OtherJob, other) for other in told.get("jobs", ())]
    states = [other if other.state is None else replace(other, state=JobState(other.state)) for other in jobs]
    return known(Reason, {**told, "jobs": states, "limit": None if limit is None else known(LimitState, limit)})


def shown_payload(payload: bytes) -> bytes | int:
    """What is sent of the arguments of a job, as `JobFields.payload`."""
    is_shown = len(payload) <= MAX_SHOWN_ARGUMENTS_BYTES and not is_reference(payload)
    return payload if is_shown else size_of(payload)


def _arguments(job_id: bytes, payload: bytes | int) -> JobArguments:
    from taskq.model.info.job import JobArguments
    from taskq.protocol.codec import CorruptPayload, decode_call, results_in

    if isinstance(payload, int):
        told = f"they take {payload:,} bytes; up to {MAX_SHOWN_ARGUMENTS_BYTES:,} are shown"
        return JobArguments(size_bytes=payload, left_out=told)
    if not payload:
        return JobArguments(left_out="they are not kept once the job has succeeded or was cancelled")
    try:
        results = {parent: f"<the result of job {parent.hex()}>" for parent in results_in(payload)}
        args, kwargs = decode_call(job_id, payload, results)
    except CorruptPayload as error:
        return JobArguments(size_bytes=len(payload), left_out=f"they cannot be read: {error}")
    return JobArguments(args, kwargs, len(payload))
