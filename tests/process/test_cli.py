"""The command line, end to end: real processes, real fleets, a terminal where it matters."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from apps import jobs
from fleet import DEADLINE_S, JOBS, Fleet, Gate, is_in_database, running, wait_for_file, wait_until
from terminal import NO_JOB, TASKQ, Here, Terminal, environment, here, refused, taskq, terminal

from taskq import JobFailed
from taskq.model.exits import Exit
from taskq.telemetry.files import log_path, rotated_path
from taskq.telemetry.reader import read

__all__ = ["here", "terminal"]  # fixtures


@contextmanager
def started(home: Path, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on while the block runs."""
    process = subprocess.Popen(
        [*TASKQ, *arguments],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=DEADLINE_S)


def wait_for_event(home: Path, event: str, **fields: Any) -> dict[str, Any]:
    """Waits until the log has an event."""

    def find() -> dict[str, Any] | None:
        events = (found for found in read(home) if found["event"] == event)
        return next((found for found in events if fields.items() <= found.items()), None)

    found: dict[str, Any] = wait_until(find, event)
    return found


@pytest.fixture
def apps(tmp_path: Path) -> Path:
    """A folder with applications that cannot be used."""
    (tmp_path / "raises.py").write_text("import taskq\nq = taskq.TaskQ('raises')\n1 / 0\n")
    (tmp_path / "broken.py").write_text("q = (\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "enqueues.py").write_text("import taskq\nq = taskq.TaskQ('e')\nq.task(name='say')(print).enqueue(1)\n")
    (tmp_path / "other.py").write_text("import taskq\nq = taskq.TaskQ('other')\nx = 5\n")
    return tmp_path


# -- without a fleet


def test_version(home: Path, here: Here) -> None:
    assert taskq(home, "version").stdout == "taskq 0.1.0\n"
    assert here(home, "--version").stdout == "taskq 0.1.0\n"


def test_each_command_has_help_with_an_example(home: Path, here: Here) -> None:
    overview = here(home, "--help").stdout
    for command in ("worker", "stop", "reload", "enqueue", "job", "cancel", "status", "logs", "demo"):
        assert command in overview
        assert f"$ taskq {command}" in here(home, command, "--help").stdout


def test_worker_starts_light(home: Path) -> None:
    """The guardian stays for the fleet's life, and its start is time until the first job."""
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "taskq", "worker", "no_such_module:q"],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    ).stderr
    names = {line.rpartition("|")[2].strip() for line in imported.splitlines() if line.startswith("import time:")}
    assert "taskq.broker.guardian" in names
    assert not names & {"rich", "rich.console", "asyncio", "psutil", "apsw", "structlog", "multiprocessing"}


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("no_such_module:q", ["no module 'no_such_module'"]),
        ("no_such_file.py:q", ["no file", "no_such_file.py"]),
        ("other:nothing", ["no attribute 'nothing'", "did you mean q?"]),
        ("other:x", ["int", "not a TaskQ"]),
        ("raises.py:q", ["ZeroDivisionError", "line 3"]),
        ("broken.py:q", ["SyntaxError", "broken.py"]),
        ("needs:q", ["no_such_package"]),
        ("exits:q", ["SystemExit"]),
        ("enqueues:q", ["enqueues:q enqueues a job while it is imported", "__main__"]),
        ("enqueues.py:q", ["enqueues a job while it is imported", "__main__"]),
    ],
)
def test_an_application_that_cannot_be_used(
    apps: Path, home: Path, here: Here, monkeypatch: pytest.MonkeyPatch, app: str, words: list[str]
) -> None:
    refused(taskq(home, "worker", app, cwd=apps), Exit.APP, *words)
    monkeypatch.chdir(apps)
    refused(here(home, "enqueue", app, "add"), Exit.APP, *words)
    assert not list((home / "spool").glob("*.jobs"))


