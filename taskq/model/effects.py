"""The values that go into the core and come out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from taskq.model.exits import LOST_DESCRIPTORS
from taskq.model.job import JobError, JobRow
from taskq.model.limits import CHECKPOINT_US, ENDED_US, ITEM_US, MAX_TOLD_LINES, NOTE_US, RESCHEDULED_US
from taskq.model.stored import Ended, Rescheduled

#: A consumer's key: unique for each consumer process.
Key = int


class Batch(NamedTuple):
    """Jobs to send to a consumer; the first has number `first`, the others follow."""

    key: Key
    first: int
    rows: list[JobRow]


class Stop(NamedTuple):
    """What to do for a job whose time is over."""

    number: int
    action: Literal["signal", "kill"]


class Event(NamedTuple):
    """A line for the log."""

    event: str
    fields: dict[str, Any]


#: A success, for the log, as a line or in a summary: its row, consumer, microseconds. A plain tuple: one for each job.
Success = tuple[JobRow, Key, int]


class ProcessExit(NamedTuple):
    """How a consumer process ended.

    Attributes:
        exit_code: its exit code, or None if a signal killed it or nobody knows.
        signal: the name of the signal, or None.
        output: the last lines it wrote, and the stacks of its threads if it told them.
        writers: of each of these lines, the number of the job that wrote it, 0 if nobody knows; empty if there was one.
        at: when that was seen (monotonic), or None.
        timed_out: the number of the job that the broker killed it for, or None.
        over_limit: what that job used too much of, if it was not time.
        out_of_memory: the kernel killed for want of memory meanwhile.
        stopped: the broker killed it for its own reasons: nobody is charged.
        why: why the broker killed it, or "".
        pid: the id of the process, or None.
        peak_bytes: about the most memory that it has used, or None if nobody knows.
    """

    exit_code: int | None = None
    signal: str | None = None
    output: tuple[str, ...] = ()
    writers: tuple[int, ...] = ()
    timed_out: int | None = None
    over_limit: JobError | None = None
    out_of_memory: bool = False
    stopped: bool = False
    at: float | None = None
    why: str = ""
    pid: int | None = None
    peak_bytes: int | None = None

    def output_of(self, number: int) -> list[str]:
        """The output of one job: not what the jobs beside it wrote."""
        if not self.writers:
            return list(self.output[-MAX_TOLD_LINES:])
        pairs = zip(self.output, self.writers, strict=True)
        return [line for line, writer in pairs if writer in (0, number)][-MAX_TOLD_LINES:]

    def describe(self) -> str:
        """The death in words."""
        if self.why:
            return f"was killed by the broker: {self.why}"
        if self.signal is not None:
            return f"was killed by {self.signal}" + (", since memory ran out" if self.out_of_memory else "")
        if self.exit_code == LOST_DESCRIPTORS:
            return "ended, since descriptors of its own had been closed, or opened as something else"
        return "ended in an unknown way" if self.exit_code is None else f"exited with code {self.exit_code}"


@dataclass(slots=True)
class Effects:
    """What the broker has to carry out: settle in the store, then report to clients and the log."""

    ended: list[Ended] = field(default_factory=list)
    rescheduled: list[Rescheduled] = field(default_factory=list)
    checkpoints: list[JobRow] = field(default_factory=list)
    done: list[Success] = field(default_factory=list)
    notes: list[Event] = field(default_factory=list)
    items: list[tuple[JobRow, int, list[bytes]]] = field(default_factory=list)  # a job, a position, what it yields
    #: Jobs that ended with success, each with what it has enqueued: a `taskq.protocol.submissions.Submission`.
    children: list[tuple[JobRow, Any]] = field(default_factory=list)
    retried: int = 0
    crashed: int = 0

    def add(self, more: Effects) -> None:
        """Adds what has to be carried out together with this."""
        self.ended += more.ended
        self.rescheduled += more.rescheduled
        self.checkpoints += more.checkpoints
        self.done += more.done
        self.notes += more.notes
        self.items += more.items
        self.children += more.children
        self.retried += more.retried
        self.crashed += more.crashed

    @property
    def work_us(self) -> float:
        """About how long it takes to carry this out, in microseconds; see `taskq.model.limits.TURN_US`."""
        if not (self.rescheduled or self.notes or self.items or self.checkpoints or self.children):  # most often
            return ENDED_US * len(self.ended)
        work_us = ENDED_US * len(self.ended) + RESCHEDULED_US * len(self.rescheduled) + NOTE_US * len(self.notes)
        if self.items:
            work_us += ITEM_US * sum([len(items) for _, _, items in self.items])
        if self.children:
            work_us += sum([submission.work_us for _, submission in self.children])
        return work_us + CHECKPOINT_US * len(self.checkpoints)

    def __bool__(self) -> bool:
        return bool(self.ended or self.rescheduled or self.checkpoints or self.notes or self.items)


#: Nothing to carry out: most turns bring nothing, and to make one of these takes a microsecond.
NO_EFFECTS = Effects()
