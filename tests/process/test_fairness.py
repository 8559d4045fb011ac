"""Which job waits for which: jobs behind one that hangs or takes long, with a backlog, so that no consumer is idle.

The core decides, and the consumers here are simulated as far as that matters: they claim in order, run, report after 20
ms at the latest, can be stopped, and die. At the end a real fleet.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from apps import jobs
from fleet import Fleet, Gate, starts, wait_until

from taskq.broker.core.core import Core
from taskq.broker.core.leases import ASK_AGAIN_S, BATCH_S, HELD_UP_S, LATE_S, STALLED_S
from taskq.model.attempt import Attempts, Claim, Verdict, pack_success
from taskq.model.effects import ProcessExit
from taskq.model.job import JobRow
from taskq.model.spec import Spec

STEP_S = 0.0005
REPORT_S = 0.020
GOOD = pack_success(1.0, 0.001, None)


class Began(NamedTuple):
    """A job began: which, when, at which consumer."""

    seq: int
    at: float
    key: int


class Consumer:
    """One that runs jobs, each for as long as the test says."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.inbox: deque[tuple[int, JobRow | None]] = deque()
        self.running: dict[int, tuple[JobRow, float, float]] = {}  # by number: from when, to when
        self.unreported: list[tuple[int, float, float]] = []  # number, duration, when it ended
        self.claimed = self.valid_from = 0
        self.is_stopped = self.answers = False

    def claims(self) -> list[Claim]:
        return [Claim(number, started_at) for number, (_, started_at, _) in self.running.items()]

    def step(self, now: float, run_s: Callable[[JobRow], float]) -> list[JobRow]:
        """Lives for a moment; returns what began."""
        began: list[JobRow] = []
        if self.is_stopped:
            return began
        for number, (_, started_at, ends_at) in list(self.running.items()):
            if ends_at <= now:
                del self.running[number]
                self.unreported.append((number, ends_at - started_at, now))
        while self.inbox and len(self.running) < self.slots:
            number, row = self.inbox.popleft()
            if row is None:
                self.answers = True
            elif number >= self.valid_from:
                self.claimed = number
                self.running[number] = row, now, now + run_s(row)
                began.append(row)
        return began

    def is_due(self, now: float) -> bool:
        """Whether it reports now."""
        if self.is_stopped or not (self.unreported or self.answers):
            return False
        return not self.inbox or self.answers or now - self.unreported[0][2] >= REPORT_S