@pytest.mark.not_on_postgres("a database is there without a fleet")
@pytest.mark.parametrize("command", [["status"], ["stop"], ["reload"], ["job", NO_JOB], ["cancel", NO_JOB]])
def test_no_fleet(home: Path, here: Here, command: list[str]) -> None:
    refused(here(home, *command), Exit.NO_FLEET, str(home), "taskq worker")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["worker"], "TASKQ_APP"),
        (["worker", JOBS, "--durability", "hope"], "power, os or memory"),
        (["worker", JOBS, "--stop-timeout", "soon"], "--stop-timeout 'soon'"),
        (["worker", JOBS, "--consumers", "-1"], "consumers=-1"),
        (["worker", JOBS, "--queues", "a b"], "'a b'"),
        (["enqueue", JOBS], "which task"),
        (["enqueue", JOBS, "add", "1", "--kwargs", "{b: 2}"], "is not JSON"),
        (["enqueue", JOBS, "add", "1", "--kwargs", "[2]"], "not a JSON object"),
        (["enqueue", JOBS, "add", "1", "--wiat"], "no such option: --wiat"),
        (["enqueue", JOBS, "add"], "missing a required argument: 'a'"),
        (["enqueue", JOBS, "add", "1", "--queue", "a/b"], "queue name 'a/b'"),
        (["logs", "--level", "loud"], "--level 'loud'"),
        (["logs", "--since", "yesterday"], "--since 'yesterday'"),
        (["logs", "--until", "25:10"], "--until '25:10'"),
        (["logs", "--grep", "("], "is not a regular expression"),
        (["job", "17"], "32 hexadecimal digits, or at least 6 of them"),
    ],
)
def test_a_command_that_makes_no_sense(home: Path, here: Here, arguments: list[str], word: str) -> None:
    refused(here(home, *arguments), Exit.USAGE, word)


def test_typers_own_usage_error(home: Path) -> None:
    done = taskq(home, "status", "--nothing")
    assert done.returncode == Exit.USAGE
    assert "--nothing" in done.stderr


@pytest.mark.not_on_postgres("it is about the directory itself")
def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(taskq(tmp_path / "file" / "queue", "worker", JOBS), Exit.DIRECTORY, str(tmp_path / "file"), "TASKQ_URL")
    refused(taskq(tmp_path / "nothing", "logs"), Exit.DIRECTORY, "nothing")
    refused(taskq(None, "status", str(tmp_path / "nothing")), Exit.DIRECTORY, "nothing")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    refused(taskq(tmp_path / "open", "worker", JOBS), Exit.DIRECTORY, "chmod 700")


@pytest.mark.not_on_postgres("a journal that is damaged")
def test_a_journal_that_cannot_be_trusted(home: Path) -> None:
    assert taskq(home, "worker", JOBS, "--drain").returncode == Exit.OK
    (home / "journal.db").unlink()
    done = taskq(home, "worker", JOBS, "--log-level", "error")
    assert done.returncode == Exit.JOURNAL
    assert "journal" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_broker_that_dies_again_and_again_is_given_up(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif any('broker.process' in word for word in sys.orig_argv): os._exit(77)\n"
    )
    done = taskq(home, "worker", JOBS, PYTHONPATH=str(tmp_path))
    assert done.returncode == Exit.UNSTABLE
    assert "giving up" in done.stderr


@pytest.mark.not_on_postgres("a database has no spool")
def test_a_job_enqueued_before_there_is_a_fleet(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "noted"
    done = taskq(home, "enqueue", JOBS, "note", str(path), "early")
    assert done.returncode == Exit.OK
    assert len(done.stdout) == 33
    assert "no fleet answers" in done.stderr
    assert "queued" in taskq(home, "job", done.stdout.strip()).stdout
    assert taskq(home, "worker", JOBS, "--drain", "--consumers", "1").returncode == Exit.OK
    assert wait_for_file(path)[0].split()[:2] == ["early", done.stdout.strip()]


def test_a_builtin_that_does_not_tell_its_parameters(home: Path, tmp_path: Path) -> None:
    app = tmp_path / "builtins_app.py"
    app.write_text("import taskq\nq = taskq.TaskQ('builtins')\nq.task(name='largest')(max)\n")
    done = taskq(home, "enqueue", f"{app}:q", "largest", "1", "2")
    assert done.returncode == Exit.OK, done
    assert len(done.stdout) == 33


def test_which_queue_is_meant(tmp_path: Path) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path)}
    refused(taskq(None, "status", **state), Exit.USAGE, "no queue", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / "taskq" / name).mkdir(parents=True)
        (tmp_path / "taskq" / name / "lock").touch()
        done = taskq(None, "status", **state)
        if name == "one":
            refused(done, Exit.NO_FLEET, str(tmp_path / "taskq" / "one"))
    refused(done, Exit.USAGE, str(tmp_path / "taskq" / "one"), str(tmp_path / "taskq" / "two"))
    refused(taskq(None, "status", str(tmp_path / "taskq" / "two"), **state), Exit.NO_FLEET, "two")


