"""The waiting jobs against a naive reference: who may go, who is next, and that nobody is forgotten at a limit.

The world below sends jobs to consumers, has them end, fail, come back, come due, expire and be cancelled, in any order.
After each step a brute-force look over all jobs says who may go: an idle consumer must get one of them then.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskq.broker.core import ready as ready_module
from taskq.broker.core import window as window_module
from taskq.broker.core.ready import ReadyJobs
from taskq.broker.core.window import LOAD_BYTES, ROW_BYTES, Portion
from taskq.model.constraints import Constraints
from taskq.model.job import JobRow
from taskq.model.partition import Limit, Partition, partition_of
from taskq.model.rules.limiters import Rate, Release, new_state, unpack
from taskq.model.spec import Spec

CAPACITIES = {"gpu": 3}
#: A rate may hold a job back longer than it must, by a hundredth of its span.
RATE_SLACK = 1.011

TASKS = {
    "plain": {},
    "two": {"concurrency": 2},
    "keyed": {"concurrency": 1},
    "rated": {"rate": (2, 10.0)},
    "ordered": {},
    "ordered_alone": {"concurrency": 1},
    "gpu": {"resources": (("gpu", 1),)},
    "gpus": {"resources": (("gpu", 2),)},
    "all": {"resources": (("gpu", 1),), "concurrency": 2, "rate": (3, 5.0)},
}


def spec_of(task: str, queue: str = "a", priority: int = 0) -> Spec:
    """What jobs of one of the tasks above have in common."""
    return Spec(task, queue, priority=priority, **TASKS[task])  # type: ignore[arg-type]


@dataclass(repr=False)
class Job:
    """A job as the world knows it."""

    seq: int
    spec: Spec
    constraints: Constraints | None
    state: str = "waiting"  # waiting, later (scheduled), sent, ended
    sent_to: int = 0
    is_under_way: bool = False  # it was started, and will be run again
    was_late: bool = False  # it has lost its place, or never had one

    def __repr__(self) -> str:
        constraints = self.constraints and (
            self.constraints.expires_at,
            self.constraints.limit_key,
            self.constraints.order_key,
        )
        return f"<{self.seq} {self.spec.task} {self.spec.queue} {self.spec.priority} {constraints} {self.state}>"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))

    def row(self) -> JobRow:
        """As a store reads it."""
        return JobRow(
            self.seq, self.seq.to_bytes(16, "big"), self.spec, b"x" * (self.seq % 3), constraints=self.constraints
        )

    @property
    def partition(self) -> Partition:
        """Where it waits."""
        return partition_of(self.spec, self.constraints)

    @property
    def name(self) -> tuple[str, str]:
        """Of its order limit, if it has one."""
        return self.spec.task, (self.constraints and self.constraints.order_key) or ""


class World(RuleBasedStateMachine):
    """Anything may happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(window_module, "LOAD_JOBS", 4)
        self.patches.setattr(ready_module, "_SET_ASIDE", 1)
        self.patches.setattr(ready_module, "_WOKEN", 1)
        self.jobs: dict[int, Job] = {}
        self.consumers: dict[int, frozenset[str] | None] = {}
        self.starts: dict[Limit, list[tuple[float, int]]] = {}
        self.grants: dict[tuple[str, str], int] = {}
        self.paused: set[str] = set()
        self.wall = 1e9

    @initialize(memory_rows=st.sampled_from([0, 2, 5, 1_000]), slots=st.sampled_from([1, 3]), has_lanes=st.booleans())
    def begin(self, memory_rows: int, slots: int, has_lanes: bool) -> None:
        """Three consumers; one of them may serve only one queue."""
        self.slots = slots
        self.memory_bytes = memory_rows * ROW_BYTES
        self.consumers = {1: None, 2: frozenset("ab"), 3: frozenset("b")} if has_lanes else dict.fromkeys((1, 2, 3))
        self.ready = self.new_partitions()

    def new_partitions(self) -> ReadyJobs:
        """Nothing waits yet."""
        ready = ReadyJobs({"a": 3.0}, self.memory_bytes, self.slots, CAPACITIES)
        for (kind, name), amount in self.grants.items():
            ready.grant(kind, name, amount)
        return ready

    def teardown(self) -> None:
        """When all ends well, everything runs, and nothing is remembered but for plain partitions."""
        self.patches.undo()
        if not hasattr(self, "ready"):
            return
        for queue in set(self.paused):
            self.pause(queue, False)
        for kind, name in self.grants:
            self.ready.grant(kind, name, None)
        self.grants.clear()
        for _ in range(10 + 3 * len(self.jobs)):
            for job in self.in_state("sent"):
                self.leave(job, Release.ENDED)
            for job in self.in_state("later"):
                self.come_due_one(job)
            self.wall += 11.0
            for key in self.consumers:
                self.take_for(key, 100)
        assert {job.state for job in self.jobs.values()} <= {"ended"}
        assert not any(self.ready.counts().values())
        self.wall += 11.0
        self.ready.open_due(self.wall)
        assert [partition for partition in self.ready._partitions if partition.limits] == []
        assert len(self.ready._partitions) <= len(self.ready._queues)
        assert self.ready._limits.in_use == {}
        assert self.ready._window.dropped == {}
        assert self.ready._window.expired == set()
        assert self.ready._window.held_bytes == 0

    # -- what may happen

    @rule(
        task=st.sampled_from(sorted(TASKS)),
        queue=st.sampled_from("aabbcd"),
        priority=st.sampled_from([0, 0, 1]),
        key=st.sampled_from("xy"),
        count=st.integers(1, 4),
        expires=st.sampled_from([None, None, None, 3.0]),
        is_later=st.sampled_from([False, False, False, True]),
    )
    def submit(
        self, task: str, queue: str, priority: int, key: str, count: int, expires: float | None, is_later: bool
    ) -> None:
        """Jobs come in, now or for later."""
        spec = spec_of(task, queue, priority)
        constraints = Constraints(
            expires_at=None if expires is None else self.wall + expires,
            limit_key=key if task == "keyed" else None,
            order_key=key if task.startswith("ordered") else None,
        ).kept
        new = [Job(seq, spec, constraints) for seq in range(len(self.jobs) + 1, len(self.jobs) + 1 + count)]
        self.jobs.update((job.seq, job) for job in new)
        if is_later:
            for job in new:
                job.state, job.was_late = "later", True
        else:
            self.ready.add([job.row() for job in new])

    @rule(key=st.integers(1, 3), most=st.sampled_from([1, 1, 2, 5]))
    def take(self, key: int, most: int) -> None:
        """A consumer gets jobs."""
        self.take_for(key, most)

    @precondition(lambda self: self.in_state("sent"))
    @rule(data=st.data(), leaving=st.sampled_from([Release.ENDED, Release.ENDED, Release.AGAIN]))
    def end(self, data: st.DataObject, leaving: Release) -> None:
        """A job ends, or will be run again later."""
        self.leave(data.draw(st.sampled_from(self.in_state("sent"))), leaving)

    @precondition(lambda self: self.in_state("sent"))
    @rule(data=st.data(), is_charged=st.booleans(), keeps=st.integers(0, 2))
    def give_back(self, data: st.DataObject, is_charged: bool, keeps: int) -> None:
        """A consumer dies, perhaps at one of its jobs, or what it has not started is taken back."""
        key = data.draw(st.sampled_from(self.in_state("sent"))).sent_to
        held = [job for job in self.in_state("sent") if job.sent_to == key]
        unstarted = held[keeps:] if not is_charged else held[1:]
        self.ready.put_back(key, [job.row() for job in unstarted])
        for job in unstarted:
            job.state = "waiting"
            self.unstart(job)
        if is_charged:
            self.ready.put_back(key, [held[0].row()], Release.AGAIN)
            held[0].state, held[0].is_under_way = "waiting", True

    @precondition(lambda self: self.in_state("later"))
    @rule(data=st.data())
    def come_due(self, data: st.DataObject) -> None:
        """A scheduled job is queued."""
        self.come_due_one(data.draw(st.sampled_from(self.in_state("later"))))

    @precondition(lambda self: self.in_state("ended"))
    @rule(data=st.data())
    def run_again(self, data: st.DataObject) -> None:
        """Somebody has a job that ended run again: it gets a new number, behind all others, and its times are over."""
        old = data.draw(st.sampled_from(self.in_state("ended")))
        constraints = old.constraints and Constraints(None, None, old.constraints.limit_key, old.constraints.order_key)
        job = Job(len(self.jobs) + 1, old.spec, constraints and constraints.kept)
        self.jobs[job.seq] = job
        self.ready.add_unread(job.row())

    @precondition(lambda self: self.in_state("waiting") or self.in_state("later"))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A job that was not sent is cancelled."""
        job = data.draw(st.sampled_from(self.in_state("waiting") + self.in_state("later")))
        if job.state == "waiting":
            self.ready.drop(job.row())
        else:
            self.ready.abandoned(job.row())
        job.state, job.is_under_way = "ended", False

    @precondition(lambda self: self.in_state("waiting"))
    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        """Some that were not sent are removed at once."""
        waiting = [job.seq for job in self.in_state("waiting")]
        purged = [self.jobs[seq] for seq in sorted(data.draw(st.sets(st.sampled_from(waiting), min_size=1)))]
        for job in purged:
            self.ready.drop(job.row())
            job.state, job.is_under_way = "ended", False

    @rule(queue=st.sampled_from("abcd"), is_paused=st.booleans())
    def pause(self, queue: str, is_paused: bool) -> None:
        """A queue is paused or resumed."""
        self.ready.pause(queue, is_paused)
        (self.paused.add if is_paused else self.paused.discard)(queue)

    @rule(seconds=st.sampled_from([0.01, 1.0, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.wall += seconds
        due = self.ready.next_opening()
        if due is not None and due <= self.wall:
            self.ready.open_due(self.wall)

    @rule()
    def restart(self) -> None:
        """A new broker finds what the store has; all consumers are gone, and what they ran was not charged."""
        for job in self.in_state("sent"):
            job.state = "waiting"
        self.ready = self.new_partitions()
        self.starts.clear()
        for queue in self.paused:
            self.ready.pause(queue, True)
        found: dict[Partition, list[int]] = {}
        for job in self.in_state("waiting"):
            job.is_under_way = False
            found.setdefault(job.partition, []).append(job.seq)
        for partition, seqs in found.items():
            self.ready.found(partition, len(seqs), min(seqs))
        for job in self.in_state("later"):
            if job.is_under_way:
                self.ready.under_way(job.row())

    # -- how it happens

    def in_state(self, state: str) -> list[Job]:
        """Jobs, oldest first."""
        return [job for job in self.jobs.values() if job.state == state]

    def leave(self, job: Job, leaving: Release) -> None:
        """A job is with its consumer no more."""
        self.ready.left(job.sent_to, [job.row()], leaving)
        job.state = "ended" if leaving is Release.ENDED else "later"
        job.is_under_way = leaving is Release.AGAIN

    def come_due_one(self, job: Job) -> None:
        """A scheduled job is queued."""
        job.state, job.was_late = "waiting", True
        self.ready.add_late(job.row())

    def unstart(self, job: Job) -> None:
        """It was not started after all."""
        for limit in job.partition.limits:
            if limit.kind == "rate":
                self.starts[limit] = [start for start in self.starts[limit] if start[1] != job.seq] + [
                    start for start in self.starts[limit] if start[1] == job.seq
                ][:-1]

    def read(self, partitions: ReadyJobs) -> None:
        """Loads what the partitions ask for."""
        for _ in range(1_000):
            loads = partitions.loads()
            if not loads:
                return
            for partition, after, limit, max_bytes in loads:
                rows = [job.row() for job in self.in_state("waiting") if job.partition == partition and job.seq > after]
                assert max_bytes <= LOAD_BYTES
                partitions.loaded(partition, rows[:limit], len(rows) < limit)
        raise AssertionError("it reads for ever")

    def may_go(self, key: int, job: Job) -> bool:
        """Whether a job may be sent to a consumer, to the letter of its limits."""
        served = self.consumers[key]
        if job.state != "waiting" or job.spec.queue in self.paused:
            return False
        if served is not None and job.spec.queue not in served:
            return False
        return all(self.has_room(limit, key, job) for limit in job.partition.limits)

    def has_room(self, limit: Limit, key: int, job: Job) -> bool:
        """Whether one more may pass a limit."""
        through = [
            (other, own) for other in self.in_state("sent") for own in other.partition.limits if own[:2] == limit[:2]
        ]
        match limit.kind:
            case "concurrency":
                return self.running(limit, key) <= self.amount(limit)
            case "resource":
                return sum(own.amount for _, own in through) + limit.amount <= self.amount(limit)
            case "rate":
                if not self.free_slots(key):
                    return False
                since = self.wall - limit.period_s * RATE_SLACK
                return sum(at > since for at, _ in self.starts.get(limit, ())) < self.amount(limit)
        same = [other for other in self.jobs.values() if other.name == job.name]
        if self.amount(limit) == 0:
            return False
        if any(other.state == "sent" or (other.is_under_way and other.seq < job.seq) for other in same):
            return False
        return not any(o.state == "waiting" and o.partition == job.partition and o.seq < job.seq for o in same)

    def free_slots(self, key: int) -> int:
        """How many jobs a consumer would start at once."""
        return max(0, self.slots - sum(job.sent_to == key for job in self.in_state("sent")))

    def running(self, limit: Limit, one_more_for: int = 0) -> int:
        """How many jobs may run at once of those that were sent."""
        sent = Counter(
            o.sent_to for o in self.in_state("sent") if any(own[:2] == limit[:2] for own in o.partition.limits)
        )
        if one_more_for:
            sent[one_more_for] += 1
        return sum(min(count, self.slots) for count in sent.values())

    def take_for(self, key: int, most: int) -> list[Job]:
        """Sends jobs to a consumer, and looks at each whether it was its turn."""
        self.read(self.ready)
        self.ready.open_due(self.wall)
        portion = Portion(most, 1.0, 1_000, self.free_slots(key))
        self.in_memory = {row.seq for partition in self.ready._partitions.values() for row in partition.held}
        self.ready.take(key, self.consumers[key], portion, lambda _task: 0.001, self.wall, self.wall)
        for seq in list(self.ready._window.expired):
            job = self.jobs[seq]
            assert job.state == "waiting"
            assert job.constraints is not None
            assert (job.constraints.expires_at or 1e12) <= self.wall
            job.state, job.is_under_way = "ended", False
            self.ready.drop(job.row())
        for row in portion.rows:
            job = self.jobs[row.seq]
            assert row.constraints is None or (row.constraints.expires_at or 1e12) > self.wall
            self.check_turn(key, job)
            is_free = self.free_slots(key) > 0
            job.state, job.sent_to, job.is_under_way = "sent", key, False
            for limit in job.partition.limits:
                if limit.kind == "rate":
                    assert is_free, "a start that counts would come later"
                    starts = self.starts.setdefault(limit, [])
                    starts.append((self.wall, job.seq))
                    recent = [at for at, _ in starts if at > self.wall - limit.period_s]
                    assert len(recent) <= self.amount(limit), "more starts than the rate allows"
                if limit.kind == "concurrency":
                    assert self.running(limit) <= self.amount(limit), "more at once than allowed"
                if limit.kind == "resource":
                    used = sum(dict(job.spec.resources).get(limit.name, 0) for job in self.in_state("sent"))
                    assert used <= self.amount(limit)
                assert limit.kind != "order" or self.amount(limit)
        return [self.jobs[row.seq] for row in portion.rows]

    def check_turn(self, key: int, job: Job) -> None:
        """Among those that may go the higher priority comes first, then the older one."""
        assert job.state == "waiting"
        assert job.spec.queue not in self.paused
        if job.name[1]:
            same = [other for other in self.jobs.values() if other.name == job.name and other is not job]
            assert not any(other.state == "sent" for other in same), "one at a time"
            assert not any(other.is_under_way and other.seq < job.seq for other in same), "the older one first"
        for other in self.in_state("waiting"):
            is_due = other.constraints is None or (other.constraints.expires_at or 1e12) > self.wall
            if other.spec.queue != job.spec.queue or not is_due or other.seq not in self.in_memory:
                continue
            if other.spec.priority > job.spec.priority:
                assert not self.may_go(key, other), "a higher priority goes first"
            if other.spec.priority == job.spec.priority and not other.was_late and not job.was_late:
                assert other.seq >= job.seq or not self.may_go(key, other), f"{other} before {job}"

    @rule(which=st.integers(0, 1_000), amount=st.sampled_from([None, 0, 1, 2, 3]))
    def grant(self, which: int, amount: int | None) -> None:
        """Others that share a limit let this fleet use less of it, or more."""
        names = sorted({limit[:2] for job in self.jobs.values() for limit in job.partition.limits})
        if names:
            kind, name = names[which % len(names)]
            self.grants.pop((kind, name), None)
            if amount is not None:
                self.grants[kind, name] = amount
            self.ready.grant(kind, name, amount)

    @rule()
    def pack(self) -> None:
        """What is made of a packed state behaves as that state."""
        for (kind, _), shared in self.ready._limits.in_use.items():
            granted = shared.state.granted
            shared.state = unpack(kind, shared.state.pack())
            shared.state.granted = granted

    def amount(self, limit: Limit) -> int:
        """How much of a limit may be used now."""
        most = CAPACITIES[limit.name] if limit.kind == "resource" else limit.amount
        return min(most, self.grants.get(limit[:2], most))

    # -- what always holds

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """While a job may go, an idle consumer that serves its queue gets one."""
        for key in self.consumers if hasattr(self, "ready") else ():
            if any(job.sent_to == key for job in self.in_state("sent")):
                continue
            able = [job for job in self.in_state("waiting") if self.may_go(key, job)]
            if able:
                # these are shared: from Python 3.14 on itertools.count cannot be copied
                shared = self.ready._ties, self.ready._limits._ties
                partitions = deepcopy(self.ready, {id(ties): ties for ties in shared})
                self.read(partitions)
                partitions.open_due(self.wall)
                assert partitions.may_send()
                assert partitions.ready(10) > 0, f"nobody is ready, but {able}"
                portion = Portion(1, 1.0, 1_000, self.slots)
                partitions.take(key, self.consumers[key], portion, lambda _task: 0.001, self.wall, self.wall)
                if partitions.is_short:  # all that memory had of it was cancelled: it asks for more at once
                    self.read(partitions)
                    partitions.take(key, self.consumers[key], portion, lambda _task: 0.001, self.wall, self.wall)
                assert portion.rows or partitions._window.expired, f"lost: {able}"

    @invariant()
    def counts_agree(self) -> None:
        """Each queue counts the jobs that wait, and memory those that it holds."""
        if not hasattr(self, "ready"):
            return
        waiting = Counter(job.spec.queue for job in self.in_state("waiting"))
        assert {name: count for name, count in self.ready.counts().items() if count} == dict(waiting)
        held = [row for partition in self.ready._partitions.values() for row in partition.held]
        assert self.ready._window.held_bytes == sum(len(row.payload) + ROW_BYTES for row in held)

    @invariant()
    def each_waiting_job_is_in_one_place(self) -> None:
        """It is in memory or on disk."""
        if not hasattr(self, "ready"):
            return
        places = Counter(row.seq for partition in self.ready._partitions.values() for row in partition.held)
        places.subtract(self.ready._window.dropped)
        for partition in self.ready._partitions.values():
            if partition.on_disk_after is not None:
                places.update(
                    job.seq
                    for job in self.in_state("waiting")
                    if job.partition == partition.partition and job.seq > partition.on_disk_after
                )
        assert sorted(places.elements()) == [job.seq for job in self.in_state("waiting")]


World.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestWorld = World.TestCase


# -- rules, one by one


def rows(
    task: str, count: int, first: int = 1, constraints: Constraints | None = None, **options: object
) -> list[JobRow]:
    """Rows of one batch."""
    spec = spec_of(task, **options)  # type: ignore[arg-type]
    return [
        JobRow(seq, seq.to_bytes(16, "big"), spec, b"", constraints=constraints) for seq in range(first, first + count)
    ]


def take(partitions: ReadyJobs, key: int = 1, most: int = 100, free_slots: int = 0, wall: float = 1e9) -> list[int]:
    """What a consumer gets."""
    portion = Portion(most, 1e9, 1 << 30, free_slots)
    partitions.take(key, None, portion, lambda _task: 0.001, wall, wall)
    return [row.seq for row in portion.rows]


def test_starts_that_count_are_sent_to_free_slots_only() -> None:
    """Behind other jobs they would start later than they are counted, and jobs of several spans at once."""
    partitions = ReadyJobs()
    partitions.add(rows("plain", 2))
    partitions.add(rows("rated", 3, first=3))
    partitions.add(rows("plain", 2, first=6))
    assert take(partitions, key=1, most=2) == [1, 2]
    assert take(partitions, key=1) == [], "nothing goes past it, else there might never be a free seat"
    assert take(partitions, key=2, free_slots=1) == [3]
    assert take(partitions, key=3, free_slots=8) == [4, 6, 7], "two in the span"


def test_many_keys_of_a_rate() -> None:
    partitions = ReadyJobs()
    for seq in range(1, 1_001):
        partitions.add(rows("rated", 1, first=seq, constraints=Constraints(limit_key=f"k{seq}")))
    partitions.add(rows("plain", 1, first=1_001))
    assert take(partitions) == []
    assert take(partitions, key=2, most=2_000, free_slots=1_000) == list(range(1, 1_002))


def test_a_rate_that_has_only_dropped_jobs_is_skipped() -> None:
    partitions = ReadyJobs()
    [row] = rows("rated", 1)
    partitions.add([row])
    partitions.add(rows("plain", 1, first=2))
    partitions.drop(row)
    assert take(partitions) == [2]


def test_the_order_of_a_key_is_kept_when_a_crashed_one_comes_back_unstarted() -> None:
    """Its crash has sent it to another queue: what is younger waits in the first one, also after a recall."""
    partitions = ReadyJobs()
    first, second = rows("ordered", 2, constraints=Constraints(order_key="key"))
    partitions.add([first, second])
    assert take(partitions) == [1]
    partitions.left(1, [first], Release.AGAIN)
    first.attempts, first.spec = 1, spec_of("ordered", "other")
    partitions.add_late(first)
    assert take(partitions) == [1]
    partitions.put_back(1, [first])
    partitions.pause("other", True)
    assert take(partitions) == []
    partitions.pause("other", False)
    assert take(partitions) == [1]


def test_a_closed_limit_forgets_who_was_purged_before_it() -> None:
    """Others pass it, and look who waits there."""
    partitions = ReadyJobs(capacities=CAPACITIES)
    first, purged = rows("gpus", 2)
    partitions.add([first, purged])
    assert take(partitions) == [1]
    partitions.drop(purged)
    partitions.add(rows("gpu", 1, first=3))
    assert take(partitions) == [3]


def test_whose_turn_it_was_when_it_was_purged_hands_it_on() -> None:
    """A limit that opens lists one partition; when that has nothing any more, the next one is due."""
    partitions = ReadyJobs(capacities={"gpu": 2})
    [running] = rows("gpus", 1)
    [purged] = rows("gpu", 1, first=2)
    for row in (running, purged, *rows("all", 1, first=3)):
        partitions.add([row])
    assert take(partitions, free_slots=1) == [1]
    assert take(partitions, key=2, free_slots=1) == []
    partitions.left(1, [running], Release.ENDED)
    partitions.drop(purged)
    assert take(partitions, free_slots=1) == [3]


def test_a_long_key_that_cannot_be_read_now_does_not_hold_up_others() -> None:
    """While memory is full, nothing more is read of a key that has jobs there, however many of it are in the store:
    what is read of others in the same look must not become less by that."""
    ready = ReadyJobs(memory_bytes=2 * ROW_BYTES)
    keyed = Constraints(order_key="x").kept
    ready.found(partition_of(spec_of("gpus", "b", 0), None), 1, 1)
    ready.add(rows("ordered", 2 * window_module.LOAD_JOBS, first=2, constraints=keyed))
    assert [load.partition.limits[0].name for load in ready.loads()] == ["gpu"]


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_keys_of_a_queue_that_nobody_serves_are_forgotten_with_their_jobs(memory_bytes: int) -> None:
    """They are cancelled, or expire, and no consumer ever asks for them."""
    partitions = ReadyJobs(memory_bytes=memory_bytes)
    for seq in range(1, 100):
        [row] = rows("ordered", 1, first=seq, constraints=Constraints(order_key=f"k{seq}"))
        partitions.add([row])
        partitions.drop(row)
        window = partitions._window
        assert (partitions._partitions, partitions._limits.in_use, window.dropped, window.held_bytes) == ({}, {}, {}, 0)
    assert not partitions.is_short


def test_queues_and_priorities_that_are_empty_are_forgotten() -> None:
    """All but some: what they have used of their shares still counts, and a status shows them."""
    partitions = ReadyJobs()
    for seq in range(1, 5_001):
        partitions.add(rows("plain", 1, first=seq, queue=f"q{seq % 2_500}", priority=seq % 7))
        assert take(partitions) == [seq]
    assert len(partitions.counts()) == len(partitions._partitions) == 1_000
    for seq in range(5_001, 6_001):
        partitions.add(rows("plain", 1, first=seq, priority=seq % 1_000))
        partitions.add(rows("plain", 1, first=seq + 1_000, queue="z"))
        assert sorted(take(partitions)) == [seq, seq + 1_000]
    assert len(partitions._partitions) == 1_000


def test_a_queue_that_is_empty_now_and_then_has_no_more_than_its_share() -> None:
    """It gets one job whenever the other one is sent; and the more so if it was forgotten in the meantime."""
    partitions = ReadyJobs()
    partitions.add(rows("plain", 100, queue="full"))
    sent = []
    for seq in range(101, 151):
        partitions.add(rows("plain", 1, first=seq, queue="often"))
        sent += take(partitions, most=1)
        sent += take(partitions, most=1)
    assert sum(seq > 100 for seq in sent) == pytest.approx(50, abs=2)


def test_a_line_in_which_nobody_takes_anything_does_not_grow() -> None:
    """Its consumers are busy, and others serve the same queues."""
    partitions = ReadyJobs()
    assert not partitions.may_send_of(frozenset("ab"))
    line = partitions._open.line(frozenset("ab"))
    for seq in range(1, 1_001):
        partitions.add(rows("plain", 1, first=seq, queue="a"))
        assert partitions.may_send_of(frozenset("ab"))
        assert take(partitions) == [seq]
    assert line is not None
    assert len(line._places) < 50
    partitions.add(rows("plain", 2, first=1_001, queue="a"))
    partitions.add(rows("plain", 1, first=1_003, queue="c"))
    portion = Portion(100, 1e9, 1 << 30)
    partitions.take(1, frozenset("ab"), portion, lambda _task: 0.001, 1e9, 1e9)
    assert [row.seq for row in portion.rows] == [1_001, 1_002]


def test_a_rate_that_is_forgotten_before_its_starts_are_kept_does_not_come_back() -> None:
    partitions = ReadyJobs()
    [row] = rows("rated", 1, constraints=Constraints(limit_key="key"))
    partitions.add([row])
    assert take(partitions, free_slots=1) == [1]
    partitions.left(1, [row], Release.ENDED)
    partitions.open_due(1e9 + 20.0)
    assert partitions.changed_rates(1e9, 1e9) == []
    assert partitions._limits.in_use == {}


def test_starts_of_a_rate_are_told_until_they_are_stored() -> None:
    """The disk may be full when they are to be: a successor that does not know them would start too many."""
    partitions = ReadyJobs()
    [row] = rows("rated", 1, constraints=Constraints(limit_key="key"))
    partitions.add([row])
    assert take(partitions, free_slots=1) == [1]
    told = partitions.changed_rates(1e9, 1e9)
    assert len(told) == 1
    assert partitions.changed_rates(1e9, 1e9) == told
    partitions.rates_stored()
    assert partitions.changed_rates(1e9, 1e9) == []


@pytest.mark.parametrize("task", ["two", "rated", "ordered", "gpu"])
def test_a_grant_that_grows_wakes_who_waits(task: str) -> None:
    """Nothing of the limit may be used at first; no time is waited for then."""
    partitions = ReadyJobs(capacities=CAPACITIES)
    constraints = Constraints(order_key="k") if task == "ordered" else None
    waiting = rows(task, 3, constraints=constraints)
    [limit] = partition_of(waiting[0].spec, constraints).limits
    partitions.grant(limit.kind, limit.name, 0)
    partitions.add(waiting)
    assert take(partitions, free_slots=5) == []
    assert partitions.next_opening() is None

    partitions.grant(limit.kind, limit.name, 1)
    assert len(take(partitions, free_slots=1, most=1)) == 1
    assert take(partitions, key=2, free_slots=5) == []
    partitions.grant(limit.kind, limit.name, 0)
    partitions.left(1, [waiting[0]], Release.ENDED)
    assert take(partitions, key=2, free_slots=5) == []
    if task != "rated":
        partitions.grant(limit.kind, limit.name, None)
        assert take(partitions, key=2, free_slots=5)


def test_an_overdrawn_limit_sends_nothing_behind_a_job_that_runs() -> None:
    """It would start when that one ends, while the job of another consumer is one too many still."""
    partitions = ReadyJobs()
    waiting = rows("two", 5)
    partitions.add(waiting)
    assert take(partitions, key=1, most=1) == [1]
    assert take(partitions, key=2, most=1) == [2]
    partitions.grant("concurrency", "two", 1)
    assert take(partitions, key=1) == []
    partitions.left(2, [waiting[1]], Release.ENDED)
    assert take(partitions, key=2) == []
    assert take(partitions, key=1) == [3, 4, 5]


LIMITS = [
    Limit("concurrency", "t", 3),
    Limit("rate", "t", 3, 10.0),
    Limit("order", "t k", 1),
    Limit("resource", "gpu", 1),
]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.kind)
@given(data=st.data())
def test_a_packed_state_behaves_as_that_state(limit: Limit, data: st.DataObject) -> None:
    """Jobs enter and leave in any order; now and then a twin is made by way of `pack`, which then goes the same way."""
    state = new_state(limit, 2, CAPACITIES)
    twin = unpack(limit.kind, state.pack())
    jobs = {row.seq: row for row in rows("plain", 8)}
    sent: dict[int, int] = {}
    now = 100.0
    for _ in range(data.draw(st.integers(1, 20))):
        now += data.draw(st.sampled_from([0.0, 0.2, 5.0]))
        if data.draw(st.booleans()):
            twin = unpack(limit.kind, state.pack())
        key, seq = data.draw(st.integers(1, 2)), data.draw(st.sampled_from(sorted(jobs)))
        if seq in sent:
            leaving = data.draw(st.sampled_from(Release))
            for each in (state, twin):
                each.leave(limit, sent[seq], [jobs[seq]], leaving)
            del sent[seq]
        elif state.room(limit, key, jobs[seq], now):
            for each in (state, twin):
                each.enter(limit, key, [jobs[seq]], now)
            sent[seq] = key
        rooms = [[each.room(limit, key, row, now) for key in (1, 2) for row in jobs.values()] for each in (state, twin)]
        assert rooms[0] == rooms[1]
        assert state.is_idle == twin.is_idle


# -- a limit that partitions of several queues share


@pytest.fixture
def one_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a limit opens, a partition of one queue is listed."""
    monkeypatch.setattr(ready_module, "_WOKEN", 1)


