"""Lives of the broker, simulated; and the judge himself, tried with known bugs, each of which must be found."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import proof
import pytest
from history import Children, End, Final, Found, History, Kept, Limits, Read, Start, check
from history_cancels import Unwanted
from history_limits import LeftOut, Limited, Place
from history_schedules import Fire, Plan, Rest
from history_turns import Turn
from planted_cancel_bugs import CANCEL_BUGS
from planted_commit_bugs import COMMIT_BUGS
from planted_flow_bugs import FLOW_BUGS
from planted_outcome_bugs import OUTCOME_BUGS
from planted_seeds import FOUND_IN
from planted_supervision_bugs import BREAKS_THE_BROKER, SUPERVISION_BUGS
from planted_turn_bugs import TURN_BUGS
from recorded_disk import RecordedDisk
from simulation import Parts, World, judge

from taskq.broker.core.core import Core
from taskq.broker.core.ready import ReadyJobs
from taskq.broker.core.shared_limits import SharedLimits
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.journal.memory_records import Disk, Record
from taskq.engines.embedded.scheduler import Scheduler
from taskq.engines.embedded.transaction import Transaction
from taskq.model.attempt import Claim, Failure, Verdict
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.effects import Key, ProcessExit
from taskq.model.job import JobRow
from taskq.model.partition import Partition, Starts, partition_of
from taskq.model.rules.limiters import UNLIMITED, Release
from taskq.model.schedule import NO_JOB, Schedule, ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import Ended, Rescheduled, StoredJob
from taskq.protocol import frames
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Submission

#: How many lives a run of the tests simulates. `python tests/simulation/simulation.py --seeds 1000000` goes on.
SEEDS = int(os.environ.get("TASKQ_SEEDS", "2000"))
PARTS = 20
#: Within so many lives each planted bug must be found.
ENOUGH = 300


def judge_many(seeds: Sequence[int]) -> dict[int, list[str]]:
    return {seed: wrong for seed in seeds if (wrong := judge(seed))}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that simulate lives. Garbage is looked for less often: it takes a tenth of their time."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, gc.set_threshold, (50_000,)) as pool:
        yield pool


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_goes_wrong_in_many_lives(part: int, pool: ProcessPoolExecutor) -> None:
    """A failing seed is replayed by `python tests/simulation/simulation.py --from SEED --seeds 1`."""
    shares = [range(start, SEEDS, 4 * PARTS) for start in range(part, 4 * PARTS, PARTS)]
    wrong = {seed: lines for found in pool.map(judge_many, shares) for seed, lines in found.items()}
    assert wrong == {}
    proof.count("seeds", sum(map(len, shares)))


def test_a_seed_decides_everything() -> None:
    one, other = World(7).run(), World(7).run()
    assert one.starts
    assert one == other


def test_deaf_consumers_are_replaced() -> None:
    """Life 19: the only one was deaf, held nothing, and was sent nothing, since it owed an answer."""
    assert {seed: wrong for seed in range(900_010, 900_030) if (wrong := judge(seed, Parts(deafness=0.5)))} == {}


# -- planted bugs


class AcknowledgesBeforeCommit(Committer):
    """The answer goes out when the job comes in."""

    def take_in(self, submission: Submission) -> None:
        super().take_in(submission)
        if submission.peer is not None:
            self._clients.send(submission.peer, frames.frame([Op.OK, submission.request, 0]))


class TellsBeforeCommit(Committer):
    """Results go out when they come in."""

    def collect(self, now: float) -> None:
        super().collect(now)
        for row, kept, outcome in self._effects.ended:
            for peer in self._watchers.of(row.id):
                self._clients.send(peer, frames.frame([Op.RESULT, row.id, kept.state.value], [outcome]))


class SyncsNowAndThen(MemoryStore):
    """SQLite's synchronous=NORMAL."""

    def __init__(self, disk: RecordedDisk) -> None:
        disk.syncs = False
        super().__init__(disk)
        self._recorded = disk

    def commit(self) -> None:
        super().commit()
        if len(self._recorded.commits) % 20 == 0:
            self._recorded.synced = len(self._recorded.commits)