# -- with a fleet


def test_enqueue_prints_the_id_alone(shared: Fleet, tmp_path: Path) -> None:
    done = taskq(shared.home, "enqueue", JOBS, "note", str(tmp_path / "noted"), "x")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert wait_for_file(tmp_path / "noted")[0].split()[1] == done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["add", "1", "2"], "3"),
        (["add", "-1", "-2.5"], "-3.5"),
        (["add", "1", "--kwargs", '{"b": 5}'], "6"),
        (["echo", "cat.jpg"], '"cat.jpg"'),
        (["echo", '"1"'], '"1"'),
        (["echo", "NaN"], '"NaN"'),
        (["echo", '{"a": [1, null, true]}'], '{"a": [1, null, true]}'),
        (["echo", "héllo"], '"héllo"'),
        (["big", "2"], "\"b'\\\\x00\\\\x00'\""),
        (["add", "1", "--queue", "other"], "2"),
    ],
)
def test_enqueue_wait_prints_the_result(shared: Fleet, here: Here, arguments: list[str], output: str) -> None:
    done = here(shared.home, "enqueue", JOBS, *arguments, "--wait")
    assert (done.returncode, done.stdout, done.stderr) == (Exit.OK, output + "\n", "")


def test_enqueue_wait_of_a_job_that_fails(shared: Fleet) -> None:
    done = taskq(shared.home, "enqueue", JOBS, "fail", "no such page", "--wait")
    assert (done.returncode, done.stdout) == (Exit.JOB_FAILED, "")
    assert "LookupError: no such page" in done.stderr.splitlines()[0]
    assert "Traceback" in done.stderr
    assert "raise LookupError(message)" in done.stderr
    assert "taskq/cli" not in done.stderr


def test_enqueue_wait_runs_out_of_time(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    done = taskq(
        shared.home, "enqueue", JOBS, "hold", gate.path, str(tmp_path / "held"), "--wait", "--timeout", "200ms"
    )
    gate.open()
    refused(done, Exit.TIMEOUT, "0.2 s")


def test_enqueue_wait_says_that_the_queue_is_paused(shared: Fleet) -> None:
    assert taskq(shared.home, "pause", JOBS, "held").returncode == Exit.OK
    done = taskq(shared.home, "enqueue", JOBS, "add", "1", "--queue", "held", "--wait", "--timeout", "100ms", "2")
    assert taskq(shared.home, "resume", "held").returncode == Exit.OK
    assert done.returncode == Exit.TIMEOUT
    assert "queue held is paused, so the job waits: `taskq resume held` lets it run" in done.stderr


def test_enqueue_wait_that_is_interrupted_tells_the_job(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    """It goes on, and nobody else has told its id."""
    with started(shared.home, "enqueue", JOBS, "hold", gate.path, str(tmp_path / "held"), "--wait") as process:
        [line] = wait_for_file(tmp_path / "held")
        wait_for_event(shared.home, "job.started", job_id=line.split()[1])
        # its job was acknowledged long ago, so what it sleeps for is the result
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING, "it waits")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE_S)
    gate.open()
    assert (process.returncode, output) == (130, "")
    assert errors == f"taskq: job {line.split()[1]} goes on\n"


def test_an_option_of_the_job_is_not_one_of_the_command(shared: Fleet) -> None:
    done = taskq(shared.home, "enqueue", JOBS, "add", "1", "2", "--delay", "5m")
    refused(done, Exit.USAGE, "no such option: --delay", "write -o delay=...")


def test_a_task_that_the_application_does_not_have(shared: Fleet) -> None:
    refused(taskq(shared.home, "enqueue", JOBS, "nothing"), Exit.NOT_FOUND, "'nothing'", "add", "note")


def test_taskq_app_stands_for_app(shared: Fleet) -> None:
    assert taskq(shared.home, "enqueue", "add", "1", "2", "--wait", TASKQ_APP=JOBS).stdout == "3\n"
    assert taskq(shared.home, "status", "--json", TASKQ_APP=JOBS).returncode == Exit.OK


