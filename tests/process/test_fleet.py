"""The contract of tasks and jobs, on a real fleet."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from apps import jobs, versioned
from fleet import APPS, Fleet, Gate, environment_of, running, starts, too_large, url_of, wait_for_file, wait_until

from taskq import (
    ConfigError,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobState,
    PayloadError,
    PayloadTooLarge,
    ResultTimeout,
    TaskQ,
)
from taskq.client.job import Job
from taskq.model.errors import AlreadyRunning, AppError
from taskq.model.job import new_job_ids
from taskq.model.limits import MAX_PAYLOAD_BYTES, MIB
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.protocol.submissions import Call
from taskq.telemetry.reader import read

Start = Callable[..., Fleet]
VERSIONED = f"{APPS / 'versioned.py'}:q"


# -- tasks and jobs


def test_a_call_runs_here_and_enqueue_there(shared: Fleet) -> None:
    assert jobs.add(2, b=3) == 5
    job = jobs.add.enqueue(2, b=3)
    assert job.result(timeout=10) == 5
    *_, pid = jobs.who.enqueue().result(timeout=10)
    assert pid in shared.consumer_pids()


def test_what_cannot_be_the_id_of_a_job(shared: Fleet) -> None:
    """It comes from outside, as the address of a page: such a job is not found, as one that never was."""
    for given in ("nothing", "", "0" * 31, "0" * 34):
        with pytest.raises(JobNotFound, match="32 hexadecimal digits"):
            jobs.q.job(given)
        with pytest.raises(ConfigError):
            jobs.q.job(given)


def test_handles(shared: Fleet) -> None:
    job = jobs.add.enqueue(1)
    assert job.wait(timeout=10)
    assert job.state() is JobState.SUCCEEDED
    info = job.info()
    assert (info.id, info.task, info.queue, info.attempts, info.crashes) == (job.id, "add", "default", 1, 0)
    assert info.enqueued_at <= info.started_at + 0.001
    assert info.error is None
    same = jobs.q.job(job.id)
    assert same == job
    assert same.result(timeout=10) == job.result(timeout=10) == 2, "a result can be read again"
    with pytest.raises(ConfigError):
        jobs.q.job("something else")
    with pytest.raises(JobNotFound):
        jobs.q.job("0" * 32).result(timeout=10)
    with pytest.raises(JobNotFound):
        jobs.q.job("0" * 32).info()


def test_await(shared: Fleet) -> None:
    async def program() -> list[int]:
        one = await jobs.add.aenqueue(1)
        others = await jobs.double.aenqueue_many([(number,) for number in range(3)])
        return [await one, *await asyncio.gather(*(other.aresult(timeout=10) for other in others))]

    assert asyncio.run(program()) == [2, 0, 2, 4]


def test_enqueue_many(shared: Fleet) -> None:
    made = jobs.add.enqueue_many((number, number) for number in range(1500))
    assert [job.result(timeout=10) for job in made] == [2 * number for number in range(1500)]
    with pytest.raises(ConfigError, match="tuple"):
        jobs.echo.enqueue_many(["text"])


def test_enqueue_by_name(shared: Fleet) -> None:
    assert jobs.q.enqueue("add", 4, b=4).result(timeout=10) == 8
    stranger = TaskQ("stranger", url_of(shared.home))
    assert stranger.enqueue("add", 5, b=5).result(timeout=10) == 10


def test_options(shared: Fleet, tmp_path: Path) -> None:
    job = jobs.fail_once.options(retries=0, queue="other").enqueue(str(tmp_path / "starts"))
    with pytest.raises(JobFailed, match="not yet"):
        job.result(timeout=10)
    assert job.info().queue == "other"
    with pytest.raises(ConfigError):
        jobs.add.options(retries=-1)


def test_map(shared: Fleet) -> None:
    assert list(jobs.echo.map(range(300))) == list(range(300))
    assert sorted(jobs.echo.map(range(300), ordered=False)) == list(range(300))
    assert list(jobs.add.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert list(jobs.echo.map([])) == []


def test_map_of_an_endless_iterable(shared: Fleet) -> None:
    assert list(islice(jobs.echo.map(count()), 100)) == list(range(100))
    assert len(list(islice(jobs.echo.map(count(), ordered=False), 100))) == 100


def test_map_raises_when_the_turn_comes(shared: Fleet) -> None:
    results = TaskQ("elsewhere", url_of(shared.home)).named("echo").starmap([(1,), (2, 3), (4,)])
    assert next(results) == 1
    with pytest.raises(JobFailed, match="BadArguments"):
        next(results)


@pytest.mark.parametrize("ordered", [True, False])
def test_map_says_which_item_failed(shared: Fleet, ordered: bool) -> None:
    items = [0] * 1_234 + [13] + [0] * 10
    seen = []
    with pytest.raises(JobFailed, match=r"^item 1,234 \(counted from 0\): job \w+ failed: ValueError: 13") as caught:
        seen.extend(jobs.picky.map(items, ordered=ordered))
    assert caught.value.item == 1_234
    assert len(seen) == 1_234 if ordered else len(seen) <= 1_244
    with pytest.raises(
        JobCancelled, match=r"^item 1 \(counted from 0\): job \w+ was cancelled by itself: 7"
    ) as stopped:
        list(jobs.picky.starmap([(1,), (7,), (1,)], ordered=ordered))
    assert stopped.value.item == 1
    with pytest.raises(JobFailed, match=r"^job \w+ failed: ValueError: 13") as alone:
        jobs.picky.enqueue(13).result(timeout=10)
    assert alone.value.item is None


def test_coroutine(shared: Fleet) -> None:
    assert [job.result(timeout=10) for job in jobs.double.enqueue_many([(1,), (2,)])] == [2, 4]


def test_cancel(start: Start, gate: Gate, tmp_path: Path) -> None:
    start(consumers=1)
    path = tmp_path / "starts"
    running = jobs.hold.enqueue(gate.path, str(path))
    starts(path, 1)
    waiting = jobs.note.enqueue_many([(str(path), str(number)) for number in range(5)])
    assert waiting[2].cancel()
    assert waiting[2].cancel(), "it is cancelled, so asking again says so"
    assert waiting[2].state() is JobState.CANCELLED
    assert not running.cancel(running=False), "it runs"
    wait_until(lambda: running.state() is JobState.RUNNING, "it is told that it runs")
    assert waiting[0].state() is JobState.QUEUED
    with pytest.raises(ResultTimeout):
        running.result(timeout=0)
    assert not running.wait(timeout=0.01)
    gate.open()
    with pytest.raises(JobCancelled):
        waiting[2].result(timeout=10)
    for job in (running, *waiting[:2], *waiting[3:]):
        job.result(timeout=10)
    assert [start.label for start in starts(path)] == ["held", "held-end", "0", "1", "3", "4"]


# -- failures


def test_job_failed_tells_the_remote_error(shared: Fleet) -> None:
    job = jobs.fail.enqueue("no such thing")
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=10)
    error = caught.value
    assert (error.job_id, error.error_type, error.error_message) == (job.id, "LookupError", "no such thing")
    assert "jobs.py" in error.error_traceback
    assert "runner.py" not in error.error_traceback, "our own frames are of no use to the reader"
    assert job.state() is JobState.FAILED
    assert shared.wait_for("job.failed", job_id=job.id)["error"] == "LookupError: no such thing"


def test_retry_with_backoff(shared: Fleet, tmp_path: Path) -> None:
    job = jobs.fail_once.enqueue(str(tmp_path / "starts"))
    assert job.result(timeout=10) == 2
    first, second = starts(tmp_path / "starts")
    assert second.at - first.at > 0.49
    assert (first.attempt, second.attempt) == (1, 2)
    info = job.info()
    assert (info.attempts, info.crashes, info.state) == (2, 0, JobState.SUCCEEDED)
    assert 0.49 < shared.wait_for("job.retrying", job_id=job.id, attempt=1)["delay_s"] < 1.01


REFUSED = {
    "UnknownTask": lambda: jobs.q.enqueue("no_such_task", 1),
    "BadArguments": lambda: TaskQ("elsewhere", url_of(jobs.q.directory.path)).enqueue("add", 1, 2, 3),
    "UnserializableResult": jobs.unserializable.enqueue,
    "ResultTooLarge": lambda: jobs.huge.enqueue(too_large()),
    "SystemExit": lambda: jobs.raise_system_exit.enqueue(0),
    "KeyboardInterrupt": jobs.raise_keyboard_interrupt.enqueue,
    "Nasty": jobs.nasty.enqueue,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_fails_at_once_and_the_consumer_lives(shared: Fleet, reason: str) -> None:
    before = shared.wait_ready().consumer_pids()
    job = REFUSED[reason]()
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=10)
    assert caught.value.error_type.endswith(reason)
    assert job.info().attempts == 1
    assert shared.consumer_pids() == before


def test_corrupt_payload(shared: Fleet) -> None:
    [job_id] = new_job_ids(1)
    jobs.q.client.submit(Spec("add"), [Call(job_id, b"\x93garbage")])
    with pytest.raises(JobFailed, match="CorruptPayload"):
        jobs.q.job(job_id.hex()).result(timeout=10)


@pytest.mark.not_on_postgres("a database takes 4 MiB, and a directory a gigabyte")
def test_arguments_that_cannot_travel(shared: Fleet) -> None:
    enqueued = shared.totals()["enqueued"]
    with pytest.raises(PayloadError, match=r"args\[0\]\['x'\]"):
        jobs.echo.enqueue({"x": object()})
    with pytest.raises(PayloadTooLarge):
        jobs.echo.enqueue(np.zeros(MAX_PAYLOAD_BYTES, "u1"))
    with pytest.raises(PayloadTooLarge):
        jobs.echo.enqueue_many([(np.zeros(MAX_PAYLOAD_BYTES, "u1"),)])
    shared.wait_for_totals(enqueued=enqueued)


@pytest.mark.not_on_postgres("a database takes 4 MiB, and a directory a gigabyte")
def test_large_payloads_travel(shared: Fleet) -> None:
    data = os.urandom(16 * MIB)
    assert jobs.echo.enqueue(data).result(timeout=20) == data


def test_the_process_of_a_job_may_fork(shared: Fleet) -> None:
    assert jobs.use_multiprocessing.enqueue().result(timeout=10) == 6
    before = shared.wait_ready().consumer_pids()
    assert jobs.fork_and_return.enqueue().result(timeout=10) in before
    assert jobs.add.enqueue(1).result(timeout=10) == 2
    assert shared.consumer_pids() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_signals_end_what_a_job_forks(shared: Fleet, number: signal.Signals) -> None:
    """`multiprocessing.Pool` ends its workers so. A consumer's own way with signals is not theirs."""
    assert jobs.end_a_fork.enqueue(int(number)).result(timeout=10) == -number


