"""What a fleet may use of limits that it shares with others, and what its rounds with the database ask."""

from __future__ import annotations

import msgpack
import pytest

from taskq.broker.core.ready import ReadyJobs
from taskq.engines.postgres import statements
from taskq.engines.postgres.demand import Asked, Demand
from taskq.engines.postgres.held import HeldJobs, LimitKey
from taskq.engines.postgres.limits.fair import Claim, part_of
from taskq.engines.postgres.limits.share import Allotment, FleetLimits, Found, Probe, Seen, Wanted, Wish
from taskq.engines.postgres.round import Outcomes, Round
from taskq.model.job import JobRow
from taskq.model.partition import Limit, Partition
from taskq.model.spec import Spec
from taskq.protocol.postgres.kinds import Kinds

CONCURRENCY = Limit("concurrency", "t", 3)
ORDER = Limit("order", "t k", 1)
RATE = Limit("rate", "t", 4, 10.0)
WANTED = Wanted(1, 5, 5, 1.0, 5)
PROBE = Probe([7], None, {"q": WANTED}, 0.0)


@pytest.fixture
def limits() -> FleetLimits:
    ready = ReadyJobs()
    ready.share_limits()
    return FleetLimits(ready, HeldJobs(), {"gpu": 2})


def allot(limits: FleetLimits, limit: Limit, first_seq: int = 10, **found: object) -> Allotment:
    """What the fleet takes of a partition with a limit that has five jobs."""
    partition = Partition("q", 0, (limit,))
    limits.partitions.learn(7, partition)
    known = {"locked": {limit[:2]}, "others": {}, "rates": {}, "again": {}, "at": 100.0, **found}
    return limits.allot([Wish(7, partition, first_seq, 5)], PROBE, Found(**known))  # type: ignore[arg-type]


def test_a_fleet_takes_what_others_have_left(limits: FleetLimits) -> None:
    key: LimitKey = ("concurrency", "t")
    assert allot(limits, CONCURRENCY).granted == {key: 3}
    assert allot(limits, CONCURRENCY, others={key: 2}).granted == {key: 1}
    full = allot(limits, CONCURRENCY, others={key: 3})
    assert (full.caps, full.granted, list(full.closed)) == ({}, {}, [7])


@pytest.mark.parametrize(
    ("amount", "waits_s", "others", "part"),
    [
        (10, None, [], 10),
        (10, None, [Claim(4, None)], 10),  # nobody waits
        (10, None, [Claim(0, 0.1)], 10),  # not for long
        (10, None, [Claim(0, 1.0)], 5),
        (10, 2.0, [Claim(0, 1.0)], 5),
        (10, None, [Claim(0, 1.0), Claim(1, None)], 4),  # who needs less than its part leaves the rest
        (10, None, [Claim(0, 1.0), Claim(9, None)], 3),
        (3, None, [Claim(0, 1.0)], 1),  # what is left over goes to who has waited longest
        (3, 2.0, [Claim(0, 1.0)], 2),
        (1, None, [Claim(0, 1.0)], 0),
        (1, 2.0, [Claim(1, 1.0)], 1),
        (1, 1.0, [Claim(0, 2.0), Claim(0, 3.0)], 0),
    ],
)
def test_who_has_waited_gets_a_part(amount: int, waits_s: float | None, others: list[Claim], part: int) -> None:
    assert part_of(amount, waits_s, others) == part


def test_a_limit_that_another_fleet_is_changing_is_left_alone(limits: FleetLimits) -> None:
    assert list(allot(limits, CONCURRENCY, locked=()).closed) == [7]


def test_no_younger_job_goes_before_one_that_runs_again(limits: FleetLimits) -> None:
    again = {("order", "t k"): 9}
    assert list(allot(limits, ORDER, first_seq=10, again=again).closed) == [7]
    older = allot(limits, ORDER, first_seq=8, again=again)
    assert (older.caps, older.bounds) == ({7: 1}, {7: 9})


