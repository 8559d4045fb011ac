"""The judge of several machines that share a database: which of the invariants in history.py hold over machines, and more.

What is different from one machine: one of which nothing was heard for the lease is taken for dead, and others run its
jobs. What it has begun may then run twice; what it says of them is not believed. A machine is *silent* at a moment if it
has had no answer to a beat in the lease before that: everything else must be as on one machine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import NamedTuple

import history
import history_cancels
import history_flows
import history_shared
from history import NO_LIMITS, End, History, Start
from history_shared import machine_of

#: What is told, and what comes back, may take this long in a world without losses: see `simulated_database.SimLink`.
_ON_ITS_WAY_S = 1.5
#: A process may go on for so long when its broker is dead.
_OUTLIVES_S = 0.5


class Wait(NamedTuple):
    """A client waited for the end of a job."""

    job: str
    since: float
    until: float


@dataclass
class MachinesHistory(History):
    """All that was noted about several machines. A process is called MACHINE.CONSUMER."""

    lease_s: float = 0.0
    is_calm: bool = False  # nothing was lost: whatever is told arrives
    is_orderly: bool = False  # one consumer, and all jobs were there before it
    beats: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by machine: confirmed ones
    ended_brokers: list[tuple[str, float]] = field(default_factory=list)  # machines, and when their brokers died
    freezes: list[tuple[str, float, float]] = field(default_factory=list)  # machines whose broker was stopped, from, to
    told: list[tuple[str, str, int, float]] = field(default_factory=list)  # in logs as succeeded: machine, job, attempt
    not_before: dict[str, float] = field(default_factory=dict)
    not_after: dict[str, float] = field(default_factory=dict)
    priorities: dict[str, int] = field(default_factory=dict)
    finished_at: dict[str, float] = field(default_factory=dict)  # by the database's clock
    waits: list[Wait] = field(default_factory=list)
    orders: dict[str, str] = field(default_factory=dict)  # job: the row that was written with it
    kept_orders: set[str] = field(default_factory=set)
    keys: dict[str, str] = field(default_factory=dict)  # unique jobs that were taken: their keys
    winners: dict[str, tuple[str, int]] = field(default_factory=dict)  # job: process and attempt that decided its end
    stopped: list[tuple[str, float]] = field(
        default_factory=list
    )  # jobs to be cancelled though they run, and since when
    unfinished: list[str] = field(default_factory=list)  # what clients asked, and never had answered
    late_s: float = 0.001  # a job starts at most so much later than it was sent
    begins_within_s: float = 0.0  # and on a machine that is starved, so much later than its process took it
    on_its_way_s: float = _ON_ITS_WAY_S
    asked_retries: Counter[str] = field(default_factory=Counter)  # how often each job was to be retried by hand
    counted: dict[str, int] = field(default_factory=dict)  # by all machines together
    items: dict[str, list[str]] = field(default_factory=dict)  # what a client has read
    wanted_items: dict[str, list[str]] = field(default_factory=dict)
    fired: dict[str, set[float]] = field(default_factory=dict)  # by schedule: its times for which there are jobs
    every_s: dict[str, float] = field(default_factory=dict)  # the intervals of these schedules
    may_end: dict[str, frozenset[str]] = field(default_factory=dict)  # the states in which a job may end
    _known_silences: dict[str, tuple[int, list[tuple[float, float]]]] = field(default_factory=dict)

    def last_beat(self, machine: str, at: float) -> float:
        """The last confirmed beat of a machine at a moment."""
        beats = self.beats[machine]
        place = bisect_right(beats, at)
        return beats[place - 1] if place else -inf

    def is_silent(self, process: str, at: float) -> bool:
        """Whether the machine of a process may have been taken for dead when something was done that it did then."""
        is_silent = at - self.last_beat(machine_of(process), at) >= self.lease_s
        return is_silent or self.was_silent(process, at - self.begins_within_s, at)

    def was_silent(self, process: str, since: float, until: float) -> bool:
        """Whether it may have been so at some moment."""
        return any(
            after > since and min(after, until) - before >= self.lease_s
            for before, after in self._silences(machine_of(process))
        )

    def _silences(self, machine: str) -> list[tuple[float, float]]:
        """The beats of a machine with at least the lease between them."""
        beats = self.beats[machine]
        known = self._known_silences.get(machine)
        if known is None or known[0] != len(beats):
            pairs = pairwise([-inf, *beats, inf])
            known = len(beats), [(before, after) for before, after in pairs if after - before >= self.lease_s]
            self._known_silences[machine] = known
        return known[1]

    def lost_its_broker(self, process: str, since: float, until: float) -> bool:
        machine = machine_of(process)
        return any(each == machine and since <= at <= until for each, at in self.ended_brokers)

    def over_at(self, start: Start, end: End | None) -> float:
        """When an attempt was over: by itself, or with its process."""
        return end.at if end is not None else self.deaths.get(start.process, inf)


def exclusive_over_machines(h: MachinesHistory) -> Iterator[str]:
    """I61: a job runs once at a time, unless the machine of one of the two was silent for the lease."""
    for job, attempts in h.attempts_of().items():
        for position, (start, end) in enumerate(attempts):
            for again, _ in attempts[position + 1 :]:
                excused = h.was_silent(start.process, start.at, again.at) or h.is_silent(again.process, again.at)
                if again.at < h.over_at(start, end) and not excused:
                    yield f"job {job} ran in {start.process} and in {again.process} at the same time"


def fenced_machines_are_not_believed(h: MachinesHistory) -> Iterator[str]:
    """I62: the end of a job is decided by the last attempt that was begun on a machine that others could hear."""
    attempts = h.attempts_of()
    for job, (process, number) in h.winners.items():
        own = [start for start, _ in attempts[job] if (start.process, start.attempt) == (process, number)]
        if not own:
            yield f"job {job} ended by attempt {number} in {process}, which never began"
            continue
        heard = [
            start
            for start, _ in attempts[job]
            if machine_of(start.process) != machine_of(process) and not h.is_silent(start.process, start.at)
        ]
        was_silent = h.is_silent(process, own[-1].at)
        since = h.last_beat(machine_of(process), own[-1].at)
        for other in heard:
            if other.at > own[-1].at or (was_silent and since < other.at and other.attempt >= number):
                yield f"job {job} ended by what {process} said of it, which {other.process} had taken over"


def runs_again_only_for_a_reason(h: MachinesHistory) -> Iterator[str]:
    """I63: after a success only if its broker died, or its machine was silent, before that was stored. A process may note
    a success just after the death of its broker, with which it dies."""
    for job, attempts in h.attempts_of().items():
        for (start, end), (again, _) in pairwise(attempts):
            if end is None or not end.succeeded:
                continue
            if h.lost_its_broker(start.process, start.at - _OUTLIVES_S, again.at) or h.was_silent(
                start.process, start.at, again.at
            ):
                continue
            if not h.is_silent(again.process, again.at):
                yield f"job {job} had succeeded in {start.process} and ran again in {again.process}"


def told_is_true(h: MachinesHistory) -> Iterator[str]:
    """I64: a machine logs a success once, and only one that is stored."""
    seen: set[str] = set()
    for machine, job, attempt, _ in h.told:
        if job in seen and job not in h.retried:
            yield f"{machine} logged the success of job {job}, which was logged before"
        seen.add(job)
        winner = h.winners.get(job)
        if (
            h.final[job].state != "succeeded"
            or winner is None
            or (machine_of(winner[0]), winner[1]) != (machine, attempt)
        ):
            yield f"{machine} logged the success of job {job} in attempt {attempt}, and it is {h.final[job]}"


def deaths_are_charged(h: MachinesHistory) -> Iterator[str]:
    """I65: each death under a job costs it an attempt, but on a machine that was silent then, or whose broker died soon
    after: its charge may be lost."""
    for job, attempts in h.attempts_of().items():
        if job in h.cancels or job not in h.final or h.final[job].state == "cancelled":
            continue
        if h.limits.get(job, NO_LIMITS).is_watched:
            continue
        died = [
            start
            for start, end in attempts
            if end is None and start.process in h.deaths and start.process not in h.blameless
        ]
        exact = not any(h.was_silent(start.process, start.at, h.ended_at) for start, _ in attempts)
        uncertain = sum(h.was_silent(start.process, start.at, h.ended_at) for start, _ in attempts)
        crashes = h.final[job].crashes
        unsaid = sum(_died_before_its_broker(h, start.process) for start in died)
        if crashes > len(died) + uncertain or (exact and crashes < len(died) - unsaid):
            yield f"job {job} was charged {crashes} crashes, its process died {len(died)} times"


def _died_before_its_broker(h: MachinesHistory, process: str) -> bool:
    """Whether its broker, which alone had seen a process die, died so soon after it that it may have told nobody."""
    return h.lost_its_broker(process, h.deaths[process] + 1e-6, h.deaths[process] + h.on_its_way_s)


def times_are_those_of_the_database(h: MachinesHistory) -> Iterator[str]:
    """I66: no job starts before its time, or when it has expired."""
    for start in h.starts:
        if start.at < h.not_before.get(start.job, -inf) - 0.001:
            yield f"job {start.job} started {h.not_before[start.job] - start.at:.3f} s too early in {start.process}"
        too_late = start.at > h.not_after.get(start.job, inf) + h.on_its_way_s
        machine = machine_of(start.process)  # while its broker is stopped, nobody takes back what a consumer has
        is_frozen = any(name == machine and since <= start.at <= until for name, since, until in h.freezes)
        if too_late and start.attempt == 1 and not h.is_silent(start.process, start.at) and not is_frozen:
            yield f"job {start.job} started {start.at - h.not_after[start.job]:.3f} s after it had expired"


def nothing_expires_too_early(h: MachinesHistory) -> Iterator[str]:
    """I67: by the clock of the database, and not by that of a machine."""
    for job, final in h.final.items():
        if final.state == "expired" and job in h.intents and h.finished_at[job] < h.not_after.get(job, inf) - 0.001:
            yield f"job {job} expired {h.not_after[job] - h.finished_at[job]:.3f} s too early"


def urgent_jobs_first(h: MachinesHistory) -> Iterator[str]:
    """I68: one consumer: by priority, and within that as they came."""
    if h.is_orderly:
        asked = sorted(h.acked, key=lambda job: -h.priorities[job])  # in the order of their acknowledgement
        started = [start.job for start in sorted(h.starts, key=lambda start: start.at)]
        if started != asked:
            yield f"jobs started as {started}, and not as {asked}"


def ends_are_told_at_once(h: MachinesHistory) -> Iterator[str]:
    """I69: where nothing is lost, whoever waits hears of the end, and need not look."""
    for job, since, until in h.waits if h.is_calm else ():
        late_s = until - max(since, h.finished_at.get(job, inf))
        if late_s > _ON_ITS_WAY_S:
            yield f"a client heard {late_s:.1f} s late that job {job} had ended"


def enqueued_if_and_only_if_committed(h: MachinesHistory) -> Iterator[str]:
    """I70: `q.within`: a job is there if the row is that was written in the same transaction, and otherwise not."""
    for job, order in h.orders.items():
        if (job in h.final) != (order in h.kept_orders):
            yield f"job {job} is {'' if job in h.final else 'not '}there, its row is{'' if order in h.kept_orders else ' not'}"


def one_of_a_kind(h: MachinesHistory) -> Iterator[str]:
    """I71: of unique jobs with the same key one is there at a time."""
    taken: dict[str, list[str]] = defaultdict(list)
    for job, key in h.keys.items():
        if job in h.final and job not in h.retried:
            taken[key].append(job)
    for key, jobs in taken.items():
        jobs.sort(key=lambda job: h.acked.get(job, inf))
        for job, after in pairwise(jobs):
            if h.finished_at.get(job, inf) > h.acked.get(after, inf) and job in h.acked:
                yield f"job {after} came in beside {job}, which has the same key {key} and had not ended"


def what_is_cancelled_ends_soon(h: MachinesHistory) -> Iterator[str]:
    """I73: where nothing is lost, a job that runs and is to be cancelled ends at once."""
    attempts = h.attempts_of()
    for job, since in h.stopped if h.is_calm else ():
        for start, end in attempts.get(job, ()):
            if start.at < since < h.over_at(start, end) - _ON_ITS_WAY_S:
                yield f"job {job} was to be cancelled, and ran on for {h.over_at(start, end) - since:.1f} s"


def everything_is_answered(h: MachinesHistory) -> Iterator[str]:
    """I72: nobody waits for ever."""
    for what in h.unfinished:
        yield f"{what} was never answered"


_OF_HEARD: tuple[Callable[[History], Iterator[str]], ...] = (
    history.the_end_is_the_end,
    history.cancelled_is_cancelled,
    history_cancels.nothing_cancelled_runs_on,
)
_OF_ALL: tuple[Callable[[History], Iterator[str]], ...] = (
    history.no_acked_job_is_lost,
    history.nothing_runs_that_nobody_asked_for,
    history.the_unknown_resolves_one_way,
    history.retries_are_bounded,
    history.results_never_change,
    history.nothing_is_left_over,
    history_flows.a_step_waits_its_turn,
    history_flows.a_step_has_its_turn,
)
_OWN: tuple[Callable[[MachinesHistory], Iterator[str]], ...] = (
    exclusive_over_machines,
    fenced_machines_are_not_believed,
    runs_again_only_for_a_reason,
    told_is_true,
    deaths_are_charged,
    times_are_those_of_the_database,
    nothing_expires_too_early,
    urgent_jobs_first,
    ends_are_told_at_once,
    enqueued_if_and_only_if_committed,
    one_of_a_kind,
    what_is_cancelled_ends_soon,
    everything_is_answered,
    *history_shared.INVARIANTS,
)


def check(h: MachinesHistory) -> list[str]:
    """All that is wrong, each line with the name of its invariant."""
    attempts = [pair for pairs in h.attempts_of().values() for pair in pairs]
    heard = replace(h, starts=[start for start, end in attempts if not _is_on_its_own(h, start, end)])
    found = [f"{invariant.__name__}: {line}" for invariant in _OF_ALL for line in invariant(h)]
    found += [f"{invariant.__name__}: {line}" for invariant in _OF_HEARD for line in invariant(heard)]
    return found + [f"{invariant.__name__}: {line}" for invariant in _OWN for line in invariant(h)]


def _is_on_its_own(h: MachinesHistory, start: Start, end: End | None) -> bool:
    """Whether an attempt began on a silent machine, or went on there while that was so."""
    return h.is_silent(start.process, start.at) or h.was_silent(start.process, start.at, h.over_at(start, end))