def test_status(shared: Fleet) -> None:
    told = json.loads(taskq(shared.home, "status", "--json").stdout)
    asked = asdict(shared.client.status())
    assert told.keys() == {*asked.keys(), "tasks"}
    assert told["broker"].keys() == asked["broker"].keys()
    assert told["broker"]["directory"] == str(shared.home)
    assert told["broker"]["longest_turn_s"] >= told["broker"]["longest_turn_last_minute_s"] > 0
    assert told["broker"]["longest_turn_cpu_s"] > 0
    assert {consumer["pid"] for consumer in told["consumers"]} == set(shared.consumer_pids())
    assert told["totals"].keys() == asked["totals"].keys()
    for app in (JOBS, str(shared.home)):
        shown = taskq(shared.home, "status", app).stdout
        assert str(shared.home) in shown
        assert "longest turn of the broker: " in shown
        assert all(str(pid) in shown for pid in [asked["broker"]["pid"], *shared.consumer_pids()])
        assert "\x1b" not in shown


def test_status_counts_each_task(start: Callable[..., Fleet], home: Path) -> None:
    """By task and queue, with percentiles; also when the fleet has stopped, and by the next one."""
    fleet = start()
    assert [job.result() for job in jobs.add.enqueue_many([(1, 2), (3, 4)])] == [3, 7]

    def counted() -> dict[str, Any]:
        told = json.loads(taskq(home, "status", "--json").stdout)["tasks"]
        return {counts["task"]: counts for counts in told}

    found = counted()
    assert (found["add"]["total"]["enqueued"], found["add"]["total"]["succeeded"]) == (2, 2)
    assert found["add"]["queue"] == "default"
    assert found["add"]["last_hour"] == found["add"]["total"]
    assert 0 < found["add"]["total"]["run_s"]["p50"] < 10
    assert 0 <= found["add"]["total"]["wait_s"]["p99"] < 60
    fleet.stop()
    assert counted() == found
    start()
    assert jobs.add.enqueue(5, 6).result() == 11
    assert counted()["add"]["total"]["succeeded"] == 3


@pytest.mark.not_on_postgres("what is measured at the broker of a directory")
def test_status_tells_how_fast_jobs_come_and_go(
    start: Callable[..., Fleet], gate: Gate, home: Path, tmp_path: Path
) -> None:
    """Of each queue: the rates, the trend, when it will be empty, and how long the oldest job waits, also if it is paused
    and the fleet has not read it; and how the broker is. The picture fits into 60 columns, and is ASCII."""
    fleet = start()
    assert fleet.client.status().flows == {}
    jobs.add.enqueue_many([(1, 2)] * 50)
    wait_until(lambda: fleet.client.status().totals.succeeded == 50, "the jobs ran")
    held = [jobs.hold.enqueue(gate.path, str(tmp_path / "held")) for _ in range(20)]
    wait_for_file(tmp_path / "held", 1)
    status = fleet.client.status()
    flow = status.flows["default"]
    assert flow.came_per_s > flow.ended_per_s > 0
    assert (flow.trend, flow.empty_in_s) == ("growing", None)
    assert 0 < (flow.oldest_waiting_s or 0) < DEADLINE_S
    broker = status.broker
    assert 0 < (broker.commit_mean_s or 0) <= (broker.commit_longest_s or 0)
    assert (broker.journal_bytes or 0) > 4_096
    assert ((broker.clients or 0) > 0, broker.rejected_clients) == (True, 0)
    shown = taskq(home, "status", LANG="C", PYTHONUTF8="0").stdout
    assert "oldest" in shown
    assert "growing" in shown
    assert "a commit takes " in shown
    assert shown.isascii()
    gate.open()
    [job.result(DEADLINE_S) for job in held]
    wait_until(lambda: fleet.client.status().flows["default"].oldest_waiting_s is None, "nothing waits")
    assert fleet.client.status().flows["default"].empty_in_s == 0.0
    taskq(home, "pause", "default")
    jobs.add.enqueue(1, 2)
    fleet.stop()
    assert start().client.status().flows["default"].oldest_waiting_s is not None


