"""The judge: what producers, jobs and clients have seen of a fleet, and whether the promise was kept.

Everyone writes down what they see, in a file of their own (or, in the simulator, in this class); nobody believes the
fleet. Each invariant is a small function from a history to the lines that say what is wrong; `check` asks them all, and
tests/README.md lists them. There are more of them in the files beside this one: of workflows and children in
history_flows.py, of limits and unique jobs in history_limits.py, of schedules in history_schedules.py, of consumers and
their successors in history_consumers.py, of priority in history_fairness.py, of jobs that are cancelled while they run
in history_cancels.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import NamedTuple

import history_cancels
import history_consumers
import history_fairness
import history_flows
import history_limits
import history_schedules
import history_turns
from history_cancels import Unwanted
from history_consumers import Consumer
from history_flows import Children
from history_limits import LeftOut, Limited, Place
from history_schedules import Fire, Plan
from history_turns import NO_TURN, Turn

from taskq.model.constraints import UniqueKey

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})


class Start(NamedTuple):
    """An attempt began."""

    job: str
    attempt: int
    process: str
    at: float
    digest: str


class End(NamedTuple):
    """An attempt ended by itself."""

    job: str
    attempt: int
    process: str
    at: float
    succeeded: bool
    snoozed: bool = False  # it did not fail: it said that it wants to run later


class Kept(NamedTuple):
    """An attempt has kept something for the next one."""

    job: str
    attempt: int
    process: str
    at: float
    data: str


class Found(NamedTuple):
    """What an attempt found kept."""

    job: str
    process: str
    at: float
    data: str


class Read(NamedTuple):
    """A client was told of the end of a job."""

    job: str
    state: str
    outcome: str
    at: float
    called_off: bool = False  # it was cancelled because of another, which it comes after


class Final(NamedTuple):
    """What the fleet says of a job when all is quiet."""

    state: str
    attempts: int
    crashes: int
    outcome: str = ""
    requeued: int = 0  # how often it was retried by hand
    snoozes: int = 0
    called_off: bool = False  # cancelled because of another, which it comes after
    called_back: int = 0  # how often that was taken back

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


class Limits(NamedTuple):
    """How often a job may be run again."""

    retries: int
    max_crashes: int
    is_watched: bool = (
        False  # for its time or memory: then its process may be killed for it, and it waits as after any failure
    )


NO_LIMITS = Limits(1_000_000, 1_000_000)


@dataclass
class History:
    """All that was noted. Times are monotonic seconds of one clock."""

    intents: dict[str, str] = field(default_factory=dict)  # job: digest of what it is to do
    limits: dict[str, Limits] = field(default_factory=dict)
    acked: dict[str, float] = field(default_factory=dict)
    cancelled: dict[str, float] = field(default_factory=dict)  # job: when its cancellation was acknowledged
    retried: set[str] = field(default_factory=set)  # jobs that a client asked to retry, whether it heard of it or not
    requeued: Counter[str] = field(default_factory=Counter)  # how often a client heard that it was
    retried_all: bool = False  # a client asked to retry all that failed
    purges: set[str] = field(default_factory=set)  # jobs that a client asked to purge
    unknown: set[str] = field(
        default_factory=set
    )  # acknowledged jobs of which a client was told that nobody knows them
    purged: dict[str, float] = field(default_factory=dict)  # job: when its purge was acknowledged
    after: dict[str, dict[str, bool]] = field(default_factory=dict)  # job: those before it, and whether it goes on if
    # that one does not succeed
    flows: list[tuple[str, ...]] = field(default_factory=list)  # jobs that were handed in as one piece
    refused: set[str] = field(default_factory=set)  # jobs that the fleet did not want
    out_of_turn: list[str] = field(default_factory=list)  # that nobody knew, though they had been handed in just before
    children: list[Children] = field(default_factory=list)
    cancels: set[str] = field(default_factory=set)  # jobs that a client asked to cancel
    unwanted: list[Unwanted] = field(default_factory=list)  # running jobs that are being stopped
    queues: dict[str, str] = field(default_factory=dict)  # job: its queue
    pauses: list[tuple[str, float]] = field(default_factory=list)  # queues, and when their pause was acknowledged
    resumes: list[float] = field(default_factory=list)  # when a client asked to resume all queues
    starts: list[Start] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    deaths: dict[str, float] = field(default_factory=dict)  # process: when it was killed
    blameless: set[str] = field(default_factory=set)  # of these, those that died for nothing that they have run
    stops: list[tuple[str, float, float]] = field(
        default_factory=list
    )  # processes that were stopped, from when to when
    broker_deaths: list[float] = field(default_factory=list)
    limited: dict[str, Limited] = field(default_factory=dict)  # what was asked for jobs, of limits
    capacities: dict[str, int] = field(default_factory=dict)  # the fleet's resources
    kept_keys: list[str] = field(default_factory=list)  # that the broker still knows when all jobs have ended
    urgent: set[str] = field(default_factory=set)  # jobs of the highest priority
    places: dict[str, Place] = field(default_factory=dict)  # jobs of ordered keys
    unique: dict[str, UniqueKey] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)  # schedules, by name
    fires: dict[str, Fire] = field(default_factory=dict)  # jobs that schedules have made
    made: Counter[str] = field(default_factory=Counter)  # how often each job was stored that was not there before
    broker_rests: list[tuple[float, float]] = field(default_factory=list)  # when none ran, or it was stopping
    consumers: list[Consumer] = field(default_factory=list)  # those that are ready at the end
    unreported: list[int] = field(
        default_factory=list
    )  # numbers that ran old code meanwhile, told as ones with the new
    wanted_consumers: int = 0
    reload_state: str = "none"  # what the fleet says of its last reload
    interrupted: list[str] = field(default_factory=list)  # processes killed in a job, just since they were replaced
    ended_at: float = inf  # what is noted goes to here
    wall_offset_s: float = 0.0  # what is to be added to the times of the history for seconds since 1970
    final: dict[str, Final] = field(default_factory=dict)
    removed: dict[str, Final] = field(default_factory=dict)  # what the purged ones were at last
    totals: dict[str, int] = field(default_factory=dict)
    final_after_restart: dict[str, Final] | None = None
    in_order: bool = False  # one consumer, no faults, no retries: jobs start in the order of their acknowledgement
    restart_within_s: float = inf  # after the death of its process a job is running again, the broker living
    told_within_s: float = 0.25  # of an attempt that ended, the outcome may be lost if the broker dies so soon after
    full_at: list[float] = field(default_factory=list)  # when a commit found the disk full
    full_again_s: float = 0.0  # ... after which what ended is to be stored again
    sees_every_start: bool = False  # no process dies between a start and the note of it
    noted_within_s: float = 0.0  # a job's last act comes so long before its process notes its end
    longest_turn: Turn = NO_TURN  # of the broker
    leaks: list[str] = field(default_factory=list)
    bad_exits: list[str] = field(default_factory=list)

    def attempts_of(self) -> dict[str, list[tuple[Start, End | None]]]:
        """For each job its starts in order of time, with their ends."""
        ends: dict[tuple[str, int, str], list[End]] = defaultdict(list)
        for end in sorted(self.ends, key=lambda end: end.at):
            ends[end.job, end.attempt, end.process].append(end)
        found: dict[str, list[tuple[Start, End | None]]] = defaultdict(list)
        for start in sorted(self.starts, key=lambda start: start.at):
            own = ends[start.job, start.attempt, start.process]  # more than one, if the first was lost
            found[start.job].append((start, next((end for end in own if end.at >= start.at), None)))
        return found

    @property
    def known(self) -> dict[str, Final]:
        """All jobs that ever were."""
        return {**self.final, **self.removed}

    def was_cut_short(self, start: Start, end: End | None) -> bool:
        """Whether an attempt's process was killed under it."""
        return end is None and self.deaths.get(start.process, -inf) >= start.at

    def is_known_as_blameless(self, process: str) -> bool:
        """Whether nobody is to be charged with the death of a process, and the broker had the time to see that."""
        died_at = self.deaths[process]
        return process in self.blameless and not any(died_at <= at <= died_at + 0.5 for at in self.broker_deaths)

    def is_told_by(self, end: End) -> float:
        """When the outcome of an attempt is durable: soon, unless its process was stopped, or the disk full, meanwhile."""
        at = end.at + self.told_within_s
        for process, since, until in sorted(self.stops, key=lambda stop: stop[1]):
            if process in (end.process, "*") and since <= at and until >= end.at:
                at = max(at, until + self.told_within_s)
        for full_at in self.full_at:
            if end.at <= full_at <= at:
                at = full_at + self.full_again_s + self.told_within_s
        return at


