"""Why a job does not run: each reason, asked of real fleets, by command and from Python."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from apps import jobs
from fleet import JOBS, Fleet, Gate, starts, wait_until
from json_schema import misfits
from terminal import NO_JOB, Here, Terminal, here, refused, taskq, terminal

from taskq import JobNotFound, WhyInfo
from taskq.cli.schema import schema_of
from taskq.client.job import Job
from taskq.model.exits import Exit
from taskq.model.info.why import Reason

__all__ = ["here", "terminal"]  # fixtures

Start = Callable[..., Fleet]
q = jobs.q


def only(job: Job[object]) -> Reason:
    """The one reason of a job. A consumer may have it for a moment, behind a job that turns out to be long."""
    wait_until(lambda: job.why().reasons[0].kind != "sent", "it is where it stays")
    [reason] = job.why().reasons
    return reason


@pytest.fixture
def told(here: Here) -> Callable[[Fleet, Job[object]], str]:
    """What the command says, also as JSON that fits its schema."""

    def run(fleet: Fleet, job: Job[object]) -> str:
        wait_until(lambda: job.why().reasons[0].kind != "sent", "it is where it stays")
        printed = json.loads(here(fleet.home, "why", job.id, "--json").stdout)
        assert misfits(printed, schema_of(WhyInfo)) == []
        assert printed["reasons"]
        return here(fleet.home, "why", job.id).stdout

    return run


Told = Callable[[Fleet, Job[object]], str]


def test_it_runs_and_has_ended(start: Start, told: Told, tmp_path: Path, gate: Gate) -> None:
    fleet = start(consumers=1)
    log = str(tmp_path / "log")
    held = jobs.hold.enqueue(gate.path, log)
    starts(tmp_path / "log", 1)
    assert (only(held).kind, only(held).attempt, only(held).consumer) == ("running", 1, 1)
    assert held.why().state == "running"
    behind = jobs.hold.enqueue(gate.path, log)
    assert (only(behind).kind, only(behind).consumers, only(behind).busy) == ("behind", 1, 1)
    assert f"It is next, and the only consumer for it is busy: {held.id} (hold, running)." in told(fleet, behind)
    last = jobs.hold.enqueue(gate.path, log)
    assert "About 1 job of its queue goes first" in told(fleet, last)
    gate.open()
    held.result(20)
    assert "It succeeded" in told(fleet, held)
    failed = jobs.fail.enqueue("no")
    failed.wait(20)
    assert only(failed).error == "LookupError: no"
    assert f"`taskq retry {failed.id}` queues it again" in told(fleet, failed)


def test_a_paused_queue(start: Start, told: Told) -> None:
    fleet = start(consumers=1)
    q.pause("mail")
    job = jobs.add.options(queue="mail").enqueue(1)
    assert only(job).kind == "paused"
    assert asyncio.run(job.awhy()) == job.why()
    assert "- Queue mail is paused: `taskq resume mail` lets it run.\n" in told(fleet, job)
    q.resume("mail")
    job.result(20)


def test_limits_and_who_holds_them(start: Start, told: Told, tmp_path: Path, gate: Gate) -> None:
    fleet = start(consumers=3, resources=(("gpu", 2),))
    log = str(tmp_path / "log")
    one = jobs.hold.options(concurrency=1, limit_by="acme")
    first = one.enqueue(gate.path, log)
    starts(tmp_path / "log", 1)
    second = one.enqueue(gate.path, log)
    assert [job.id for job in only(second).jobs] == [first.id]
    assert f"of task hold with key acme may run at once, and 1 does: {first.id} (hold, running)" in told(fleet, second)

    greedy = jobs.hold.options(resources={"gpu": 2}).enqueue(gate.path, log)
    starts(tmp_path / "log", 2)
    poor = jobs.hold.options(resources={"gpu": 1}).enqueue(gate.path, log)
    assert f"It needs 1 of resource gpu, and 2 of 2 are taken: {greedy.id}" in told(fleet, poor)

    rated = jobs.add.options(rate="1/h")
    rated.enqueue(1).result(20)
    assert "may start in 1h 00m: it opens" in told(fleet, rated.enqueue(1))
    gate.open()
    second.result(20)


def test_a_key_whose_first_job_waits_for_its_retry(start: Start, told: Told, tmp_path: Path) -> None:
    fleet = start(consumers=2)
    failing = jobs.need.options(ordered_by="acme", retries=1, backoff=[600]).enqueue(str(tmp_path / "missing"))
    wait_until(lambda: failing.state() == "scheduled", "the first attempt")
    second = jobs.need.options(ordered_by="acme").enqueue(str(tmp_path / "missing"))
    assert [(job.id, job.state) for job in only(second).jobs] == [(failing.id, "scheduled")]
    assert f"this one is before it: {failing.id} (need, scheduled)" in told(fleet, second)
    assert (only(failing).kind, only(failing).attempt) == ("scheduled", 1)
    assert "it runs again after attempt 1, which ended with FileNotFoundError" in told(fleet, failing)
    for job in (failing, second):
        job.cancel()


def test_its_time_and_other_jobs(start: Start, told: Told, tmp_path: Path, gate: Gate) -> None:
    fleet = start(consumers=2)
    later = jobs.add.options(delay=600).enqueue(1)
    reason = only(later)
    assert reason.until is not None
    assert "It is scheduled for " in told(fleet, later)
    held = jobs.hold.enqueue(gate.path, str(tmp_path / "log"))
    starts(tmp_path / "log", 1)
    after = jobs.note.options(after=[held, later]).enqueue(str(tmp_path / "log"), "after")
    assert {(job.id, job.state) for job in only(after).jobs} == {(held.id, "running"), (later.id, "scheduled")}
    assert "It waits for 2 jobs: " in told(fleet, after)
    gate.open()
    later.cancel()


def test_what_the_fleet_lacks(start: Start, told: Told) -> None:
    fleet = start(consumers=1, queues=("default",))
    elsewhere = jobs.add.options(queue="elsewhere").enqueue(1)
    assert only(elsewhere).kind == "not_served"
    assert "start one with `--queues elsewhere`" in told(fleet, elsewhere)
    q.pause("default")
    unknown = q.enqueue("no_such_task")
    assert [reason.kind for reason in unknown.why().reasons] == ["unknown_task", "paused"]
    assert "has no task no_such_task, so the job will fail" in told(fleet, unknown)
    huge = jobs.add.options(resources={"gpu": 1}).enqueue(1)
    assert "start it with `--resources gpu=1`" in told(fleet, huge)
    huge.cancel()
    q.resume("default")


def test_code_that_does_not_start(start: Start, told: Told, tmp_path: Path) -> None:
    app = tmp_path / "late.py"
    code = "import taskq\nq = taskq.TaskQ('late')\n@q.task\ndef add(a: int, b: int = 1) -> int:\n    return a + b\n"
    app.write_text(code)
    fleet = start(app=f"{app}:q", consumers=1)
    app.write_text("import no_such_package\n")
    fleet.kill_consumer()
    fleet.wait_for("consumer.boot_failed")
    job = jobs.add.enqueue(1)
    assert only(job).kind == "no_consumers"
    assert "no_such_package" in (only(job).error or "")
    assert "Mend that, and run `taskq reload`" in told(fleet, job)
    app.write_text(code)
    q.client.reload()
    job.result(20)


def test_a_fleet_that_stops(start: Start, told: Told, tmp_path: Path, gate: Gate) -> None:
    fleet = start(consumers=1)
    jobs.hold.enqueue(gate.path, str(tmp_path / "log"))
    starts(tmp_path / "log", 1)
    q.client.stop()
    fleet.wait_for("fleet.stopping")
    job = jobs.add.enqueue(1)
    assert job.why().reasons[0].kind == "stopping"
    assert "start it again with `taskq worker`" in told(fleet, job)
    gate.open()
    fleet.wait_for_end()
    q.client.pause(["default"], True, "a test")
    assert [reason.kind for reason in job.why().reasons] == ["no_fleet", "paused"]
    assert "No fleet runs: start one with `taskq worker`." in told(fleet, job)


def test_a_job_in_the_spool_of_a_fleet_that_never_ran(home: Path) -> None:
    job = jobs.add.enqueue(1)
    assert [reason.kind for reason in job.why().reasons] == ["no_fleet", "spooled"]
    done = taskq(home, "why", job.id)
    assert "It waits in the spool" in done.stdout


def test_a_job_that_nobody_knows(shared: Fleet) -> None:
    with pytest.raises(JobNotFound):
        q.job(NO_JOB).why()
    refused(taskq(shared.home, "why", NO_JOB), Exit.NOT_FOUND, NO_JOB)


def test_it_fits_a_narrow_terminal(start: Start, terminal: Callable[..., Terminal]) -> None:
    fleet = start(consumers=1)
    q.pause("mail")
    job = jobs.add.options(queue="mail").enqueue(1)
    narrow = terminal(fleet.home, "why", job.id, JOBS, COLUMNS="60", LANG="C", NO_COLOR="1")
    assert narrow.read_to_end() == Exit.OK
    lines = narrow.text.splitlines()
    assert lines[2:] == ["- Queue mail is paused: `taskq resume mail` lets it run."]
    assert max(map(len, lines)) <= 60
    assert narrow.text.isascii()
    q.resume("mail")