class DeletesOnDequeue(MemoryStore):
    """What is being run is not on disk."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self._taken: dict[int, Record] = {}

    def forget(self, rows: Iterable[JobRow]) -> None:
        for row in rows:
            self._taken[row.seq] = record = self._jobs[row.id]
            self._drop(record)
        self.commit()

    def settle(self, ended: Sequence[Ended], rescheduled: Sequence[Rescheduled], now: float) -> None:
        for row, *_ in (*ended, *rescheduled):
            if row.seq in self._taken:
                self._put(self._taken.pop(row.seq))
        super().settle(ended, rescheduled, now)


class TakesEverySubmitAsNew(MemoryStore):
    """A client that sends a job again gets another."""

    def submit(
        self,
        spec: Spec,
        ids: Sequence[bytes],
        payloads: Iterable[bytes],
        constraints: Sequence[Constraints | None] | None = None,
    ) -> list[JobRow]:
        known = [job_id for job_id in ids if job_id in self._jobs]
        for job_id in known:
            self._drop(self._jobs[job_id])
        return super().submit(spec, ids, payloads, constraints)


class ForgetsBatchMates(Core):
    """What a dead consumer held, but did not run, is gone."""

    def died(self, key: Key, claims: Sequence[Claim], death: ProcessExit, wall: float) -> None:
        consumer, running = self._consumers[key], {claim.number for claim in claims}
        consumer.leased = {number: row for number, row in consumer.leased.items() if number in running}
        super().died(key, claims, death, wall)


class ChargesTheNeighbour(Core):
    """The last of a batch pays for the one that ran."""

    def died(self, key: Key, claims: Sequence[Claim], death: ProcessExit, wall: float) -> None:
        last = max(self._consumers[key].leased, default=0)
        super().died(key, [Claim(last, claim.started_at) for claim in claims[:1]], death, wall)


class PausesNothing(Core):
    """The pause is stored, and jobs run all the same."""

    def pause(self, queues: Iterable[str]) -> None:
        pass


class PurgesUntilRestart(MemoryStore):
    """What was purged is gone from memory only."""

    def remove(self, jobs: Sequence[StoredJob]) -> None:
        super().remove(jobs)
        for job in jobs:
            del self._changes.jobs[job.row.id]


class RetriesUntilRestart(MemoryStore):
    """What was retried is queued in memory only."""

    def requeue(self, jobs: Sequence[StoredJob], now: float) -> list[JobRow]:
        rows = super().requeue(jobs, now)
        for row in rows:
            del self._changes.jobs[row.id]
        return rows


class ForgetsSnoozedAttempts(Core):
    """A snooze takes no number: the next attempt has that of the one before."""

    def _did_not_succeed(self, key: Key, row: JobRow, failure: Failure, wall: float) -> None:
        row.attempts -= failure.verdict == Verdict.SNOOZED
        super()._did_not_succeed(key, row, failure, wall)


class KeepsNoCheckpoints(MemoryStore):
    """What a job keeps is in the broker's memory only."""

    def keep_checkpoints(self, rows: Iterable[JobRow]) -> None:
        pass


class KeepsSlotsOfTheDead(Core):
    """What a job took of its limits is gone with its process."""

    def died(self, key: Key, claims: Sequence[Claim], death: ProcessExit, wall: float) -> None:
        leased = self._consumers[key].leased
        running = [leased[claim.number] for claim in claims if claim.number in leased]
        super().died(key, claims, death, wall)
        for row in running:
            for limit, keeper in self.ready._partition(partition_of(row.spec, row.constraints)).limits:
                keeper.state.enter(limit, key, [row], wall)


class OtherReadyJobs(Core):
    """With partitions that have a bug."""

    kind = ReadyJobs
    limits = SharedLimits

    def __init__(self, queues: Iterable[str], memory_bytes: int, kill_grace_s: float, **more: Any) -> None:
        super().__init__(queues, memory_bytes, kill_grace_s, **more)
        self.ready = self.kind({}, memory_bytes, 1, more["capacities"])
        self.ready._limits = self.limits(1, more["capacities"])


