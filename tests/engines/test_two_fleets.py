"""Two fleets on one database, scripted: what they share, nobody keeps for himself, and nothing is kept for keys that are
not used any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import SCHEMA
from postgres import Server
from scripted_database import PostgresPlace
from scripted_fleet import ScriptedFleet

from taskq.engines.postgres.exchanges import Reap
from taskq.engines.postgres.opening import drive
from taskq.model.job import JobState
from taskq.model.partition import Partition
from taskq.model.spec import Spec
from taskq.protocol.postgres.kinds import KEPT_S

KEYED = Spec("keyed", concurrency=1, rate=(100, 1.0))
HOUR_S = 3_600.0


@pytest.fixture
def place(tmp_path: Path, postgres: Server) -> Iterator[PostgresPlace]:
    yield (place := PostgresPlace(tmp_path / "one", postgres))
    place.close()


@pytest.fixture
def fleets(place: PostgresPlace, tmp_path: Path) -> Iterator[tuple[ScriptedFleet, ScriptedFleet]]:
    """Two fleets of two machines."""
    one = ScriptedFleet(place, place.clock())
    two = ScriptedFleet(place.another(tmp_path / "two"), place.clock())
    yield one, two
    for fleet in (one, two):
        fleet.close()
        assert not [fields for event, fields in fleet.told.log.told if event == "database.refused"]


@pytest.fixture
def one(fleets: tuple[ScriptedFleet, ScriptedFleet]) -> ScriptedFleet:
    return fleets[0]


@pytest.fixture
def two(fleets: tuple[ScriptedFleet, ScriptedFleet]) -> ScriptedFleet:
    return fleets[1]


# -- fair parts of limits

FEW = Spec("few", concurrency=4)
#: What a job of a busy fleet takes.
JOB_S = 0.05


class Busy:
    """A fleet whose consumers begin the next job as soon as one has ended."""

    def __init__(self, fleet: ScriptedFleet, consumers: int) -> None:
        self.fleet = fleet
        self.consumers = [fleet.consumer() for _ in range(consumers)]
        self.done = 0

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(consumer.running is not None for consumer in self.consumers)

    def go_on(self) -> None:
        """Each job ends that was begun before, and all consumers begin one if there is one for them."""
        for consumer in self.consumers:
            if consumer.running is not None:
                consumer.succeed()
                self.done += 1
            consumer.begin()


def let_them_work(busy: list[Busy], rounds: int, most: int) -> None:
    for _ in range(rounds):
        for each in busy:
            each.go_on()
            assert sum(other.running for other in busy) <= most, "the limit holds"
        busy[0].fleet.clock.now += JOB_S


@pytest.mark.parametrize("spec", [FEW, Spec("one", concurrency=1)], ids=["4 at once", "1 at once"])
def test_a_busy_fleet_leaves_another_its_part(one: ScriptedFleet, two: ScriptedFleet, spec: Spec) -> None:
    """Each has jobs without end, and the first has all of the limit before the second comes."""
    assert spec.concurrency is not None
    one.add(2_000, spec)
    first = Busy(one, 4 if spec is FEW else 1)
    let_them_work([first], 6, spec.concurrency)
    assert first.done >= 3 * spec.concurrency
    second = Busy(two, 4 if spec is FEW else 1)
    both = [first, second]
    let_them_work(both, 15, spec.concurrency)
    before = first.done, second.done
    let_them_work(both, 25, spec.concurrency)
    done = first.done - before[0], second.done - before[1]
    assert min(done) >= sum(done) / 4, f"{done}: each gets a good part"
    assert sum(done) >= 12 * spec.concurrency, f"{done}: most of the limit is used"
    for consumer in second.consumers:  # it wants no more
        consumer.leave()
    second.consumers.clear()
    two.turn(2)
    one.clock.now += 5.0
    two.turn(2)
    let_them_work(both, 5, spec.concurrency)
    before = first.done
    let_them_work(both, 10, spec.concurrency)
    assert first.done - before >= 8 * spec.concurrency, "an idle fleet has nothing"


def test_a_busy_fleet_leaves_another_its_starts(one: ScriptedFleet, two: ScriptedFleet) -> None:
    spec = Spec("rated", rate=(10, 1.0))
    one.add(500, spec)
    both = [Busy(one, 2), Busy(two, 2)]
    let_them_work(both, 50, 4)
    done = [each.done for each in both]
    assert min(done) >= sum(done) / 4, f"{done}: each gets a good part"
    assert sum(done) >= 15, f"{done}: most of the rate is used"


# -- counts


def counted(fleet: ScriptedFleet) -> tuple[int, int, int]:
    """How many jobs came in, succeeded and failed."""
    counts = [each.total for each in fleet.client.counts()]
    return sum(c.enqueued for c in counts), sum(c.succeeded for c in counts), sum(c.failed for c in counts)


def test_what_came_in_and_ended_is_counted_at_once_whatever_dies(one: ScriptedFleet) -> None:
    """Before its broker has stored what it has counted, and while it does."""
    fleet = one
    for number in range(1, 6):
        fleet.add(1, Spec("fails", retries=0))
        consumer = fleet.consumer()
        consumer.begin()
        consumer.fail()
        consumer.leave()
        fleet.turn(2)
        fleet.add(3)
        fleet.run_all()
        fleet.turn(2)
        assert counted(fleet) == (4 * number, 3 * number, number)
        fleet.let_pass(0.4 * number)
        assert counted(fleet) == (4 * number, 3 * number, number)
        fleet = fleet.die()
        assert counted(fleet) == (4 * number, 3 * number, number)


# -- fleets that stop


def test_a_fleet_that_stops_while_it_asks_for_jobs_leaves_nothing(place: PostgresPlace, one: ScriptedFleet) -> None:
    """Others need not wait until it is taken for lost."""
    one.consumer()
    one.turn(2)
    while not one.engine._work.owes:
        one.clock.now += 0.05
        one.engine.gather(one.clock.now)
        one.engine.step(one.clock.now)
    [(number,)] = place.sql("SELECT fleet FROM taskq.fleets WHERE machine = %s", one.engine._machine)
    one.close()
    assert place.sql("SELECT 1 FROM taskq.fleets WHERE fleet = %s", number) == []


# -- fleets that are lost


def test_a_job_that_another_fleet_has_by_now_is_not_charged_to_the_one_that_is_lost(
    place: PostgresPlace, one: ScriptedFleet, two: ScriptedFleet
) -> None:
    """The last beat of the lost fleet says that it ran the job; it had failed since, and the reaper has it."""
    [job_id] = one.add(1)
    consumer = one.consumer()
    assert consumer.begin() == job_id
    one.let_pass(6.0)  # it beats
    consumer.fail(delay_s=0.1)
    consumer.leave()
    one.turn(2)
    two.let_pass(2.0)
    runs = two.consumer()
    while runs.begin() is None:
        two.let_pass(1.0)
    for _ in range(20):
        two.let_pass(3.0)
    assert place.sql("SELECT count(*) FROM taskq.fleets") == [(1,)], "the other was taken for dead"
    assert two.run_all() == [], "it runs already"
    runs.succeed()
    info = two.client.info(job_id)
    assert (info.state, info.attempts, info.crashes) == (JobState.SUCCEEDED, 2, 0)


def test_a_server_that_stood_still_has_heard_nobody(place: PostgresPlace, postgres: Server, tmp_path: Path) -> None:
    """Whoever is served first when it goes on does not take the others for dead."""
    place.set_lease(6)
    clock = place.clock()
    one, two = ScriptedFleet(place, clock), ScriptedFleet(place.another(tmp_path / "two"), clock)
    for _ in range(8):
        one.let_pass(1.0), two.let_pass(1.0)
    before = one.engine.fleet, two.engine.fleet
    postgres.freeze()
    clock._now += 1.0  # the server is not told, as it cannot hear
    two.engine.step(clock.now)  # it beats
    clock._now += 7.0
    postgres.thaw()
    clock.now += 0.0
    two.turn(2), one.turn(2)
    for _ in range(8):
        two.let_pass(1.0), one.let_pass(1.0)
    assert (one.engine.fleet, two.engine.fleet) == before, "who is taken for dead gets a new number"
    for _ in range(16):
        two.let_pass(1.0)
    assert place.sql("SELECT count(*) FROM taskq.fleets") == [(1,)], "one that is silent is taken for dead"
    one.close(), two.close()


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "known no more"])
def test_a_fleet_that_is_known_no_more_takes_nobody_over(
    place: PostgresPlace, one: ScriptedFleet, two: ScriptedFleet, is_known: bool
) -> None:
    """It has heard nothing of that yet. The database knows it, whatever the fleet believes of itself."""
    fleet, other = one.engine.fleet, two.engine.fleet
    one.clock.now += 60.0
    place.sql("UPDATE taskq.beats SET seen_at = taskq.now_() WHERE fleet = %s", fleet)
    if not is_known:
        place.sql("DELETE FROM taskq.fleets WHERE fleet = %s", fleet)
    reaped = drive(one.engine._work, Reap(fleet, SCHEMA, 6.0), one.clock)
    assert [lost.fleet for lost in reaped.lost] == ([other] if is_known else [])


# -- keys that are not used any more


def keys_of(place: PostgresPlace) -> int:
    return len(place.sql("SELECT 1 FROM taskq.partitions WHERE limits <> '\\x90'"))


def let_hours_pass(*fleets: ScriptedFleet, hours: float) -> None:
    """In steps, as chores are claimed now and then; the fleets beat meanwhile."""
    end = fleets[0].clock.now + hours * HOUR_S
    while fleets[0].clock.now < end:
        fleets[0].clock.now += HOUR_S / 3
        for _ in range(3):
            for fleet in fleets:
                fleet.let_pass(4.0)


def known_keys(fleet: ScriptedFleet) -> int:
    return len(fleet.engine._demand._partitions.keys() & set(fleet.engine._limits.partitions._partitions))


def test_keys_that_nobody_uses_any_more_are_forgotten(
    place: PostgresPlace, one: ScriptedFleet, two: ScriptedFleet
) -> None:
    """By the database, by fleets and by clients; those that have jobs stay."""
    for number in range(20):
        one.add(1, KEYED, limit_key=f"k{number}", order_key=f"k{number}")
    [waits] = one.add(1, KEYED, limit_key="later", due_at=one.clock.time() + 4.0 * HOUR_S)
    ran = one.run_all()
    while len(ran) < 20:
        one.let_pass(1.0)
        ran += one.run_all()
    two.turn(2)
    assert keys_of(place) == 21
    assert known_keys(one) >= 20
    let_hours_pass(one, two, hours=2.0)
    one.add(1, KEYED, limit_key="new")
    assert keys_of(place) == 2
    assert place.sql("SELECT 1 FROM taskq.limits") == []
    assert place.sql("SELECT 1 FROM taskq.grants") == []
    one.turn(2), two.turn(2)
    assert max(known_keys(one), known_keys(two)) <= 2
    assert len(one.client.queue.kinds.partitions) <= 1
    let_hours_pass(one, two, hours=2.5)
    assert waits in one.run_all() + two.run_all()


def test_a_number_that_was_removed_is_of_use_again(
    place: PostgresPlace, one: ScriptedFleet, two: ScriptedFleet
) -> None:
    """A transaction stayed open for hours, and its jobs have the numbers of then; others came in with a new one."""
    spec = Spec("keyed", concurrency=1)
    one.add(1, spec, limit_key="k")
    one.add(1, spec, limit_key="other")
    one.run_all()
    kinds = one.client.queue.kinds
    old = {partition: number for partition, number in kinds.partitions.items() if partition.limits}
    assert len(old) == 2
    let_hours_pass(one, two, hours=2.0)
    assert keys_of(place) == 0
    [newer] = one.add(1, spec, limit_key="k")
    kinds.partitions.update(old)
    [late] = one.add(1, spec, limit_key="k")
    [alone] = one.add(1, spec, limit_key="other")
    numbers = {number for (number,) in place.sql("SELECT partition FROM taskq.queue")}
    assert len(numbers) == 3, "the old numbers are used"
    ran = list[bytes]()
    for _ in range(10):
        ran += one.run_all() + two.run_all()
        one.let_pass(1.0)
        two.let_pass(1.0)
    assert set(ran) == {newer, late, alone}
    assert {one.client.info(job_id).state for job_id in ran} == {JobState.SUCCEEDED}
    assert keys_of(place) == 2


def test_clients_look_a_number_up_again_before_it_may_be_removed(place: PostgresPlace, one: ScriptedFleet) -> None:
    """A key that is used now and then stays, with the number that it has."""
    found = set[int]()
    for _ in range(30):
        one.add(1, KEYED, limit_key="k")
        one.run_all()
        found |= {number for (number,) in place.sql("SELECT partition FROM taskq.partitions WHERE limits <> '\\x90'")}
        one.clock.now += KEPT_S / 2 + 1
        one.let_pass(3.0)
        one.let_pass(3.0)
    assert len(found) == 1


def test_partitions_without_limits_stay(place: PostgresPlace, one: ScriptedFleet, two: ScriptedFleet) -> None:
    one.add(1)
    one.run_all()
    let_hours_pass(one, two, hours=2.0)
    assert len(place.sql("SELECT 1 FROM taskq.partitions")) == 1
    assert Partition("default") in one.client.queue.kinds.partitions
