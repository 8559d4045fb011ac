"""The judge of limits and of unique jobs: more invariants of a history, asked by history.py with its own.

What is promised: no more of a key run at once than allowed, and no more than the fleet's capacities are taken, whoever
is killed; the jobs of an ordered key run one after the other, each to its end; nothing waits for ever at a limit; of
unique jobs one is there at a time, and whoever is left out is told which.

A rate counts what is sent to consumers, and a job that was sent to one with a free slot starts at once: so in any span
there are no more starts than allowed, but for two kinds. A process that was stopped starts late what it had. And what
was sent in the last moment before the broker was killed may not be recorded yet: of those the new one knows nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from taskq.model.constraints import UniqueKey
from taskq.model.job import enqueued_at

if TYPE_CHECKING:
    from history import End, History, Start

#: Of what was sent so long before the death of the broker, the rates may not be recorded yet: see `taskq.engines.embedded.committer`.
_RECORDED_WITHIN_S = 1.1
#: A message takes at most this long: a start may come this much later than the job was sent.
_ON_ITS_WAY_S = 0.2


class Limited(NamedTuple):
    """The limits that a job was enqueued with."""

    concurrency: tuple[str, int] | None = None  # for which key, and how many
    rate: tuple[str, int, float] | None = None  # for which key, how many, in how many seconds
    resources: tuple[tuple[str, int], ...] = ()


class Place(NamedTuple):
    """The place of a job in the order of its key."""

    key: str
    asked_at: float  # when it was first handed in
    number: int  # in its frame


class LeftOut(NamedTuple):
    """A client was told that there is one of the kind of its job already."""

    job: str
    earlier: str
    asked_at: float
    at: float


def _until(h: History, start: Start, end: End | None) -> float:
    """When an attempt was over: by itself, or with its process."""
    return end.at if end is not None else h.deaths.get(start.process, inf)


def _most_at_once(spans: Iterable[tuple[float, float, int]]) -> int:
    """The largest sum of amounts that count at the same time; each counts from one moment to another."""
    changes = [change for since, until, amount in spans for change in ((since, amount), (until, -amount))]
    most = used = 0
    for _, change in sorted(changes):  # what ends in a moment makes room for what begins in it
        used += change
        most = max(most, used)
    return most


def _spans(h: History) -> Iterator[tuple[str, float, float]]:
    """Each attempt: its job, from when to when."""
    for job, attempts in h.attempts_of().items():
        for start, end in attempts:
            yield job, start.at, _until(h, start, end)


def never_more_at_once_than_allowed(h: History) -> Iterator[str]:
    """I31: of a key with `concurrency=`, no more run at once."""
    spans: dict[tuple[str, int], list[tuple[float, float, int]]] = defaultdict(list)
    for job, since, until in _spans(h) if h.limited else ():
        limited = h.limited.get(job)
        if limited is not None and limited.concurrency is not None:
            spans[limited.concurrency].append((since, until, 1))
    for (key, allowed), own in spans.items():
        most = _most_at_once(own)
        if most > allowed:
            yield f"{most} jobs of {key} ran at once, allowed are {allowed}"


def never_more_than_there_is(h: History) -> Iterator[str]:
    """I32: the jobs that run at once take no more of a resource than the fleet has."""
    spans: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for job, since, until in _spans(h) if h.limited else ():
        for name, amount in h.limited[job].resources if job in h.limited else ():
            spans[name].append((since, until, amount))
    for name, own in spans.items():
        most = _most_at_once(own)
        if most > h.capacities[name]:
            yield f"{most} of {name} were in use at once, there are {h.capacities[name]}"


def no_more_starts_than_the_rate(h: History) -> Iterator[str]:
    """I33: in any span of a rate, no more starts than it allows."""
    times: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    stopped = {process for process, _, _ in h.stops}
    for job, attempts in h.attempts_of().items() if h.limited else ():
        rate = h.limited[job].rate if job in h.limited else None
        if rate is not None:
            times[rate] += [
                start.at for start, end in attempts if start.process not in stopped and _is_recorded(h, start, end)
            ]
    for (key, allowed, period_s), own in times.items():
        own.sort()
        for first, last in zip(own, own[allowed:], strict=False):
            if last - first < period_s - _ON_ITS_WAY_S:
                yield f"{allowed + 1} jobs of {key} started within {last - first:.3f} s, allowed are {allowed}"


def _is_recorded(h: History, start: Start, end: End | None) -> bool:
    """Whether a start is known also to the broker that follows: sooner or later, and with its end."""
    by = min(start.at + _RECORDED_WITHIN_S, inf if end is None else h.is_told_by(end))
    return not any(start.at <= at <= by for at in h.broker_deaths)


def keys_run_in_order(h: History) -> Iterator[str]:
    """I34: of an ordered key, one job after the other, as they were handed in; the next when the one before has ended
    for good, in whatever way. What was retried by hand has a new place."""
    known = h.known if h.places else {}
    starts: dict[str, list[Start]] = defaultdict(list)
    for start in sorted(h.starts, key=lambda start: start.at) if h.places else ():
        if start.job in h.places and start.job in known and not known[start.job].requeued:
            starts[h.places[start.job].key].append(start)
    for key, own in starts.items():
        jobs = list(dict.fromkeys(start.job for start in own))
        turns = [start.job for before, start in zip([None, *own], own, strict=False) if not _is_again(before, start)]
        if turns != jobs:
            yield f"jobs of {key} did not wait for the end of the one before: {turns}"
        for first, second in combinations(jobs, 2):
            if _is_before(h, second, first):
                yield f"job {first} of {key} started before {second}, which was there before"


def _is_again(before: Start | None, start: Start) -> bool:
    return before is not None and before.job == start.job


def _is_before(h: History, job: str, other: str) -> bool:
    """Whether a job was taken in before another was handed in."""
    place, other_place = h.places[job], h.places[other]
    if place.asked_at == other_place.asked_at:
        return place.number < other_place.number
    return h.acked.get(job, inf) < other_place.asked_at


def limited_jobs_end(h: History) -> Iterator[str]:
    """I35: nothing waits for ever at a limit: who has taken of it gives it back, however he ends."""
    for job in (*h.limited, *(job for job in h.places if job not in h.limited)):
        if job in h.final and not h.final[job].is_final:
            yield f"job {job} with limits never ended: {h.final[job].state}"


def one_of_a_kind(h: History) -> Iterator[str]:
    """I36: of unique jobs with the same key one is there at a time; with a period, one in that."""
    known = h.known if h.unique else {}
    lives: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    attempts = h.attempts_of() if h.unique else {}
    for job, unique in h.unique.items():
        if job in known and job in attempts and not known[job].requeued:  # a retry by hand asks nobody
            began = attempts[job][0][0].at
            ends = [_until(h, start, end) for start, end in attempts[job]]
            since = min(h.acked.get(job, inf), began)
            lives[unique.key].append((since, began if unique.until_start else max(ends), job))
    for key, own in lives.items():
        for (_, until, job), (since, _, other) in combinations(sorted(own), 2):
            period_s = h.unique[job].period_s
            if since < until:
                yield f"jobs {job} and {other} were there at the same time, both with the unique key {key}"
            elif period_s is not None and job in h.final and since < _handed_in_at(h, job) + period_s:
                yield f"jobs {job} and {other} came within {period_s} s, both with the unique key {key}"


def _handed_in_at(h: History, job: str) -> float:
    return enqueued_at(bytes.fromhex(job)) - h.wall_offset_s


def who_is_left_out_knows_the_other(h: History) -> Iterator[str]:
    """I37: whoever is told that there is one of its kind is told one that is there, of the same key, and not over;
    and its own is not there."""
    known = h.known if h.left_out else {}
    started = {start.job for start in h.starts} if h.left_out else set()
    ended_at: dict[str, float] = {}
    for read in h.reads if h.left_out else ():
        ended_at[read.job] = min(read.at, ended_at.get(read.job, inf))
    for job, earlier, asked_at, _ in h.left_out:
        if job in known or job in started:
            yield f"job {job} is there, and was left out for {earlier}"
        if earlier not in known:
            yield f"job {job} was left out for {earlier}, which is not there"
        elif h.unique[job].key != h.unique[earlier].key:
            yield f"job {job} was left out for {earlier}, which has another unique key"
        elif h.unique[job].period_s is None and not known[earlier].requeued and ended_at.get(earlier, inf) < asked_at:
            yield f"job {job} was left out for {earlier}, which had ended"


def who_gives_way_has_a_successor(h: History) -> Iterator[str]:
    """I38: a job that was cancelled, which nobody asked for, since another of its kind took its place: that one, or the
    one that took the place of that, runs. Otherwise neither would."""
    began: dict[str, float] = {}
    for start in h.starts if h.unique else ():
        began[start.job] = min(start.at, began.get(start.job, inf))
    asked = h.cancels | h.purges
    for job, unique in h.unique.items():
        final = h.final.get(job)
        if not unique.replaces or final is None or job in asked or (final.state, final.attempts) != ("cancelled", 0):
            continue
        same = [other for other, own in h.unique.items() if own.key == unique.key and other != job]
        if not any(other in asked or began.get(other, -inf) > _handed_in_at(h, job) for other in same):
            yield f"job {job} gave way to another of its kind, and none of these ran"


def keys_that_went_are_forgotten(h: History) -> Iterator[str]:
    """I39: of a key of which no job is there, the broker knows nothing: there may be any number of them."""
    for key in h.kept_keys:
        yield f"key {key} is remembered, though all its jobs have ended"


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (
    never_more_at_once_than_allowed,
    never_more_than_there_is,
    no_more_starts_than_the_rate,
    keys_run_in_order,
    limited_jobs_end,
    one_of_a_kind,
    who_is_left_out_knows_the_other,
    who_gives_way_has_a_successor,
    keys_that_went_are_forgotten,
)

__all__ = ["INVARIANTS", "LeftOut", "Limited", "Place", "UniqueKey"]
