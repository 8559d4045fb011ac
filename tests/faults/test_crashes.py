"""Processes that die at any point: what is reported, what runs again, and what is left alone."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil
import pytest
from apps import jobs, sharing, versioned
from asked import take_spooled
from deaf import Deaf
from fleet import APPS, Fleet, Gate, Started, starts, use, wait_for_file, wait_until

from taskq import JobError, JobFailed, JobNotFound, JobState, ResultTimeout
from taskq.broker.consumers.silence import LOOK_EVERY_S, SILENT_LOOKS
from taskq.broker.core.core import Core
from taskq.broker.events import EventLog
from taskq.broker.watch import STOP_GRACE_S
from taskq.client.transport.blocking import Client
from taskq.engines.contract import Consumers
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.server import Peer, Server
from taskq.model.attempt import Attempts, Verdict, pack_failure
from taskq.model.errors import AlreadyRunning
from taskq.model.exits import Exit
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec
from taskq.protocol import frames, spool
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Call
from taskq.system.directory import Directory

Start = Callable[..., Fleet]
#: After this time a consumer that says nothing is taken for dead.
SILENT_S = SILENT_LOOKS * LOOK_EVERY_S


def labels(path: Path) -> Counter[str]:
    """How often each place was reached."""
    return Counter(start.label for start in starts(path))


# -- a consumer dies


def test_an_idle_consumer_is_replaced(shared: Fleet) -> None:
    pids = shared.wait_ready().consumer_pids()
    crashes = shared.count("job.crashed")
    shared.kill(pids[0])
    event = shared.wait_for("consumer.crashed", pid=pids[0])
    assert (event["signal"], event["consumer"]) == ("SIGKILL", 1)
    wait_until(lambda: pids[0] not in shared.consumer_pids() and len(shared.consumer_pids()) == 2, "a replacement")
    assert pids[1] in shared.consumer_pids()
    assert shared.count("job.crashed") == crashes
    assert list(jobs.add.map(range(100))) == list(range(1, 101))


DEATHS = {
    "kill": ("SIGKILL", None),
    "segfault": ("SIGSEGV", None),
    "abort": ("SIGABRT", None),
    "exit 0": (None, 0),
    "exit 3": (None, 3),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_death_in_a_job_is_reported_and_parks_it(shared: Fleet, tmp_path: Path, how: str) -> None:
    name, code = DEATHS[how]
    job = jobs.last_words.options(max_crashes=2).enqueue(str(tmp_path / "starts"), how)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=10)
    assert caught.value.error_type == "Crashed"
    assert (name or f"code {code}") in caught.value.error_message
    info = job.info()
    assert (info.state, info.attempts, info.crashes) == (JobState.FAILED, 2, 2)
    assert info.error is not None
    assert (info.error.signal, info.error.exit_code) == (name, code)
    assert "my last words" in info.error.output
    if how == "segfault":
        assert any("string_at" in line for line in info.error.output), "faulthandler tells where"
    assert [(start.label, start.attempt) for start in starts(tmp_path / "starts")] == [("start", 1), ("start", 2)]
    crashed = shared.events("job.crashed", job_id=job.id)
    assert [(event["attempt"], event["crashes"], event["runs_again"]) for event in crashed] == [
        (1, 1, True),
        (2, 2, False),
    ]
    for (
        event
    ) in crashed:  # the last words are reported once, with the process; both events have what it takes to find them
        [died] = shared.events("consumer.crashed", job_id=job.id, pid=event["pid"], consumer=event["consumer"])
        assert "my last words" in died["output"]
        assert "output" not in event
    assert [attempt.consumer for attempt in info.history] == [event["consumer"] for event in crashed]
    failed = shared.wait_for("job.failed", job_id=job.id)
    assert failed.get("signal") == name
    assert failed.get("exit_code") == code


def test_a_job_survives_the_death_of_its_process(shared: Fleet, tmp_path: Path) -> None:
    start = time.monotonic()
    assert jobs.die_once.enqueue(str(tmp_path / "starts"), "kill").result(timeout=10) == 2
    assert time.monotonic() - start < SILENT_S, "a death is seen, not guessed by a timeout"


def test_a_job_that_kills_its_process_softly(shared: Fleet, tmp_path: Path) -> None:
    """SIGTERM lets the consumer end after the running job, so that job has ended, once."""
    job = jobs.die_once.enqueue(str(tmp_path / "starts"), "stop")
    assert job.result(timeout=10) == 1
    assert len(starts(tmp_path / "starts")) == 1
    assert list(jobs.add.map(range(100))) == list(range(1, 101))


def test_killed_by_others_in_a_job(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    job = jobs.hold.enqueue(gate.path, str(path))
    [first] = starts(path, 1)
    shared.kill(first.pid)
    second = starts(path, 2)[1]
    assert second.attempt == 2
    assert second.pid != first.pid
    info = wait_until(lambda: (told := job.info()).state is JobState.RUNNING and told, "it is told that it runs")
    assert (info.attempts, info.crashes) == (2, 1)
    assert info.error is not None
    assert info.error.signal == "SIGKILL"
    gate.open()
    assert job.result(timeout=10) == "held"
    assert (job.info().attempts, job.info().crashes) == (2, 1)


def test_batch_mates_run_once(start: Start, gate: Gate, tmp_path: Path) -> None:
    """Jobs of one batch: what ended before the death was heard of, and what had not started, run exactly once."""
    fleet = start(consumers=1)
    path = tmp_path / "starts"
    calls = [(str(path), f"before{number}") for number in range(20)]
    calls.append((str(path), "victim", "kill", gate.path))
    calls += [(str(path), f"after{number}") for number in range(50)]
    made = jobs.mixed.enqueue_many(calls)
    wait_until(lambda: labels(path)["victim"] == 1, "the victim runs")
    fleet.wait_for("job.started", job_id=made[20].id)  # told after a moment: all before it was reported
    gate.open()
    with pytest.raises(JobFailed, match="Crashed"):
        made[20].result(timeout=10)
    for job in made[:20] + made[21:]:
        job.result(timeout=10)
    expected = Counter({f"{label}": 1 for _, label, *_ in calls} | {f"{label}-end": 1 for _, label, *_ in calls})
    expected["victim"] = 3
    del expected["victim-end"]
    assert labels(path) == expected
    assert {start.attempt for start in starts(path) if start.label != "victim"} == {1}
    assert all(job.info().attempts == 1 for job in made[:20] + made[21:])
    fleet.wait_for_totals(enqueued=71, succeeded=70, failed=1, crashed=3)


def test_batch_mates_that_ended_just_before_do_not_run_again(start: Start, tmp_path: Path) -> None:
    """Outcomes travel together, up to 20 ms late; those of a process that was killed meanwhile are read from memory."""
    start(consumers=1)
    path = tmp_path / "starts"
    mates = [f"mate{number}" for number in range(90)]
    calls = [(str(path), mate) for mate in mates]
    made = jobs.mixed.enqueue_many([*calls[:30], (str(path), "victim", "kill"), *calls[30:]])
    for job in made:
        job.wait(timeout=10)
    counted = labels(path)
    assert counted.pop("victim") == 3
    assert counted == Counter({name: 1 for mate in mates for name in (mate, f"{mate}-end")})
    infos = [job.info() for job in made if job is not made[30]]
    assert {(info.state, info.attempts, info.crashes) for info in infos} == {("succeeded", 1, 0)}


def test_a_poison_pill_does_not_hold_up_the_others(shared: Fleet, tmp_path: Path) -> None:
    pills = jobs.last_words.enqueue_many([(str(tmp_path / "pills"), "kill")] * 2)
    good = jobs.add.enqueue_many([(number,) for number in range(200)])
    assert [job.result(timeout=20) for job in good] == list(range(1, 201))
    for pill in pills:
        with pytest.raises(JobFailed, match="Crashed"):
            pill.result(timeout=20)
    assert len(starts(tmp_path / "pills")) == 6


def test_a_fork_of_a_job_does_not_hide_its_death(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    job = jobs.fork_sleeper.options(max_crashes=1).enqueue(str(path), gate.path)
    [first] = starts(path, 1)
    sleeper = psutil.Process(int(wait_for_file(Path(f"{path}.child"))[0]))
    killed_at = time.monotonic()
    shared.kill(first.pid)
    with pytest.raises(JobFailed, match="SIGKILL"):
        job.result(timeout=10)
    assert time.monotonic() - killed_at < SILENT_S
    sleeper.wait(30)  # it was in the group of its consumer


def test_a_daemon_of_a_job_does_not_hide_its_death(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    """As above, but the child has left the process group: it is neither killed nor waited for."""
    path = tmp_path / "starts"
    job = jobs.fork_sleeper.options(max_crashes=1).enqueue(str(path), gate.path, session=True)
    [first] = starts(path, 1)
    sleeper = psutil.Process(int(wait_for_file(Path(f"{path}.child"))[0]))
    killed_at = time.monotonic()
    shared.kill(first.pid)
    with pytest.raises(JobFailed, match="SIGKILL"):
        job.result(timeout=10)
    assert time.monotonic() - killed_at < SILENT_S
    assert sleeper.is_running()
    gate.open()
    sleeper.wait(30)


@pytest.mark.parametrize("first", [0, 3])
def test_a_job_that_closes_descriptors(shared: Fleet, tmp_path: Path, first: int) -> None:
    path = tmp_path / "starts"
    job = jobs.close_descriptors.options(max_crashes=2).enqueue(str(path), first)
    with pytest.raises(JobFailed, match="Crashed"):
        job.result(timeout=10)
    assert [start.attempt for start in starts(path)] == [1, 2]
    assert jobs.add.enqueue(1).result(timeout=10) == 2


def test_a_stopped_consumer_holds_up_nobody(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    shared.wait_ready()
    path = tmp_path / "starts"
    job = jobs.hold.enqueue(gate.path, str(path))
    [first] = starts(path, 1)
    shared.kill(first.pid, signal.SIGSTOP)
    try:
        broker = shared.broker_pid
        assert list(jobs.add.map(range(2_000), timeout=10)) == list(range(1, 2_001))
        assert jobs.echo.enqueue(bytes(2_000_000)).result(timeout=10) == bytes(2_000_000)
        gate.open()
        wait_until(lambda: job.state() is JobState.RUNNING, "it is told that it runs")
    finally:
        shared.kill(first.pid, signal.SIGCONT)
    assert job.result(timeout=10) == "held"
    assert job.info().attempts == 1
    assert first.pid in shared.consumer_pids()
    assert shared.broker_pid == broker


def test_an_idle_consumer_that_is_stopped_does_not_keep_jobs(shared: Fleet) -> None:
    pid = shared.wait_ready().consumer_pids()[0]
    shared.kill(pid, signal.SIGSTOP)
    try:
        made = jobs.add.enqueue_many([(number,) for number in range(500)])
        assert [job.result(timeout=10) for job in made] == list(range(1, 501))
    finally:
        shared.kill(pid, signal.SIGCONT)
    assert shared.count("job.crashed", task="add") == 0


def test_a_job_that_blocks_signals_does_not_outlive_the_stop(home: Path, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    fleet = Fleet(home, stop_timeout_s=0.3).start()
    job = jobs.block_signals.enqueue(str(path), gate.path)
    starts(path, 1)
    begin = time.monotonic()
    assert fleet.stop() == 0
    assert time.monotonic() - begin < STOP_GRACE_S, "its guardian need not kill it"
    fleet.finish()
    gate.open()
    fleet = Fleet(home).start()
    job.result(timeout=10)
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    fleet.finish()


# -- the broker dies


def test_the_broker_dies_idle(start: Start) -> None:
    fleet = start().wait_ready()
    before = jobs.add.enqueue(1)
    assert before.result(timeout=10) == 2
    old = [fleet.broker_pid, *fleet.consumer_pids()]
    fleet.kill(old[0])
    fleet.wait_for("broker.died", signal="SIGKILL")
    assert before.result(timeout=10) == 2, "an answer that was given stays"
    assert jobs.add.enqueue(2).result(timeout=10) == 3
    assert not set(old) & {fleet.broker_pid, *fleet.consumer_pids()}
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in old), "the old ones reaped")
    fleet.wait_for_totals(succeeded=2)
    fleet.wait_for_totals(crashed=0)


def test_the_broker_dies_while_jobs_run(start: Start, gate: Gate, tmp_path: Path) -> None:
    fleet = start().wait_ready()
    path = tmp_path / "starts"
    running = [jobs.hold.enqueue(gate.path, str(path), f"held{number}") for number in range(2)]
    first = starts(path, 2)
    waiting = jobs.note.enqueue_many([(str(path), f"note{number}") for number in range(100)])
    fleet.kill(fleet.broker_pid)
    wait_until(lambda: labels(path)["held0"] == labels(path)["held1"] == 2, "both run again")
    assert [start.attempt for start in starts(path) if start.label.startswith("held")] == [1, 1, 2, 2]
    wait_until(lambda: not any(psutil.pid_exists(start.pid) for start in first), "the old ones reaped")
    gate.open()
    for job in (*running, *waiting):
        job.result(timeout=10)
    for job in running:
        assert (job.info().attempts, job.info().crashes) == (2, 1)
    for number in (0, 1):  # also that of the dead fleet, from the flight recorder
        assert sorted(job.info().history[number].consumer or 0 for job in running) == [1, 2]
    counted = labels(path)
    assert all(counted[f"note{number}"] == 1 for number in range(100))
    assert all(job.info().crashes == 0 for job in waiting)


def test_whoever_waits_gets_the_answer_of_the_next_broker(start: Start, gate: Gate, tmp_path: Path) -> None:
    fleet = start(consumers=1)
    path = tmp_path / "starts"
    endless = jobs.hold.starmap([(gate.path, str(path), str(number)) for number in range(20)], timeout=20)
    held = jobs.hold.enqueue(gate.path, str(path))
    with jobs.q.client.watching([bytes.fromhex(held.id)]) as endings:
        with pytest.raises(ResultTimeout):
            endings.next(0)  # it waits on a connection to the first broker
        starts(path, 1)
        fleet.kill(fleet.broker_pid)
        starts(path, 2)
        gate.open()
        assert endings.next(20)[1] is not None
    results = []
    for result in endless:
        results.append(result)
        if len(results) == 5:
            fleet.kill(fleet.broker_pid)
    assert results == [str(number) for number in range(20)]
    fleet.wait_for("broker.died", skip=1)


def test_the_same_job_never_runs_twice_at_a_time(start: Start, tmp_path: Path) -> None:
    """Brokers are killed under load; a job that starts again does so after the end of the process that had it."""
    fleet = start().wait_ready()
    path = tmp_path / "starts"
    made = jobs.mixed.enqueue_many([(str(path), str(number)) for number in range(3_000)])
    for count in range(1, 4):
        wait_until(lambda count=count: len(starts(path)) > 1_200 * count, "progress")
        fleet.kill(fleet.broker_pid)
        fleet.wait_for("broker.died", skip=count - 1)
    for job in made:
        job.result(timeout=20)
    last_of_process: dict[int, float] = {}
    of_job: dict[str, list[Started]] = {}
    for found in sorted(starts(path), key=lambda found: found.at):
        last_of_process[found.pid] = found.at
        of_job.setdefault(found.label, []).append(found)
    for repeated in of_job.values():
        for one, other in itertools.pairwise(repeated):
            assert last_of_process[one.pid] < other.at, "the process that had it was gone"
    counted = labels(path)
    assert {counted[f"{number}-end"] for number in range(3_000)} <= {1, 2, 3, 4}
    fleet.wait_for_totals(succeeded=3_000)


# -- the guardian dies, or everything


def test_the_guardian_dies(home: Path, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    fleet = Fleet(home).start().wait_ready()
    job = jobs.hold.enqueue(gate.path, str(path))
    starts(path, 1)
    fleet.kill(fleet.guardian_pid)
    again = Fleet(home).start()  # at once: it waits for the end of the first
    fleet.wait_until_nothing_is_left(5.0)
    gate.open()
    assert job.result(timeout=10) == "held"
    assert (job.info().attempts, job.info().crashes) == (1, 0), "it was stopped, which is no crash"
    again.finish()
    fleet.finish()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="semaphores have files on Linux only")
@pytest.mark.parametrize("preload", [False, True])
def test_killed_with_its_helpers_a_fleet_leaves_no_semaphores(home: Path, preload: bool) -> None:
    """There is no helper that would remove their names, nor would it be left at the end of a container."""
    fleet = Fleet(home, preload=preload).start().wait_ready()
    names = {name for process in fleet.processes() for name in semaphores(process.pid)}
    assert len(names) >= 3 * 2, "each consumer has three"
    fleet.kill_all()
    assert not {name for name in names if Path(name).exists()}
    fleet.finish()


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("victim", ["broker", "consumer", "guardian"])
def test_whatever_is_killed_the_terminal_hears_of_no_leaked_semaphores(home: Path, victim: str, preload: bool) -> None:
    """multiprocessing's helper would give a warning on the terminal of `taskq worker`: we do without it."""
    fleet = Fleet(home, preload=preload).start().wait_ready()
    if victim == "broker":
        fleet.kill(fleet.broker_pid)
    elif victim == "guardian":
        fleet.kill(fleet.guardian_pid)
    elif victim == "consumer":
        fleet.kill(fleet.consumer_pids()[0])
    if victim != "guardian":
        fleet.wait_ready()
        fleet.kill_consumer(-1)  # whoever comes now has to do with what the victim left
        fleet.wait_ready()
    fleet.finish()
    told = fleet.errors.read_text(errors="replace")
    assert "resource_tracker" not in told
    assert "semaphore" not in told
    assert "Traceback" not in told


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="semaphores have files on Linux only")
@pytest.mark.parametrize("victim", ["broker", "consumer"])
def test_one_dies_while_a_consumer_boots_whose_semaphores_still_have_names(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate, victim: str
) -> None:
    """The broker removes them when it buries the consumer; or the next broker does."""
    version = tmp_path / "version"
    version.write_text("one")
    monkeypatch.setenv("TASKQ_TEST_VERSION", str(version))
    fleet = start(f"{APPS / 'versioned.py'}:q", consumers=1).wait_ready()
    assert not helpers(fleet)
    version.write_text(f"late {gate.path}")
    fleet.kill(fleet.consumer_pids()[0])
    [booting] = wait_for_file(Path(gate.path + ".pid"))
    names = semaphores(int(booting))
    assert [name for name in names if Path(name).exists()]
    version.write_text("two")
    fleet.kill(fleet.broker_pid if victim == "broker" else int(booting))
    gate.open()
    fleet.wait_ready()
    assert not [name for name in names if Path(name).exists()]
    fleet.stop()
    told = fleet.errors.read_text(errors="replace")
    assert "Traceback" not in told, told


