"""What a consumer tells its broker: each message as it is written, and as it is read.

    OUTCOMES     [op, numbers, verdicts, durations in microseconds, lengths]    body: the outcomes
    ITEMS        [op, job id, position of the first, lengths]                   body: what a generator has yielded
    PROGRESS     [op, [[job id, done, total, note], ...]]
    CHECKPOINT   [op, job id]                                                   body: what the job keeps
    CHILDREN     [op, number, groups, number of edges]                          body: as that of SUBMIT_FLOW
    READY        [op, process id, lengths]                                      body: the names of its tasks
    DECLARED     [op, application, lengths]                                     body: the schedules in its code
    BOOT_FAILED  [op]                                                           body: the error, as an outcome

A job can write to the socket of its consumer, so every field is checked where it is read. Both ends are of one version,
so fields may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from taskq.model.attempt import Attempts, failure_in, pack_failure
from taskq.model.errors import ProtocolError
from taskq.model.job import JobError, Progress
from taskq.model.limits import MAX_CHECKPOINT_BYTES, MAX_ITEMS, MAX_TOLD_TASKS_BYTES
from taskq.protocol.frames import frame, split
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Flow, Submission, flow_frame, flow_of, parts_of

_WHOLE = frozenset({int})
_COLUMNS = [list] * 4


class Items(NamedTuple):
    """A generator among the running jobs has yielded items.

    Attributes:
        first: the position of the first of them.
    """

    job_id: bytes
    first: int
    items: list[bytes]


class JobsProgress(NamedTuple):
    """How far running jobs are, by their ids."""

    by_job: dict[bytes, Progress]


class Checkpoint(NamedTuple):
    """A running job keeps something for its next attempt."""

    job_id: bytes
    data: bytes


class Children(NamedTuple):
    """A running job has enqueued others for its success. Sent before the outcome of the job.

    Attributes:
        number: of the running job, as counted in `taskq.protocol.link.counters`.
    """

    number: int
    jobs: Submission


class Ready(NamedTuple):
    """The consumer has imported the application, and takes jobs from now on.

    Attributes:
        tasks: the names of the application's tasks, one a line; empty if they are too many.
    """

    pid: int
    tasks: bytes = b""


class Declared(NamedTuple):
    """The schedules that the application's code declares, each as `taskq.model.schedule.Schedule` packs it."""

    app: str
    schedules: list[bytes]


class BootFailed(NamedTuple):
    """The consumer cannot import the application, or a hook of its start has failed."""

    error: JobError


#: Any report; whoever hears them tells them apart by their classes. Attempts are those that have ended.
Report = Attempts | Items | JobsProgress | Checkpoint | Children | Ready | Declared | BootFailed


def outcomes_frame(
    numbers: Sequence[int],
    verdicts: Sequence[int],
    durations_us: Sequence[int],
    lengths: Sequence[int],
    outcomes: Iterable[bytes],
) -> bytes:
    """Makes the report of attempts that ended; of none, it shows that the consumer is alive.

    Args:
        lengths: of the outcomes, which may be joined already.
    """
    return frame([Op.OUTCOMES, numbers, verdicts, durations_us, lengths], outcomes)


def items_frame(job_id: bytes, first: int, items: Sequence[bytes]) -> bytes:
    """Makes the report of what a generator has yielded from a position on."""
    return frame([Op.ITEMS, job_id, first, list(map(len, items))], items)


def progress_frame(told: Iterable[tuple[bytes, Progress]]) -> bytes:
    """Makes the report of how far jobs are."""
    return frame([Op.PROGRESS, [[job_id, p.done, p.total, p.note] for job_id, p in told]])


def checkpoint_frame(job_id: bytes, data: bytes) -> bytes:
    """Makes the report of what a job keeps."""
    return frame([Op.CHECKPOINT, job_id], [data])


def children_frames(number: int, jobs: Flow) -> Iterator[bytes]:
    """Makes the reports of what a job has enqueued for its success, in the order in which they are to be sent."""
    return (flow_frame([Op.CHILDREN, number], part) for part in parts_of(jobs))


def ready_frame(pid: int, tasks: Iterable[str] = ()) -> bytes:
    """Makes the report that a consumer takes jobs.

    Args:
        tasks: the names of the application's tasks.
    """
    names = "\n".join(tasks).encode()
    told = [names] if len(names) <= MAX_TOLD_TASKS_BYTES else []
    return frame([Op.READY, pid, list(map(len, told))], told)


def declared_frame(app: str, schedules: Sequence[bytes]) -> bytes:
    """Makes the report of the schedules that an application declares."""
    return frame([Op.DECLARED, app, list(map(len, schedules))], schedules)


def boot_failed_frame(error: JobError) -> bytes:
    """Makes the report that a consumer cannot start."""
    return frame([Op.BOOT_FAILED], [pack_failure(None, None, error)])


def read_report(envelope: Sequence[Any], body: memoryview) -> Report:
    """Reads what a consumer has sent.

    Raises:
        ProtocolError, ConfigError: consumers do not send that.
    """
    if envelope[0] == Op.OUTCOMES and list(map(type, envelope[1:])) == _COLUMNS:  # most are
        _, numbers, verdicts, durations_us, lengths = envelope
        if (
            len(numbers) == len(verdicts) == len(durations_us) == len(lengths)
            and _WHOLE.issuperset(map(type, numbers))
            and _WHOLE.issuperset(map(type, durations_us))
        ):
            return Attempts(numbers, verdicts, durations_us, split(body, lengths))
    match envelope:
        case [Op.ITEMS, bytes(job_id), int(first), list(lengths)] if 0 <= first <= MAX_ITEMS:
            return Items(job_id, first, split(body, lengths))
        case [Op.PROGRESS, list(told)]:
            return JobsProgress(dict(map(_progress, told)))
        case [Op.CHECKPOINT, bytes(job_id)] if 0 < len(body) <= MAX_CHECKPOINT_BYTES:
            return Checkpoint(job_id, bytes(body))
        case [Op.CHILDREN, int(number), list(groups), int(edges)]:
            return Children(number, flow_of(None, 0, False, groups, edges, body))
        case [Op.READY, int(pid), list(lengths)]:
            return Ready(pid, b"".join(split(body, lengths)))
        case [Op.DECLARED, str(app), list(lengths)]:
            return Declared(app, split(body, lengths))
        case [Op.BOOT_FAILED]:
            return BootFailed(failure_in(bytes(body))[0])
    raise ProtocolError(f"a message that consumers do not send: {envelope[0]!s:.20}")


def _progress(told: Any) -> tuple[bytes, Progress]:
    match told:
        case [bytes(job_id), done, total, note]:
            return job_id, Progress(done, total, note)
    raise ProtocolError("the progress of a job in another form")