def no_acked_job_is_lost(h: History) -> Iterator[str]:
    """I1: an acknowledged job is there, and ends; unless somebody purged it."""
    for job in sorted(h.unknown - h.purges):
        yield f"acknowledged job {job} was not known any more"
    for job in h.acked:
        if job not in h.final:
            if job in h.purges and job in h.removed:
                continue
            yield f"acknowledged job {job} is gone"
        elif h.final[job].state not in FINAL:
            yield f"acknowledged job {job} never ended: {h.final[job].state}"


def nothing_runs_that_nobody_asked_for(h: History) -> Iterator[str]:
    """I2: every job that ran was meant, and is what was meant."""
    for start in h.starts:
        if start.job not in h.intents:
            yield f"job {start.job} ran, which nobody enqueued"
        elif start.digest != h.intents[start.job]:
            yield f"job {start.job} ran with other arguments"


def the_unknown_resolves_one_way(h: History) -> Iterator[str]:
    """I3: a job whose enqueue had no answer is there whole or not at all."""
    known = h.known  # made anew each time that it is asked for
    for start in h.starts:
        if start.job in h.intents and start.job not in known:
            yield f"job {start.job} ran and is not there"


def an_id_is_one_job(h: History) -> Iterator[str]:
    """I4: sent again, it is the same."""
    if h.totals.get("enqueued") != len(h.known):
        yield f"{h.totals.get('enqueued')} jobs were counted as enqueued, {len(h.known)} are or were there"


