"""What clients ask of a broker besides submitting jobs: the requests, as they are written and read.

    request  := [op, number, *fields]     the number is repeated in the answer
    WATCH    := [op, ids]                 see taskq.protocol.endings

Anybody may send anything, so every field is checked where it is read. Fields that are added later go to the end and
have a default, as older clients do not send them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from taskq.model.errors import ProtocolError
from taskq.model.job import LAST_TIME
from taskq.protocol.endings import watched_ids
from taskq.protocol.frames import frame
from taskq.protocol.ops import Op

#: Where to go on in a request that is repeated until all is done: sequence numbers, as the last answer said.
Span = list[int]

_ID_BYTES = 16
#: Above every sequence number, and above every position of an item.
_END = 1 << 62


class Watch(NamedTuple):
    """Tell the client of the ends of jobs."""

    ids: list[bytes]


class ReadItems(NamedTuple):
    """What a job yields from a position on; answered when there are items, or the job has ended."""

    job_id: bytes
    start: int


class GetJob(NamedTuple):
    """All that is known of a job.

    Attributes:
        arguments: whether its arguments are wanted, too.
    """

    job_id: bytes
    arguments: bool = False


class ExplainJob(NamedTuple):
    """Why a job does not run."""

    job_id: bytes


class ListJobs(NamedTuple):
    """Jobs, newest first; each of the first three may be None for all.

    Attributes:
        before: the id of a job, or the position at which the last answer ended; None: begin with the newest.
        limit: the most that are wanted.
    """

    state: str | None
    task: str | None
    queue: str | None
    before: bytes | int | None
    limit: int


class SearchJobs(NamedTuple):
    """Jobs as ListJobs tells them, but only those for which `taskq.model.info.search.JobSearch` has these fields."""

    state: str | None
    task: str | None
    queue: str | None
    before: bytes | int | None
    limit: int
    since: float | None
    until: float | None
    attempts: int
    text: str


class CancelJob(NamedTuple):
    """Cancel a job; answered with whether it is cancelled, or None while it is being stopped."""

    job_id: bytes
    also_running: bool


class RetryJob(NamedTuple):
    """Queue a failed job again."""

    job_id: bytes


class RetryJobs(NamedTuple):
    """Queue failed jobs again; answered with how many, and where to go on or None."""

    task: str | None
    queue: str | None
    span: Span | None


class PurgeJob(NamedTuple):
    """Remove a job."""

    job_id: bytes


class PurgeJobs(NamedTuple):
    """Remove jobs of one state; answered with how many, and where to go on or None.

    Attributes:
        before: only those that ended, or were enqueued, before this time (seconds since 1970).
    """

    state: str
    task: str | None
    queue: str | None
    before: float | None
    span: Span | None


class PauseQueues(NamedTuple):
    """Pause or resume queues; answered with the names of those for which that is a change.

    Attributes:
        queues: their names; none: all that are paused.
        by: who asks, for the log.
    """

    queues: list[Any]
    is_paused: bool
    by: str


class GetStatus(NamedTuple):
    """What the fleet is doing."""


class GetCounts(NamedTuple):
    """What happened to the jobs of each task and queue; answered with a portion, and where it ended or None.

    Attributes:
        after: the names of the task and the queue at which the last answer ended; None: begin.
    """

    after: list[str] | None


class StopFleet(NamedTuple):
    """Stop the fleet."""


class ReloadFleet(NamedTuple):
    """Replace the consumers; answered with the number of that reload."""


class WriteStacks(NamedTuple):
    """Have consumers write the stacks of their threads to the log; answered with [number, pid] of each of them.

    Attributes:
        number: which consumer; None for all.
    """

    number: int | None


class ListSchedules(NamedTuple):
    """All schedules, by name."""


class PutSchedule(NamedTuple):
    """Add a schedule, or change the one of its name; answered with what is known of it.

    Attributes:
        schedule: as `taskq.model.schedule.Schedule.to_wire` makes it.
    """

    schedule: list[Any]


class RemoveSchedule(NamedTuple):
    """Remove a schedule."""

    name: str


class PauseSchedule(NamedTuple):
    """Pause or resume a schedule; answered with what is known of it."""

    name: str
    is_paused: bool


class RunSchedule(NamedTuple):
    """Make a job of a schedule now."""

    name: str
    job_id: bytes


class BackUp(NamedTuple):
    """Copy the journal; answered with [pages that are copied, all pages, whether it is done]. Asked again until it is
    done, and then, with `is_end`, when the client has copied the files of payloads.

    Attributes:
        path: the file to write, on the fleet's machine.
        is_end: the client wants no more of it.
    """

    path: str
    is_end: bool


#: The requests that have a number and an answer.
_OPS: dict[type[tuple[Any, ...]], Op] = {
    ReadItems: Op.READ_ITEMS,
    GetJob: Op.INFO,
    ExplainJob: Op.WHY,
    ListJobs: Op.JOBS,
    SearchJobs: Op.SEARCH,
    CancelJob: Op.CANCEL,
    RetryJob: Op.RETRY,
    RetryJobs: Op.RETRY_ALL,
    PurgeJob: Op.PURGE,
    PurgeJobs: Op.PURGE_ALL,
    PauseQueues: Op.PAUSE,
    GetStatus: Op.STATUS,
    GetCounts: Op.COUNTS,
    StopFleet: Op.STOP,
    ReloadFleet: Op.RELOAD,
    WriteStacks: Op.STACKS,
    ListSchedules: Op.SCHEDULES,
    PutSchedule: Op.PUT_SCHEDULE,
    RemoveSchedule: Op.REMOVE_SCHEDULE,
    PauseSchedule: Op.PAUSE_SCHEDULE,
    RunSchedule: Op.RUN_SCHEDULE,
    BackUp: Op.BACKUP,
}

#: Any request; whoever answers them tells them apart by their classes.
Request = (
    Watch
    | ReadItems
    | GetJob
    | ExplainJob
    | ListJobs
    | SearchJobs
    | CancelJob
    | RetryJob
    | RetryJobs
    | PurgeJob
    | PurgeJobs
    | PauseQueues
    | GetStatus
    | GetCounts
    | StopFleet
    | ReloadFleet
    | WriteStacks
    | ListSchedules
    | PutSchedule
    | RemoveSchedule
    | PauseSchedule
    | RunSchedule
    | BackUp
)


def op_of(request: Request) -> Op:
    """The operation of a request that has a number and an answer."""
    return _OPS[type(request)]


def request_frame(number: int, request: Request) -> bytes:
    """Makes the frame of a request that has a number and an answer."""
    return frame([op_of(request), number, *request])


def read_request(envelope: Sequence[Any]) -> Request:
    """Reads the envelope of a request.

    Raises:
        ProtocolError: it is not one, or a field is of another form.
    """
    match envelope:
        case [Op.WATCH, bytes(ids)] if len(ids) % _ID_BYTES == 0:
            return Watch(watched_ids(ids))
        case [Op.READ_ITEMS, int(), bytes(job_id), int(start)] if _is_id(job_id) and 0 <= start < _END:
            return ReadItems(job_id, start)
        case [Op.INFO, int(), bytes(job_id)] if _is_id(job_id):
            return GetJob(job_id)
        case [Op.INFO, int(), bytes(job_id), bool(arguments)] if _is_id(job_id):
            return GetJob(job_id, arguments)
        case [Op.WHY, int(), bytes(job_id)] if _is_id(job_id):
            return ExplainJob(job_id)
        case [Op.CANCEL, int(), bytes(job_id), bool(also_running)] if _is_id(job_id):
            return CancelJob(job_id, also_running)
        case [Op.JOBS, int(), *listing] if _is_listing(listing):
            return ListJobs(*listing)
        case [Op.SEARCH, int(), *listing, since, until, attempts, str()] if (
            _is_listing(listing) and _is_time(since) and _is_time(until) and _is_seq(attempts)
        ):
            return SearchJobs(*envelope[2:])
        case [Op.RETRY, int(), bytes(job_id)] if _is_id(job_id):
            return RetryJob(job_id)
        case [Op.RETRY_ALL, int(), str() | None, str() | None, span] if _is_span(span):
            return RetryJobs(*envelope[2:])
        case [Op.PURGE, int(), bytes(job_id)] if _is_id(job_id):
            return PurgeJob(job_id)
        case [Op.PURGE_ALL, int(), str(), str() | None, str() | None, at, span] if _is_time(at) and _is_span(span):
            return PurgeJobs(*envelope[2:])
        case [Op.PAUSE, int(), list(queues), bool(is_paused), str(by)]:
            return PauseQueues(queues, is_paused, by)
        case [Op.STATUS, int()]:
            return GetStatus()
        case [Op.COUNTS, int(), None | [str(), str()] as after]:
            return GetCounts(after)
        case [Op.STOP, int()]:
            return StopFleet()
        case [Op.RELOAD, int()]:
            return ReloadFleet()
        case [Op.STACKS, int(), int() | None as number]:
            return WriteStacks(number)
        case [Op.SCHEDULES, int()]:
            return ListSchedules()
        case [Op.PUT_SCHEDULE, int(), list(schedule)]:
            return PutSchedule(schedule)
        case [Op.REMOVE_SCHEDULE, int(), str(name)]:
            return RemoveSchedule(name)
        case [Op.PAUSE_SCHEDULE, int(), str(name), bool(is_paused)]:
            return PauseSchedule(name, is_paused)
        case [Op.RUN_SCHEDULE, int(), str(name), bytes(job_id)] if _is_id(job_id):
            return RunSchedule(name, job_id)
        case [Op.BACKUP, int(), str(path), bool(is_end)]:
            return BackUp(path, is_end)
    raise ProtocolError(f"no such request: {envelope[0]!s:.20}")


def _is_id(job_id: bytes) -> bool:
    return len(job_id) == _ID_BYTES


def _is_listing(fields: list[object]) -> bool:
    match fields:
        case [str() | None, str() | None, str() | None, before, int()]:
            return _is_place(before)
    return False


def _is_place(before: object) -> bool:
    return before is None or (isinstance(before, bytes) and _is_id(before)) or _is_seq(before)


def _is_span(span: object) -> bool:
    return span is None or (isinstance(span, list) and len(span) == 2 and all(map(_is_seq, span)))


def _is_time(at: object) -> bool:
    return at is None or (isinstance(at, (int, float)) and 0 <= at < LAST_TIME)


def _is_seq(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _END