class World:
    """A core and its consumers."""

    def __init__(
        self, run_s: Callable[[JobRow], float], consumers: int = 2, slots: int = 1, *, turns_at_need: bool = False
    ) -> None:
        """
        Args:
            turns_at_need: whether the loop turns only for a report, or when the core says so; else at each step.
        """
        self.core = Core(slots=slots)
        self.turns = 0
        self._turns_at_need, self._turn_at = turns_at_need, 0.0
        self.run_s = run_s
        self.now = 0.0
        self.began: list[Began] = []
        self.consumers: dict[int, Consumer] = {}
        self.taken_back: list[tuple[int, float]] = []  # though nobody idled
        self.idle_s = 0.0  # of all slots together
        self._keys = iter(range(1, 100))
        self._slots = slots
        for _ in range(consumers):
            self.join()

    def join(self) -> int:
        key = next(self._keys)
        self.consumers[key] = Consumer(self._slots)
        self.core.joined(key, self.now)
        return key

    def die(self, key: int) -> int:
        """A consumer is killed, and its successor comes up. Returns the key of that."""
        self.core.died(key, self.consumers.pop(key).claims(), ProcessExit(signal="SIGKILL"), 1e9)
        return self.join()

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Lets time pass."""
        while self.now < until and not stop():
            self.now += STEP_S
            must_turn = not self._turns_at_need or self.now >= self._turn_at
            for key, consumer in self.consumers.items():
                self.began += [Began(row.seq, self.now, key) for row in consumer.step(self.now, self.run_s)]
                self.idle_s += STEP_S * (self._slots - len(consumer.running))
                if consumer.is_due(self.now):
                    self._report(key, consumer)
                    must_turn = True
            if must_turn:
                self.turns += 1
                self._dispatch()
                self.core.take_effects()
                self._turn_at = self.core.next_moment(self.now)

    def _report(self, key: int, consumer: Consumer) -> None:
        told, consumer.unreported, consumer.answers = consumer.unreported, [], False
        numbers, durations_us = [number for number, *_ in told], [int(lasted_s * 1e6) for _, lasted_s, _ in told]
        attempts = Attempts(numbers, [Verdict.SUCCEEDED] * len(told), durations_us, [GOOD] * len(told))
        self.core.settled(key, attempts, self.now, 1e9)

    def _dispatch(self) -> None:
        """As `ConsumerPool.dispatch`."""
        self._send()
        idle = self.core.recalls(self.now)
        looks = [key for key in self.core.looks(self.now) if key not in idle]
        late = [key for key in looks if self.core.waits_too_long(key, self.consumers[key].claims(), self.now)]
        self.taken_back += [(key, self.now) for key in late]
        for key in idle + late:
            consumer = self.consumers[key]
            consumer.valid_from = self.core.sent(key) + 1
            if self.core.recalled(key, consumer.claimed, self.now):
                consumer.inbox.append((consumer.valid_from, None))
        self._send()

    def _send(self) -> None:
        for key, first, rows in self.core.dispatch(self.now, 0.0):
            self.consumers[key].inbox.extend(enumerate(rows, first))

    def began_at(self, seqs: Sequence[int]) -> list[float]:
        """When jobs began first; never is infinitely late."""
        first: dict[int, float] = {}
        for began in self.began:
            first.setdefault(began.seq, began.at)
        return [first.get(seq, inf) for seq in seqs]

    def left_behind(self) -> set[int]:
        """Jobs that wait in the queue, though younger ones have begun."""
        begun = {began.seq for began in self.began}
        held = {row.seq for leased in self.core.leased().values() for _, row in leased}
        return set(range(1, max(begun))) - begun - held


def rows(count: int, first: int, task: str = "t", priority: int = 0, **options: Any) -> list[JobRow]:
    spec = Spec(task, priority=priority, **options)
    return [JobRow(seq, seq.to_bytes(16, "big"), spec, b"x") for seq in range(first, first + count)]


def by_task(**run_s: float) -> Callable[[JobRow], float]:
    """How long the jobs of each task take."""
    return lambda row: run_s[row.spec.task]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("backlog_is_first", [False, True])
def test_urgent_jobs_do_not_wait_behind_a_long_one(slots: int, backlog_is_first: bool) -> None:
    """One sleep(40) in each slot of a consumer, ten jobs of priority 9, 3,000 of 20 ms, two consumers."""
    world = World(by_task(sleep=40.0, urgent=0.020, t=0.020), slots=slots)
    if backlog_is_first:
        world.core.submitted(rows(3_000, first=100))
        world.run(0.1)
    world.core.submitted(rows(slots, first=1, task="sleep", priority=10))
    world.core.submitted(rows(10, first=10, task="urgent", priority=9))
    if not backlog_is_first:
        world.core.submitted(rows(3_000, first=100))
    asked_at = world.now
    world.run(asked_at + 1.0)
    # one consumer is left, and begins one in 20 ms in each slot; before that it ends what it was sent
    assert max(world.began_at(range(10, 20))) - asked_at < 10 * 0.020 + 2 * BATCH_S


@pytest.mark.parametrize("slots", [1, 3])
def test_batch_mates_of_one_that_hangs_have_their_turn(slots: int) -> None:
    """One of many jobs of 1 ms hangs (in each slot): those that wait behind it begin before those that came later."""
    hangs = set(range(2_000, 2_000 + slots))
    world = World(lambda row: 60.0 if row.seq in hangs else 0.001, slots=slots)
    world.core.submitted(rows(8_000 * slots, first=1))
    world.run(20.0, lambda: len(world.began) == 8_000 * slots)
    assert len(world.began) == 8_000 * slots
    order = {began.seq: position for position, began in enumerate(world.began)}
    late = {seq: position - seq for seq, position in order.items() if seq not in hangs}
    # what others run within the time in which a hang is seen, and what each had been sent by then
    assert max(late.values()) <= slots * (HELD_UP_S + REPORT_S + 2 * 1.5 * BATCH_S) / 0.001


def test_who_has_waited_behind_a_hang_does_not_wait_behind_it_again() -> None:
    """Its consumer dies of it, and it comes first again: nobody goes with it, and nobody after it."""
    world = World(by_task(hang=1e9, other=1.0, urgent=0.001, t=0.020))
    world.core.submitted(rows(1, first=1, task="hang", priority=8, max_crashes=9))
    world.core.submitted(rows(1, first=2, task="other", priority=8))
    world.core.submitted(rows(5, first=3, task="urgent", priority=8))
    world.core.submitted(rows(3_000, first=100))
    world.run(0.2)
    [at_hang] = [began.key for began in world.began if began.seq == 1]
    urgent = range(3, 8)
    assert world.began_at(urgent) == [inf] * 5, "both consumers are held up"
    for _ in range(3):
        at_hang = world.die(at_hang)
        world.run(world.now + 0.1)
        assert [began.key for began in world.began if began.seq == 1][-1] == at_hang
        assert [row.seq for _, row in world.core.leased()[at_hang]] == [1]
    world.run(1.5)
    assert max(world.began_at(urgent)) < 1.0 + 0.1


def test_nothing_is_sent_to_the_held_up_again_and_again() -> None:
    """With nobody else to run it, what was taken back waits in its queue, and nobody looks all the time."""
    world = World(by_task(sleep=2.0, t=0.001), consumers=1)
    world.core.submitted(rows(1, first=1, task="sleep"))
    world.core.submitted(rows(10, first=2))
    world.run(1.0)
    assert len(world.taken_back) == 1
    assert sum(world.core.counts().values()) == 10
    world.core.submitted(rows(1, first=20, task="t", priority=1))
    world.run(3.0)
    assert [began.seq for began in world.began] == [1, 20, *range(2, 12)], "by priority, also after that"


@pytest.mark.parametrize("run_s", [0.0006, 0.002, 0.010, 0.030, 0.045])
@pytest.mark.parametrize("slots", [1, 3])
def test_nothing_is_taken_back_from_those_that_do_as_expected(slots: int, run_s: float) -> None:
    """It costs a lock, and the consumer a pause: only while the time that a task takes is not known yet."""
    world = World(by_task(t=run_s), slots=slots)
    world.core.submitted(rows(20_000, first=1))
    world.run(0.2)
    idle_s = world.idle_s
    world.run(2.0)
    assert [at for _, at in world.taken_back if at > 0.2] == []
    assert world.idle_s - idle_s < 0.01 * 2 * slots * 1.8, "and each has the next job there when it ends one"


def test_what_was_sent_to_a_stopped_consumer_goes_to_the_others() -> None:
    """Though these have enough to do; the stopped one gets nothing until it goes on."""
    world = World(by_task(t=0.020))
    world.core.submitted(rows(3_000, first=1))
    world.run(0.2)
    stopped = world.consumers[1]
    stopped.is_stopped = True
    world.run(0.2 + STALLED_S + 0.1)
    assert [row.seq for _, row in world.core.leased()[1]] == [row.seq for row, *_ in stopped.running.values()]
    stopped.is_stopped = False
    world.run(2.0)
    assert max(began.at for began in world.began if began.key == 1) > 1.9
    assert world.left_behind() == set()


def test_a_consumer_that_was_stopped_is_asked_without_a_job() -> None:
    """It has begun nothing of what it was sent; when it goes on, it says so, and has jobs again."""
    world = World(by_task(t=0.001))
    world.consumers[1].is_stopped = True
    world.core.submitted(rows(3_000, first=1))
    world.run(1.0)
    assert world.core.leased()[1] == []
    world.consumers[1].is_stopped = False
    world.run(1.1)
    assert world.began[-1].key == 1 or world.began[-2].key == 1
    assert world.left_behind() == set()


@pytest.mark.parametrize("slots", [1, 3])
def test_priority_holds_though_a_batch_takes_longer_than_expected(slots: int) -> None:
    """Jobs that took 20 microseconds take 4 ms each: no single one is long, and the batch is."""
    slow_from = 30_000
    world = World(lambda row: 0.004 if row.seq >= slow_from else 0.00002, slots=slots)
    world.core._run_times.mean_s["t"] = 0.00002
    world.core.submitted(rows(20_000, first=slow_from))
    world.run(0.010)
    world.core.submitted(rows(1, first=100_000, task="u", priority=9))
    world.run(2.0, lambda: world.began[-1].seq == 100_000)
    assert world.began_at([100_000])[0] < LATE_S + 3 * BATCH_S


def test_who_has_given_back_all_of_it_is_as_new() -> None:
    """Nothing runs there, so nothing can be held up."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(1, first=1))
    core.dispatch(0.0, 0.0)
    assert not core.recalled(1, 0, 0.001), "it had no time to begin"
    core.dispatch(0.001, 0.0)
    core.submitted(rows(5, first=2))
    [batch] = core.dispatch(0.002, 0.0)
    assert len(batch.rows) == 5