def runs_again_only_for_a_reason(h: History) -> Iterator[str]:
    """I5: at least once; again only after a failure, the death of its process, or of the broker before it was told."""
    for job, attempts in h.attempts_of().items():
        for (start, end), (again, _) in pairwise(attempts):
            if end is not None and not end.succeeded:
                continue
            if end is None and start.process in h.deaths:
                continue
            if end is not None and any(end.at <= at <= h.is_told_by(end) for at in h.broker_deaths):
                continue
            if end is not None and 0.0 <= h.deaths.get(start.process, inf) - end.at < h.noted_within_s:
                continue
            yield f"job {job} ran again in {again.process} without a reason: it had run in {start.process}"
    succeeded_in = {(end.job, end.attempt) for end in h.ends if end.succeeded}
    for job, final in h.final.items():
        if final.state == "succeeded" and (job, final.attempts) not in succeeded_in:
            yield f"job {job} succeeded in attempt {final.attempts}, which did not end so"


def retries_are_bounded(h: History) -> Iterator[str]:
    """I6: no more failures and charged deaths than allowed, for each time that it was retried by hand; a snooze is
    neither."""
    snoozed: dict[str, set[int]] = defaultdict(set)
    for end in h.ends:
        if end.snoozed:
            snoozed[end.job].add(end.attempt)
    for job, final in h.known.items():
        retries, max_crashes, _ = h.limits.get(job, NO_LIMITS)
        lives = 1 + final.requeued
        if final.crashes > max_crashes * lives:
            yield f"job {job} was charged {final.crashes} crashes, allowed are {max_crashes * lives}"
        charged = final.attempts - final.crashes - final.snoozes
        if charged > (retries + 1) * lives:
            yield f"job {job} had {charged} attempts, allowed are {(retries + 1) * lives}"
        if final.requeued and job not in h.retried and not h.retried_all:
            yield f"job {job} was retried, which nobody asked for"
        if final.snoozes > len(snoozed[job]):
            yield f"job {job} was told to have snoozed {final.snoozes} times, it did {len(snoozed[job])} times"


def never_twice_at_a_time(h: History) -> Iterator[str]:
    """I7: an attempt begins when the one before has ended, or its process."""
    for job, attempts in h.attempts_of().items():
        for (start, end), (again, _) in pairwise(attempts):
            over = end.at if end is not None else h.deaths.get(start.process, inf)
            if again.at < over:
                yield f"job {job} ran in {start.process} and {again.process} at the same time"


def results_never_change(h: History) -> Iterator[str]:
    """I8: whoever reads a final state reads the same; but of a job that was retried by hand, also earlier failures, and
    of one that was called off because of such a job, that it was."""
    ends: dict[str, set[tuple[str, str]]] = defaultdict(set)
    known = h.known
    for job, final in known.items():
        if final.state in FINAL:
            ends[job].add((_end_of(final), final.outcome))
    for read in h.reads:
        ends[read.job].add((_end_of(read), read.outcome))
    for job, seen in ends.items():
        again = known[job].requeued + known[job].called_back if job in known else 0
        if len(seen) > 1 + again or sum(state not in ("failed", _CALLED_OFF) for state, _ in seen) > 1:
            yield f"job {job} was read as {sorted(seen)}, retried by hand or called back {again} times"