@pytest.mark.not_on_postgres("APP is a directory")
def test_status_imports_little(shared: Fleet) -> None:
    """It is asked when something is wrong, and has to answer within 50 ms beside the start of Python."""
    code = (
        "import sys; sys.argv = ['taskq', 'status', *sys.argv[1:]]\n"
        "from taskq.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted(sys.modules), file=sys.stderr)"
    )
    for options in ([], ["--json"]):
        command = [sys.executable, "-c", code, str(shared.home), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
        imported = set(done.stderr.split())
        assert str(shared.home) in done.stdout
        assert not imported & {"typer", "rich", "pydantic", "logging", "asyncio", "taskq.client.app", "taskq.model.job"}


def test_status_watch_goes_on(shared: Fleet) -> None:
    with started(shared.home, "status", "--watch", "--json") as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["broker"]["pid"] for _ in range(2)] == [shared.broker_pid] * 2
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (130, "")


def test_an_error_tells_its_module_and_what_it_came_from(shared: Fleet) -> None:
    """To whoever waits, in what is known of the job, and on the command line."""
    job = jobs.decline.enqueue()
    with pytest.raises(JobFailed) as raised:
        job.result(20)
    error = raised.value
    assert (error.error_type, error.error_message, error.error_causes) == ("Declined", "no card", ("KeyError: 'card'",))
    assert error.error_module.rpartition(".")[2] == "jobs"
    told = json.loads(taskq(shared.home, "job", job.id, "--json").stdout)
    assert (told["error"]["module"], told["error"]["causes"]) == (error.error_module, ["KeyError: 'card'"])
    assert told["history"][0]["error"] == told["error"]
    assert told["history"][0]["machine"] == socket.gethostname()
    consumer = wait_for_event(shared.home, "job.failed", job_id=job.id)["consumer"]
    assert told["history"][0]["consumer"] == consumer
    assert f"consumer  {consumer} on {socket.gethostname()}\n" in taskq(shared.home, "job", job.id).stdout
    assert f"error     {error.error_module}.Declined: no card\n" in taskq(shared.home, "job", job.id).stdout


def test_job(shared: Fleet) -> None:
    job_id = taskq(shared.home, "enqueue", JOBS, "fail", "first\x1b[2J\nsecond").stdout.strip()
    wait_for_event(shared.home, "job.failed", job_id=job_id)
    told = json.loads(taskq(shared.home, "job", job_id, "--json").stdout)
    assert (told["id"], told["state"], told["task"], told["attempts"]) == (job_id, "failed", "fail", 1)
    assert told["error"]["type"] == "LookupError"
    shown = taskq(shared.home, "job", job_id, JOBS).stdout
    assert "state     failed" in shown
    assert "error     LookupError: first\\x1b[2J\n" in shown
    assert "| Traceback" in shown
    assert "\x1b" not in shown
    refused(taskq(shared.home, "job", NO_JOB), Exit.NOT_FOUND, NO_JOB)


def test_job_tells_its_whole_life(start: Callable[..., Fleet], home: Path) -> None:
    """Each attempt with its process, its memory, its signal or its traceback; its log; and why it does not run."""
    start()
    crashing = jobs.last_words.options(max_crashes=2).enqueue(str(home.parent / "words"), "kill")
    failing = jobs.fail.options(retries=1, backoff=[0]).enqueue("twice")
    for each in (crashing, failing):
        wait_until(lambda each=each: each.state() in ("failed", "succeeded"), "it has ended")
    told = json.loads(taskq(home, "job", crashing.id, "--json").stdout)
    crashes = [attempt for attempt in told["history"] if attempt["error"]]
    assert [attempt["error"]["signal"] for attempt in crashes] == ["SIGKILL"] * len(crashes)
    assert len({attempt["pid"] for attempt in crashes}) == len(crashes) >= 2
    assert all(attempt["started_at"] and attempt["consumer"] for attempt in crashes)
    assert {event["event"] for event in told["log"]} >= {"job.crashed"}
    told = json.loads(taskq(home, "job", failing.id, "--json").stdout)
    assert all(attempt["pid"] and attempt["peak_bytes"] > 1e6 for attempt in told["history"])
    assert all("LookupError" in attempt["error"]["traceback"] for attempt in told["history"])
    shown = taskq(home, "job", failing.id, LANG="C").stdout
    assert "\nmemory    " in shown
    assert "job.retrying" in shown
    assert "Traceback" in shown
    taskq(home, "pause", "default")
    waiting = jobs.add.enqueue(1, 2)
    assert "why       Queue default is paused" in taskq(home, "job", waiting.id).stdout
    assert json.loads(taskq(home, "job", waiting.id, "--json").stdout)["why"][0]["kind"] == "paused"


