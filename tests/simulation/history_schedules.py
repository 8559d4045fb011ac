"""The judge of schedules: more invariants of a history, asked by history.py with its own.

What is promised: each due time has one job, whoever is killed; of times that were missed, those that `misfire=` says;
nothing fires while a schedule rests or when it is removed, as soon as that is acknowledged; jobs that are not to overlap
do not. All times here are those of the history's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from taskq.model.schedule import MISSED_AFTER_S, Schedule, fire_time, fired_id, next_fire, payload_for

if TYPE_CHECKING:
    from history import History

#: A broker that lives fires a due time so soon.
_SOON_S = 0.05


class Fire(NamedTuple):
    """For what a job was made."""

    schedule: str
    nominal: float
    at: float  # its jitter included


@dataclass
class Rest:
    """A pause, as far as its client knows."""

    asked_at: float
    since: float = inf  # its acknowledgement
    end_asked_at: float = inf
    until: float = inf


@dataclass
class Plan:
    """A schedule that was added at run time, as far as its client knows."""

    schedule: Schedule
    asked_at: float
    added_at: float = inf  # the acknowledgement
    rests: list[Rest] = field(default_factory=list)
    removal_asked_at: float = inf
    removed_at: float = inf

    def active(self) -> Iterator[tuple[float, float]]:
        """When it surely fires: from when to when."""
        begins = [self.added_at, *(rest.until for rest in self.rests)]
        ends = [*(rest.asked_at for rest in self.rests), self.removal_asked_at]
        return zip(begins, ends, strict=True)

    def times(self, since: float, until: float, offset_s: float) -> list[tuple[float, float]]:
        """The nominal times from one moment to another, with the times at which it fires."""
        nominal = next_fire(self.schedule, since + offset_s)
        found = []
        while nominal - offset_s < until:
            found.append((nominal - offset_s, fire_time(self.schedule, nominal) - offset_s))
            nominal = next_fire(self.schedule, nominal)
        return found


def fire_of(plan: Plan, job: str, offset_s: float) -> tuple[Fire, bytes] | None:
    """For which time a schedule has made a job, with its payload; None if it has not."""
    schedule, job_id = plan.schedule, bytes.fromhex(job)
    assert schedule.every_s is not None
    about = round(int.from_bytes(job_id[:6], "big") / 1000 / schedule.every_s)
    for number in (about - 1, about, about + 1):
        nominal = number * schedule.every_s
        if fired_id(schedule.name, nominal) == job_id:
            at = fire_time(schedule, nominal)
            return Fire(schedule.name, nominal - offset_s, at - offset_s), payload_for(schedule, job_id)
    return None


def a_time_fires_once(h: History) -> Iterator[str]:
    """I41: there is one job for each due time, and none is made again."""
    for job, fire in h.fires.items():
        if h.made[job] > 1:
            yield f"job {job} of schedule {fire.schedule} was made {h.made[job]} times"


def schedules_fire_when_they_are_to(h: History) -> Iterator[str]:
    """I42: not early, not while they rest, and not when they are removed."""
    began: dict[str, float] = {}
    for start in h.starts if h.fires else ():
        began[start.job] = min(start.at, began.get(start.job, inf))
    for job, (name, nominal, at) in h.fires.items():
        plan = h.plans[name]
        if began.get(job, inf) < at - 0.001:
            yield f"job {job} of schedule {name} started {at - began[job]:.3f} s early"
        if nominal <= plan.asked_at:
            yield f"schedule {name} fired for {nominal:.3f}, before it was added"
        if at > plan.removed_at:
            yield f"schedule {name} fired at {at:.3f}, and was removed at {plan.removed_at:.3f}"
        for rest in plan.rests:
            if any(rest.since < moment < rest.end_asked_at for moment in (nominal, at)):
                yield f"schedule {name} fired at {at:.3f}, and rested since {rest.since:.3f}"


def due_times_are_not_forgotten(h: History) -> Iterator[str]:
    """I43: if jobs may overlap, each due time has one; of those that were missed the last one, or all or none."""
    downtimes = h.broker_rests
    fired = {(fire.schedule, round(fire.nominal, 3)) for fire in h.fires.values()}
    for name, plan in h.plans.items():
        for since, until in plan.active() if plan.schedule.overlap == "allow" else ():
            # a broker that stops fires no more, but lets schedules be removed or paused: what it missed is lost then
            until = min([until, *(rest for rest, end in downtimes if rest < until <= end)])
            times = plan.times(since, min(until, h.ended_at), h.wall_offset_s) if since < until else []
            for (nominal, at), (_, next_at) in pairwise(times):
                has_fired = (name, round(nominal, 3)) in fired
                is_wanted = _is_wanted(plan.schedule.misfire, at, next_at, downtimes)
                if is_wanted is not None and next_at < until - _SOON_S and has_fired != is_wanted:
                    told = "did not fire" if is_wanted else "fired, which nobody wants any more,"
                    yield f"schedule {name} {told} for {nominal:.3f}"


def _with_short_lives(downtimes: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """When no broker ran long enough to be sure that it fired."""
    found: list[tuple[float, float]] = []
    for since, until in downtimes:
        if found and since - found[-1][1] < _SOON_S:
            since, _ = found.pop()
        found.append((since, until))
    return found


def _is_wanted(misfire: str, at: float, next_at: float, downtimes: list[tuple[float, float]]) -> bool | None:
    """Whether there is to be a job for a time, when the next one was due; None if nobody can tell."""
    if misfire == "all":
        return True
    late_at = at + MISSED_AFTER_S if misfire == "skip" else inf
    left_out_at = min(next_at, late_at)
    if any(since < at and until > left_out_at + _SOON_S for since, until in downtimes):
        return False
    for since, until in _with_short_lives(downtimes):
        if since <= at + _SOON_S and until >= left_out_at - _SOON_S:
            return None
    return True


def fires_do_not_meet(h: History) -> Iterator[str]:
    """I44: if jobs of a schedule are not to overlap, one starts when the one before has ended for good. A retry by hand
    asks nobody."""
    attempts = h.attempts_of() if h.fires else {}
    known = h.known if h.fires else {}
    for name, plan in h.plans.items():
        if plan.schedule.overlap == "allow":
            continue
        jobs = [job for job, fire in sorted(h.fires.items(), key=lambda item: item[1].nominal) if fire.schedule == name]
        ran = [job for job in jobs if job in attempts and job in known and not known[job].requeued]
        for before, behind in pairwise(ran):
            start, end = attempts[before][-1]
            over = end.at if end is not None else h.deaths.get(start.process, inf)
            if attempts[behind][0][0].at < over:
                yield f"job {behind} of schedule {name} started before {before} had ended"


def fired_jobs_end(h: History) -> Iterator[str]:
    """I45: also those that were kept back."""
    for job, fire in h.fires.items():
        if job in h.final and not h.final[job].is_final:
            yield f"job {job} of schedule {fire.schedule} never ended: {h.final[job].state}"


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (
    a_time_fires_once,
    schedules_fire_when_they_are_to,
    due_times_are_not_forgotten,
    fires_do_not_meet,
    fired_jobs_end,
)