class LetsOthersPass(OtherReadyJobs):
    """Who waits for a retry is forgotten by its key."""

    class kind(ReadyJobs):
        def left(self, key: int, rows: Sequence[JobRow], _leaving: Release) -> None:
            super().left(key, rows, Release.ENDED)


class LimitsUntilRestart(OtherReadyJobs):
    """What was queued when a broker started goes past its limits."""

    class kind(ReadyJobs):
        was_found = False

        def found(self, partition: Partition, waiting: int, first_seq: int) -> None:
            super().found(partition, waiting, first_seq)
            self.was_found = True

        def _room(self, partition: Any, key: int, now: float) -> int:
            rooms = [
                keeper.state.room(limit, key, partition.held[0], now)
                for limit, keeper in partition.limits
                if not self.was_found or limit.kind in ("order", "rate")
            ]
            return min(rooms, default=UNLIMITED)


class RemembersKeys(OtherReadyJobs):
    """What is empty stays where it is."""

    class kind(ReadyJobs):
        def _forget(self, partition: Any) -> None:
            pass


class RemembersLimits(OtherReadyJobs):
    """What a key has used of its limits is known for ever."""

    class limits(SharedLimits):
        def forget(self, *_: Any) -> None:
            pass


class LetsJobsWait(Core):
    """What waits behind a long job is taken back for an idle consumer only."""

    def looks(self, _now: float) -> list[Key]:
        return []

    def next_look(self, _now: float) -> None:
        return None


class OrderUntilRestart(MemoryStore):
    """Who waits for a retry is forgotten by its key, when the broker dies."""

    def retried_in_order(self) -> list[JobRow]:
        return []


class RatesUntilRestart(MemoryStore):
    """A new broker counts anew."""

    def rates(self, _now: float) -> dict[str, Starts]:
        return {}


class UniqueUntilRestart(MemoryStore):
    """A new broker does not know who has which unique key."""

    def _load(self) -> None:
        super()._load()
        for record in list(self._jobs.values()):
            self._change(record.seq, unique_key=None)


class FiresWithoutMoving(Scheduler):
    """A fire is recorded, and not that its schedule has fired."""

    def _fire(self, tx: Transaction) -> None:
        put, tx.store.put_schedule = tx.store.put_schedule, lambda _row: None  # type: ignore[method-assign]
        super()._fire(tx)
        tx.store.put_schedule = put  # type: ignore[method-assign]


class MovesWithoutFiring(Scheduler):
    """That a schedule has fired is recorded before its job is."""

    def _fire(self, tx: Transaction) -> None:
        late: list[Submission] = []
        submit, tx.try_submit = tx.try_submit, late.append  # type: ignore[method-assign]
        super()._fire(tx)
        tx.store.commit()
        for submission in late:
            submit(submission)


class SchedulesRestUntilRestart(MemoryStore):
    """A pause of a schedule is in memory only."""

    def put_schedule(self, row: ScheduleRow) -> None:
        super().put_schedule(row)
        self._changes.schedules[row.schedule.name] = row._replace(is_paused=False)


class RemovesSchedulesUntilRestart(MemoryStore):
    """A schedule that was removed is gone from memory only."""

    def remove_schedule(self, name: str) -> None:
        super().remove_schedule(name)
        del self._changes.schedules[name]


class ForgetsLastFires(Scheduler):
    """A new broker does not know which jobs the schedules have made."""

    def _hold(self, name: str, row: ScheduleRow | None, wall: float) -> None:
        is_new = row is not None and name not in self._rows
        super()._hold(name, row._replace(last_at=None, last_id=None) if row is not None and is_new else row, wall)