def test_cancel(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    path = str(tmp_path / "held")
    holding = [taskq(shared.home, "enqueue", JOBS, "hold", gate.path, path).stdout.strip() for _ in range(2)]
    wait_for_file(tmp_path / "held", 2)
    waiting = taskq(shared.home, "enqueue", JOBS, "add", "1").stdout.strip()
    done = taskq(shared.home, "cancel", waiting)
    assert (done.returncode, done.stdout) == (Exit.OK, f"{waiting} is cancelled\n")
    assert "state     cancelled" in taskq(shared.home, "job", waiting).stdout
    refused(taskq(shared.home, "cancel", "--not-running", holding[0]), Exit.FAILED, "running")
    gate.open()
    wait_for_file(tmp_path / "held", 4)
    refused(taskq(shared.home, "cancel", NO_JOB), Exit.NOT_FOUND, NO_JOB)


def test_a_second_worker_refuses(shared: Fleet) -> None:
    refused(taskq(shared.home, "worker", JOBS), Exit.ALREADY_RUNNING, str(shared.broker_pid), "taskq stop")


# -- logs


def test_logs_filters(shared: Fleet) -> None:
    job_id = taskq(shared.home, "enqueue", JOBS, "fail", "logged").stdout.strip()
    wait_for_event(shared.home, "job.failed", job_id=job_id)
    [event] = map(json.loads, taskq(shared.home, "logs", "--json", "--job", job_id).stdout.splitlines())
    assert (event["event"], event["task"], event["error"]) == ("job.failed", "fail", "LookupError: logged")
    shown = taskq(shared.home, "logs", "--task", "fail", "--event", "job.*", "--level", "error", "--since", "1h").stdout
    assert job_id in shown
    assert "\x1b" not in shown
    assert "fleet.started" not in shown
    assert len(taskq(shared.home, "logs", "-n", "1", "--json").stdout.splitlines()) == 1
    assert taskq(shared.home, "logs", "-n", "0").stdout == ""
    about_it = ["logs", "--json", "--grep", f"^{job_id[:12]}", "--since", "1h", "--until", "0s"]
    assert {json.loads(line)["job_id"] for line in taskq(shared.home, *about_it).stdout.splitlines()} == {job_id}
    numbers = taskq(shared.home, "logs", "--json", "--consumer", "1").stdout.splitlines()
    assert {json.loads(line)["consumer"] for line in numbers} == {1}


def test_logs_of_a_job_that_is_not_in_it(shared: Fleet) -> None:
    done = taskq(shared.home, "logs", "--job", "deadbeef")
    assert (done.returncode, done.stdout) == (Exit.OK, "")
    assert "no line in the log of" in done.stderr
    assert "deadbeef" in done.stderr
    assert taskq(shared.home, "logs", "--job", "deadbeef", "--json").stderr == done.stderr


def test_logs_follows_until_interrupted(shared: Fleet) -> None:
    first = taskq(shared.home, "enqueue", JOBS, "fail", "line 0").stdout.strip()
    wait_for_event(shared.home, "job.failed", job_id=first)
    with started(shared.home, "logs", "-f", "--json", "--task", "fail", "-n", "1") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["job_id"] == first
        for number in (1, 2):
            taskq(shared.home, "enqueue", JOBS, "fail", f"line {number}")
            assert json.loads(process.stdout.readline())["error"] == f"LookupError: line {number}"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (130, "")


@pytest.mark.not_on_postgres("it writes the log of a directory by hand")
def test_logs_follows_across_rotation_and_without_a_fleet(home: Path) -> None:
    path = log_path(home)
    path.parent.mkdir(parents=True)
    path.write_text('{"event": "one"}\n{"event": "two"}\n')
    with started(home, "logs", "-f", "--json", "-n", "1") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"event": "two"}
        with path.open("a") as file:
            file.write('{"event": "three"}\n')
        path.rename(rotated_path(path, 1))
        path.write_text('{"event": "four"}\n')
        assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["three", "four"]


@pytest.mark.not_on_postgres("it writes the log of a directory by hand")
@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_logs_ends_with_its_reader(home: Path, follow: list[str]) -> None:
    path = log_path(home)
    path.parent.mkdir(parents=True)
    path.write_text('{"event": "a line"}\n' * 50_000)
    with started(home, "logs", "-n", "50000", *follow) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(DEADLINE_S) == Exit.OK
        assert process.stderr.read() == ""
        process.stdout = None


