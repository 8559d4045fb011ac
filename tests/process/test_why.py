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
Told = Callable[[Fleet, Job[object], str], None]
q = jobs.q


def only(job: Job[object], kind: str) -> Reason:
    """The one reason of a job, of this kind: the fleet may have to tell first, and a consumer may have it for a moment,
    behind a job that turns out to be long."""

    def found() -> Reason | None:
        reasons = job.why().reasons
        return reasons[0] if [reason.kind for reason in reasons] == [kind] else None

    reason: Reason = wait_until(found, f"only {kind}: {job.why()}")
    return reason


@pytest.fixture
def told(here: Here) -> Told:
    """Waits until the command says something, also as JSON that fits its schema."""

    def run(fleet: Fleet, job: Job[object], words: str) -> None:
        wait_until(lambda: words in here(fleet.home, "why", job.id).stdout, words)
        printed = json.loads(here(fleet.home, "why", job.id, "--json").stdout)
        assert misfits(printed, schema_of(WhyInfo)) == []
        assert printed["reasons"]

    return run


def test_it_runs_and_has_ended(start: Start, told: Told, tmp_path: Path, gate: Gate) -> None:
    fleet = start(consumers=1)
    log = str(tmp_path / "log")
    held = jobs.hold.enqueue(gate.path, log)
    starts(tmp_path / "log", 1)
    runs = only(held, "running")
    assert (runs.attempt, runs.consumer) == (1, 1)
    assert held.why().state == "running"
    behind = jobs.hold.enqueue(gate.path, log)
    waits = only(behind, "behind")
    assert (waits.consumers, waits.busy) == (1, 1)
    told(fleet, behind, f"It is next, and the only consumer for it is busy: {held.id} (hold, running).")
    last = jobs.hold.enqueue(gate.path, log)
    told(fleet, last, "About 1 job of its queue goes first")
    gate.open()
    held.result(20)
    told(fleet, held, "It succeeded")
    failed = jobs.fail.enqueue("no")
    failed.wait(20)
    assert only(failed, "ended").error == "LookupError: no"
    told(fleet, failed, f"`taskq retry {failed.id}` queues it again")


def test_a_paused_queue(start: Start, told: Told) -> None:
    fleet = start(consumers=1)
    q.pause("mail")
    job = jobs.add.options(queue="mail").enqueue(1)
    only(job, "paused")
    assert asyncio.run(job.awhy()) == job.why()
    told(fleet, job, "- Queue mail is paused: `taskq resume mail` lets it run.\n")
    q.resume("mail")
    job.result(20)


def test_limits_and_who_holds_them(start: Start, told: Told, tmp_path: Path, gate: Gate) -> None:
    fleet = start(consumers=3, resources=(("gpu", 2),))
    log = str(tmp_path / "log")
    one = jobs.hold.options(concurrency=1, limit_by="acme")
    first = one.enqueue(gate.path, log)
    starts(tmp_path / "log", 1)
    second = one.enqueue(gate.path, log)
    assert [job.id for job in only(second, "limit").jobs] == [first.id]
    told(fleet, second, f"of task hold with key acme may run at once, and 1 does: {first.id} (hold, running)")

    greedy = jobs.hold.options(resources={"gpu": 2}).enqueue(gate.path, log)
    starts(tmp_path / "log", 2)
    poor = jobs.hold.options(resources={"gpu": 1}).enqueue(gate.path, log)
    told(fleet, poor, f"It needs 1 of resource gpu, and 2 of 2 are taken: {greedy.id}")

    rated = jobs.add.options(rate="1/h")
    rated.enqueue(1).result(20)
    told(fleet, rated.enqueue(1), "may start in 1h 00m: it opens")
    gate.open()
    second.result(20)


def test_a_key_whose_first_job_waits_for_its_retry(start: Start, told: Told, tmp_path: Path) -> None:
    fleet = start(consumers=2)
    failing = jobs.need.options(ordered_by="acme", retries=1, backoff=[600]).enqueue(str(tmp_path / "missing"))
    wait_until(lambda: failing.state() == "scheduled", "the first attempt")
    second = jobs.need.options(ordered_by="acme").enqueue(str(tmp_path / "missing"))
    assert [(job.id, job.state) for job in only(second, "limit").jobs] == [(failing.id, "scheduled")]
    told(fleet, second, f"this one is before it: {failing.id} (need, scheduled for ")
    assert only(failing, "scheduled").attempt == 1
    told(fleet, failing, "it runs again after attempt 1, which ended with FileNotFoundError")
    for job in (failing, second):
        job.cancel()


def test_its_time_and_other_jobs(start: Start, told: Told, tmp_path: Path, gate: Gate) -> None:
    fleet = start(consumers=2)
    later = jobs.add.options(delay=600).enqueue(1)
    reason = only(later, "scheduled")
    assert reason.until is not None
    told(fleet, later, "It is scheduled for ")
    held = jobs.hold.enqueue(gate.path, str(tmp_path / "log"))
    starts(tmp_path / "log", 1)
    after = jobs.note.options(after=[held, later]).enqueue(str(tmp_path / "log"), "after")
    states = {held.id: "running", later.id: "scheduled"}
    wait_until(lambda: {job.id: job.state for job in only(after, "waiting").jobs} == states, "the states of both")
    told(fleet, after, "It waits for 2 jobs: ")
    gate.open()
    later.cancel()


def test_what_the_fleet_lacks(start: Start, told: Told) -> None:
    fleet = start(consumers=1, queues=("default",))
    elsewhere = jobs.add.options(queue="elsewhere").enqueue(1)
    only(elsewhere, "not_served")
    told(fleet, elsewhere, "start one with `--queues elsewhere`")
    q.pause("default")
    unknown = q.enqueue("no_such_task")
    wait_until(lambda: [reason.kind for reason in unknown.why().reasons] == ["unknown_task", "paused"], "both reasons")
    told(fleet, unknown, "has no task no_such_task, so the job will fail")
    huge = jobs.add.options(resources={"gpu": 1}).enqueue(1)
    told(fleet, huge, "start it with `--resources gpu=1`")
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
    wait_until(lambda: "no_such_package" in (only(job, "no_consumers").error or ""), "the reason")
    told(fleet, job, "Mend that, and run `taskq reload`")
    app.write_text(code)
    fleet.client.reload()
    job.result(20)


def test_a_fleet_that_stops(start: Start, told: Told, tmp_path: Path, gate: Gate) -> None:
    fleet = start(consumers=1)
    jobs.hold.enqueue(gate.path, str(tmp_path / "log"))
    starts(tmp_path / "log", 1)
    fleet.client.stop()
    fleet.wait_for("fleet.stopping")
    job = jobs.add.enqueue(1)
    wait_until(lambda: job.why().reasons[0].kind == "stopping", "it is told that it stops")
    told(fleet, job, "start it again with `taskq worker`")
    gate.open()
    fleet.wait_for_end()
    q.pause("default")
    assert [reason.kind for reason in job.why().reasons] == ["no_fleet", "paused"]
    told(fleet, job, "No fleet runs: start one with `taskq worker`.")


@pytest.mark.not_on_postgres("a database has no spool")
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
    only(job, "paused")
    narrow = terminal(fleet.home, "why", job.id, JOBS, COLUMNS="60", LANG="C", NO_COLOR="1")
    assert narrow.read_to_end() == Exit.OK
    lines = narrow.text.splitlines()
    assert lines[2:] == ["- Queue mail is paused: `taskq resume mail` lets it run."]
    assert max(map(len, lines)) <= 60
    assert narrow.text.isascii()
    q.resume("mail")
