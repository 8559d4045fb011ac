"""What the judge asks of jobs that are cancelled while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from history import History

#: What a job may take to end that is being stopped: the soft signal, the grace, the kill.
STOPPED_WITHIN_S = 1.0
#: What an answer may take to its client.
TOLD_WITHIN_S = 0.1


class Unwanted(NamedTuple):
    """A client heard that its job runs, and is being stopped."""

    job: str
    at: float


def the_unwanted_end_soon(h: History) -> Iterator[str]:
    """I50: a job that is being stopped ends soon, and does not start again, unless the broker dies in between, which
    alone knows of that, or somebody retries it by hand. One that waited in a process that was stopped itself could not be
    taken back from it."""
    attempts, known = h.attempts_of(), h.known
    for job, at in h.unwanted:
        since = max((start.at for start, _ in attempts.get(job, ()) if start.at <= at), default=at)
        broken_at = min(
            (death for death in (*h.broker_deaths, *(rest for rest, _ in h.broker_rests)) if death >= since),
            default=inf,
        )
        for start, last in attempts.get(job, ()):
            until = last.at if last is not None else h.deaths.get(start.process, inf)
            if start.at > at:
                stops = [(begin, end) for name, begin, end in h.stops if name == start.process]
                was_stuck = any(begin <= at <= end + TOLD_WITHIN_S for begin, end in stops)
                if start.at < broken_at and job in known and not known[job].requeued and not was_stuck:
                    yield f"job {job} was being stopped, and started again in {start.process}"
            elif until > at + STOPPED_WITHIN_S and broken_at > at + STOPPED_WITHIN_S:
                yield f"job {job} was being stopped, and ran on for {until - at:.1f} s"


def nothing_cancelled_runs_on(h: History) -> Iterator[str]:
    """I51: when a client hears that its job is cancelled, nothing of it runs any more."""
    attempts = h.attempts_of()
    for job, at in h.cancelled.items():
        for start, end in attempts.get(job, ()):
            until = end.at if end is not None else h.deaths.get(start.process, inf)
            if start.at <= at < until:
                yield f"job {job} ran on in {start.process} when it was told as cancelled"


def what_is_said_takes_effect_in_order(h: History) -> Iterator[str]:
    """I52: a cancel finds the job that its client has handed in just before, over the same connection."""
    for job in h.out_of_turn:
        if job in h.acked:
            yield f"nobody knew job {job} when it was cancelled, though it had been handed in before"


def nothing_refused_is_there(h: History) -> Iterator[str]:
    """I53: of what was refused, for want of room or otherwise, nothing is there, and nothing ran."""
    started = {start.job for start in h.starts}
    for job in sorted(h.refused):
        if job in h.known or job in started:
            yield f"job {job} was refused and is there"


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (
    the_unwanted_end_soon,
    nothing_cancelled_runs_on,
    what_is_said_takes_effect_in_order,
    nothing_refused_is_there,
)