def with_waiting(task: str, gpus: int, queues: str = "abc") -> tuple[ReadyJobs, JobRow]:
    """One job of a task in each queue, that of the first one at a consumer, the others parked."""
    partitions = ReadyJobs(capacities={"gpu": gpus})
    waiting = [row for seq, queue in enumerate(queues, 1) for row in rows(task, 1, first=seq, queue=queue)]
    partitions.add(waiting[:1])
    assert take(partitions, free_slots=1) == [1]
    for row in waiting[1:]:
        partitions.add([row])
    assert take(partitions, key=2, free_slots=1) == []
    return partitions, waiting[0]


@pytest.mark.usefixtures("one_is_woken")
def test_who_is_woken_and_paused_hands_the_turn_on() -> None:
    partitions, first = with_waiting("gpu", 1)
    partitions.left(1, [first], Release.ENDED)
    partitions.pause("b", True)
    assert take(partitions, free_slots=1) == [3]


@pytest.mark.usefixtures("one_is_woken")
def test_paused_queues_are_not_counted_among_those_that_are_woken() -> None:
    partitions, first = with_waiting("gpu", 1, "abcd")
    partitions.pause("b", True)
    partitions.pause("c", True)
    partitions.left(1, [first], Release.ENDED)
    assert take(partitions, free_slots=1) == [4]