_CALLED_OFF = "called off"


def _end_of(end: Read | Final) -> str:
    return _CALLED_OFF if end.called_off else end.state


def the_end_is_the_end(h: History) -> Iterator[str]:
    """I9: nothing starts after its final state was read."""
    ended_at: dict[str, float] = {}
    known = h.known
    for read in h.reads:
        final = known.get(read.job)
        was_retried = final is not None and read.state == "failed" and final.requeued > 0
        was_called_back = final is not None and read.called_off and final.called_back > 0
        if not was_retried and not was_called_back:
            ended_at[read.job] = min(read.at, ended_at.get(read.job, inf))
    for start in h.starts:
        if start.at > ended_at.get(start.job, inf):
            yield f"job {start.job} started after it had ended"


def totals_add_up(h: History) -> Iterator[str]:
    """I10: what was counted is what is there. What was purged before it ended counts as cancelled, a failed job that was
    retried by hand has failed all the same, and one that was called back was cancelled."""
    states = Counter(final.state for final in h.final.values())
    states.update(final.state if final.state in FINAL else "cancelled" for final in h.removed.values())
    states["failed"] += sum(final.requeued for final in h.known.values())
    states["cancelled"] += sum(final.called_back for final in h.known.values())
    for state in ("succeeded", "failed", "cancelled"):
        if h.totals.get(state) != states[state]:
            yield f"{h.totals.get(state)} jobs were counted as {state}, {states[state]} are or were there"
    crashes = sum(final.crashes for final in h.known.values())
    if h.totals.get("crashed") != crashes:
        yield f"{h.totals.get('crashed')} crashes were counted, the jobs have {crashes}"


def first_come_first_served(h: History) -> Iterator[str]:
    """I11: with one consumer and no faults jobs start in the order in which they were acknowledged."""
    if not h.in_order:
        return
    acked = sorted(h.acked, key=lambda job: h.acked[job])
    started = [start.job for start in sorted(h.starts, key=lambda start: start.at) if start.job in h.acked]
    if started != acked:
        yield "jobs started in another order than they were acknowledged"


def a_death_is_seen_at_once(h: History) -> Iterator[str]:
    """I12: a job whose process was killed runs again soon, or ends; no timeout is waited for."""
    read_at: dict[str, float] = {}
    for read in h.reads:
        read_at[read.job] = min(read.at, read_at.get(read.job, inf))
    for job, attempts in h.attempts_of().items():
        followers = [*(start.at for start, _ in attempts[1:]), read_at.get(job, inf)]
        for (start, end), next_at in zip(attempts, followers, strict=True):
            died_at = h.deaths.get(start.process, inf)
            if not h.was_cut_short(start, end) or h.limits.get(job, NO_LIMITS).is_watched:
                continue
            if any(died_at - 0.01 <= at <= next_at for at in h.broker_deaths):
                continue
            if next_at != inf and next_at - died_at > h.restart_within_s:
                yield f"job {job} was left alone for {next_at - died_at:.1f} s after the death of {start.process}"


def only_the_guilty_are_charged(h: History) -> Iterator[str]:
    """I13: a job is charged with the deaths of processes that were running it, and no other."""
    cut_short: Counter[str] = Counter()
    at_work: set[str] = set()  # processes that died running something
    for job, attempts in h.attempts_of().items():
        for start, end in attempts:
            if h.was_cut_short(start, end):
                cut_short[job] += not h.is_known_as_blameless(start.process)
                at_work.add(start.process)
    # killed between the claim and the job's first own act: charged, and nothing of it was noted
    unexplained = 0 if h.sees_every_start else len(h.deaths) - len(at_work)
    for job, final in sorted(h.known.items()):
        surplus = final.crashes - cut_short[job]
        if surplus > 0:
            unexplained -= surplus
            if unexplained < 0:
                yield f"job {job} was charged {final.crashes} crashes, its process died {cut_short[job]} times under it"


def cancelled_is_cancelled(h: History) -> Iterator[str]:
    """I14: what was cancelled before it started never starts."""
    for start in h.starts:
        if start.at > h.cancelled.get(start.job, inf):
            yield f"job {start.job} started after it was cancelled"
    for job in h.cancelled:
        if job in h.final and h.final[job].state != "cancelled":
            yield f"job {job} was cancelled and is {h.final[job].state}"