def test_logs_that_are_not_there(home: Path) -> None:
    home.mkdir(mode=0o700)
    done = taskq(home, "logs")
    assert (done.returncode, done.stdout) == (Exit.OK, "")
    assert "no fleet has run there" in done.stderr


# -- stop and reload


def test_stop_tells_of_every_job_that_is_left(home: Path) -> None:
    """Also of those that are not queued but scheduled or waiting."""
    with started(home, "worker", JOBS, "--consumers", "1") as worker:
        wait_until(lambda: taskq(home, "status").returncode == Exit.OK, "a fleet that answers")
        assert "no pending or running jobs" in taskq(home, "status").stdout
        later = jobs.add.options(delay=3600).enqueue(1)
        jobs.add.options(delay=3600).enqueue(2)
        jobs.add.options(after=[later]).enqueue(3)
        done = taskq(home, "stop")
        where = "in the database" if is_in_database() else "for the next fleet"
        assert done.stdout.endswith(f"; 3 jobs stay {where} (2 scheduled, 1 waiting)\n")
        worker.communicate(timeout=DEADLINE_S)
    with started(home, "worker", JOBS, "--consumers", "1") as worker:
        wait_until(lambda: taskq(home, "status").returncode == Exit.OK, "a fleet that answers")
        jobs.q.pause("default")
        jobs.add.enqueue(4)
        done = taskq(home, "stop")
        assert done.stdout.endswith(f"; 4 jobs stay {where} (2 scheduled, 1 waiting)\n")
        worker.communicate(timeout=DEADLINE_S)
    if is_in_database():
        return  # its log tells what one machine had
    logged = [event for event in read(home) if event["event"] in ("fleet.started", "fleet.stopped")]
    told = [(event["queued"], event["scheduled"], event["waiting"]) for event in logged]
    assert told == [(0, 0, 0), (0, 2, 1), (0, 2, 1), (1, 2, 1)]


def test_stop(home: Path, gate: Gate, tmp_path: Path) -> None:
    with started(home, "worker", JOBS, "--consumers", "1") as worker:
        for _ in range(2):
            taskq(home, "enqueue", JOBS, "hold", gate.path, str(tmp_path / "held"))
        wait_for_file(tmp_path / "held")
        late = taskq(home, "stop", "--timeout", "0.1")
        assert late.returncode == Exit.TIMEOUT
        assert "1 running job" in late.stderr
        assert "0.1 s" in late.stderr
        gate.open()
        worker.communicate(timeout=DEADLINE_S)
        assert worker.returncode == Exit.OK
    refused(taskq(home, "stop"), Exit.NO_FLEET)
    with started(home, "worker", JOBS, "--consumers", "1") as worker:
        wait_for_file(tmp_path / "held", 4)
        done = taskq(home, "stop")
        assert (done.returncode, done.stderr) == (Exit.OK, "")
        assert done.stdout.startswith("stopped in ")
        assert done.stdout.endswith("no pending jobs\n")
        again = taskq(home, "worker", JOBS, "--drain", "--consumers", "1")  # what stop waited for
        assert again.returncode == Exit.OK, again
        worker.communicate(timeout=DEADLINE_S)
        assert worker.returncode == Exit.OK


CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.parametrize("inside", ["fleet", "command"])
def test_stop_in_another_container(home: Path, gate: Gate, tmp_path: Path, inside: str) -> None:
    """There, the number of the broker is that of another process, or of none."""
    if subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a namespace of processes")
    stop = [*(CONTAINER if inside == "command" else ()), *TASKQ, "stop"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*stop, *arguments]
        return subprocess.run(
            command, env=environment(home), capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )

    with running(Fleet(home, JOBS, consumers=1, prefix=CONTAINER if inside == "fleet" else ())) as fleet:
        jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
        wait_for_file(tmp_path / "held")
        late = run("--timeout", "0.1")
        assert late.returncode == Exit.TIMEOUT, late
        done = run()  # a second one ends the job
        assert done.returncode == Exit.OK, done
        assert done.stdout.endswith("1 job stays for the next fleet\n")
        fleet.wait_for_end()