@pytest.mark.usefixtures("one_is_woken")
def test_each_one_that_goes_wakes_the_next_while_the_limit_is_open() -> None:
    partitions, first = with_waiting("gpus", 2, "a")
    for seq, queue in enumerate("bc", 2):
        partitions.add(rows("gpu", 1, first=seq, queue=queue))
    assert take(partitions, key=2, free_slots=1) == []
    partitions.left(1, [first], Release.ENDED)
    assert take(partitions, free_slots=5) == [2, 3]


@pytest.mark.usefixtures("one_is_woken")
def test_who_is_parked_at_another_limit_wakes_the_next() -> None:
    partitions, first = with_waiting("gpu", 1, "a")
    partitions.grant("order", "ordered key", 0)
    spec = Spec("ordered", "b", resources=(("gpu", 1),))
    ordered = JobRow(2, (2).to_bytes(16, "big"), spec, b"", constraints=Constraints(order_key="key"))
    partitions.add([ordered])
    partitions.add(rows("gpu", 1, first=3, queue="c"))
    assert take(partitions, key=2, free_slots=1) == []
    partitions.left(1, [first], Release.ENDED)
    assert take(partitions, free_slots=1) == [3]


@pytest.mark.parametrize(("amount", "late_s"), [(1, 1.0), (100, 1.0), (101, 36.0)])
def test_when_a_rate_opens(amount: int, late_s: float) -> None:
    """An hour after the start that is in the way: at most a second later if the rate allows few starts."""
    limit = Limit("rate", "t", amount, 3600.0)
    for now in (0.0, 35.9, 12_345.6, 1e9 + 0.25):
        rate = Rate()
        counted_in = rate.count(limit, amount, now)
        opens_at = rate.opens_at(limit)
        assert now + 3600.0 - 1e-5 <= opens_at <= now + 3600.0 + late_s + 1e-5
        assert (rate.free(limit, opens_at - 1e-3), rate.free(limit, opens_at + 1e-3)) == (0, amount)
        rate.count(limit, amount, opens_at + 1e-3)
        rate.take_out(counted_in, 1)
        assert rate.free(limit, opens_at + 2e-3) == 0, "those of a slot that is forgotten do not count"
    rate = Rate()
    for start in range(10 * amount):
        rate.forget(limit, start * 7.0)
        rate.count(limit, 1, start * 7.0)
    assert len(rate.pack()[0]) <= 102 + (3600 // 7 if amount <= 100 else 0), "it takes little memory"


@pytest.mark.usefixtures("one_is_woken")
def test_who_waits_behind_a_rate_is_woken_at_its_next_opening() -> None:
    partitions = ReadyJobs()
    for seq, queue in enumerate("abcdef", 1):
        partitions.add(rows("rated", 1, first=seq, queue=queue))
    sent, wall = [], 1e9
    for _ in range(3):
        sent += take(partitions, key=len(sent) + 1, free_slots=5, wall=wall)
        opening = partitions.next_opening()
        if opening is not None:
            wall = opening
            partitions.open_due(wall)
    assert sorted(sent) == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("one_is_woken")
def test_consumers_of_other_queues_that_come_later_find_who_waits() -> None:
    partitions, first = with_waiting("gpu", 1)
    partitions.left(1, [first], Release.ENDED)
    portion = Portion(5, 1e9, 1 << 30, 1)
    partitions.take(3, frozenset("c"), portion, lambda _task: 0.001, 1e9, 1e9)
    assert [row.seq for row in portion.rows] == [3]


@pytest.mark.usefixtures("one_is_woken")
def test_queues_take_turns_at_a_limit() -> None:
    partitions = ReadyJobs(capacities={"gpu": 1})
    for seq in range(1, 31):
        partitions.add(rows("gpu", 1, first=seq, queue="abc"[seq % 3]))
    sent: list[int] = []
    for _ in range(30):
        [seq] = take(partitions, most=1, free_slots=1)
        partitions.left(1, [rows("gpu", 1, first=seq, queue="abc"[seq % 3])[0]], Release.ENDED)
        sent.append(seq)
    assert all(len({seq % 3 for seq in sent[start : start + 3]}) == 3 for start in range(0, 27, 3))


# -- a job that is alone


def _both(*queued: JobRow) -> tuple[ReadyJobs, ReadyJobs]:
    """The same jobs twice."""
    pair = ReadyJobs(weights={"a": 2.0}), ReadyJobs(weights={"a": 2.0})
    for ready in pair:
        for each in queued:
            ready.add([each])
    return pair


def _told(ready: ReadyJobs) -> tuple[object, ...]:
    return ready.counts(), ready.may_send(), ready.has_some, ready.ready(10), ready.loads(), ready._window.held_bytes


def test_a_job_that_is_alone_is_taken_as_any_other() -> None:
    job = JobRow(1, bytes(16), Spec("t", "a"), b"x")
    quick, usual = _both(job)
    portion = Portion(1, 1.0, 1_000, 1)
    usual.take(1, None, portion, lambda _task: 0.5, 0.0, 0.0)
    assert quick.take_lone(lambda _task: 0.5) == (job, 0.5) == (portion.rows[0], portion.work_s)
    assert _told(quick) == _told(usual)
    later = [JobRow(seq, bytes(16), Spec("t", queue), b"x") for seq, queue in ((2, "a"), (3, "b"), (4, "a"))]
    for ready in (quick, usual):
        for each in later:
            ready.add([each])
        portion = Portion(9, 9.0, 1_000, 9)
        ready.take(1, None, portion, lambda _task: 0.5, 0.0, 0.0)
        assert sorted(row.seq for row in portion.rows) == [2, 3, 4]
    assert _told(quick) == _told(usual)
    assert quick._queues["a"].spent_s == usual._queues["a"].spent_s


@pytest.mark.parametrize(
    "jobs",
    [
        [],
        [("a", {}, {}), ("a", {}, {})],
        [("a", {}, {}), ("b", {}, {})],
        [("a", {}, {}), ("a", {"priority": 1}, {})],
        [("a", {"concurrency": 1}, {})],
        [("a", {}, {"crashes": 1})],
    ],
    ids=["none", "two", "two queues", "two priorities", "a limit", "it has crashed"],
)
def test_what_is_not_alone_and_free_of_limits_goes_the_usual_way(
    jobs: list[tuple[str, dict[str, Any], dict[str, Any]]],
) -> None:
    rows = [
        JobRow(seq, bytes(16), Spec("t", queue, **options), b"x", **own)
        for seq, (queue, options, own) in enumerate(jobs, 1)
    ]
    quick, untouched = _both(*rows)
    assert quick.take_lone(lambda _task: 0.5) is None
    assert _told(quick) == _told(untouched)


def test_a_dropped_or_paused_job_is_not_taken() -> None:
    job = JobRow(1, bytes(16), Spec("t", "a"), b"x")
    for spoil in (lambda ready: ready.drop(job), lambda ready: ready.pause("a", True)):
        ready = ReadyJobs()
        ready.add([job])
        spoil(ready)
        assert ready.take_lone(lambda _task: 0.5) is None