def test_a_job_that_shares_locks_has_a_helper_that_removes_their_names(start: Start, tmp_path: Path) -> None:
    fleet = start(f"{APPS / 'sharing.py'}:q", consumers=1).wait_ready()
    use(sharing.q, fleet.home)
    told = tmp_path / "name"
    sharing.leave_a_semaphore.enqueue(str(told)).wait(timeout=20)
    name = Path("/dev/shm") / f"sem.{told.read_text().lstrip('/')}"
    assert name.name.startswith("sem.mp-")
    assert name.exists(), "another process might still open it"
    assert wait_until(lambda: helpers(fleet), "the helper")
    fleet.stop()
    wait_until(lambda: not name.exists(), "the helper to remove the name")


def helpers(fleet: Fleet) -> list[int]:
    """The helper processes of multiprocessing in a fleet."""
    return [p.pid for p in fleet.processes() if any("resource_tracker" in part for part in p.cmdline())]


@pytest.mark.not_on_postgres("a journal of an older version")
def test_a_fleet_does_not_start_on_an_older_journal(home: Path) -> None:
    fleet = Fleet(home, consumers=1).start()
    assert jobs.add.enqueue(1).result(timeout=20) == 2
    fleet.stop()
    older = (home / "journal.db").read_bytes()
    fleet.start()
    lost = jobs.add.enqueue(2)
    assert lost.result(timeout=20) == 3
    fleet.stop()
    (home / "journal.db").write_bytes(older)
    fleet.expected.add("store.failed")
    fleet.start(wait=False)
    assert fleet.wait_for_end() == Exit.JOURNAL
    told = fleet.errors.read_text()
    assert "it is an older copy, or its write-ahead log is missing" in told
    assert f"remove {home}/journal.high" in told
    assert (home / "journal.db").read_bytes() == older
    (home / "journal.high").unlink()
    fleet.start()
    with pytest.raises(JobNotFound):
        lost.info()
    fleet.finish()


