"""Two fleets on one PostgreSQL database whose brokers are killed again and again: what is to come later comes once.

Schedules fire once for each of their times, and what a job has enqueued for its success comes with that, and only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from apps import jobs
from fleet import running, starts, wait_until
from machines import MachineFleet, use_database
from postgres import Server

from taskq import JobState
from taskq.model.schedule import fired_id

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

EVERY_S = 0.2


@pytest.fixture
def fleets(postgres: Server, database: str, tmp_path: Path) -> Iterator[list[MachineFleet]]:
    """Two machines, in whose database `apps.jobs` enqueues."""
    url = postgres.url(database) + "&lease=5"
    use_database(jobs.q, tmp_path / "client", url)
    with ExitStack() as stack:
        yield [stack.enter_context(running(MachineFleet(tmp_path / name, url, consumers=1))) for name in ("one", "two")]


def kill_broker(victim: MachineFleet) -> None:
    """Kills the broker of a fleet, which has another soon."""
    pid = victim.broker_pid
    victim.kill(pid)
    wait_until(lambda: victim.broker_pid != pid, "another broker")


def test_a_schedule_fires_once_for_each_of_its_times_while_brokers_die(
    fleets: list[MachineFleet], tmp_path: Path
) -> None:
    path = tmp_path / "starts"
    schedules = jobs.q.schedules
    added = schedules.add("often", jobs.note, every=EVERY_S, misfire="all", args=(str(path), "x"))
    assert added.next_at is not None
    for victim in fleets * 2:
        starts(path, len(starts(path)) + 2)
        kill_broker(victim)
    schedules.pause("often")
    [info] = schedules.list()
    assert info.last_at is not None
    made = {job.id for job in jobs.q.jobs(task="note", limit=1_000)}
    times = round((info.last_at - added.next_at) / EVERY_S) + 1
    nominal = [round(added.next_at / EVERY_S + number) * EVERY_S for number in range(times)]
    assert made == {fired_id("often", at).hex() for at in nominal}, "a job for each time, and no other"
    wait_until(lambda: all(job.state.is_final for job in jobs.q.jobs(limit=1_000)), "all jobs done")
    assert {start.job_id for start in starts(path)} == made


def test_what_jobs_have_enqueued_comes_with_their_success_while_brokers_die(
    fleets: list[MachineFleet], tmp_path: Path
) -> None:
    for number, victim in enumerate(fleets * 2):
        path = tmp_path / f"starts of {number}"
        jobs.enqueue_next.enqueue_many((str(path), 12) for _ in range(4))
        starts(path, 8)
        kill_broker(victim)
        starts(path, 4 * 13)
    wait_until(lambda: all(job.state.is_final for job in jobs.q.jobs(limit=1_000)), "all jobs done")
    states = [job.state for job in jobs.q.jobs(limit=1_000)]
    assert states == [JobState.SUCCEEDED] * 4 * 4 * 13, "each success brought its one follower, and nothing else did"
