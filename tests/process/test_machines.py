"""Two fleets on one PostgreSQL database, as those of two machines: what a user sees, whichever of them has a job."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from apps import jobs
from fleet import Gate, running, starts, wait_until
from machines import SCHEMA, MachineFleet, use_database
from postgres import Server
from screen import Screen, watch
from starlette.testclient import TestClient
from terminal import refused, taskq

from taskq import ConfigError, JobCancelled, JobFailed, JobNotFound, JobState, ResultTimeout
from taskq.cli.status.picture import picture
from taskq.cli.tables import plain
from taskq.cli.top.app import Top
from taskq.cli.top.live import LiveSource
from taskq.engines.postgres.migrate import migrate
from taskq.model.exits import Exit
from taskq.web import Dashboard

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

Start = Callable[..., MachineFleet]


class Machines(NamedTuple):
    """Two machines, each with one consumer."""

    one: MachineFleet
    two: MachineFleet
    url: str


@pytest.fixture(scope="module")
def both(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two machines for all tests of this file that leave them as they found them."""
    folder, url = tmp_path_factory.mktemp("machines"), postgres.url(postgres.create_database())
    fleets = [MachineFleet(folder / name, url, consumers=1) for name in ("one", "two")]
    with running(fleets[0]), running(fleets[1]):
        yield Machines(*fleets, url)


@pytest.fixture
def machines(both: Machines, tmp_path: Path) -> Machines:
    """The two machines, in whose database `apps.jobs` enqueues in this test."""
    use_database(jobs.q, tmp_path / "client", both.url)
    return both


