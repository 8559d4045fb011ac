"""The judge of what several machines share: limits, order, rates, schedules, counts, and what jobs leave behind. More
invariants, asked by history_machines.py with its own.

A machine that is cut off kills what promises to be alone before another may begin it, so these invariants hold also for
silent machines. Only a machine whose broker stood still meanwhile could not do that: see `_stood_still`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any

from history_limits import _is_before, _most_at_once

from taskq.model.info.counts import Counts
from taskq.protocol.postgres.submitting import TALLIED

if TYPE_CHECKING:
    from history import End, Start
    from history_machines import MachinesHistory

#: A broker kills what must be alone when this part of the lease has passed without an answer.
_BEFORE_LEASE_ENDS = 5 / 6
#: What was sent to a process that stood still starts so soon after that.
_GOES_ON_WITHIN_S = 1.0
#: A machine that had an answer to a beat so long after a pause knows of it so long after that answer.
_KNOWS_WITHIN_S = 1.0
#: What is counted of jobs.
_COUNTED = ("enqueued", "succeeded", "failed", "cancelled", "expired")


def counted_in(ask: Callable[[str], list[tuple[Any, ...]]]) -> dict[str, int]:
    """What all machines have counted, and what they are still to add to that, as `taskq status` reads it.

    Args:
        ask: asks the database of the queue for rows; `taskq.` stands for its schema.
    """
    counts = Counts()
    for (packed,) in ask("SELECT packed FROM taskq.counts"):
        counts.merge(Counts.unpack(bytes(packed)))
    found = {name: getattr(counts, name) for name in _COUNTED}
    for what, jobs in ask("SELECT what, sum(jobs)::bigint FROM taskq.tallies GROUP BY what"):
        found[TALLIED[what]] += jobs
    return found


def machine_of(process: str) -> str:
    return process.partition(".")[0]


def _stood_still(h: MachinesHistory, start: Start, over_at: float) -> bool:
    """Whether the broker of an attempt's machine was stopped meanwhile, for too long to keep others from it."""
    machine = machine_of(start.process)
    return any(
        name == machine
        and since < over_at
        and until + _GOES_ON_WITHIN_S > start.at
        and until - h.last_beat(machine, since) >= h.lease_s * _BEFORE_LEASE_ENDS
        for name, since, until in h.freezes
    )


def _exclusive(h: MachinesHistory) -> Iterator[tuple[str, Start, float]]:
    """The attempts that have to keep to limits: the job, the start, and when it was over."""
    for job, attempts in h.attempts_of().items():
        for start, end in attempts:
            over_at = h.over_at(start, end)
            if not _stood_still(h, start, over_at):
                yield job, start, over_at


def never_more_at_once_over_machines(h: MachinesHistory) -> Iterator[str]:
    """I74: of a key with `concurrency=`, no more run at once on all machines together; of a resource, on each."""
    spans: dict[tuple[str, int], list[tuple[float, float, int]]] = defaultdict(list)
    for job, start, over_at in _exclusive(h) if h.limited else ():
        limited = h.limited.get(job)
        if limited is None:
            continue
        if limited.concurrency is not None:
            spans[limited.concurrency].append((start.at, over_at, 1))
        for name, amount in limited.resources:
            subject = f"{name} of {machine_of(start.process)}", h.capacities[name]
            spans[subject].append((start.at, over_at, amount))
    for (key, allowed), own in spans.items():
        most = _most_at_once(own)
        if most > allowed:
            yield f"{most} jobs of {key} ran at once on all machines, allowed are {allowed}"


def keys_run_in_order_over_machines(h: MachinesHistory) -> Iterator[str]:
    """I75: of an ordered key one job runs at a time on all machines, and none before those ahead of it have ended for
    good."""
    attempts = h.attempts_of() if h.places else {}
    keys: dict[str, list[str]] = defaultdict(list)
    for job, place in h.places.items():
        if job in attempts and job not in h.retried:
            keys[place.key].append(job)
    alone = {(start.job, start.attempt, start.process, start.at) for _, start, _ in _exclusive(h)} if keys else set()
    for key, jobs in keys.items():
        own = sorted((start.at, h.over_at(start, end), start) for job in jobs for start, end in attempts[job])
        own = [each for each in own if (each[2].job, each[2].attempt, each[2].process, each[2].at) in alone]
        for (_, over_at, start), (at, _, other) in pairwise(own):
            if at < over_at:
                yield f"jobs {start.job} and {other.job} of {key} ran at once: {start.process} and {other.process}"
        for at, _, start in own:
            for ahead in (other for other, place in h.places.items() if place.key == key and other != start.job):
                if _is_before(h, ahead, start.job) and not _is_over(h, attempts.get(ahead, []), ahead, at):
                    yield f"job {start.job} of {key} started in {start.process} before {ahead}, which was there before, had ended"


def _is_over(h: MachinesHistory, attempts: list[tuple[Start, End | None]], job: str, at: float) -> bool:
    """Whether a job had ended for good at a moment, as far as its machines could know."""
    final = h.final.get(job)
    if final is None or job in h.retried or job in h.cancels:
        return True
    if any(end is not None and end.succeeded and end.at <= at for _, end in attempts):
        return True
    before = [(start, end) for start, end in attempts if start.at < at]
    after = [start for start, _ in attempts if start.at >= at]
    if not after:
        return final.is_final and final.state != "succeeded" and all(h.over_at(*each) <= at for each in before)
    if not before:
        return False
    start, end = before[-1]  # its last end was lost with its machine?
    return end is not None and (
        h.lost_its_broker(start.process, start.at, after[0].at) or h.was_silent(start.process, start.at, after[0].at)
    )