BUGS = {
    "a fire that does not move its schedule": (
        Parts(scheduler=FiresWithoutMoving),
        {"a_time_fires_once", "fires_do_not_meet"},
    ),
    "a schedule that moves before it fires": (
        Parts(scheduler=MovesWithoutFiring, commit_kills=0.01),
        {"due_times_are_not_forgotten"},
    ),
    "a pause of a schedule that does not last": (
        Parts(store=SchedulesRestUntilRestart),
        {"schedules_fire_when_they_are_to"},
    ),
    "a removal of a schedule that does not last": (
        Parts(store=RemovesSchedulesUntilRestart),
        {"schedules_fire_when_they_are_to"},
    ),
    "fires that are forgotten": (Parts(scheduler=ForgetsLastFires), {"fires_do_not_meet"}),
    "a slot of a limit that the dead keep": (Parts(core=KeepsSlotsOfTheDead), {"limited_jobs_end"}),
    "a slot of a recalled lease that also runs": (
        Parts(take_back_is_heeded=False),
        {"never_more_at_once_than_allowed", "never_more_than_there_is"},
    ),
    "an order that a retry loses": (Parts(core=LetsOthersPass), {"keys_run_in_order"}),
    "an order that does not last": (Parts(store=OrderUntilRestart, commit_kills=0.02), {"keys_run_in_order"}),
    "limits that do not last": (Parts(core=LimitsUntilRestart), {"never_more_at_once_than_allowed"}),
    "capacities that do not last": (Parts(core=LimitsUntilRestart), {"never_more_than_there_is"}),
    "keys that are never forgotten": (Parts(core=RemembersKeys), {"keys_that_went_are_forgotten"}),
    "limits of keys that are never forgotten": (Parts(core=RemembersLimits), {"keys_that_went_are_forgotten"}),
    "jobs that wait behind one that hangs": (Parts(core=LetsJobsWait), {"urgent_jobs_do_not_starve"}),
    "a rate that does not last": (Parts(store=RatesUntilRestart, commit_kills=0.02), {"no_more_starts_than_the_rate"}),
    "a unique key that does not last": (Parts(store=UniqueUntilRestart, commit_kills=0.02), {"one_of_a_kind"}),
    "a pause that nobody heeds": (Parts(core=PausesNothing), {"paused_queues_rest"}),
    "a purge that does not last": (Parts(store=PurgesUntilRestart), {"purged_is_gone"}),
    "a retry that does not last": (Parts(store=RetriesUntilRestart), {"retried_is_retried"}),
    "an attempt without a number": (Parts(core=ForgetsSnoozedAttempts), {"attempts_are_numbered_once"}),
    "checkpoints that are not stored": (Parts(store=KeepsNoCheckpoints), {"what_was_kept_is_found"}),
    "acknowledges before the commit": (Parts(committer=AcknowledgesBeforeCommit), {"no_acked_job_is_lost"}),
    "tells results before the commit": (
        Parts(committer=TellsBeforeCommit, commit_kills=0.02),
        {"results_never_change", "the_end_is_the_end"},
    ),
    "synchronous=NORMAL under power loss": (Parts(store=SyncsNowAndThen), {"no_acked_job_is_lost"}),
    "delete on dequeue": (
        Parts(store=DeletesOnDequeue, forgets_what_it_sends=True, full_disks=0.0),
        {"no_acked_job_is_lost"},
    ),
    "a resend is another job": (Parts(store=TakesEverySubmitAsNew), {"an_id_is_one_job", "the_end_is_the_end"}),
    "late outcomes of another incarnation": (
        Parts(reads_words_of_predecessor=True),
        {"runs_again_only_for_a_reason", "the_end_is_the_end"},
    ),
    "deaths are noticed by timeout": (Parts(death_told_after_s=60.0), {"a_death_is_seen_at_once"}),
    "a forgotten requeue": (Parts(core=ForgetsBatchMates), {"no_acked_job_is_lost"}),
    "charged for the neighbour's crash": (Parts(core=ChargesTheNeighbour), {"only_the_guilty_are_charged"}),
    "a recalled lease that also runs": (Parts(take_back_is_heeded=False), {"runs_again_only_for_a_reason"}),
}