@pytest.fixture
def url(postgres: Server, database: str, tmp_path: Path) -> str:
    """A database of the test's own, which `apps.jobs` uses."""
    url = postgres.url(database)
    use_database(jobs.q, tmp_path / "client", url)
    return url


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts fleets of machines by name; they are stopped and checked at the end of the test."""

    def start(name: str, **settings: object) -> MachineFleet:
        return stack.enter_context(running(MachineFleet(tmp_path / name, url, **{"consumers": 1, **settings})))

    with ExitStack() as stack:
        yield start


# -- on both, which go on


def test_two_machines_share_the_work(machines: Machines, tmp_path: Path, gate: Gate) -> None:
    """Each job runs once, on whichever machine has room: here, two that take as long as the test wants."""
    path, held_path = tmp_path / "starts", tmp_path / "held"
    held = [jobs.hold.enqueue(gate.path, str(held_path), f"held{number}") for number in range(2)]
    pids = {*machines.one.consumer_pids(), *machines.two.consumer_pids()}
    assert {start.pid for start in starts(held_path, 2)} == pids
    made = jobs.nap_and_note.enqueue_many((0.005, str(path), str(number)) for number in range(200))
    gate.open()
    assert all(job.wait(timeout=30) for job in [*held, *made])
    assert sorted(int(start.label) for start in starts(path)) == list(range(200))


def test_a_result_comes_to_whoever_waits(machines: Machines) -> None:
    assert jobs.add.enqueue(2, 3).result(timeout=30) == 5
    with pytest.raises(JobFailed, match="no luck"):
        jobs.fail.enqueue("no luck").result(timeout=30)
    with pytest.raises(JobNotFound):
        jobs.q.job("0" * 32).result(timeout=30)

    async def program() -> list[int]:
        some = await jobs.double.aenqueue_many([(number,) for number in range(20)])
        return [await job.aresult(timeout=30) for job in some]

    assert asyncio.run(program()) == [2 * number for number in range(20)]


def test_a_map_is_run_by_both(machines: Machines) -> None:
    assert list(jobs.echo.map(range(300))) == list(range(300))


def test_a_job_that_fails_is_tried_again(machines: Machines, tmp_path: Path) -> None:
    job = jobs.fail_once.options(backoff=[0.05]).enqueue(str(tmp_path / "starts"))
    assert job.result(timeout=30) == 2
    history = job.info().history
    assert [attempt.number for attempt in history] == [1, 2]


def test_a_running_job_is_cancelled_from_anywhere(machines: Machines, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    job = jobs.spin_until_told.enqueue(str(path))
    starts(path, 1)
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=30)
    assert [start.label for start in starts(path)] == ["spins", "cleaned"]


def test_a_waiting_job_is_cancelled_and_a_failed_one_retried(machines: Machines) -> None:
    later = jobs.add.options(delay=60).enqueue(1)
    assert later.state() is JobState.SCHEDULED
    assert later.cancel()
    failed = jobs.fail.enqueue("no luck")
    assert failed.wait(timeout=30)
    failed.retry()
    wait_until(lambda: failed.info().attempts == 2 and failed.state() is JobState.FAILED, "the second failure")


def test_a_pause_holds_on_both(machines: Machines) -> None:
    jobs.q.pause("held")
    held = jobs.add.options(queue="held").enqueue(1, 2)
    assert jobs.add.enqueue(3, 4).result(timeout=30) == 7
    assert held.state() is JobState.QUEUED
    for machine in (machines.one, machines.two):
        assert str(os.getpid()) in machine.wait_for("queue.paused", queue="held")["by"]
    assert jobs.q.status().flows["held"].oldest_waiting_job == held.id
    jobs.q.resume("held")
    assert held.result(timeout=30) == 3


def test_the_status_is_that_of_both(machines: Machines) -> None:
    pids = {*machines.one.consumer_pids(), *machines.two.consumer_pids()}
    wait_until(lambda: {each.pid for each in jobs.q.status().consumers} == pids, "both machines in the status")
    status = jobs.q.status()
    assert {each.machine for each in status.consumers} == {os.uname().nodename}
    assert all(each.rss_bytes > 1 << 20 for each in status.consumers)
    for width in (60, 120):
        told = plain(picture(status, width))
        assert all(str(pid) in told for pid in pids)
        directory = status.broker.directory  # which is never cut
        assert max(len(line) for line in told.splitlines() if line != directory) <= width
    with TestClient(Dashboard(jobs.q, access=lambda _request: "all"), "http://127.0.0.1:8737") as client:
        text = client.get("/consumers").text
        assert "<h2>Machines</h2>" in text
        for pid in pids:
            assert f'href="/consumers/1?pid={pid}"' in text
            assert f"<dt>Pid</dt><dd>{pid}</dd>" in client.get(f"/consumers/1?pid={pid}").text


def test_a_killed_consumer_costs_its_own_job_an_attempt(machines: Machines, tmp_path: Path) -> None:
    job = jobs.die_once.enqueue(str(tmp_path / "starts"), "kill")
    assert job.wait(timeout=30)
    info = job.info()
    assert (info.state, info.crashes) == (JobState.SUCCEEDED, 1)


def test_two_applications_share_a_database_and_nothing_else(machines: Machines, tmp_path: Path) -> None:
    mine = jobs.add.enqueue(1, 1)
    assert mine.result(timeout=30) == 2
    other = f"{machines.url}&schema=another"
    with running(MachineFleet(tmp_path / "other", other, consumers=1)):
        use_database(jobs.q, tmp_path / "client", other)
        assert jobs.add.enqueue(2, 2).result(timeout=30) == 4
        with pytest.raises(JobNotFound):
            jobs.q.job(mine.id).info()


def test_a_fleet_is_stopped_and_reloaded_on_its_own_machine(machines: Machines, tmp_path: Path) -> None:
    """Another machine has none of its own, and is told where to ask."""
    where = {"TASKQ_URL": f"{machines.url}&schema={SCHEMA}", "XDG_STATE_HOME": str(tmp_path)}
    for command in ("stop", "reload"):
        refused(taskq(None, command, **where), Exit.NO_FLEET, "runs here", "the machine where one does", str(tmp_path))


def test_a_fresh_fleet_of_a_program_does_not_drop_the_jobs_of_others(machines: Machines) -> None:
    job = jobs.add.options(delay=100).enqueue(1)
    with pytest.raises(ConfigError, match="fresh=True.* would drop jobs that other"), jobs.q.fleet(fresh=True):
        pass
    assert job.cancel()


# -- fleets that come and go


def test_jobs_are_kept_while_no_machine_runs(postgres: Server, database: str, url: str, start: Start) -> None:
    with postgres.connect(database) as connection:
        migrate(connection, SCHEMA)
    made = jobs.add.enqueue_many((number, 1) for number in range(50))
    assert made[0].state() is JobState.QUEUED
    with pytest.raises(ResultTimeout):
        made[0].result(timeout=0.05)
    start("one")
    assert [job.result(timeout=30) for job in made] == [number + 1 for number in range(50)]


def test_a_killed_broker_is_followed_by_one_that_takes_its_jobs_over(start: Start, tmp_path: Path, gate: Gate) -> None:
    """What ran is charged, and what waited is not. Nobody waits for the time after which a fleet counts as lost."""
    fleet = start("one")
    path = tmp_path / "starts"
    held = jobs.hold.enqueue(gate.path, str(path), "held")
    behind = [jobs.add.enqueue(number, 1) for number in range(20)]
    starts(path, 1)
    fleet.kill(fleet.broker_pid)
    starts(path, 2)
    gate.open()
    assert held.wait(timeout=30)
    assert [job.result(timeout=30) for job in behind] == [number + 1 for number in range(20)]
    assert held.info().crashes == 1
    assert [job.info().crashes for job in behind] == [0] * 20


def test_a_machine_does_what_waits_behind_a_long_job_of_another(start: Start, tmp_path: Path, gate: Gate) -> None:
    """A fleet gives back what it has not begun, at once when it stops."""
    one = start("one")
    path = tmp_path / "starts"
    held = jobs.hold.enqueue(gate.path, str(path), "held")
    starts(path, 1)
    behind = jobs.add.enqueue_many((number, 1) for number in range(50))
    start("two")
    assert [job.result(timeout=30) for job in behind] == [number + 1 for number in range(50)]
    gate.open()
    assert held.wait(timeout=30)
    assert one.stop() == 0
    assert jobs.add.enqueue(1, 1).result(timeout=30) == 2


def test_lanes_serve_their_queues_on_each_machine(start: Start, tmp_path: Path, gate: Gate) -> None:
    """A lane that is busy holds up no other, on its own machine or elsewhere, and a job goes to where its queue has one."""
    one = start("one", consumers=0, lanes=((("slow",), 1), (("default", "mail"), 1)))
    two = start("two", consumers=0, lanes=((("slow",), 1), (("other",), 1)))
    held_path, path = tmp_path / "held", tmp_path / "starts"
    held = [jobs.hold.options(queue="slow").enqueue(gate.path, str(held_path), "held") for _ in range(3)]
    nobody = jobs.note.options(queue="nobody").enqueue(str(path), "nobody")
    wait_until(lambda: len(one.consumer_pids()) == len(two.consumer_pids()) == 2, "all lanes")
    pids = set(one.consumer_pids()), set(two.consumer_pids())
    slow = {start.pid for start in starts(held_path, 2)}
    assert [len(slow & own) for own in pids] == [1, 1], "one on each machine"
    queues = ("default", "mail", "other") * 10
    made = [jobs.nap_and_note.options(queue=queue).enqueue(0.002, str(path), queue) for queue in queues]
    assert all(job.wait(timeout=30) for job in made)
    where = {(start.label, start.pid) for start in starts(path)}
    [first], [second] = pids[0] - slow, pids[1] - slow
    assert where == {("default", first), ("mail", first), ("other", second)}
    assert len(starts(held_path)) == 2, "the third waits for a place in its lane"
    gate.open()
    assert all(job.wait(timeout=30) for job in held)
    assert {start.pid for start in starts(held_path) if start.label == "held"} == slow
    assert nobody.state() is JobState.QUEUED
    assert nobody.cancel()


def test_a_worker_says_what_is_wrong_with_its_database(tmp_path: Path, postgres: Server) -> None:
    fleet = MachineFleet(tmp_path / "one", postgres.url("nowhere"))
    fleet.start(wait=False)
    assert fleet.wait_for_end() != 0
    told = fleet.errors.read_text()
    assert "nowhere" in told
    assert "Traceback" not in told


def test_nobody_sees_the_password(postgres: Server, database: str, tmp_path: Path) -> None:
    """Neither in the list of processes, nor in the logs, nor in what the commands say."""
    url = postgres.url(database).replace("postgres@", "postgres:hunter2@")
    use_database(jobs.q, tmp_path / "client", url)
    environment = {**os.environ, "TASKQ_URL": url, "XDG_STATE_HOME": str(tmp_path / "one")}
    with running(MachineFleet(tmp_path / "one", url, consumers=1)):
        assert jobs.add.enqueue(1, 2).result(30) == 3
        command = [sys.executable, "-m", "taskq", "status"]  # finds the only queue in the database
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert told.startswith("running")
        shown = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"hunter2" in _content(path)]
    logs = [path for path in (tmp_path / "one").rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert (shown, logs) == ([], [])
    assert "hunter2" not in told + repr(jobs.q.place) + str(jobs.q.place.database)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # the process has ended


def test_top_shows_all_machines(machines: Machines) -> None:
    async def look(screen: Screen) -> None:
        told = await screen.until("running", "broker", "of 2 consumers")
        assert told.count(" s ago") == 2
        await screen.press("4")
        await screen.until("4 Failures", "failed job")
        await screen.press("5")
        told = await screen.until("no.", "pid", "memory")
        for fleet in (machines.one, machines.two):
            [pid] = fleet.consumer_pids()
            assert str(pid) in told

    watch(Top(jobs.q, LiveSource(jobs.q, shows_arguments=False)), look)