# -- what a job knows and tells


def test_current_job(shared: Fleet) -> None:
    job = jobs.who.enqueue()
    job_id, task, attempt, _ = job.result(timeout=10)
    assert (job_id, task, attempt) == (job.id, "who", 1)
    with pytest.raises(Exception, match="outside a job"):
        jobs.current_job()


def test_output_is_reported_with_its_job(shared: Fleet) -> None:
    jobs.speak.enqueue().result(timeout=10)
    spoken = [jobs.speak.enqueue() for _ in range(3)]
    for job in spoken:
        job.result(timeout=10)
        lines = shared.events("job.log", job_id=job.id, task="speak", attempt=1)
        told = sorted(line["message"] for line in lines)
        expected = ["descriptor", "job log", "logging", "print", "structlog", "subprocess"]
        assert len(told) == len(expected)
        for word, line in zip(expected, sorted(told, key=lambda text: text[text.index("by ") :]), strict=True):
            assert f"by {word}" in line
    [line] = shared.events("job.log", job_id=job.id, message="by job log")
    assert (line["level"], line["width"]) == ("error", 640)
    [line] = shared.events("job.log", job_id=job.id, message="by logging")
    assert (line["level"], line["logger"]) == ("warning", "app")


def test_a_flood_of_output_is_bounded_and_reported(shared: Fleet) -> None:
    job = jobs.print_much.enqueue(20_000)
    job.result(timeout=20)
    shared.wait_for("output.dropped")
    assert shared.count("job.log", job_id=job.id) < 20_000


