"""Why a job does not run, as far as the fleet half knows it: asks ready jobs, their limits, and leases. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple, cast

from taskq.broker.core.leases import ConsumerLeases
from taskq.broker.core.ready import ReadyJobs
from taskq.broker.core.waiting import SharedLimit
from taskq.model.attempt import Claim
from taskq.model.effects import Key
from taskq.model.info.why import MOST_JOBS_TOLD, LimitState, Obstacle, OtherJob, Reason
from taskq.model.job import JobRow, JobState
from taskq.model.partition import Limit, partition_of
from taskq.model.rules.limiters import Order, Rate

#: How many jobs of a consumer are looked at to find those that hold a limit: one that runs is among the first.
_LOOK_INTO: Final = 100
#: No consumer has this key: a limit is asked for room for one that has nothing yet.
_NO_CONSUMER: Final = -1


class FleetFacts(NamedTuple):
    """What the core does not know of its fleet.

    Attributes:
        state: "stopping" or "stopped", or "running".
        claims: what each consumer is running.
        boot_error: why a consumer does not start, or None.
        without_task: the consumers whose application lacks the job's task.
    """

    state: str
    claims: Mapping[Key, list[Claim]]
    boot_error: str | None = None
    without_task: frozenset[Key] = frozenset()


class Fleet(NamedTuple):
    """What the core knows, as a whole."""

    ready: ReadyJobs
    consumers: Mapping[Key, ConsumerLeases]
    facts: FleetFacts
    now: float
    wall: float


def obstacles(fleet: Fleet, row: JobRow, is_queued: bool) -> list[Obstacle]:
    """Returns why a job does not run, or that it does, the nearest obstacle first.

    Args:
        is_queued: whether it waits for nothing but the fleet. Otherwise only what will also be in its way later.
    """
    if is_queued and (found := _leased(fleet, row)) is not None:
        return [Obstacle(found)]
    serving = _serving(fleet, row.spec.queue)
    lasting = [Obstacle(reason) for reason in _lasting(fleet, row, serving)]
    if not is_queued or fleet.facts.state == "stopped":
        return lasting
    ahead = fleet.ready.ahead(row)
    limits = list(_limits(fleet, row, ahead))
    if ahead or not (lasting or limits):
        limits.append(Obstacle(_behind(fleet, serving, ahead)))
    return lasting + limits


def _behind(fleet: Fleet, serving: list[Key], ahead: int) -> Reason:
    busy = [key for key in serving if not fleet.consumers[key].is_free]
    if len(busy) < len(serving):
        return Reason("behind", ahead=ahead, consumers=len(serving), busy=len(busy))
    leased = {key: fleet.consumers[key].leased for key in busy}
    running = [
        row for key in busy for claim in fleet.facts.claims.get(key, ()) if (row := leased[key].get(claim.number))
    ]
    jobs = [OtherJob(row.id.hex(), row.spec.task, JobState.RUNNING) for row in running[:MOST_JOBS_TOLD]]
    return Reason("behind", jobs, len(running) - len(jobs), ahead=ahead, consumers=len(serving), busy=len(busy))


def _leased(fleet: Fleet, row: JobRow) -> Reason | None:
    """The reason of a job that a consumer has."""
    for key, consumer in fleet.consumers.items():
        for ahead, (number, leased) in enumerate(consumer.leased.items()):
            if leased.id != row.id:
                continue
            claim = next((claim for claim in fleet.facts.claims.get(key, ()) if claim.number == number), None)
            if claim is None:
                return Reason("sent", ahead=ahead, consumer=consumer.number)
            since = fleet.wall - (fleet.now - claim.started_at)
            return Reason("running", since=since, attempt=row.attempts + 1, consumer=consumer.number)
    return None


def _serving(fleet: Fleet, queue: str) -> list[Key]:
    """The consumers that get jobs of a queue."""
    return [
        key
        for key, consumer in fleet.consumers.items()
        if consumer.accepts and (consumer.queues is None or queue in consumer.queues)
    ]


def _lasting(fleet: Fleet, row: JobRow, serving: list[Key]) -> Iterator[Reason]:
    """What will not go away without somebody's help."""
    facts, ready, queue = fleet.facts, fleet.ready, row.spec.queue
    if facts.state == "stopped":
        yield Reason("no_fleet")
    elif facts.state == "stopping":
        yield Reason("stopping")
    elif not ready.serves(queue):
        yield Reason("not_served")
    elif not serving:
        has_others = any(consumer.accepts for consumer in fleet.consumers.values())
        is_missing = facts.boot_error is not None or not has_others
        yield Reason("no_consumers", error=facts.boot_error) if is_missing else Reason("not_served")
    elif facts.without_task.issuperset(serving):
        yield Reason("unknown_task", consumers=len(serving))
    if ready.is_paused(queue):
        yield Reason("paused")


# -- limits


def _limits(fleet: Fleet, row: JobRow, ahead: int) -> Iterator[Obstacle]:
    """The limits of a job that let none of its kind pass now, and the rates that let no more pass than go before it: a
    rate of many starts opens again and again, and nevertheless is why a job far behind does not start."""
    for limit, shared in fleet.ready.limits_of(row):
        room = shared.state.room(limit, _NO_CONSUMER, row, fleet.now)
        if room > (ahead if limit.kind == "rate" else 0):
            continue
        used, amount = shared.state.usage(limit)
        needed = limit.amount if limit.kind == "resource" else 1
        state = LimitState(cast(Any, limit.kind), limit.name, amount, used, needed, limit.period_s)
        yield _closed(fleet, limit, shared, state)


def _closed(fleet: Fleet, limit: Limit, shared: SharedLimit, state: LimitState) -> Obstacle:
    match shared.state:
        case Rate() as rate:
            until = None if rate.is_idle else fleet.wall + rate.opens_at(limit) - fleet.now
            return Obstacle(Reason("limit", limit=state, until=until))
        case Order(first=seq):
            holders = _holders(fleet, limit)
            return Obstacle(Reason("limit", limit=state, jobs=holders), None if holders else seq)
    holders = _holders(fleet, limit)
    others = max(0, state.used - len(holders)) if limit.kind == "concurrency" else 0
    return Obstacle(Reason("limit", limit=state, jobs=holders, others=others))


def _holders(fleet: Fleet, limit: Limit) -> list[OtherJob]:
    """Some of the jobs that have a limit and were sent to consumers, those that run first."""
    running: list[OtherJob] = []
    sent: list[OtherJob] = []
    for key, consumer in fleet.consumers.items():
        claimed = {claim.number for claim in fleet.facts.claims.get(key, ())}
        for number, row in islice(consumer.leased.items(), _LOOK_INTO):
            if any(own[:2] == limit[:2] for own in partition_of(row.spec, row.constraints).limits):
                is_running = number in claimed
                state = JobState.RUNNING if is_running else JobState.QUEUED
                (running if is_running else sent).append(OtherJob(row.id.hex(), row.spec.task, state))
        if len(running) >= MOST_JOBS_TOLD:
            break
    return (running or sent)[:MOST_JOBS_TOLD]
