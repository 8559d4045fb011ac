"""Which jobs a fleet keeps, and which it gives back to the database."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import pytest
from scripted_fleet import ScriptedClock

from taskq.broker.core.core import Core
from taskq.broker.parts import core_of
from taskq.engines.contract import Consumers
from taskq.engines.postgres.demand import Demand
from taskq.engines.postgres.held import HeldJobs
from taskq.engines.postgres.leases import KEPT_S, FleetLeases
from taskq.engines.postgres.limits.share import FleetLimits
from taskq.model.attempt import Claim
from taskq.model.constraints import Constraints
from taskq.model.effects import ProcessExit
from taskq.model.job import JobRow
from taskq.model.settings import Settings
from taskq.model.spec import Spec

NOTHING: frozenset[str] = frozenset()


class Idle:
    """Consumers that have nothing."""

    is_stopping = False

    def withdraw(self, _job_id: bytes) -> bool:
        return True


class World:
    """A core with one consumer, and the leases in front of it."""

    def __init__(self) -> None:
        self.core: Core = core_of(Settings())
        self.held = HeldJobs()
        self.core.shared_limits.share_limits()
        limits = FleetLimits(self.core.shared_limits, self.held, {})
        self.leases = FleetLeases(self.core, self.held, Demand(limits, ()), ScriptedClock())
        self.leases.consumers = cast(Consumers, Idle())

    def lease(self, seqs: Collection[int], spec: Spec, now: float) -> list[JobRow]:
        """Jobs of one order are leased."""
        rows = [JobRow(seq, bytes([seq]) * 16, spec, b"", constraints=Constraints(order_key="k")) for seq in seqs]
        self.held.add(rows, now)
        self.core.came_due(rows)
        return rows


@pytest.fixture
def world() -> World:
    return World()


def test_what_waits_behind_a_job_of_an_order_goes_back_with_it(world: World) -> None:
    """Else it would be the first one here, and begin before the one that was ahead of it."""
    spec = Spec("t")
    world.lease([1], spec, 0.0)
    world.lease([2], spec, KEPT_S / 2)
    world.leases.release(KEPT_S + 0.1, NOTHING)
    assert world.leases.outcomes.releases == [1, 2]
    assert len(world.held) == 0


def test_what_a_retiring_consumer_still_runs_takes_no_slot_of_the_next(world: World) -> None:
    """Else a fleet would ask for no job until all that began before a reload have ended."""
    core = world.core
    core.joined(7, 0.0)
    core.came_due([JobRow(1, bytes(16), Spec("t", queue="q"), b"")])
    core.dispatch(0.0, 0.0)
    assert core.slots("q") == 1
    core.retire(7)
    assert (core.slots("q"), core.slots("other")) == (1, 0)
    core.joined(8, 0.0)
    assert (core.slots("q"), core.slots("other")) == (2, 1)


def test_what_waits_behind_a_job_that_is_tried_again_elsewhere_goes_back(world: World) -> None:
    """A job with a rate goes back to the database for its next start, which counts."""
    world.lease([1, 2], Spec("t", rate=(100, 1.0)), 0.0)
    core = world.core
    core.joined(7, 0.0)
    core.shared_limits.grant("order", "t k", 1)
    core.shared_limits.allow_starts("t", 5)
    [(key, first, rows)] = core.dispatch(0.0, 1e9)
    assert [row.seq for row in rows] == [1]
    core.died(key, [Claim(first, 0.0)], ProcessExit(signal="SIGKILL"), 1e9)
    world.leases.take_effects()
    assert world.leases.outcomes.returned == {1}
    assert world.leases.outcomes.releases == [2]
