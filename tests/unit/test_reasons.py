"""Why a job does not run: the pure rule, one reason after the other."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.broker.core.core import Core
from taskq.broker.core.reasons import FleetFacts
from taskq.model.attempt import Attempts, Claim, Verdict, pack_failure
from taskq.model.constraints import Constraints
from taskq.model.info.why import LimitState, Obstacle, OtherJob, Reason
from taskq.model.job import JobError, JobRow, JobState
from taskq.model.spec import Spec

NOW, WALL = 100.0, 1_000_100.0
SPEC = Spec("send", "mail")


class World:
    """A core with consumers that run what a test says."""

    def __init__(self, consumers: int = 1, **options: Any) -> None:
        self.core = Core(**options)
        self.claims: dict[int, list[Claim]] = {}
        for key in range(1, consumers + 1):
            self.core.joined(key, NOW, number=key)
        self.seq = 0

    def add(self, spec: Spec = SPEC, constraints: Constraints | None = None) -> JobRow:
        """A job that is queued."""
        self.seq += 1
        row = JobRow(self.seq, self.seq.to_bytes(16, "big"), spec, b"", constraints=constraints)
        self.core.submitted([row])
        return row

    def send(self) -> None:
        """Consumers get jobs, and begin the first of them."""
        for batch in self.core.dispatch(NOW, WALL):
            self.claims[batch.key] = [Claim(batch.first, NOW - 5.0)]

    def why(self, row: JobRow, is_queued: bool = True, state: str = "running", **facts: Any) -> list[Reason]:
        """The reasons."""
        return [obstacle.reason for obstacle in self.obstacles(row, is_queued, state, **facts)]

    def obstacles(self, row: JobRow, is_queued: bool = True, state: str = "running", **facts: Any) -> list[Obstacle]:
        """The reasons, as the engine gets them."""
        return self.core.why(row, is_queued, FleetFacts(state, self.claims, **facts), NOW, WALL)


def test_it_runs() -> None:
    world = World()
    row = world.add()
    world.send()
    [reason] = world.why(row)
    assert reason == Reason("running", since=WALL - 5.0, attempt=1, consumer=1)


def test_a_consumer_has_it_behind_others() -> None:
    world = World()
    rows = [world.add() for _ in range(3)]
    world.send()
    assert world.why(rows[2]) == [Reason("sent", ahead=2, consumer=1)]


def test_it_is_next_and_the_consumers_are_busy() -> None:
    world = World(consumers=2)
    world.core._run_times.mean_s["send"] = 10.0  # so none waits at a consumer
    for _ in range(2):
        world.add()
        world.send()
    row, last = world.add(), world.add()
    running = [OtherJob(seq.to_bytes(16, "big").hex(), "send", JobState.RUNNING) for seq in (1, 2)]
    assert world.why(row) == [Reason("behind", running, consumers=2, busy=2)]
    assert world.why(last) == [Reason("behind", running, ahead=1, consumers=2, busy=2)]


def test_jobs_of_higher_priority_go_first() -> None:
    world = World(consumers=0)
    row = world.add()
    for _ in range(5):
        world.add(Spec("send", "mail", priority=7))
        world.add(Spec("send", "mail", priority=-7))
    assert world.core.ready.ahead(row) == 5


def test_many_jobs_before_it_are_estimated() -> None:
    world = World(consumers=0)
    rows = [world.add() for _ in range(10_000)]
    assert world.core.ready.ahead(rows[7]) == 7
    assert world.core.ready.ahead(rows[6_000]) == 6_000


def test_a_paused_queue() -> None:
    world = World()
    world.core.pause(["mail"])
    row = world.add()
    assert world.why(row) == [Reason("paused")]
    assert world.why(row, is_queued=False) == [Reason("paused")]


def test_a_queue_that_the_fleet_does_not_serve() -> None:
    world = World(queues=["other"])
    assert world.why(world.add()) == [Reason("not_served")]


def test_a_queue_that_no_consumer_serves() -> None:
    world = World(consumers=0)
    world.core.joined(1, NOW, ["other"])
    row = world.add()
    assert world.why(row) == [Reason("not_served")]
    assert world.why(row, boot_error="ImportError: no") == [Reason("no_consumers", error="ImportError: no")]


def test_no_consumer_is_ready() -> None:
    world = World(consumers=0)
    assert world.why(world.add()) == [Reason("no_consumers")]


@pytest.mark.parametrize(("without", "is_told"), [({1, 2}, True), ({1}, False)])
def test_a_task_that_the_application_lacks(without: set[int], is_told: bool) -> None:
    world = World(consumers=2)
    reasons = world.why(world.add(), without_task=frozenset(without))
    assert (Reason("unknown_task", consumers=2) in reasons) is is_told


def test_a_fleet_that_stops_or_does_not_run() -> None:
    world = World(consumers=0)
    row = world.add()
    world.core.pause(["mail"])
    assert world.why(row, state="stopping") == [Reason("stopping"), Reason("paused")]
    assert world.why(row, state="stopped") == [Reason("no_fleet"), Reason("paused")]
    assert world.why(row, is_queued=False, state="stopped") == [Reason("no_fleet"), Reason("paused")]


def test_a_concurrency_and_who_holds_it() -> None:
    world = World(consumers=2)
    spec = Spec("send", "mail", concurrency=1)
    world.core._run_times.mean_s["send"] = 10.0
    first = world.add(spec)
    world.send()
    [reason] = world.why(world.add(spec))
    assert reason.limit == LimitState("concurrency", "send", 1, 1)
    assert [(job.id, job.task, job.state) for job in reason.jobs] == [(first.id.hex(), "send", "running")]


def test_a_limit_of_a_key_holds_up_that_key_alone() -> None:
    world = World(consumers=3)
    spec = Spec("send", "mail", concurrency=1)
    world.core._run_times.mean_s["send"] = 10.0
    world.add(spec, Constraints(limit_key="acme"))
    world.send()
    [reason] = world.why(world.add(spec, Constraints(limit_key="acme")))
    assert reason.limit is not None
    assert reason.limit.name == "send acme"
    assert [each.kind for each in world.why(world.add(spec, Constraints(limit_key="other")))] == ["behind"]


def test_a_rate_and_when_it_opens() -> None:
    world = World(consumers=2)
    spec = Spec("send", "mail", rate=(1, 60.0))
    world.add(spec)
    world.send()
    [reason] = world.why(world.add(spec))
    assert reason.limit == LimitState("rate", "send", 1, 1, period_s=60.0)
    assert reason.until is not None
    assert WALL + 59 < reason.until < WALL + 61


def test_a_rate_is_why_a_job_far_behind_does_not_start_although_it_is_open() -> None:
    world = World()
    spec = Spec("send", "mail", rate=(2, 60.0))
    first, second, third = (world.add(spec) for _ in range(3))
    assert [reason.kind for reason in world.why(first)] == ["behind"]
    assert [(reason.kind, reason.ahead) for reason in world.why(second)] == [("behind", 1)]
    assert [(reason.kind, reason.ahead) for reason in world.why(third)] == [("limit", 0), ("behind", 2)]


def test_an_order_and_the_job_before_it() -> None:
    world = World(consumers=2)
    key = Constraints(order_key="acme")
    first = world.add(constraints=key)
    world.send()
    second = world.add(constraints=key)
    [obstacle] = world.obstacles(second)
    assert (obstacle.reason.kind, obstacle.seq) == ("limit", None)
    assert [job.id for job in obstacle.reason.jobs] == [first.id.hex()]

    failure = pack_failure(1.0, 0.1, JobError("ValueError", "no"))
    world.core.settled(1, Attempts([1], [Verdict.FAILED], [5], [failure]), NOW, WALL)
    [obstacle] = world.obstacles(second)
    assert obstacle.reason.limit == LimitState("order", "send acme", 1, 1)
    assert (obstacle.reason.jobs, obstacle.seq) == ([], first.seq)  # it waits for its retry: the engine knows it


def test_a_resource_and_who_holds_it() -> None:
    world = World(consumers=3, capacities={"gpu": 3})
    spec = Spec("send", "mail", resources=(("gpu", 2),))
    world.core._run_times.mean_s["send"] = 10.0
    first = world.add(spec)
    world.send()
    [reason] = world.why(world.add(spec))
    assert reason.limit == LimitState("resource", "gpu", 3, 2, 2)
    assert [job.id for job in reason.jobs] == [first.id.hex()]


def test_a_resource_that_the_fleet_lacks() -> None:
    world = World()
    [reason] = world.why(world.add(Spec("send", "mail", resources=(("gpu", 1),))))
    assert reason.limit == LimitState("resource", "gpu", 0, 0, 1)