def semaphores(pid: int) -> set[str]:
    """Where the semaphores that a process has open have, or had, their names."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except ProcessLookupError:
        return set()
    paths = [line.split(maxsplit=5)[5].removesuffix(" (deleted)") for line in maps if "/sem.taskq-" in line]
    return set(paths)


def test_everything_dies_at_once(home: Path, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    fleet = Fleet(home, consumers=1).start()
    job = jobs.hold.options(max_crashes=2).enqueue(gate.path, str(path))
    waiting = jobs.note.enqueue(str(path), "waiting")
    for count in (1, 2):
        starts(path, count)
        fleet.kill_all()
        fleet.start()
    with pytest.raises(JobFailed, match="whole fleet"):
        job.result(timeout=10)
    assert (job.info().attempts, job.info().crashes) == (2, 2)
    assert waiting.result(timeout=10) == "waiting"
    assert [(start.label, start.attempt) for start in starts(path)] == [("held", 1), ("held", 2), ("waiting", 1)]
    fleet.finish()


def test_a_job_that_kills_the_whole_fleet_is_parked(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    pill = jobs.die_once.options(max_crashes=1).enqueue(str(path), "kill fleet")
    good = jobs.note.enqueue(str(path), "good")
    fleet = Fleet(home, consumers=1).start(wait=False)
    fleet.wait_for_end()
    fleet.start()
    with pytest.raises(JobFailed, match="whole fleet"):
        pill.result(timeout=10)
    assert good.result(timeout=10) == "good"
    fleet.finish()


def test_a_second_fleet_is_refused(start: Start, home: Path) -> None:
    first = start().wait_ready()
    pids = [first.broker_pid, *first.consumer_pids()]
    second = Fleet(home)
    second.errors = home.parent / "second.stderr"
    second.start(wait=False)
    assert second.wait_for_end() == 5
    told = second.errors.read_text()
    assert "already runs" in told
    assert str(pids[0]) in told
    with pytest.raises(AlreadyRunning), jobs.q.fleet(consumers=1):
        pass
    assert [first.broker_pid, *first.consumer_pids()] == pids


def test_what_dead_fleets_left_is_no_obstacle(home: Path) -> None:
    home.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(home / "taskq.sock"))
    (home / "lock").write_text(f"{os.getpid()} {os.getpid()}")  # the pid of a living process, but no lock
    (home / "consumers.lock").write_text("")
    (home / "running.map").write_bytes(b"\xff" * 77)
    spooled = jobs.add.enqueue(1)
    fleet = Fleet(home).start()
    assert spooled.result(timeout=10) == 2
    fleet.finish()


# -- the spool


@pytest.mark.not_on_postgres("a database has no spool")
def test_the_spool(home: Path) -> None:
    made = jobs.add.enqueue_many([(number,) for number in range(2_500)])
    single = jobs.add.enqueue(1)
    assert single.state() is JobState.QUEUED
    garbage = home / "spool" / f"{'0' * 32}.jobs"
    garbage.write_bytes(b"no frame at all")
    fleet = Fleet(home).start()
    assert single.result(timeout=10) == 2
    assert [job.result(timeout=10) for job in made] == list(range(1, 2_501))
    fleet.wait_for("spool.unreadable")
    assert garbage.with_suffix(".bad").read_bytes() == b"no frame at all"
    assert list((home / "spool").glob("*.jobs")) == []
    fleet.wait_for_totals(enqueued=2_501)
    fleet.finish()


@pytest.mark.not_on_postgres("a database has no spool")
def test_the_spool_takes_over_when_the_broker_dies(start: Start, home: Path) -> None:
    fleet = start().wait_ready()
    made = [jobs.add.enqueue(number) for number in range(50)]
    fleet.kill(fleet.broker_pid)
    made += [jobs.add.enqueue(number) for number in range(50, 400)]
    assert [job.result(timeout=10) for job in made] == list(range(1, 401))
    fleet.wait_for_totals(enqueued=400)
    assert list((home / "spool").iterdir()) == []


@pytest.mark.not_on_postgres("a database has no spool")
def test_hostile_spool_files_are_set_aside(start: Start, home: Path) -> None:

    fleet = start()
    broker = fleet.broker_pid
    spec = ["add", "default", 3, None, 3]
    ids = bytes(range(16))
    nonsense = {
        "1.jobs": frames.frame([Op.SUBMIT, 0, spec, True, False, ids, [2.0]], [b"xx"]),
        "2.jobs": frames.frame([Op.SUBMIT, 0, ["add"], True, False, ids, [2]], [b"xx"]),
        "3.jobs": frames.frame([Op.STATUS, 0]),
        "4.jobs": b"",
        "5.jobs": frames.frame([Op.SUBMIT, 0, spec, True, False, ids, [2]], [b"xx"])[:-1],
    }
    (home / "spool" / "0.jobs").mkdir()
    for name, content in nonsense.items():
        (home / "spool" / f"{name}.tmp").write_bytes(content)
        (home / "spool" / f"{name}.tmp").rename(home / "spool" / name)
    fleet.wait_for("spool.unreadable", skip=len(nonsense) - 1)
    good = jobs.add.enqueue(1)
    assert good.result(timeout=10) == 2
    assert fleet.broker_pid == broker


def spool_one(directory: Directory, job_id: bytes) -> None:
    """Spools a job, as a client does that finds no fleet."""
    Client(directory).spool(Spec("add"), [Call(job_id, b"payload")])


def test_a_full_disk_leaves_jobs_in_the_spool(home: Path) -> None:
    directory = Directory(home).create()
    store = SQLiteStore(directory.journal)
    committer = Committer(
        store, Core(), cast(Server, Deaf()), cast(EventLog, Deaf()), directory, cast(Consumers, Deaf())
    )
    [job_id] = new_job_ids(1)
    spool_one(directory, job_id)
    store.is_full = True
    take_spooled(committer, 0.0)
    assert store.read(job_id) is None
    assert len(list(directory.spool.iterdir())) == 1, "it was acknowledged: it must not go"
    store.is_full = False
    take_spooled(committer, 0.0)
    assert store.read(job_id) is not None
    assert list(directory.spool.iterdir()) == []
    store.close()


def test_the_spool_is_looked_into_once_for_a_frame(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client asks for thousands of unknown jobs: the loop does not list the spool for each of them."""
    directory = Directory(home).create()
    store = SQLiteStore(directory.journal)
    committer = Committer(
        store, Core(), cast(Server, Deaf()), cast(EventLog, Deaf()), directory, cast(Consumers, Deaf())
    )
    looks: list[Path] = []
    names = spool._names
    monkeypatch.setattr(spool, "_names", lambda folder: looks.append(folder) or names(folder))  # type: ignore[func-returns-value]
    here, spooled, *unknown = new_job_ids(100)
    store.submit(Spec("add"), [here], [b"payload"])
    spool_one(directory, spooled)
    take_spooled(committer, 0.0)
    take_spooled(committer, 0.0)
    assert not committer.has_more_spooled
    [late] = new_job_ids(1)
    spool_one(directory, late)
    looks.clear()
    peer = Peer(socket.socket(), 0.0)
    with peer.sock:
        committer.watch(peer, [here, spooled])
        assert (len(looks), peer.watched) == (0, {here, spooled})
        committer.watch(peer, unknown)
        assert (len(looks), peer.watched) == (1, {here, spooled})
        committer.watch(peer, [*unknown, late])
    assert (len(looks), peer.watched) == (3, {here, spooled, late}), "to find it, and to take it in"
    store.close()