# -- timeouts


def test_timeout_in_python(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    before = shared.consumer_pids()
    path = str(tmp_path / "starts")
    job = jobs.overdue.enqueue(path, "python", gate.path)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=10)
    assert caught.value.error_type == "TimedOut"
    assert "pass_gate" in caught.value.error_traceback, "it says where the job was"
    assert jobs.overdue.enqueue(path, "caught", gate.path).result(timeout=10) == "caught"
    assert jobs.overdue.enqueue(path, "in-time").result(timeout=10) == "in-time"
    assert shared.consumer_pids() == before
    shared.wait_for("job.timed_out", job_id=job.id)


def test_timeout_that_is_not_obeyed(shared: Fleet, make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    crashes = shared.count("job.crashed")
    stuck = [jobs.overdue.enqueue(str(tmp_path / how), how, make_gate().path) for how in ("blocked", "insists")]
    for job in stuck:
        with pytest.raises(JobFailed) as caught:
            job.result(timeout=10)
        assert caught.value.error_type == "TimedOut"
        assert (job.info().attempts, job.info().crashes) == (1, 0)
    assert shared.count("job.crashed") == crashes


def test_timeout_in_c_costs_only_its_job(start: Start, make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    fleet = start(consumers=1)
    first_pid = fleet.consumer_pids()[0]
    path, first_gate = tmp_path / "starts", make_gate()
    first = jobs.hold.enqueue(first_gate.path, str(path))  # so that what follows waits in the same batches
    starts(path, 1)
    before = jobs.note.enqueue(str(path), "before")
    stuck = jobs.overdue.enqueue(str(path), "in-c")
    after = jobs.note.enqueue_many([(str(path), f"after{number}") for number in range(20)])
    first_gate.open()
    with pytest.raises(JobFailed) as caught:
        stuck.result(timeout=10)
    assert caught.value.error_type == "TimedOut"
    assert (stuck.info().attempts, stuck.info().crashes) == (1, 0)
    assert [job.result(timeout=10) for job in (first, before, *after)]
    found = starts(path)
    assert [start.label for start in found if start.label.startswith("after")] == [f"after{n}" for n in range(20)]
    assert {start.attempt for start in found} == {1}
    assert first_pid not in fleet.consumer_pids()
    assert fleet.count("job.crashed") == 0


# -- leases


def test_short_jobs_do_not_wait_behind_a_long_one(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    shared.wait_ready()
    before = jobs.nap.enqueue_many([(0.001,)] * 100)
    long = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    after = jobs.nap.enqueue_many([(0.001,)] * 100)
    for job in (*before, *after):
        job.result(timeout=10)
    starts(tmp_path / "held", 1)
    wait_until(lambda: long.state() is JobState.RUNNING, "it is told that it runs")
    gate.open()
    assert long.result(timeout=10) == "held"


# -- consumers come and go


def test_recycling_keeps_numbers_and_loses_nothing(start: Start, tmp_path: Path) -> None:
    fleet = start(max_jobs=50)
    made = jobs.note.enqueue_many([(str(tmp_path / "starts"), str(number)) for number in range(300)])
    naps = jobs.nap.enqueue_many([(0.002,)] * 700)
    for job in (*made, *naps):
        job.result(timeout=20)
    assert sorted(int(start.label) for start in starts(tmp_path / "starts")) == list(range(300))
    exited = fleet.wait_for("consumer.exited")
    assert exited["exit_code"] == 0
    assert {consumer["number"] for consumer in fleet.status()["consumers"]} == {1, 2}
    assert all(event["jobs_done"] >= 50 for event in fleet.events("consumer.exited"))
    assert fleet.count("consumer.crashed") == 0


def test_a_consumer_is_recycled_once(start: Start) -> None:
    fleet = start(consumers=1, max_jobs=50)
    for job in jobs.add.enqueue_many([(1,)] * 50):
        job.result(timeout=10)
    while fleet.count("consumer.started") < 2:
        jobs.add.enqueue(1).result(timeout=10)
    wait_until(lambda: len(fleet.status()["consumers"]) == 1 or fleet.count("consumer.exited"), "the old one gone")
    [consumer] = fleet.status()["consumers"]
    assert consumer["state"] == "idle"
    assert consumer["jobs_done"] < 50


def test_reload_runs_new_code_while_jobs_flow(start: Start, version: Path) -> None:
    fleet = start(VERSIONED).wait_ready()
    old = set(fleet.consumer_pids())
    results = versioned.version.starmap(() for _ in count())
    assert next(results)[0] == "one"
    version.write_text("two")
    fleet.client.reload()
    seen = [next(results)]
    while {pid for name, pid in seen[-200:] if name == "two"} != set(fleet.consumer_pids()):
        seen.extend(islice(results, 200))
    results.close()
    assert {name for name, _ in seen} == {"one", "two"}
    wait_until(lambda: len(fleet.status()["consumers"]) == 2, "the old consumers gone")
    assert old.isdisjoint(fleet.consumer_pids())
    assert {consumer["number"] for consumer in fleet.status()["consumers"]} == {1, 2}
    assert fleet.count("consumer.crashed") == 0


def test_preload(start: Start, version: Path) -> None:
    fleet = start(VERSIONED, preload=True).wait_ready()
    job = versioned.die_at_first.enqueue()
    assert job.result(timeout=10) in fleet.consumer_pids()
    assert job.info().crashes == 1
    crash = fleet.wait_for("consumer.crashed")
    assert crash["signal"] == "SIGKILL"
    for name in ("two", "three"):
        version.write_text(name)
        started = fleet.count("consumer.started")
        fleet.client.reload()
        fleet.wait_for("consumer.started", skip=started + 1)
        wait_until(lambda: len(fleet.status()["consumers"]) == 2, "the old consumers gone")
        assert versioned.version.enqueue().result(timeout=10)[0] == name

    def is_server(process: psutil.Process) -> bool:
        try:
            return "preloaded application" in " ".join(process.cmdline())
        except psutil.Error:
            return False  # it has ended

    wait_until(lambda: sum(map(is_server, fleet.processes())) == 1, "the servers of the old code gone")


@pytest.mark.parametrize("preload", [False, True])
def test_reload_of_code_that_does_not_work(start: Start, version: Path, preload: bool) -> None:
    fleet = start(VERSIONED, preload=preload).wait_ready()
    before = fleet.consumer_pids()
    version.write_text("broken")
    fleet.client.reload()
    failed = fleet.wait_for("consumer.boot_failed")
    assert "this version does not work" in failed["error"]
    wait_until(lambda: len(fleet.status()["consumers"]) == 2, "the failed one gone")
    assert fleet.consumer_pids() == before
    assert versioned.version.enqueue().result(timeout=10)[0] == "one"


def test_a_failed_reload_does_not_cost_a_consumer(start: Start, version: Path, gate: Gate) -> None:
    """The consumer that was to be replaced dies while its successor boots; then the successor fails."""
    fleet = start(VERSIONED, consumers=1).wait_ready()
    version.write_text(f"slow {gate.path}")
    fleet.client.reload()
    wait_for_file(Path(gate.path + ".pid"))
    fleet.kill(fleet.consumer_pids()[0])
    fleet.wait_for("consumer.crashed")
    version.write_text("three")
    gate.open()
    assert versioned.version.enqueue().result(timeout=10)[0] == "three"


def test_an_application_that_does_not_import(home: Path, version: Path) -> None:
    version.write_text("broken")
    fleet = Fleet(home, VERSIONED, environment={"TASKQ_IN_CONSUMER": "1"}).start(wait=False)
    assert fleet.wait_for_end() == 3
    assert "this version does not work" in fleet.errors.read_text()
    fleet.finish()


# -- the end of a fleet


def test_drain(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    made = jobs.note.enqueue_many([(str(path), str(number)) for number in range(200)])
    fail = jobs.fail_once.enqueue(str(path))
    fleet = Fleet(home, drain=True).start()
    assert fleet.wait_for_end() == 0
    assert len(starts(path)) == 202, "also the retry that was due later"
    fleet.finish()
    stopped = fleet.events("fleet.stopped")[-1]
    assert (stopped["succeeded"], stopped["queued"], stopped["scheduled"], stopped["waiting"]) == (201, 0, 0, 0)
    assert len(made) + 1 == stopped["succeeded"]
    assert fail.id


def test_stop_lets_jobs_end_until_the_deadline(home: Path, make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    path, soon, never = tmp_path / "starts", make_gate(), make_gate()
    fleet = Fleet(home, stop_timeout_s=1.0).start().wait_ready()
    ends = jobs.hold.enqueue(soon.path, str(path), "ends")
    stays = jobs.hold.enqueue(never.path, str(path), "stays")
    starts(path, 2)
    waiting = jobs.note.enqueue(str(path), "waiting")
    os.kill(fleet.guardian_pid, signal.SIGTERM)
    fleet.wait_for("fleet.stopping", running=2)
    soon.open()
    assert fleet.wait_for_end() == 0
    fleet.finish()
    never.open()
    fleet = Fleet(home).start()
    assert ends.result(timeout=10) == "ends"
    assert stays.result(timeout=10) == "stays"
    assert waiting.result(timeout=10) == "waiting"
    assert (stays.info().attempts, stays.info().crashes) == (1, 0)
    found = [(start.label, start.attempt) for start in starts(path)]
    assert sorted(found) == sorted(
        [("ends", 1), ("ends-end", 1), ("stays", 1), ("stays", 1), ("stays-end", 1), ("waiting", 1)]
    )
    fleet.finish()


@pytest.mark.parametrize(("number", "after_s"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 1.1)])
def test_a_second_signal_does_not_wait(
    home: Path, gate: Gate, tmp_path: Path, number: signal.Signals, after_s: float
) -> None:
    """Two SIGTERMs within a second are one."""
    fleet = Fleet(home, stop_timeout_s=60.0).start()
    job = jobs.hold.enqueue(gate.path, str(tmp_path / "starts"))
    starts(tmp_path / "starts", 1)
    os.kill(fleet.guardian_pid, signal.SIGTERM)
    fleet.wait_for("fleet.stopping")
    time.sleep(after_s)
    start = time.monotonic()
    os.kill(fleet.guardian_pid, number)
    assert fleet.wait_for_end() == 0
    assert time.monotonic() - start < 40.0, "less than its stop timeout"
    fleet.finish()
    gate.open()
    fleet = Fleet(home).start()
    assert job.result(timeout=10) == "held"
    assert job.info().attempts == 1
    fleet.finish()


def test_stop_by_request(start: Start) -> None:
    fleet = start()
    fleet.client.stop()
    assert fleet.wait_for_end() == 0


# -- a fleet inside a script


def test_fleet_of_a_script(home: Path) -> None:
    environment = {**os.environ, **environment_of(home)}
    script = [sys.executable, str(APPS / "script.py")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done 100\n", "")


def test_fleet_context_manager(home: Path) -> None:
    with jobs.q.fleet(settings=Settings(consumers=1, log_level="info", log_format="json")):
        pid = jobs.who.enqueue().result(timeout=10)[-1]
        with pytest.raises(AlreadyRunning, match="already runs"), jobs.q.fleet():
            pass
    assert not psutil.pid_exists(pid)
    with pytest.raises(AppError, match="global"), TaskQ("local", url_of(home)).fleet():
        pass


WHOSE_BROKER_IS_KILLED = """
import os, signal, taskq
q = taskq.TaskQ("killed")
@q.task
def add(a, b):
    return a + b
if __name__ == "__main__":
    with q.fleet(consumers=1):
        os.kill(q.status().broker.pid, signal.SIGKILL)
        print(add.enqueue(1, 2).result(timeout=30))
"""


def test_fleet_of_a_script_whose_broker_was_killed_ends_in_its_orderly_way(home: Path, tmp_path: Path) -> None:
    """The guardian has told the program of the new broker, and nobody has read that."""
    environment = {**os.environ, "TASKQ_URL": str(home)}
    (tmp_path / "killed.py").write_text(WHOSE_BROKER_IS_KILLED)
    script = [sys.executable, str(tmp_path / "killed.py")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert "taskq worker" not in done.stderr, "the program itself starts the fleet"
    events = [event["event"] for event in read(home)]
    assert events.count("fleet.started") == 2
    assert events[-1] == "fleet.stopped"


def leave_jobs(home: Path, path: Path, gate: Gate) -> list[Job[Any]]:
    """What a program leaves that is killed together with its fleet: a job of each kind, one of them running."""
    fleet = Fleet(home, consumers=1).start()
    left: list[Job[Any]] = [jobs.hold.enqueue(gate.path, str(path))]
    wait_for_file(path)
    left += [jobs.add.enqueue(1), jobs.add.options(delay=3600).enqueue(2), jobs.add.enqueue(1, left[0])]
    fleet.kill_all()
    left.append(jobs.add.enqueue(3))
    return left


@pytest.mark.not_on_postgres("what is in a database is of other machines as well")
def test_jobs_that_an_earlier_run_left_are_announced(
    home: Path, tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    left = leave_jobs(home, tmp_path / "starts", gate)
    gate.open()
    with jobs.q.fleet(consumers=1):
        [told] = [record.getMessage() for record in caplog.records if "earlier run" in record.getMessage()]
        assert str(home) in told
        assert "(2 queued, 1 scheduled, 1 waiting)" in told
        assert "q.fleet(fresh=True)" in told
        assert left[-1].result(timeout=20) == 4
        assert left[1].result(timeout=20) == 2


@pytest.mark.not_on_postgres("what is in a database is of other machines as well")
def test_a_fresh_fleet_drops_what_earlier_runs_left(
    home: Path, tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "starts"
    left = leave_jobs(home, path, gate)
    monkeypatch.setattr(jobs.q, "made_at", time.time() + 0.001)  # another program begins
    wait_until(lambda: time.time() > jobs.q.made_at, "its first moment")
    own = jobs.add.enqueue(10)
    with jobs.q.fleet(consumers=1, fresh=True):
        assert not [record for record in caplog.records if "come first" in record.getMessage()]
        assert own.result(timeout=20) == 11
        for job in left:
            with pytest.raises(JobNotFound):
                job.info()
        with pytest.raises(AlreadyRunning), jobs.q.fleet(fresh=True):
            pass
        assert own.result(timeout=20) == 11
    assert len(starts(path)) == 1, "the one that ran is not run again"
    with jobs.q.fleet(consumers=1, fresh=True):
        assert jobs.add.enqueue(1).result(timeout=20) == 2


@pytest.mark.not_on_postgres("what is in a database is of other machines as well")
def test_a_fresh_fleet_in_a_new_directory(home: Path) -> None:
    with jobs.q.fleet(consumers=1, fresh=True):
        assert jobs.add.enqueue(1).result(timeout=20) == 2


def test_log_is_json(shared: Fleet) -> None:
    started = shared.wait_for("fleet.started")
    assert started["consumers"] == 2
    told = [json.loads(line) for line in shared.errors.read_text().splitlines()]
    assert {"fleet.started", "consumer.started"} <= {line["event"] for line in told}


@pytest.mark.parametrize("threads", [1, 4])
def test_an_application_may_have_many_tasks_with_long_names(home: Path, tmp_path: Path, threads: int) -> None:
    """What a consumer tells when it is ready does not grow with them."""
    app = tmp_path / "many.py"
    app.write_text(
        "from taskq import TaskQ\n"
        'q = TaskQ("many")\n'
        "for number in range(1000):\n"
        "    q.task(name=f'{number:0200d}')(lambda number=number: number)\n"
    )
    with running(Fleet(home, f"{app}:q", consumers=1, threads=threads)):
        q = TaskQ("many", url_of(home))
        assert q.enqueue(f"{999:0200d}").result(timeout=10) == 999


def test_a_start_that_fails_with_a_long_error_is_reported(home: Path, tmp_path: Path) -> None:
    app = tmp_path / "wordy.py"
    app.write_text(
        "import os\n"
        "from taskq import TaskQ\n"
        'q = TaskQ("wordy")\n'
        "@q.on_consumer_start\n"
        "def load() -> None:\n"
        "    raise ValueError('why ' + '\\U0001f4a5' * 1_000_000 + ' the end')\n"
    )
    with running(Fleet(home, f"{app}:q", consumers=1), wait=False) as fleet:
        error = fleet.wait_for("consumer.boot_failed")["error"]
        assert "ValueError: why " in error
        assert len(error) < 10_000