def test_reload(start: Callable[..., Fleet]) -> None:
    fleet = start(consumers=1)
    [before] = fleet.consumer_pids()
    done = taskq(fleet.home, "reload")
    assert done.returncode == Exit.OK
    assert "1 consumer" in done.stdout
    fleet.wait_for("consumer.exited", pid=before)
    assert before not in fleet.consumer_pids()


# -- in a terminal


def test_control_c_lets_running_jobs_end(
    home: Path, gate: Gate, tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    worker = terminal(home, "worker", JOBS, "--consumers", "1")
    taskq(home, "enqueue", JOBS, "hold", gate.path, str(tmp_path / "held"))
    wait_for_file(tmp_path / "held")
    worker.type(b"\x03")
    worker.read_until("fleet.stopping")
    gate.open()
    assert worker.read_to_end() == Exit.OK
    assert len(wait_for_file(tmp_path / "held")) == 2
    assert "Traceback" not in worker.text


def test_status_watch_in_a_terminal(shared: Fleet, terminal: Callable[..., Terminal]) -> None:
    watch = terminal(shared.home, "status", "--watch")
    watch.read_until("enqueued")
    watch.type(b"\x03")
    assert watch.read_to_end() == 130
    assert "Traceback" not in watch.text
    assert "\x1b[" in watch.text  # coloured


def test_demo_in_a_terminal(home: Path, terminal: Callable[..., Terminal]) -> None:
    demo = terminal(home, "demo")
    assert demo.read_to_end() == Exit.OK
    assert "Traceback" not in demo.text
    for word in ("kill -9", "nothing lost", "jobs/s", "consumer.crashed", "fleet.stopped", "succeeded", "taskq logs"):
        assert word in demo.text
    assert not home.exists()


def test_demo_without_a_terminal(home: Path, tmp_path: Path) -> None:
    done = taskq(home, "demo", TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert "\x1b" not in done.stdout
    assert "nothing lost" in done.stdout
    assert not list(tmp_path.glob("taskq-demo-*"))


def test_demo_interrupted_leaves_nothing(home: Path) -> None:
    with started(home, "demo", start_new_session=True) as demo:
        assert demo.stdout is not None
        line = ""
        while "broker" not in line:
            line = demo.stdout.readline()
            assert line
        broker = int(line.split()[1])
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=DEADLINE_S)
    assert (demo.returncode, errors) == (130, "")
    with pytest.raises(ProcessLookupError):
        os.kill(broker, 0)


def test_enqueue_with_options(shared: Fleet, tmp_path: Path) -> None:
    """By name and text, as from Python; what makes no sense is refused."""
    arguments = ("enqueue", JOBS, "add", "1", "2")
    scheduled = taskq(shared.home, *arguments, "-o", "delay=10m", "-o", "priority=3", "-o", "retries=0")
    assert scheduled.returncode == Exit.OK
    told = taskq(shared.home, "job", scheduled.stdout.strip()).stdout
    assert "scheduled" in told
    first = taskq(shared.home, *arguments, "-o", "unique=one", "-o", "at=2090-01-01T00:00:00+01:00")
    second = taskq(shared.home, *arguments, "-o", "unique=one")
    assert first.stdout == second.stdout
    assert "of the same kind" in second.stderr
    for job in (scheduled, first):
        assert taskq(shared.home, "cancel", job.stdout.strip()).returncode == Exit.OK
    for option, text in (
        ("delay", "NAME=VALUE"),
        ("delay=soon", "use seconds, or a duration"),
        ("at=2090-01-01", "no time zone"),
        ("at=noon", "write a moment"),
        ("colour=red", "no such option"),
        ("priority=high", "use a whole number"),
    ):
        refused(taskq(shared.home, *arguments, "-o", option), Exit.USAGE, text)


@pytest.mark.parametrize("variable", ["TASKQ_URL", "XDG_STATE_HOME"])
def test_a_path_that_is_not_utf_8_is_refused(variable: str, tmp_path: Path) -> None:
    """Neither the log nor an answer could name it."""
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    environment = {b"PATH": b"/usr/bin:/bin", b"HOME": os.fsencode(tmp_path), variable.encode(): place}
    for command in ("enqueue", "worker", "status"):
        arguments = [sys.executable, "-m", "taskq", command, JOBS, *(["add", "1"] if command == "enqueue" else [])]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == (Exit.APP if command == "worker" else Exit.USAGE), done.stderr
        assert "is not valid UTF-8" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