BUGS.update(CANCEL_BUGS)
BUGS.update(COMMIT_BUGS)
BUGS.update(FLOW_BUGS)
BUGS.update(OUTCOME_BUGS)
BUGS.update(SUPERVISION_BUGS)
BUGS.update(TURN_BUGS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug: str) -> None:
    """Each by the invariant that it breaks; other things may be wrong besides, up to a broker that no longer runs."""
    parts, expected = BUGS[bug]
    for seed in dict.fromkeys((FOUND_IN.get(bug, 0), *range(ENOUGH))):
        try:
            wrong = judge(seed, parts)
        except (KeyError, AssertionError):
            wrong = [BREAKS_THE_BROKER]
        if expected & {line.partition(":")[0] for line in wrong}:
            return
    raise AssertionError(f"{ENOUGH} lives, and nobody noticed")


def test_planted_bugs_replace_what_is_there() -> None:
    """A method that was renamed since would leave the bug out, and its search without end."""
    kinds = [kind for parts, _ in BUGS.values() for kind in vars(parts).values() if isinstance(kind, type)]
    kinds += [kind.kind for kind in kinds if "kind" in vars(kind)]
    idle = [
        f"{kind.__name__}.{name}"
        for kind in kinds
        if kind.__module__.startswith(("test_", "planted_"))
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not any(hasattr(base, name) for base in kind.__mro__[1:])
    ]
    assert idle == ["DeletesOnDequeue.forget"]  # which is called since `forgets_what_it_sends`
    assert FOUND_IN.keys() <= BUGS.keys()


# -- the judge, invariant by invariant


def good_history() -> History:
    """Two jobs: one succeeded, one was killed once and succeeded then."""
    history = History(restart_within_s=1.0)
    for number, job in enumerate(("a", "b")):
        history.intents[job] = f"digest {job}"
        history.acked[job] = float(number)
        history.limits[job] = Limits(1, 3)
    history.starts = [Start("a", 1, "p1", 2.0, "digest a"), Start("b", 1, "p1", 4.0, "digest b")]
    history.ends = [End("a", 1, "p1", 3.0, True)]
    history.deaths["p1"] = 5.0
    history.starts.append(Start("b", 2, "p2", 5.5, "digest b"))
    history.ends.append(End("b", 2, "p2", 6.0, True))
    history.reads = [Read("a", "succeeded", "ra", 3.5), Read("b", "succeeded", "rb", 6.5)]
    history.final = {"a": Final("succeeded", 1, 0, "ra"), "b": Final("succeeded", 2, 1, "rb")}
    history.totals = {"enqueued": 2, "succeeded": 2, "failed": 0, "cancelled": 0, "crashed": 1}
    history.final_after_restart = dict(history.final)
    return history


def test_a_good_history_is_good() -> None:
    assert check(good_history()) == []


def changed(**changes: Any) -> History:
    history = good_history()
    for name, value in changes.items():
        setattr(history, name, value)
    return history


#: Job a still runs when job b starts.
OVERLAP = [End("a", 1, "p1", 4.5, True), End("b", 2, "p2", 6.0, True)]


def both(value: Any) -> dict[str, Any]:
    """The same of both jobs."""
    return {"a": value, "b": value}


def planned(overlap: Any = "allow", removal_asked_at: float = 2.5, **fields: Any) -> dict[str, Any]:
    """A schedule whose jobs a and b are, for 1 and for 2 seconds."""
    schedule = Schedule("s", Spec("t"), bytes(NO_JOB), every_s=1.0, misfire="all", overlap=overlap)
    fires = {"a": Fire("s", 1.0, 1.0), "b": Fire("s", 2.0, 2.0)}
    return {"plans": {"s": Plan(schedule, 0.1, 0.2, removal_asked_at=removal_asked_at, **fields)}, "fires": fires}


