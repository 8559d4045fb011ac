"""Many jobs at a time, and whole queues: list, retry, purge, pause, resume; by command and from Python."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from apps import jobs
from fleet import JOBS, Fleet, Gate, starts, wait_until
from terminal import NO_JOB, Here, Terminal, here, refused, taskq, terminal

from taskq import ConfigError, JobCancelled, JobFailed, JobNotFound, JobState, JobStateError, ResultTimeout
from taskq.client.job import Job
from taskq.model.exits import Exit
from taskq.model.limits import MAX_JOBS_LISTED, MAX_JOBS_PURGED

__all__ = ["here", "terminal"]  # fixtures

Start = Callable[..., Fleet]
q = jobs.q


@pytest.fixture
def fleet(start: Start) -> Iterator[Fleet]:
    """A fleet with one consumer, of this test alone."""
    fleet = start(consumers=1)
    yield fleet
    q.resume(*q.status().paused, "default")  # else it would not drain


@pytest.fixture
def missing(tmp_path: Path) -> Path:
    """A file that is not there yet: `jobs.need` fails until it is."""
    return tmp_path / "needed"


def failed(path: Path, count: int = 1) -> list[Job[int]]:
    """Jobs that have failed."""
    made = jobs.need.enqueue_many([(str(path),)] * count)
    for job in made:
        assert job.wait(10)
        assert job.state() is JobState.FAILED
    return made


# -- retry


def test_a_failed_job_is_retried(fleet: Fleet, missing: Path) -> None:
    """Its handle works again; attempts are counted on, and the history tells them all."""
    [job] = failed(missing)
    with pytest.raises(JobFailed, match="FileNotFoundError"):
        job.result(10)
    missing.touch()
    job.retry()
    assert job.result(10) == 2
    info = job.info()
    assert (info.state, info.attempts, info.error) == (JobState.SUCCEEDED, 2, None)
    first, second = info.history
    assert (first.number, second.number, second.error) == (1, 2, None)
    assert first.error is not None
    assert first.error.type == "FileNotFoundError"
    assert first.started_at is not None
    assert second.started_at is not None
    assert info.enqueued_at - 0.01 <= first.started_at < second.started_at
    fleet.wait_for_totals(failed=1)
    with pytest.raises(JobStateError, match="is succeeded"):
        job.retry()


def test_a_waiter_hears_of_the_new_end(fleet: Fleet, missing: Path, gate: Gate, tmp_path: Path) -> None:
    """Who begins to wait after the retry waits for what follows, not for what was."""
    [job] = failed(missing)
    held = jobs.hold.enqueue(str(gate.path), str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    job.retry()
    assert job.state() is JobState.QUEUED
    with pytest.raises(ResultTimeout):
        job.result(0.1)
    missing.touch()
    gate.open()
    assert job.result(10) == 2
    assert held.result(10) == "held"


def test_a_retried_job_has_all_its_retries_again(fleet: Fleet, missing: Path) -> None:
    """One retry, as its task says; and the history has the four attempts of both lives."""
    job = jobs.need_again.enqueue(str(missing))
    with pytest.raises(JobFailed):
        job.result(20)
    job.retry()
    with pytest.raises(JobFailed):
        job.result(20)
    assert [attempt.number for attempt in job.info().history] == [1, 2, 3, 4]
    assert {attempt.error and attempt.error.type for attempt in job.info().history} == {"FileNotFoundError"}


def test_a_retry_by_hand_is_counted(fleet: Fleet, missing: Path) -> None:
    job = jobs.need.enqueue(str(missing))
    assert job.wait(20)
    before = fleet.totals()["retried"]
    job.retry()
    assert job.wait(20)
    fleet.wait_for_totals(retried=before + 1)


def test_crashes_are_in_the_history(fleet: Fleet, tmp_path: Path) -> None:
    """With the signal that killed the process."""
    job = jobs.die_once.enqueue(str(tmp_path / "died"), "kill")
    assert job.result(20) == 2
    crash, success = job.info().history
    assert crash.error is not None
    assert (crash.number, crash.error.type, crash.error.signal) == (1, "Crashed", "SIGKILL")
    assert (success.number, success.error) == (2, None)
    assert job.info().crashes == 1


def test_many_are_retried_and_purged_in_slices(fleet: Fleet, missing: Path) -> None:
    """More than one request does; each once, and nothing else; then all of them are purged."""
    count = 2 * MAX_JOBS_PURGED + 7
    made = jobs.need.enqueue_many([(str(missing),)] * count)
    wait_until(lambda: fleet.totals()["failed"] == count, "all failed")
    assert len(q.jobs("failed", limit=None)) == count > MAX_JOBS_LISTED
    assert q.retry_failed(task="no.such") == 0
    assert q.retry_failed(queue="no.such") == 0
    missing.touch()
    assert q.retry_failed(task="need", queue="default") == count
    assert q.retry_failed() == 0
    assert all(job.result(20) == 2 for job in made)
    assert q.purge("succeeded", older_than=3600) == 0
    assert q.purge("succeeded", task="need") == count
    assert q.jobs() == []
    fleet.wait_for_totals(succeeded=count)


def test_a_retry_is_durable(start: Start, missing: Path) -> None:
    """The broker is killed as soon as it has answered: the next one runs the job."""
    fleet = start(consumers=1)
    q.pause("default")
    q.resume("default")
    [job] = failed(missing)
    q.pause("default")
    job.retry()
    fleet.kill(fleet.broker_pid)
    assert wait_until(lambda: fleet.status()["broker"]["pid"], "another broker")
    assert job.state() is JobState.QUEUED
    missing.touch()
    assert q.resume("default") == ["default"]
    assert job.result(20) == 2


def test_purge_and_pause_are_durable(start: Start, missing: Path) -> None:
    """What was answered is so after the death of the broker."""
    fleet = start(consumers=1)
    gone, kept = failed(missing, 2)
    gone.purge()
    q.pause("mail", "default")
    waiting = jobs.add.enqueue(1)
    fleet.kill(fleet.broker_pid)
    assert wait_until(lambda: fleet.status()["paused"], "another broker") == ["default", "mail"]
    fleet.wait_ready()
    with pytest.raises(JobNotFound):
        gone.info()
    assert [info.id for info in q.jobs("failed")] == [kept.id]
    assert waiting.state() is JobState.QUEUED
    assert q.resume("default", "mail", "never") == ["default", "mail"]
    assert waiting.result(20) == 2


def test_many_jobs_and_queues_for_asyncio(fleet: Fleet, missing: Path) -> None:
    made = failed(missing, 3)
    missing.touch()

    async def all_of_it() -> None:
        assert [info.id for info in await q.ajobs("failed", task="need", limit=2)] == [made[2].id, made[1].id]
        assert [info.id for info in await q.ajobs("failed", before=made[1])] == [made[0].id]
        assert await q.apause("default", "mail") == ["default", "mail"]
        assert await q.aretry_failed(task="no.such") == 0
        assert await q.aretry_failed(task="need", queue="default") == 3
        assert [info.state for info in await q.ajobs(limit=None)] == [JobState.QUEUED] * 3
        assert await q.aresume("default", "mail", "never") == ["default", "mail"]
        assert [await job for job in made] == [2, 2, 2]
        assert await q.apurge("succeeded", older_than=3600) == 0
        assert await q.apurge("succeeded", task="need") == 3
        for senseless in (q.ajobs(limit=-1), q.ajobs("odd"), q.apurge("running"), q.apause(), q.aresume()):
            with pytest.raises(ConfigError):
                await senseless

    asyncio.run(all_of_it())
    assert q.jobs("succeeded", task="need") == []


def test_jobs_are_searched(fleet: Fleet, missing: Path) -> None:
    """From Python and the command line; a search that makes no sense says so."""
    made = failed(missing, 3)
    tenant = jobs.add.options(meta={"tenant": "acme"}).enqueue(1)
    assert tenant.result(20) == 2
    now = time.time()
    assert {info.id for info in q.jobs(text=missing.name)} == {job.id for job in made}
    assert [info.id for info in q.jobs(text="acme")] == [tenant.id]
    assert q.jobs("failed", text="acme") == []
    assert len(q.jobs(since=now - 600, attempts=1)) == 4
    assert q.jobs(until=datetime.now(UTC) - timedelta(hours=1)) == []
    assert [info.id for info in asyncio.run(q.ajobs(text="acme", since=now - 600))] == [tenant.id]
    told = taskq(fleet.home, "jobs", "--text", "acme", "--since", "10m", "--attempts", "1", "--json")
    assert [info["id"] for info in json.loads(told.stdout)] == [tenant.id]
    assert "no job like that" in taskq(fleet.home, "jobs", "--until", "1h").stderr
    done = taskq(fleet.home, "jobs", "--since", "1m", "--until", "1h")
    assert (done.returncode, "--since 1m must be longer ago than --until 1h" in done.stderr) == (Exit.USAGE, True)
    for senseless, words in (
        ({"since": datetime(2026, 1, 1)}, "timezone"),
        ({"until": -1}, "seconds since 1970"),
        ({"since": now, "until": now - 1}, "since= must be earlier than until="),
        ({"attempts": -1}, "attempts=-1"),
        ({"text": 5}, "text=5"),
        ({"text": "\ud800"}, "surrogate"),
    ):
        with pytest.raises(ConfigError, match=words):
            q.jobs(**senseless)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'attempt'"):
        q.jobs(attempt=1)  # type: ignore[call-arg]


def test_retry_and_purge_for_asyncio(fleet: Fleet, missing: Path) -> None:
    [job] = failed(missing)
    missing.touch()

    async def both() -> int:
        await job.aretry()
        attempt: int = await job.aresult(10)
        with pytest.raises(JobStateError):
            await job.aretry()
        await job.apurge()
        with pytest.raises(JobNotFound):
            await job.apurge()
        return attempt

    assert asyncio.run(both()) == 2


# -- purge


def test_purging_the_queued_empties_a_queue(fleet: Fleet, gate: Gate, tmp_path: Path) -> None:
    """Running jobs go on; waiting jobs are removed, even those that were sent to a consumer, and whoever waits for them
    is told."""
    held = jobs.hold.enqueue(str(gate.path), str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    waiting = jobs.note.enqueue_many([(str(tmp_path / "noted"), str(number)) for number in range(20)])
    other = jobs.add.options(queue="other").enqueue(1)
    heard: list[BaseException] = []

    def wait() -> None:
        try:
            waiting[-1].result(20)
        except (JobNotFound, JobCancelled) as error:
            heard.append(error)

    waiter = Thread(target=wait)
    waiter.start()
    wait_until(lambda: waiting[-1].state() is JobState.QUEUED, "queued")
    with pytest.raises(JobStateError, match="is running"):
        held.purge()
    assert q.purge("queued", queue="default") == 20
    waiter.join(20)
    assert [type(error) for error in heard] == [JobNotFound]
    counts = fleet.status()["queues"]
    assert counts["default"] == {"waiting": 0, "scheduled": 0, "queued": 0, "running": 1}
    gate.open()
    assert held.result(10) == "held"
    assert other.result(10) == 2
    assert not (tmp_path / "noted").exists()
    fleet.wait_for_totals(cancelled=20)


def test_scheduled_jobs_can_be_purged(start: Start, missing: Path) -> None:
    """Nothing waits for their time any more: a draining fleet ends."""
    job = jobs.need_again.options(retries=30).enqueue(str(missing))  # else it would drain at once
    fleet = start(consumers=1, drain=True)
    wait_until(lambda: job.state() is JobState.SCHEDULED and job.info().attempts >= 3, "some attempts")
    assert q.purge("scheduled") + q.purge("queued") == 1
    fleet.wait_for_end()


def test_a_draining_fleet_does_not_wait_for_paused_queues(start: Start) -> None:
    """It ends, and the jobs are there for the next one."""
    fleet = start(consumers=1)
    q.pause("mail")
    job = jobs.add.options(queue="mail").enqueue(1)
    assert fleet.stop() == 0
    assert taskq(fleet.home, "worker", JOBS, "--drain", "--consumers", "1").returncode == Exit.OK
    fleet.start()
    assert q.status().queues["mail"].queued == 1
    q.resume("mail")
    assert job.result(10) == 2


# -- pause


def test_a_paused_queue_rests_while_others_run(fleet: Fleet, gate: Gate, tmp_path: Path) -> None:
    """What runs may end; what was sent and has not begun is taken back; new jobs are accepted; the log says who."""
    held = jobs.hold.enqueue(str(gate.path), str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    sent = jobs.note.enqueue(str(tmp_path / "noted"), "sent")
    assert q.pause("default") == ["default"]
    assert q.pause("default") == []
    later = jobs.note.enqueue(str(tmp_path / "noted"), "later")
    gate.open()
    assert held.result(10) == "held"
    assert jobs.note.options(queue="other").enqueue(str(tmp_path / "noted"), "other").result(10) == "other"
    assert sent.state() is later.state() is JobState.QUEUED
    assert q.resume("default") == ["default"]
    assert (sent.result(10), later.result(10)) == ("sent", "later")
    assert [start.label for start in starts(tmp_path / "noted")] == ["other", "sent", "later"]
    assert "pid" in fleet.wait_for("queue.paused", queue="default")["by"]
    assert fleet.wait_for("queue.resumed", queue="default")


# -- from Python: arguments that make no sense


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: q.jobs("broken"), "scheduled, queued, running"),
        (lambda: q.jobs(limit=-1), "limit=-1"),
        (lambda: q.jobs(before="17"), "32 hexadecimal digits"),
        (lambda: q.purge("running"), "running jobs cannot be purged"),
        (lambda: q.purge("all"), "not a state"),
        (lambda: q.purge("failed", older_than=-1), "older_than=-1"),
        (q.pause, "which queues"),
        (lambda: q.pause("a/b"), "'a/b' is not the name of a queue"),
    ],
)
def test_arguments_that_make_no_sense(shared: Fleet, call: Callable[[], object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        call()


def test_jobs_page_by_page(shared: Fleet) -> None:
    """The newest first, each once, whatever ends in the meantime. Jobs that run are shown as running."""
    made = jobs.add.options(queue="pages").enqueue_many((number,) for number in range(7))
    made[-1].wait(10)
    wait_until(lambda: len(q.jobs("succeeded", queue="pages")) == 7, "all ended")
    first = q.jobs(queue="pages", limit=3)
    second = q.jobs(queue="pages", limit=3, before=first[-1].id)
    third = q.jobs(queue="pages", limit=3, before=q.job(second[-1].id))
    assert [info.id for info in first + second + third] == [job.id for job in reversed(made)]
    assert q.jobs(queue="pages", limit=0) == []
    assert q.jobs("failed", queue="pages") == q.jobs("expired") == []
    assert first[0].history == []
    assert first[0].duration_s is not None


def test_jobs_that_run(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    held = jobs.hold.enqueue(str(gate.path), str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    [info] = wait_until(lambda: q.jobs("running", task="hold"), "it is told that it runs")
    assert (info.id, info.state, info.attempts) == (held.id, JobState.RUNNING, 1)
    assert info.started_at is not None
    assert held.id not in {info.id for info in q.jobs("queued", limit=None)}
    assert q.jobs("running", task="add") == q.jobs("running", before=held.id) == []
    gate.open()
    held.result(10)


# -- by command


def test_the_dead_letters_by_command(fleet: Fleet, missing: Path) -> None:
    """List them, page through them, look at one, retry all of a task, and see that nothing is left to do."""
    made = failed(missing, 3)
    listed = taskq(fleet.home, "jobs", "--state", "failed", "--limit", "2")
    head, newest, older = listed.stdout.splitlines()
    assert head.split() == ["id", "state", "task", "queue", "attempts", "when", "error"]
    assert newest.split()[:5] == [made[2].id, "failed", "need", "default", "1"]
    assert "FileNotFoundError" in older
    assert f"--before {made[1].id}" in listed.stderr
    as_json = taskq(fleet.home, "jobs", "--state", "failed", "--before", made[1].id, "--json").stdout
    [found] = json.loads(as_json)
    assert (found["id"], found["error"]["type"]) == (made[0].id, "FileNotFoundError")
    missing.touch()
    done = taskq(fleet.home, "retry", JOBS, "--task", "need")
    assert (done.returncode, done.stdout) == (Exit.OK, "3 failed jobs are queued again\n")
    assert [job.result(10) for job in made] == [2, 2, 2]
    done = taskq(fleet.home, "retry", "--all")
    assert (done.returncode, done.stdout) == (Exit.OK, "")
    assert done.stderr == "taskq: nothing to retry: there is no failed job\n"
    told = taskq(fleet.home, "job", made[0].id).stdout
    assert "history    1  " in told
    assert "FileNotFoundError" in told
    assert "succeeded  after" in told
    history = json.loads(taskq(fleet.home, "job", made[0].id, "--json").stdout)["history"]
    assert [attempt["number"] for attempt in history] == [1, 2]


def test_retry_and_purge_by_id(fleet: Fleet, missing: Path) -> None:
    """Each is done or told; the exit code says whether all were done."""
    one, other = failed(missing, 2)
    missing.touch()
    done = taskq(fleet.home, "retry", one.id, NO_JOB, other.id, JOBS)
    assert done.returncode == Exit.NOT_FOUND
    assert done.stdout == f"{one.id} is queued again\n{other.id} is queued again\n"
    assert NO_JOB in done.stderr
    assert one.result(10) == other.result(10) == 2
    refused(taskq(fleet.home, "retry", one.id), Exit.FAILED, one.id, "is succeeded", "only a failed job")
    done = taskq(fleet.home, "purge", one.id, other.id)
    assert (done.returncode, done.stdout) == (Exit.OK, f"{one.id} is purged\n{other.id} is purged\n")
    refused(taskq(fleet.home, "purge", one.id), Exit.NOT_FOUND, one.id)


def test_purge_asks_on_a_terminal(fleet: Fleet, missing: Path, terminal: Callable[..., Terminal]) -> None:
    """No is the default; yes does it; --yes does not ask."""
    failed(missing, 2)
    screen = terminal(fleet.home, "purge", "--state", "failed")
    screen.read_until("remove all failed jobs from")
    screen.type(b"\n")
    assert screen.read_to_end() == 1
    assert len(q.jobs("failed")) == 2
    screen = terminal(fleet.home, "purge", "--state", "failed", "--queue", "default")
    screen.read_until("[y/N]")
    screen.type(b"y\n")
    assert screen.read_to_end() == Exit.OK
    assert "2 jobs purged" in screen.text
    screen = terminal(fleet.home, "purge", "--state", "failed", "--older-than", "7d", "--yes")
    assert screen.read_to_end() == Exit.OK
    assert "nothing to purge: there is no failed job, older than 7d" in screen.text
    failed(missing)
    assert taskq(fleet.home, "purge", "--state", "failed").stdout == "1 job purged\n"


def test_pause_and_resume_by_command(fleet: Fleet) -> None:
    done = taskq(fleet.home, "pause", "default", "mail", JOBS)
    assert (done.returncode, done.stdout) == (Exit.OK, "default is paused\nmail is paused\n")
    assert taskq(fleet.home, "pause", "mail").stdout == "mail was paused already\n"
    assert fleet.wait_for("queue.paused", queue="mail")["by"].startswith("taskq, pid")
    assert "queue.paused      queue default" in taskq(fleet.home, "logs").stdout
    job = jobs.add.enqueue(1)
    lines = [line.split() for line in taskq(fleet.home, "status").stdout.splitlines()]
    rows = [line[:6] for line in lines]
    assert ["default", "1", "0", "0", "0", "paused"] in rows
    assert ["mail", "0", "0", "0", "0", "paused"] in rows
    assert json.loads(taskq(fleet.home, "status", "--json").stdout)["paused"] == ["default", "mail"]
    assert taskq(fleet.home, "resume", "default", "never").stdout == "default is resumed\nnever was not paused\n"
    assert job.result(10) == 2
    assert taskq(fleet.home, "resume", "--all").stdout == "mail is resumed\n"
    done = taskq(fleet.home, "resume", "--all")
    assert (done.returncode, done.stdout) == (Exit.OK, "")
    assert done.stderr == "taskq: nothing to resume: no queue is paused\n"
    assert "paused" not in taskq(fleet.home, "status").stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["retry"], "--all"),
        (["retry", NO_JOB, "--all"], "which jobs"),
        (["retry", "17", "18"], "at most one of them"),
        (["purge"], "--state failed"),
        (["purge", NO_JOB, "--state", "failed"], "which jobs"),
        (["purge", NO_JOB, "--task", "add"], "which jobs"),
        (["purge", "--state", "running"], "running jobs cannot be purged"),
        (["purge", "--state", "gone"], "'gone' is not a state"),
        (["purge", "--state", "failed", "--older-than", "soon"], "--older-than 'soon'"),
        (["jobs", "--state", "gone"], "'gone' is not a state"),
        (["jobs", "--before", "17"], "32 hexadecimal digits"),
        (["pause"], "QUEUE"),
        (["resume"], "--all"),
        (["resume", "mail", "--all"], "which queues"),
    ],
)
def test_a_command_that_makes_no_sense(shared: Fleet, here: Here, arguments: list[str], word: str) -> None:
    refused(here(shared.home, *arguments), Exit.USAGE, word)


@pytest.mark.not_on_postgres("a database is there without a fleet")
@pytest.mark.parametrize(
    "command", [["jobs"], ["retry", "--all"], ["purge", "--state", "failed"], ["pause", "a"], ["resume", "a"]]
)
def test_no_fleet(home: Path, here: Here, command: list[str]) -> None:
    refused(here(home, *command), Exit.NO_FLEET, str(home), "taskq worker")


@pytest.mark.parametrize("command", ["jobs", "retry", "purge", "pause", "resume"])
def test_help_with_an_example(home: Path, here: Here, command: str) -> None:
    assert f"$ taskq {command}" in here(home, command, "--help").stdout


def test_the_end_of_a_job_is_one_moment(fleet: Fleet, here: Here, tmp_path: Path, gate: Gate) -> None:
    """What is shown to people is what `--json` prints: when the broker committed it, here long after the job's end."""
    log = tmp_path / "log"
    job = jobs.hold.enqueue(gate.path, str(log))
    starts(log, 1)
    broker = fleet.broker_pid
    os.kill(broker, signal.SIGSTOP)
    try:
        gate.open()
        [_, ended] = starts(log, 2)
        wait_until(lambda: time.monotonic() > ended.at + 0.05, "a moment later")
    finally:
        os.kill(broker, signal.SIGCONT)
    job.result(20)
    info = json.loads(here(fleet.home, "job", job.id, "--json").stdout)
    told = datetime.fromtimestamp(info["finished_at"]).isoformat(" ", "milliseconds")
    assert f"ended {told}" in " ".join(here(fleet.home, "job", job.id).stdout.split())
