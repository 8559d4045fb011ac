"""The scheduler in simulated lives: the broker is killed and loses power at every commit, and the clock is set."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from asked import asked
from history import Limits, check
from simulation import Parts, World, digest

from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.scheduler import Scheduler
from taskq.engines.embedded.transaction import Transaction
from taskq.model.errors import StoreFull
from taskq.model.limits import TURN_US
from taskq.model.schedule import NO_JOB, Schedule, ScheduleRow, fired_id, next_fire, payload_for
from taskq.model.spec import Spec
from taskq.protocol.codec import encode_call
from taskq.protocol.submissions import Submission

LIVES = 25
#: Longer than any life.
LIFE_S = 60.0
#: For how long there was no fleet: longer than any interval.
MISSED_S = 3.0


class PeriodicWorld(World):
    """A life in which some schedules fire besides what the clients enqueue."""

    def __init__(
        self, seed: int, parts: Parts | None = None, clock_is_set: bool = False, missed_s: float = 0.0, **fields: Any
    ) -> None:
        self._shift_s = 0.0
        super().__init__(seed, parts)
        random, store = self.random, MemoryStore(self.disk)
        self.schedules = [
            Schedule(
                f"s{number}",
                Spec(random.choice(("ok", "ok", "slow", "fails_once")), retries=2),
                encode_call(NO_JOB, (number,), {}),
                every_s=random.choice((0.1, 0.25, 0.7)),
                **fields,
            )
            for number in range(random.randint(1, 3))
        ]
        for schedule in self.schedules:
            store.put_schedule(ScheduleRow(schedule, next_fire(schedule, self.wall - missed_s)))
            for job_id in self.fires_of(schedule):
                self.history.intents[job_id.hex()] = digest(payload_for(schedule, job_id))
                self.history.limits[job_id.hex()] = Limits(2, 3, True)
        store.commit()
        self.later(self._faults_until - self.now, self._pause)
        if clock_is_set:
            for _ in range(3):
                self.later(random.uniform(0.5, 4.0), self._set_clock)

    def _pause(self) -> None:
        """Ends the fires, so that the life ends."""
        if self.broker is None or not self.broker.is_alive:
            self.later(0.1, self._pause)
            return
        try:
            for schedule in self.schedules:
                pause = partial(self.broker.engine.scheduler.pause, name=schedule.name, is_paused=True)
                asked(self.broker.engine.committer, pause, self.now, self.wall)
        except StoreFull:
            self.later(0.1, self._pause)

    def fires_of(self, schedule: Schedule) -> dict[bytes, float]:
        """Every job that a schedule may make in this life, and its time."""
        assert schedule.every_s is not None
        first = round((super().wall - LIFE_S) / schedule.every_s)
        times = [number * schedule.every_s for number in range(first, first + round(2 * LIFE_S / schedule.every_s))]
        return {fired_id(schedule.name, at): at for at in times}

    @property
    def wall(self) -> float:
        return super().wall + self._shift_s

    def _set_clock(self) -> None:
        self._shift_s = self.random.uniform(-3.0, 3.0)
        self.wake_broker()

    def fired(self, schedule: Schedule) -> list[float]:
        """The times for which there is a job."""
        times = self.fires_of(schedule)
        return sorted(times[bytes.fromhex(job)] for job in self.history.final if bytes.fromhex(job) in times)


def gaps(world: PeriodicWorld) -> list[str]:
    """Times between the first and the last fire of a schedule that have no job."""
    found = []
    for schedule in world.schedules:
        times = world.fired(schedule)
        assert schedule.every_s is not None
        found += [f"{schedule.name}: {a} {b}" for a, b in pairwise(times) if b - a > schedule.every_s * 1.5]
        last_at = MemoryStore(world.disk).schedules()[world.schedules.index(schedule)].last_at
        if times and last_at != times[-1]:
            found.append(f"{schedule.name}: {last_at} and {times[-1]}")
    return found


def test_no_kill_doubles_or_loses_a_fire() -> None:
    """With "all" there is a job for each time, and it ran as any other job."""
    fired = ends = 0
    for seed in range(LIVES):
        world = PeriodicWorld(seed, misfire="all")
        assert check(world.run()) == [], seed
        assert gaps(world) == [], seed
        fired += sum(len(world.fired(schedule)) for schedule in world.schedules)
        ends += len(world.history.broker_rests)  # of brokers, mostly killed, some stopped
    assert fired > 10 * LIVES
    assert ends > LIVES / 2


def test_a_clock_that_is_set_lets_no_more_start_than_the_rate() -> None:
    """Unless the broker was restarted meanwhile: what was before it then knows by the clock alone."""
    lives = 0
    for seed in range(LIVES):
        world = PeriodicWorld(seed)
        for tenths in range(3, 60, 2):
            world.later(tenths / 10, world._set_clock)
        wrong = [line for line in check(world.run()) if line.startswith("no_more_starts")]
        if not world.history.broker_rests:
            lives += 1
            assert wrong == [], seed
    assert lives > LIVES / 4


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_a_clock_that_is_set_doubles_nothing(misfire: Any) -> None:
    for seed in range(LIVES):
        world = PeriodicWorld(seed, clock_is_set=True, misfire=misfire, jitter_s=seed % 2 / 10)
        wrong = [
            line for line in check(world.run()) if line.startswith(("an_id", "runs_again", "nothing_runs", "totals"))
        ]
        assert wrong == [], seed
        assert misfire != "all" or gaps(world) == [], seed


class NotesFires(Scheduler):
    """Tells when which schedules have fired."""

    fires: ClassVar[list[tuple[str, float]]]

    def _fire(self, tx: Transaction) -> None:
        before = {name: row.last_at for name, row in self._rows.items()}
        super()._fire(tx)
        self.fires += [(name, tx.now) for name, row in self._rows.items() if row.last_at != before[name]]


class WorldOfAnHourAgo(PeriodicWorld):
    """Nothing bad happens, but that the clock is set back by an hour; the broker may be restarted then, and the clock may
    be set right later."""

    def __init__(self, seed: int, is_restarted: bool, is_set_right: bool) -> None:
        NotesFires.fires = []
        super().__init__(seed, Parts(scheduler=NotesFires, plans_schedules=False, full_disks=0.0))
        self.clients.clear()
        self._danger = self._replacements = 0.0
        self._faults_until = self.now + 6.0
        self.later(1.5, lambda: self._set_clock_by(-3_600.0))
        if is_restarted:
            self.later(2.5, self._broker_dies)
        if is_set_right:
            self.later(4.0, lambda: self._set_clock_by(0.0))

    def _pause(self) -> None:
        if self.now < self._faults_until:
            self.later(self._faults_until - self.now, self._pause)
        else:
            super()._pause()

    def _set_clock_by(self, seconds: float) -> None:
        self._shift_s = seconds


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("is_set_right", [False, True])
def test_no_interval_is_silent_since_the_clock_was_set_back(is_restarted: bool, is_set_right: bool) -> None:
    for seed in range(LIVES // 3):
        world = WorldOfAnHourAgo(seed, is_restarted, is_set_right)
        ends_at = world._faults_until
        wrong = [line for line in check(world.run()) if line.startswith(("an_id", "runs_again", "nothing_runs"))]
        assert wrong == [], seed
        for schedule in world.schedules:
            times = [at for name, at in NotesFires.fires if name == schedule.name and at < ends_at]
            assert schedule.every_s is not None
            gap_s = max(b - a for a, b in pairwise([*times, ends_at]))
            assert gap_s < 2.5 * schedule.every_s + 0.35 * is_restarted + 0.1, seed
            assert len(times) > 4


@pytest.mark.parametrize("overlap", ["skip", "buffer_one"])
def test_no_fire_meets_the_job_of_the_one_before(overlap: Any) -> None:
    kept_back = 0
    for seed in range(LIVES):
        world = PeriodicWorld(seed, misfire="all", overlap=overlap)
        assert check(world.run()) == [], seed
        store = MemoryStore(world.disk)
        stored = [store.read(job_id) for schedule in world.schedules for job_id in world.fires_of(schedule)]
        kept_back += sum(
            job is not None and job.row.constraints is not None and job.row.constraints.follows for job in stored
        )
        attempts = world.history.attempts_of()
        for schedule in world.schedules:
            jobs = [fired_id(schedule.name, at).hex() for at in world.fired(schedule)]
            ran = [attempts[job] for job in jobs if job in attempts]
            for before, behind in pairwise(ran):
                assert before[-1][0].at <= behind[0][0].at, seed
                end = before[-1][1]
                assert end is None or end.at <= behind[0][0].at, seed
    assert (kept_back > LIVES) == (overlap == "buffer_one")


@pytest.mark.parametrize("overlap", ["allow", "skip", "buffer_one"])
def test_of_the_missed_fires_the_last_is_left_unless_they_may_overlap(overlap: Any) -> None:
    for seed in range(LIVES):
        world = PeriodicWorld(seed, missed_s=MISSED_S, misfire="all", overlap=overlap)
        world.turn_us = TURN_US  # in turns of a few jobs it takes longer than such a life to make up for all
        started_at = world.wall
        assert check(world.run()) == [], seed
        for schedule in world.schedules:
            times = sorted(world.fires_of(schedule).values())
            missed = [at for at in times if started_at - MISSED_S < at <= started_at]
            fired = world.fired(schedule)
            if overlap == "allow":
                assert fired[: len(missed)] == missed, seed
            else:
                assert fired[0] >= missed[-1], seed


class FullNowAndThen(MemoryStore):
    """There is no room for every fifth change of a schedule."""

    changes = 0

    def commit(self) -> None:
        self.changes += bool(self._changes.schedules)
        if self._changes.schedules and self.changes % 5 == 0:
            raise StoreFull("the disk is full")
        super().commit()


def test_a_full_disk_loses_no_fire() -> None:
    """Neither the jobs nor the next time are recorded; it is tried again, and "all" makes up for it."""
    fired = 0
    for seed in range(LIVES):
        world = PeriodicWorld(seed, Parts(store=FullNowAndThen, plans_schedules=False), misfire="all")
        world.clients.clear()
        assert check(world.run()) == [], seed
        assert gaps(world) == [], seed
        fired += sum(len(world.fired(schedule)) for schedule in world.schedules)
    assert fired > 10 * LIVES


class PlansFirst(Scheduler):
    """The next time of a schedule is recorded before its jobs are."""

    def _fire(self, tx: Transaction) -> None:
        late: list[Submission] = []
        submit, tx.try_submit = tx.try_submit, late.append  # type: ignore[method-assign]
        super()._fire(tx)
        tx.store.commit()
        for submission in late:
            submit(submission)


class FiresFirst(Scheduler):
    """The jobs are recorded before the next time of their schedule is."""

    def _change(self, tx: Transaction, changes: dict[str, ScheduleRow | None]) -> None:
        tx.store.commit()
        super()._change(tx, changes)


def test_these_lives_find_a_fire_that_is_lost() -> None:
    for seed in range(5 * LIVES):
        world = PeriodicWorld(seed, Parts(scheduler=PlansFirst, commit_kills=0.01), misfire="all")
        world.run()
        if gaps(world):
            return
    raise AssertionError("nobody noticed")


def test_a_fire_that_is_repeated_is_the_same_job() -> None:
    """Which a shared store, without such transactions, may rely on. The disk is never full: what this scheduler commits
    too early would not be taken back."""
    for seed in range(LIVES):
        world = PeriodicWorld(seed, Parts(scheduler=FiresFirst, full_disks=0.0), misfire="all")
        assert check(world.run()) == [], seed
