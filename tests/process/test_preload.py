"""Consumers that are forked from a process with the application, `--preload`: whatever becomes of that process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from apps import jobs, versioned
from fleet import APPS, Fleet, Gate, starts, use, wait_for_file, wait_until

from taskq.system.platform import is_stopped

Start = Callable[..., Fleet]
VERSIONED = f"{APPS / 'versioned.py'}:q"


def servers(fleet: Fleet) -> list[int]:
    """The processes of a fleet that consumers are forked from."""
    found = []
    for process in fleet.processes():
        try:
            if "preloaded application" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            pass  # it has ended
    return found


@pytest.mark.parametrize("threads", [1, 4])
def test_nobody_is_charged_for_the_death_of_the_server(
    start: Start, home: Path, gate: Gate, tmp_path: Path, threads: int
) -> None:
    use(jobs.q, home)
    fleet = start(consumers=2, threads=threads, preload=True).wait_ready()
    broker, path = fleet.broker_pid, tmp_path / "starts"
    made = [jobs.hold.enqueue(gate.path, str(path), str(number)) for number in range(2 * threads)]
    starts(path, len(made))
    [server] = servers(fleet)
    fleet.kill(server)
    assert "SIGKILL" in fleet.wait_for("preload.failed")["error"]
    starts(path, 2 * len(made))
    gate.open()
    for job in made:
        job.result(timeout=20)
        info = job.info()
        assert (info.crashes, info.attempts) == (0, 1)
    fleet.wait_for_totals(crashed=0)
    assert fleet.count("job.crashed") == fleet.count("consumer.crashed") == 0
    assert all("forked from" in event["reason"] for event in fleet.events("consumer.exited"))
    assert fleet.broker_pid == broker
    assert len(servers(fleet)) == 1


def test_a_crash_is_charged_all_the_same(start: Start, version: Path) -> None:
    start(VERSIONED, preload=True).wait_ready()
    job = versioned.die_at_first.enqueue()
    job.result(timeout=10)
    assert job.info().crashes == 1


def test_after_a_reload_that_fails_consumers_are_forked_from_the_old_code(start: Start, version: Path) -> None:
    fleet = start(VERSIONED, preload=True, consumers=1).wait_ready()
    before = servers(fleet)
    version.write_text("broken")
    fleet.client.reload()
    fleet.wait_for("fleet.reload_failed")
    for _ in range(3):
        job = versioned.die_at_first.enqueue()
        job.result(timeout=10)
    assert versioned.version.enqueue().result(timeout=10)[0] == "one"
    wait_until(lambda: servers(fleet) == before, "the server of the new code gone")
    version.write_text("three")
    fleet.client.reload()
    fleet.wait_for("fleet.reloaded")
    assert versioned.version.enqueue().result(timeout=10)[0] == "three"


def test_the_broker_answers_while_an_application_is_imported(start: Start, version: Path, gate: Gate) -> None:
    fleet = start(VERSIONED, preload=True).wait_ready()
    version.write_text(f"late {gate.path}")
    fleet.client.reload()
    wait_for_file(Path(gate.path + ".pid"))
    for _ in range(20):
        assert versioned.version.enqueue().result(timeout=10)[0] == "one"
    assert fleet.status()["reload"]["state"] == "running"
    gate.open()
    fleet.wait_for("fleet.reloaded")
    assert versioned.version.enqueue().result(timeout=10)[0] == "late"


def test_an_application_that_kills_its_importer_fails_the_reload(start: Start, version: Path) -> None:
    fleet = start(VERSIONED, preload=True).wait_ready()
    broker, before = fleet.broker_pid, fleet.consumer_pids()
    version.write_text("deadly")
    fleet.client.reload()
    error = fleet.wait_for("fleet.reload_failed")["error"]
    assert "was killed by SIGSEGV while it imported the application" in error
    assert fleet.status()["reload"]["state"] == "failed"
    assert versioned.version.enqueue().result(timeout=10)[0] == "one"
    assert (fleet.broker_pid, fleet.consumer_pids()) == (broker, before)


def test_the_broker_outlives_a_server_that_is_stopped(start: Start, version: Path) -> None:
    """It cannot say how a consumer ended."""
    fleet = start(VERSIONED, preload=True).wait_ready()
    broker = fleet.broker_pid
    [server] = servers(fleet)
    os.kill(server, signal.SIGSTOP)
    fleet.kill_consumer()
    fleet.wait_for("consumer.crashed")
    os.kill(server, signal.SIGCONT)
    fleet.wait_ready()
    assert fleet.broker_pid == broker


def test_a_server_that_stays_stopped_is_replaced(start: Start, version: Path) -> None:
    """The broker goes on, and so do the consumers that it has; it goes with the last of them."""
    fleet = start(VERSIONED, preload=True, consumers=2).wait_ready()
    [stopped] = servers(fleet)
    first, second = fleet.consumer_pids()
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: is_stopped(stopped), "the server stopped")
    fleet.kill(first)
    assert str(stopped) in fleet.wait_for("preload.failed")["error"]
    fleet.wait_for("consumer.started", skip=2)
    assert fleet.wait_ready().consumer_pids()[1] == second
    assert versioned.version.enqueue().result(timeout=10)[0] == "one"
    fleet.kill(second)
    fleet.wait_for("consumer.started", skip=3)
    fleet.wait_ready()
    wait_until(lambda: stopped not in servers(fleet), "nobody needs it any more")
    assert fleet.count("broker.died") == 0
