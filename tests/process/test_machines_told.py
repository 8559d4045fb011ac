"""What two fleets on one PostgreSQL database tell of their jobs, to whoever asks on a third machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from platform import node

import pytest
from apps import concurrent_jobs
from fleet import APPS, Gate, running, wait_until
from machines import SCHEMA, MachineFleet, place_in
from postgres import Server

from taskq import Progress
from taskq.client.job import Job
from taskq.model.info.why import Reason

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

q = concurrent_jobs.q
SLOTS = 3


@pytest.fixture
def parts(
    postgres: Server, database: str, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Job[None]]]:
    """Jobs that keep all slots of both machines busy: one serves a queue, and the other two."""
    monkeypatch.setenv("PYTHONPATH", f"{APPS.parent}:{APPS.parents[2]}")
    url, app = f"{postgres.url(database)}&schema={SCHEMA}", f"{APPS / 'concurrent_jobs.py'}:q"
    q.use_place(place_in(tmp_path / "client", url))
    one = MachineFleet(tmp_path / "one", url, app, consumers=1, threads=SLOTS, queues=("default",))
    more = {"queues": ("default", "mail"), "resources": (("gpu", 2),)}
    two = MachineFleet(tmp_path / "two", url, app, consumers=1, threads=SLOTS, **more)
    with running(one), running(two):
        jobs = concurrent_jobs.part.enqueue_many([(number, gate.path) for number in range(2 * SLOTS)])
        yield jobs
        gate.open()
        for job in jobs:
            job.result(timeout=30)
            assert job.info().progress is None, "it is of running jobs only"


def reasons(job: Job[object], *kinds: str) -> list[Reason]:
    """Why a job does not run, as soon as the fleets have told enough."""

    def told() -> list[Reason] | None:
        found = job.why().reasons
        return found if [reason.kind for reason in found] == list(kinds) else None

    found: list[Reason] = wait_until(told, f"{kinds}, and not {job.why()}")
    return found


def test_what_each_job_does_and_why_others_wait(parts: list[Job[None]]) -> None:
    for number, job in enumerate(parts):
        told = Progress(number, 10, f"part {number}")
        info = wait_until(lambda job=job, told=told: (got := job.info()).progress == told and got, "its progress")
        assert info.started_at is not None
        [runs] = reasons(job, "running")
        assert (runs.attempt, runs.consumer, runs.machine, runs.since) == (1, 1, node(), info.started_at)
    listed = {info.id: info.progress and info.progress.done for info in q.jobs(state="running")}
    assert listed == {job.id: number for number, job in enumerate(parts)}

    waiting = concurrent_jobs.half_way.enqueue("unused")
    [behind] = reasons(waiting, "behind")
    assert (behind.consumers, behind.busy, behind.ahead, behind.others) == (2, 2, 0, 0)
    assert {job.id for job in behind.jobs} == {job.id for job in parts}
    last = concurrent_jobs.half_way.options(after=[parts[0], waiting]).enqueue("unused")
    [waits] = reasons(last, "waiting")
    assert {job.id: job.state for job in waits.jobs} == {parts[0].id: "running", waiting.id: "queued"}
    last.cancel()
    waiting.cancel()

    reasons(concurrent_jobs.half_way.options(queue="nowhere").enqueue("unused"), "not_served")
    assert q.status().unserved == ["nowhere"]
    [busy] = reasons(mail := concurrent_jobs.half_way.options(queue="mail").enqueue("unused"), "behind")
    assert (busy.consumers, busy.busy, len(busy.jobs)) == (1, 1, SLOTS), "of the machine that serves it"
    mail.cancel()
    [unknown] = reasons(job := q.enqueue("no_such_task"), "unknown_task")
    assert unknown.consumers == 2
    job.cancel()
    [lacking] = reasons(job := concurrent_jobs.half_way.options(resources={"gpu": 3}).enqueue("unused"), "limit")
    assert lacking.limit is not None
    assert (lacking.limit.kind, lacking.limit.amount, lacking.limit.used, lacking.limit.needed) == ("resource", 2, 0, 3)
    job.cancel()