def retried_is_retried(h: History) -> Iterator[str]:
    """I20: a retry by hand that was acknowledged is not forgotten."""
    for job, times in h.requeued.items():
        if job in h.known and h.known[job].requeued < times:
            yield f"job {job} was retried {times} times, and knows of {h.known[job].requeued}"


def purged_is_gone(h: History) -> Iterator[str]:
    """I18: what was purged neither comes back nor runs; nothing is purged that nobody asked for."""
    for start in h.starts:
        if start.at > h.purged.get(start.job, inf):
            yield f"job {start.job} started after it was purged"
    for job in h.purged:
        if job in h.final:
            yield f"job {job} was purged and is {h.final[job].state}"
    for job in h.removed:
        if job not in h.purges:
            yield f"job {job} was removed, which nobody asked for"


def paused_queues_rest(h: History) -> Iterator[str]:
    """I19: nothing of a queue starts from the acknowledgement of its pause until somebody resumes it, but what a
    process has that was stopped meanwhile: nobody can take that back."""
    starts: dict[str, list[Start]] = defaultdict(list)
    for start in h.starts:
        starts[h.queues.get(start.job, "")].append(start)
    for queue, since in h.pauses:
        until = min((at for at in h.resumes if at >= since - 0.5), default=inf)  # it may overtake the acknowledgement
        for start in starts[queue]:
            if since < start.at < until and not any(stop[0] == start.process for stop in h.stops):
                yield f"job {start.job} started while its queue {queue} was paused"


def what_was_kept_is_found(h: History) -> Iterator[str]:
    """I21: an attempt finds what was kept last before it; the death of the broker may take what is not durable yet."""
    for job, process, at, data in h.found:
        before = sorted((kept for kept in h.kept if kept.job == job and kept.at < at), key=lambda kept: kept.at)
        choices = {before[-1].data} if before else {""}
        for older, newer in pairwise([None, *before]):
            assert newer is not None
            told = h.is_told_by(End(newer.job, newer.attempt, newer.process, newer.at, False))
            if any(newer.at <= death <= told for death in h.broker_deaths):
                choices.add("" if older is None else older.data)
        if data not in choices:
            yield f"job {job} found {data!r} in {process}, and not what was kept: {sorted(choices)}"


def attempts_are_numbered_once(h: History) -> Iterator[str]:
    """I22: a number of an attempt that was told as ended never comes again, snoozed or not."""
    for job, attempts in h.attempts_of().items():
        for (start, end), (again, _) in pairwise(attempts):
            if again.attempt > start.attempt or end is None:
                continue
            if h.deaths.get(start.process, inf) - end.at <= h.told_within_s:
                continue
            if not any(end.at <= at <= h.is_told_by(end) for at in h.broker_deaths):
                yield f"attempt {again.attempt} of job {job} began in {again.process}, and had ended in {start.process}"


def recovery_changes_nothing(h: History) -> Iterator[str]:
    """I15: opened again, all is as it was."""
    if h.final_after_restart is not None and h.final_after_restart != h.final:
        changed = [job for job in h.final if h.final[job] != h.final_after_restart.get(job)]
        yield f"after a restart {len(changed)} jobs are not what they were: {changed[:3]}"


def nothing_is_left_over(h: History) -> Iterator[str]:
    """I16: no process, lease, descriptor or memory stays behind. I17: exit codes tell the truth."""
    yield from h.leaks
    yield from h.bad_exits


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (
    no_acked_job_is_lost,
    nothing_runs_that_nobody_asked_for,
    the_unknown_resolves_one_way,
    an_id_is_one_job,
    runs_again_only_for_a_reason,
    retries_are_bounded,
    never_twice_at_a_time,
    results_never_change,
    the_end_is_the_end,
    totals_add_up,
    first_come_first_served,
    a_death_is_seen_at_once,
    only_the_guilty_are_charged,
    cancelled_is_cancelled,
    purged_is_gone,
    retried_is_retried,
    paused_queues_rest,
    what_was_kept_is_found,
    attempts_are_numbered_once,
    recovery_changes_nothing,
    nothing_is_left_over,
    *history_cancels.INVARIANTS,
    *history_consumers.INVARIANTS,
    *history_fairness.INVARIANTS,
    *history_flows.INVARIANTS,
    *history_limits.INVARIANTS,
    *history_schedules.INVARIANTS,
    *history_turns.INVARIANTS,
)


def check(history: History) -> list[str]:
    """All that is wrong, each line with the name of its invariant."""
    return [f"{invariant.__name__}: {line}" for invariant in INVARIANTS for line in invariant(history)]