def test_what_is_committed_with_spooled_jobs_is_reported(home: Path) -> None:
    """A retry that was decided in the moment in which spooled jobs come in: its time must not be forgotten."""
    directory = Directory(home).create()
    store, core = SQLiteStore(directory.journal), Core()
    committer = Committer(store, core, cast(Server, Deaf()), cast(EventLog, Deaf()), directory, cast(Consumers, Deaf()))
    [failing, spooled] = new_job_ids(2)
    core.joined(1, 0.0)
    core.submitted(store.submit(Spec("add"), [failing], [b"payload"]))
    core.dispatch(0.0, 0.0)
    outcome = pack_failure(0.0, 0.0, JobError("Error", "no"))
    core.settled(1, Attempts([1], [Verdict.FAILED], [5], [outcome]), 0.0, 1e9)
    committer.collect(0.0)
    spool_one(directory, spooled)
    take_spooled(committer, 0.0)
    assert committer.is_settled
    assert committer.next_due is not None
    store.close()


# -- consumers that do not start


def test_a_consumer_that_cannot_import(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "version"
    version.write_text("broken")
    monkeypatch.setenv("TASKQ_TEST_VERSION", str(version))
    use(versioned.q, home)
    job = versioned.version.enqueue()
    fleet = Fleet(home, f"{APPS / 'versioned.py'}:q", consumers=1).start(wait=False)
    fleet.wait_for("consumer.boot_failed", skip=3)
    failed = fleet.events("consumer.boot_failed")
    assert all("this version does not work" in event["error"] and event["traceback"] for event in failed)
    assert len(failed) < 10, "it is no storm"
    assert fleet.count("job.crashed") == 0
    assert job.state() is JobState.QUEUED
    version.write_text("mended")
    assert job.result(timeout=10)[0] == "mended"
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    fleet.finish()
