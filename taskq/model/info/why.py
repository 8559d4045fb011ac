"""What clients learn about a job that does not run: the reasons, the nearest obstacle first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from taskq.model.job import JobState

#: See `Reason.kind`.
Kind = Literal[
    "ended",
    "running",
    "sent",
    "spooled",
    "waiting",
    "scheduled",
    "no_fleet",
    "stopping",
    "no_consumers",
    "paused",
    "not_served",
    "unknown_task",
    "limit",
    "behind",
]
#: No more of the jobs in the way are told.
MOST_JOBS_TOLD = 10


@dataclass(frozen=True, slots=True)
class OtherJob:
    """A job in the way of another.

    Attributes:
        id: the id of that job.
        task: its task, or None if it is not known any more.
        state: its state, or None if it is not known any more.
        due_at: before which it does not start, if it is scheduled, in seconds since 1970; or None.
    """

    id: str
    task: str | None = None
    state: JobState | None = None
    due_at: float | None = None


@dataclass(frozen=True, slots=True)
class LimitState:
    """A limit that lets no further job pass now.

    Attributes:
        kind: "concurrency", "rate" (starts in a time), "order" (one job of a key after the other), or "resource".
        name: the task, followed by the key if the limit has one; or the resource.
        amount: how much there is of it: jobs at once, starts in that time, or units of the resource.
        used: how much of that is taken.
        needed: how much of it the job needs.
        period_s: the time in which a rate counts starts; 0 for other limits.
    """

    kind: Literal["concurrency", "rate", "order", "resource"]
    name: str
    amount: int
    used: int
    needed: int = 1
    period_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason why a job does not run.

    Attributes:
        kind: "ended"; "running"; "sent" if a consumer has it and runs others before it; "spooled" if it waits in the
            spool; "waiting" for other jobs; "scheduled" for later; "no_fleet" if none runs; "stopping" if the fleet
            stops; "no_consumers" if none is ready; "paused" if its queue is; "not_served" if no consumer serves its
            queue; "unknown_task" if the application of the consumers lacks its task, so that it fails when it starts;
            "limit"; "behind" other jobs, or because all consumers are busy.
        jobs: those that it waits for, that hold the limit, or that keep all consumers busy; at most 10.
        others: how many more of them there are.
        limit: the limit that is closed.
        until: when that changes by itself, in seconds since 1970, or None.
        since: when it began to run or ended, in seconds since 1970, or None.
        attempt: the number of the attempt that runs or has ended last, or None.
        error: why that attempt did not succeed, or why consumers do not start; or None.
        ahead: about how many jobs of its queue, or of the consumer that has it, go first.
        consumer: the number of the consumer that has it, or None.
        consumers: how many consumers are ready and serve its queue.
        busy: how many of those have no free slot.
        machine: the name of the machine of that consumer; None if the queue is in a directory, or it is not known.
    """

    kind: Kind
    jobs: list[OtherJob] = field(default_factory=list)
    others: int = 0
    limit: LimitState | None = None
    until: float | None = None
    since: float | None = None
    attempt: int | None = None
    error: str | None = None
    ahead: int = 0
    consumer: int | None = None
    consumers: int = 0
    busy: int = 0
    machine: str | None = None


@dataclass(frozen=True, slots=True)
class WhyInfo:
    """Why a job does not run.

    Attributes:
        id: the id of the job.
        task: the name of its task; empty while a job that waits in the spool has not been taken in.
        queue: the name of its queue; empty as `task`.
        state: where it is in its life.
        reasons: what is in its way, or what has become of it. It runs when nothing of that is left.
    """

    id: str
    task: str
    queue: str
    state: JobState
    reasons: list[Reason] = field(default_factory=list)


class Obstacle(NamedTuple):
    """A reason as the fleet half finds it, for the engine to complete.

    Attributes:
        reason: what it knows.
        seq: the sequence number of the job in the way, if no consumer has that.
    """

    reason: Reason
    seq: int | None = None
