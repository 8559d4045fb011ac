"""The judge of workflows and children: more invariants of a history, asked by history.py with its own.

What is promised: a step starts when those before it have ended, as its policies want it; it is never left out for no
reason, and nothing waits for ever; what is handed in as one piece stays one; what a job enqueues for its success comes
with that, and with no other end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from history import End, Final, History, Start


class Children(NamedTuple):
    """What an attempt has enqueued for the case that it succeeds."""

    job: str
    attempt: int
    process: str
    outcome: str  # with which it would succeed
    ids: tuple[str, ...]


def a_step_waits_its_turn(h: History) -> Iterator[str]:
    """I23: a job starts when all that it comes after have ended, and have succeeded unless it goes on without."""
    attempts, known = h.attempts_of(), h.known
    for job, before in h.after.items():
        began_at = attempts[job][0][0].at if job in attempts else inf
        for parent, goes_on in before.items() if began_at < inf else ():
            succeeded = any(end is not None and end.succeeded and end.at <= began_at for _, end in attempts[parent])
            if not goes_on and not (succeeded and known[parent].state == "succeeded"):
                yield f"job {job} started, and {parent}, which it comes after, had not succeeded"
            if not succeeded and not _had_ended(h, known.get(parent), attempts[parent], began_at):
                yield f"job {job} started, and {parent}, which it comes after, had not ended"


def _had_ended(h: History, final: Final | None, attempts: list[tuple[Start, End | None]], by: float) -> bool:
    """Whether a job may have ended by then, and not with success."""
    if final is None or not final.is_final:
        return True  # it was purged
    over = [(end.at if end is not None else h.deaths.get(start.process, inf)) <= by for start, end in attempts]
    if final.requeued or final.called_back:
        return any(over) or final.called_back > 0
    return all(over) and (bool(over) or final.state in ("cancelled", "expired"))


def a_step_has_its_turn(h: History) -> Iterator[str]:
    """I24: a job is called off only because of one that did not succeed, without which it does not go on; at the end
    none waits for others that have ended."""
    for job, before in h.after.items():
        final = h.final.get(job)
        if final is None:
            continue
        needed = [parent for parent, goes_on in before.items() if not goes_on]
        # one that is not there may have been purged before all heard of its success
        stopped = [parent for parent in needed if parent not in h.final or h.final[parent].state != "succeeded"]
        if final.called_off and not stopped and job not in h.cancels:
            yield f"job {job} was called off, and all that it comes after has succeeded, or need not"
        if final.state == "cancelled" and not final.called_off and not final.attempts and job not in h.cancels:
            yield f"job {job} was cancelled before it started, which nobody asked for"
        if final.state == "waiting" and all(p not in h.final or h.final[p].is_final for p in before):
            yield f"job {job} waits, and all that it comes after have ended"


def called_back_with_a_retry(h: History) -> Iterator[str]:
    """I25: what was called off comes back once for each retry of a job before it, and not without."""
    known = h.known
    for job, final in known.items():
        if final.called_back:
            retries = sum(known[other].requeued for other in _all_before(h, job) if other in known)
            if final.called_back > retries:
                yield f"job {job} was called back {final.called_back} times, those before it were retried {retries} times"


def _all_before(h: History, job: str) -> set[str]:
    """The jobs without whose success a job does not run."""
    found: set[str] = set()
    more = [job]
    while more:
        more = [parent for child in more for parent, goes_on in h.after.get(child, {}).items() if not goes_on]
        more = [parent for parent in dict.fromkeys(more) if parent not in found]
        found.update(more)
    return found


def what_is_one_piece_stays_one(h: History) -> Iterator[str]:
    """I26: jobs that were handed in together are there together, or not at all: not when they were refused."""
    known = h.known
    for flow in h.flows:
        there = sum(job in known for job in flow)
        if there not in (0, len(flow)):
            yield f"of {len(flow)} jobs that were handed in together {there} are there: {flow}"
    for job in sorted(h.refused & known.keys()):
        yield f"job {job} was refused and is there"


def children_come_with_success(h: History) -> Iterator[str]:
    """I27: what an attempt enqueued for its success is there, and ends, if it succeeded; else it never is."""
    known = h.known
    for children in h.children:
        parent = known.get(children.job)
        told = f"{children.process}, attempt {children.attempt} of job {children.job}"
        if parent is not None and (parent.state, parent.outcome) == ("succeeded", children.outcome):
            lost = [job for job in children.ids if job not in known or not known[job].is_final]
            if lost:
                yield f"{len(lost)} children are lost or did not end, of {told}, which succeeded: {lost}"
        elif any(job in known for job in children.ids):
            yield f"there are children of {told}, which did not succeed: {children.ids}"


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (
    a_step_waits_its_turn,
    a_step_has_its_turn,
    called_back_with_a_retry,
    what_is_one_piece_stays_one,
    children_come_with_success,
)