def test_a_consumer_that_was_stopped_with_the_lock_is_asked_again_later() -> None:
    """Each attempt takes the broker 2 ms."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(6, first=1))
    core.dispatch(0.0, 0.0)
    core.joined(2, 0.0)
    assert core.recalls(1.0) == core.looks(1.0) == [1]
    core.not_recalled(1, 1.0)
    assert core.recalls(1.001) == core.looks(1.001) == []
    again_at = core.next_recall(1.001)
    assert again_at is not None
    assert again_at == core.next_look(1.001) == pytest.approx(1.0 + ASK_AGAIN_S)
    assert core.recalls(again_at) == [1]


def test_what_comes_back_is_not_charged_to_the_share_of_its_queue() -> None:
    """Two queues of the same weight; what is sent of one is taken back again and again."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(rows(100, first=1, queue="a"))
    core.submitted(rows(100, first=200, queue="b"))
    [batch] = core.dispatch(0.0, 0.0)
    spent_s = {name: queue.spent_s for name, queue in core.ready._queues.items()}
    core.recalled(1, 1, 0.001)
    charged = core.ready._queues[batch.rows[0].spec.queue].spent_s
    assert charged == pytest.approx(max(spent_s.values()) / len(batch.rows))


# -- real fleets


def begun_before(others: Path, path: Path, label: str) -> int:
    """How many jobs noted that they ran before the last one with a label did, which they do in another file."""
    last_at = max(began.at for began in starts(path) if began.label.startswith(label))
    return sum(began.at < last_at for began in starts(others))