def no_more_starts_than_the_rate_over_machines(h: MachinesHistory) -> Iterator[str]:
    """I76: in any span of a rate there are no more starts than it allows on all machines together, by the clock of the
    database."""
    times: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    for job, start, _ in _exclusive(h) if h.limited else ():
        limited = h.limited.get(job)
        if limited is not None and limited.rate is not None and not _was_stopped(h, start):
            times[limited.rate].append(start.at)
    for (key, allowed, period_s), own in times.items():
        own.sort()
        for first, last in zip(own, own[allowed:], strict=False):
            if last - first < period_s - h.late_s:
                yield f"{allowed + 1} jobs of {key} started within {last - first:.3f} s, allowed are {allowed}"


def _was_stopped(h: MachinesHistory, start: Start) -> bool:
    return any(
        process == start.process and since <= start.at <= until + _GOES_ON_WITHIN_S for process, since, until in h.stops
    )


def counted_is_what_happened(h: MachinesHistory) -> Iterator[str]:
    """I77: the counts of all machines together are what has happened, whatever died or was lost. A failed job that was
    retried by hand was enqueued once, and has failed all the same."""
    if not h.counted:
        return
    states = Counter(final.state for final in h.final.values())
    asked, done = sum(h.asked_retries.values()), sum(h.requeued.values())
    bounds = {
        "enqueued": (len(h.final), len(h.final)),
        "succeeded": (states["succeeded"], states["succeeded"]),
        "failed": (states["failed"] + done, states["failed"] + asked),
        "cancelled": (states["cancelled"], states["cancelled"] + (len(h.after) if asked else 0)),
        "expired": (states["expired"], states["expired"]),
    }
    for name, (least, most) in bounds.items():
        counted = h.counted.get(name, 0)
        if not least <= counted <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            yield f"{counted} jobs were counted as {name}, {wanted} are or were"


def children_come_with_success_over_machines(h: MachinesHistory) -> Iterator[str]:
    """I78: what an attempt enqueued for its success is there, and ends, if that attempt decided the end of its job; else
    it never is."""
    for children in h.children:
        there = [job for job in children.ids if job in h.final]
        told = f"attempt {children.attempt} of job {children.job} in {children.process}"
        if h.winners.get(children.job) == (children.process, children.attempt):
            if len(there) < len(children.ids) or not all(h.final[job].is_final for job in there):
                yield f"children are lost or did not end, of {told}, which succeeded"
        elif there:
            yield f"there are children of {told}, which did not succeed: {there}"


def items_are_what_was_yielded(h: MachinesHistory) -> Iterator[str]:
    """I79: whoever reads the items of a job gets what it has yielded, each once and in order."""
    for job, items in h.items.items():
        if items != h.wanted_items[job][: len(items)] or (len(items) < len(h.wanted_items[job]) and job in h.winners):
            yield f"job {job} has the items {items}, it has yielded {h.wanted_items[job]}"


def each_due_time_has_a_job(h: MachinesHistory) -> Iterator[str]:
    """I80: a schedule that is to make up for what it missed has one job for each due time, whatever dies."""
    for name, times in h.fired.items():
        every_s = h.every_s[name]
        missing = {round((b - a) / every_s) - 1 for a, b in pairwise(sorted(times))} - {0}
        if missing:
            yield f"schedule {name} did not fire for some times: gaps of {sorted(missing)} in {len(times)}"


def paused_queues_rest_over_machines(h: MachinesHistory) -> Iterator[str]:
    """I81: nothing of a paused queue starts on a machine that has had time to hear of the pause."""
    starts: dict[str, list[Start]] = defaultdict(list)
    for start in h.starts if h.pauses else ():
        if start.job in h.queues:
            starts[h.queues[start.job]].append(start)
    for queue, since in h.pauses:
        until = min((at for at in h.resumes if at >= since), default=inf)
        for start in starts[queue]:
            knows_at = next((beat for beat in h.beats[machine_of(start.process)] if beat > since), inf)
            if knows_at + _KNOWS_WITHIN_S + h.late_s < start.at < until and not _stood_still(h, start, start.at):
                yield f"job {start.job} started in {start.process} {start.at - since:.1f} s after the pause of {queue}"


def what_was_kept_is_found_over_machines(h: MachinesHistory) -> Iterator[str]:
    """I82: an attempt finds the checkpoint that was written last before it, unless that was lost with its machine."""
    for job, process, at, data in h.found:
        before = sorted((kept for kept in h.kept if kept.job == job and kept.at < at), key=lambda kept: kept.at)
        lost = [
            kept
            for kept in before
            if h.lost_its_broker(kept.process, kept.at - _GOES_ON_WITHIN_S, at)
            or h.was_silent(kept.process, kept.at, at)
        ]
        sure = [kept for kept in before if kept not in lost]
        choices = {sure[-1].data if sure else "", *(kept.data for kept in lost)}
        if data not in choices:
            yield f"job {job} found {data!r} in {process}, and not what was kept: {sorted(choices)}"


def jobs_end_as_they_are_meant(h: MachinesHistory) -> Iterator[str]:
    """I83: a job that is to succeed succeeds, unless it was cancelled."""
    for job, states in h.may_end.items():
        final = h.final.get(job)
        if final is not None and final.state not in states and not (final.state == "cancelled" and job in h.cancels):
            yield f"job {job} is {final.state}, and was to be one of {sorted(states)}"


INVARIANTS: tuple[Callable[[MachinesHistory], Iterator[str]], ...] = (
    never_more_at_once_over_machines,
    keys_run_in_order_over_machines,
    no_more_starts_than_the_rate_over_machines,
    counted_is_what_happened,
    children_come_with_success_over_machines,
    items_are_what_was_yielded,
    each_due_time_has_a_job,
    paused_queues_rest_over_machines,
    what_was_kept_is_found_over_machines,
    jobs_end_as_they_are_meant,
)