WRONG: dict[str, History] = {
    "a_time_fires_once": changed(**planned(), made=Counter(a=2, b=1)),
    "schedules_fire_when_they_are_to": changed(**planned(rests=[Rest(1.5, 1.6)])),
    "due_times_are_not_forgotten": changed(**planned(removal_asked_at=4.5)),
    "fires_do_not_meet": changed(**planned("skip"), ends=OVERLAP),
    "fired_jobs_end": changed(**planned(), final={**good_history().final, "a": Final("waiting", 0, 0)}),
    "never_more_at_once_than_allowed": changed(limited=both(Limited(("one", 1))), ends=OVERLAP),
    "never_more_than_there_is": changed(
        limited=both(Limited(resources=(("gpu", 1),))), capacities={"gpu": 1}, ends=OVERLAP
    ),
    "no_more_starts_than_the_rate": changed(limited=both(Limited(rate=("rated", 2, 10.0)))),
    "keys_run_in_order": changed(places={"a": Place("key", 0.0, 1), "b": Place("key", 0.0, 0)}),
    "limited_jobs_end": changed(limited={"a": Limited()}, final={**good_history().final, "a": Final("queued", 0, 0)}),
    "one_of_a_kind": changed(unique=both(UniqueKey("key"))),
    "who_gives_way_has_a_successor": changed(
        unique={"0c": UniqueKey("key", replaces=True)},
        final={**good_history().final, "0c": Final("cancelled", 0, 0)},
    ),
    "urgent_jobs_do_not_starve": changed(
        urgent={"b"}, ends=[End("a", 1, "p1", 3.8, True), End("b", 2, "p2", 6.0, True)]
    ),
    "keys_that_went_are_forgotten": changed(kept_keys=["task key"]),
    "who_is_left_out_knows_the_other": changed(left_out=[LeftOut("c", "d", 1.0, 2.0)]),
    "no_acked_job_is_lost": changed(acked={"a": 0.0, "b": 1.0, "c": 2.0}),
    "nothing_runs_that_nobody_asked_for": changed(intents={"a": "digest a", "b": "other"}),
    "the_unknown_resolves_one_way": changed(acked={}, final={"a": Final("succeeded", 1, 0, "ra")}),
    "an_id_is_one_job": changed(totals={**good_history().totals, "enqueued": 3}),
    "runs_again_only_for_a_reason": changed(starts=[*good_history().starts, Start("a", 1, "p2", 7.0, "digest a")]),
    "retries_are_bounded": changed(limits={"b": Limits(0, 0)}),
    "never_twice_at_a_time": changed(deaths={"p1": 5.8}),
    "results_never_change": changed(reads=[*good_history().reads, Read("a", "failed", "ra", 9.0)]),
    "the_end_is_the_end": changed(starts=[*good_history().starts, Start("a", 2, "p2", 7.0, "digest a")]),
    "totals_add_up": changed(totals={**good_history().totals, "succeeded": 1}),
    "first_come_first_served": changed(in_order=True, acked={"b": 0.0, "a": 1.0}),
    "a_death_is_seen_at_once": changed(
        starts=[*good_history().starts[:2], Start("b", 2, "p2", 7.0, "digest b")],
        ends=[End("a", 1, "p1", 3.0, True), End("b", 2, "p2", 8.0, True)],
        reads=[],
    ),
    "only_the_guilty_are_charged": changed(
        final={"a": Final("succeeded", 2, 1, "ra"), "b": Final("succeeded", 1, 0, "rb")}
    ),
    "cancelled_is_cancelled": changed(cancelled={"b": 3.0}),
    "the_unwanted_end_soon": changed(unwanted=[Unwanted("b", 4.5)]),
    "what_is_said_takes_effect_in_order": changed(out_of_turn=["b"]),
    "nothing_refused_is_there": changed(refused={"b"}),
    "nothing_cancelled_runs_on": changed(cancelled={"b": 5.7}),
    "purged_is_gone": changed(purged={"b": 3.0}, purges={"b"}),
    "retried_is_retried": changed(requeued=Counter(a=1)),
    "paused_queues_rest": changed(queues={"b": "mail"}, pauses=[("mail", 3.5)]),
    "what_was_kept_is_found": changed(kept=[Kept("b", 1, "p1", 4.5, "half")], found=[Found("b", "p2", 5.5, "nothing")]),
    "attempts_are_numbered_once": changed(starts=[*good_history().starts, Start("b", 2, "p2", 7.0, "digest b")]),
    "recovery_changes_nothing": changed(final_after_restart={}),
    "turns_are_bounded": changed(longest_turn=Turn(30.0, 100)),
    "nothing_is_left_over": changed(leaks=["a process is left"]),
}