@pytest.mark.parametrize("threads", [1, 2])
def test_urgent_jobs_run_while_another_hangs_and_a_backlog_waits(
    start: Callable[..., Fleet], gate: Gate, tmp_path: Path, threads: int
) -> None:
    """Ten of priority 9 are done when most of 600 of priority 0 still wait."""
    start(consumers=2, threads=threads)
    path = str(tmp_path / "log")
    jobs.q.pause("default")
    held = [jobs.hold.options(priority=10).enqueue(gate.path, path) for _ in range(threads)]
    urgent = jobs.note.options(priority=9).enqueue_many([(path, f"urgent{number}") for number in range(10)])
    others = tmp_path / "others"
    jobs.nap_and_note.enqueue_many([(0.02, str(others), "other")] * 600)
    jobs.q.resume("default")
    for job in urgent:
        assert job.wait(timeout=30)
    assert begun_before(others, Path(path), "urgent") < 200
    wait_until(lambda: {job.state() for job in held} == {"running"}, "it is told which jobs run")
    jobs.q.purge("queued")
    gate.open()


def test_mates_of_a_job_that_hangs_run_before_later_ones(
    start: Callable[..., Fleet], gate: Gate, tmp_path: Path
) -> None:
    """One of 3,000 jobs of 1 ms hangs."""
    start(consumers=2)
    path = tmp_path / "log"
    jobs.q.pause("default")
    jobs.nap_and_note.enqueue_many([(0.001, str(path), str(number)) for number in range(300)])
    held = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    last = jobs.nap_and_note.enqueue_many([(0.001, str(path), str(number)) for number in range(300, 3_000)])[-1]
    jobs.q.resume("default")
    assert last.wait(timeout=60)
    late = [position - int(began.label) for position, began in enumerate(starts(path, 3_000))]
    assert max(late) < 1_000, "its mates waited for most of the others"
    assert held.state() == "running"
    gate.open()