def test_a_start_that_was_not_made_is_given_back(limits: FleetLimits) -> None:
    first = allot(limits, RATE)
    assert first.caps == {7: 4}
    [kept] = limits.count(first, {7: 4}, 100.0)
    limits.leased(PROBE, Seen([(7, 10, 5)], None), first, {7: 4}, 0.0)
    rates = {"t": kept.state}
    assert list(allot(limits, RATE, rates=rates).closed) == [7]
    limits.expire_starts(10.0)  # nobody has started any
    again = allot(limits, RATE, rates=rates)
    assert (again.caps, len(again.given_back)) == ({7: 4}, 1)


@pytest.mark.parametrize("is_done", [True, False])
def test_a_share_is_lost_while_starts_are_given_back(limits: FleetLimits, is_done: bool) -> None:
    first = allot(limits, RATE)
    [kept] = limits.count(first, {7: 4}, 100.0)
    limits.leased(PROBE, Seen([(7, 10, 5)], None), first, {7: 4}, 0.0)
    limits.expire_starts(10.0)
    again = allot(limits, RATE, rates={"t": kept.state})
    assert len(again.given_back) == 1
    limits.lose_all()
    if is_done:
        limits.leased(PROBE, Seen([(7, 10, 5)], None), again, {}, 20.0)
    else:
        limits.failed(again, is_unknown=True)
    assert allot(limits, RATE, rates={"t": kept.state}).given_back == []


def test_what_is_not_needed_goes_back(limits: FleetLimits) -> None:
    limits.leased(PROBE, Seen([(7, 10, 5)], None), allot(limits, CONCURRENCY), {}, 0.0)
    assert limits.has_surplus
    assert limits.take_surplus(PROBE) == {}, "it asks for more of these jobs"
    assert limits.take_surplus(None) == {("concurrency", "t"): 0}
    assert not limits.has_surplus


def test_a_machine_without_a_resource_does_not_ask_for_jobs_that_need_it(limits: FleetLimits) -> None:
    limits.partitions.learn(1, Partition("q", 0, (Limit("resource", "tpu", 1),)))
    assert limits.partitions.find(1) is None
    assert allot(limits, Limit("resource", "gpu", 1)).caps == {7: 2}


def test_what_a_resource_has_left_counts_in_units(limits: FleetLimits) -> None:
    """A job that takes all of it leaves nothing for one that needs less: that one would wait here, in a slot's place."""
    partition = Partition("q", 0, (Limit("resource", "gpu", 1),))
    limits.partitions.learn(7, partition)
    assert limits._own_room(partition, WANTED) == 2
    greedy = JobRow(1, bytes(16), Spec("t", queue="q", resources=(("gpu", 2),)), b"")
    limits._held.add([greedy], 0.0)
    assert limits._own_room(partition, WANTED) == 0
    limits._held.remove(1)
    assert limits._own_room(partition, WANTED) == 2


def test_no_slot_stays_free(limits: FleetLimits) -> None:
    """Where long jobs run beside one another, the last of many slots gets its job as well."""
    demand = Demand(limits)
    demand.learn([(1, "q", 0, msgpack.packb([]))])
    asked = demand.ask(1.0, lambda _queue: 8, {"q": 7}, ())
    assert asked is not None
    assert asked.mosts == [1]
    assert demand.ask(1.0, lambda _queue: 8, {"q": 8}, ()) is None


@pytest.mark.parametrize("has_limited", [False, True])
def test_jobs_without_limits_cost_no_more_statements(limits: FleetLimits, has_limited: bool) -> None:
    """Also where other jobs have limits, as long as none of those waits."""
    demand = Demand(limits)
    demand.learn([(1, "q", 0, msgpack.packb([]))])
    if has_limited:
        demand.learn([(2, "q", 0, msgpack.packb([CONCURRENCY]))])
        limits.partitions.is_empty(2)
        limits.partitions.scanned([1], 1.0)
    asked = demand.ask(1.0, lambda _queue: 2, {}, ())
    assert asked == Asked([1], [0], [1], [0], [2])
    round_ = Round((1, "s", "host"), Outcomes(), asked, 0.0, Kinds(), limits)
    step = round_.begin()
    assert step is not None
    assert [query.sql for query in step] == [statements.FENCE, statements.LEASE]
    assert step.commits