def flowed(**changes: Any) -> History:
    """Job b comes after job a, which has enqueued job c for its success; d was called off because of b, at first."""
    history = good_history()
    history.after = {"b": {"a": False}, "d": {"b": False, "a": True}}
    history.flows = [("a", "b")]
    history.children = [Children("a", 1, "p1", "ra", ("c",)), Children("b", 1, "p1", "never", ("e",))]
    for job, at in (("c", 7.0), ("d", 8.0)):
        history.intents[job] = f"digest {job}"
        history.starts.append(Start(job, 1, "p2", at, f"digest {job}"))
        history.ends.append(End(job, 1, "p2", at + 0.5, True))
        history.final[job] = Final("succeeded", 1, 0, f"r{job}")
    history.reads.append(Read("d", "cancelled", "because of b", 2.5, called_off=True))
    history.final["d"] = Final("succeeded", 1, 0, "rd", called_back=1)
    history.final["b"] = Final("succeeded", 2, 1, "rb", requeued=1)
    history.retried = {"b"}
    history.totals = {"enqueued": 4, "succeeded": 4, "failed": 1, "cancelled": 1, "crashed": 1}
    history.final_after_restart = dict(history.final)
    for name, value in changes.items():
        setattr(history, name, value)
    return history


def ended(job: str, **fields: Any) -> dict[str, Final]:
    """All ends, but that of one job is another."""
    return {**flowed().final, job: flowed().final[job]._replace(**fields)}


def test_a_good_history_of_flows_is_good() -> None:
    assert check(flowed()) == []


WRONG_FLOWS: list[tuple[str, History]] = [
    ("a_step_waits_its_turn", flowed(ends=[end for end in flowed().ends if end.job != "a"])),
    ("a_step_waits_its_turn", flowed(after={"b": {"a": False, "c": True}})),
    ("a_step_waits_its_turn", flowed(final=ended("a", state="failed"))),
    ("a_step_has_its_turn", flowed(final=ended("d", state="cancelled", called_off=True))),
    ("a_step_has_its_turn", flowed(final=ended("d", state="cancelled", attempts=0))),
    ("a_step_has_its_turn", flowed(final=ended("d", state="waiting"))),
    ("called_back_with_a_retry", flowed(final=ended("d", called_back=2))),
    ("called_back_with_a_retry", flowed(final=ended("b", requeued=0))),
    ("what_is_one_piece_stays_one", flowed(flows=[("a", "b", "x")])),
    ("what_is_one_piece_stays_one", flowed(refused={"a"})),
    ("children_come_with_success", flowed(final={job: end for job, end in flowed().final.items() if job != "c"})),
    ("children_come_with_success", flowed(final=ended("c", state="queued"))),
    ("children_come_with_success", flowed(children=[Children("b", 1, "p1", "never", ("c",))])),
    ("results_never_change", flowed(final=ended("d", called_back=0))),
    ("the_end_is_the_end", flowed(final=ended("d", called_back=0))),
    ("totals_add_up", flowed(totals={**flowed().totals, "cancelled": 0})),
]


@pytest.mark.parametrize(("invariant", "history"), WRONG_FLOWS)
def test_the_judge_sees_what_is_wrong_with_flows(invariant: str, history: History) -> None:
    assert invariant in {line.partition(":")[0] for line in check(history)}


@pytest.mark.parametrize("invariant", WRONG)
def test_the_judge_sees_what_is_wrong(invariant: str) -> None:
    assert invariant in {line.partition(":")[0] for line in check(WRONG[invariant])}