def test_a_job_does_not_go_behind_the_hang_again_that_its_consumer_died_of(
    start: Callable[..., Fleet], make_gate: Callable[[], Gate], tmp_path: Path
) -> None:
    """It comes first when the other consumer is free, though a backlog waits there, too."""
    fleet = start(consumers=2).wait_ready()
    path, hang, other = tmp_path / "log", make_gate(), make_gate()
    jobs.hold.options(priority=8, max_crashes=9).enqueue(hang.path, str(path), "hang")
    jobs.hold.options(priority=8).enqueue(other.path, str(path), "other")
    starts(path, 2)
    urgent = jobs.note.options(priority=8).enqueue_many([(str(tmp_path / "urgent"), "urgent")] * 5)
    others = tmp_path / "others"
    jobs.nap_and_note.enqueue_many([(0.02, str(others), "other")] * 600)
    for deaths in range(2):
        began = [began for began in starts(path, 2 + deaths) if began.label == "hang"]
        fleet.kill(began[-1].pid)
    starts(path, 4)
    assert {job.state() for job in urgent} == {"queued"}, "both consumers are held up"
    other.open()
    for job in urgent:
        assert job.wait(timeout=30)
    assert begun_before(others, tmp_path / "urgent", "urgent") < 200
    jobs.q.purge("queued")
    hang.open()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stopped_consumer_that_goes_on_has_jobs_again(
    start: Callable[..., Fleet], gate: Gate, tmp_path: Path, threads: int
) -> None:
    """What it was sent meanwhile was taken back, and it is sent nothing until it has answered."""
    fleet = start(consumers=2, threads=threads).wait_ready()
    pid = fleet.consumer_pids()[0]
    fleet.kill(pid, signal.SIGSTOP)
    assert [job.result(timeout=20) for job in jobs.add.enqueue_many([(number,) for number in range(500)])]
    fleet.kill(pid, signal.SIGCONT)
    path = tmp_path / "log"
    for _ in range(2 * threads):
        jobs.hold.enqueue(gate.path, str(path))
    assert {began.pid for began in starts(path, 2 * threads)} == set(fleet.consumer_pids())
    gate.open()


def test_looks_do_not_wake_a_loop_for_each_job() -> None:
    """Two consumers with jobs of 2 ms report every 20 ms, so the loop turns 100 times a second; looks add a few."""
    world = World(by_task(t=0.002), turns_at_need=True)
    world.core.submitted(rows(5_000, first=1))
    world.run(1.0)
    assert len(world.began) >= 900
    assert world.turns <= 200
    assert not world.taken_back


def test_what_waits_behind_a_long_job_goes_back_though_nothing_else_wakes_the_loop() -> None:
    """Both consumers are busy for long; what waits behind the jobs goes back, to be taken by whichever is free first."""
    world = World(by_task(t=0.002, sleep=40.0), turns_at_need=True)
    world.core.submitted(rows(10, first=1) + rows(2, first=11, task="sleep") + rows(10, first=13))
    world.run(0.1)
    held = {key: [row.spec.task for _, row in leased] for key, leased in world.core.leased().items()}
    assert held == {1: ["sleep"], 2: ["sleep"]}
