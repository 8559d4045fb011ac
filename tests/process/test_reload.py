"""New code for a running fleet: consumers that are replaced while others die, and what the user learns about it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from apps import versioned
from fleet import APPS, DEADLINE_S, Fleet, Gate, wait_for_file, wait_until

from taskq.model.exits import Exit

Start = Callable[..., Fleet]
VERSIONED = f"{APPS / 'versioned.py'}:q"


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of taskq to its end."""
    line = [sys.executable, "-m", "taskq", *arguments, str(home)]
    return subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_a_consumer_may_die_while_its_successor_starts(start: Start, version: Path, gate: Gate) -> None:
    fleet = start(VERSIONED, consumers=1).wait_ready()
    broker, [old] = fleet.broker_pid, fleet.consumer_pids()
    version.write_text(f"late {gate.path}")
    fleet.client.reload()
    wait_for_file(Path(gate.path + ".pid"))
    fleet.kill(old)
    fleet.wait_for("consumer.crashed", pid=old)
    gate.open()
    name, successor = versioned.version.enqueue().result(timeout=10)
    assert name == "late"
    assert fleet.consumer_pids() == [successor]
    assert fleet.broker_pid == broker


def test_a_reload_while_consumers_start_brings_the_newest_code(start: Start, version: Path, gate: Gate) -> None:
    """Those that start with the code between are not waited for."""
    fleet = start(VERSIONED).wait_ready()
    version.write_text(f"late {gate.path}")
    fleet.client.reload()
    wait_for_file(Path(gate.path + ".pid"))
    version.write_text("three")
    fleet.client.reload()
    fleet.wait_for("fleet.reloaded")
    wait_until(lambda: len(fleet.status()["consumers"]) == 2, "the old consumers gone")
    names = {name for name, _ in versioned.version.starmap(() for _ in range(100))}
    assert names == {"three"}
    assert fleet.count("consumer.boot_failed") == fleet.count("fleet.reload_failed") == 0


def test_many_consumers_of_one_number_run_at_once(start: Start, version: Path, make_gate: Callable[[], Gate]) -> None:
    """Each reload leaves one behind that still runs its job; each must have a place in the flight recorder."""
    fleet = start(VERSIONED, consumers=1).wait_ready()
    gate = make_gate()
    held = []
    for number in range(6):
        name = f"v{number}"
        version.write_text(name)
        fleet.client.reload()
        fleet.wait_for("fleet.reloaded", skip=number)
        held.append(versioned.hold.enqueue(gate.path, f"{gate.path}.{number}"))
        wait_for_file(Path(f"{gate.path}.{number}"))
    assert len(fleet.status()["consumers"]) == 6
    gate.open()
    assert [job.result(timeout=10) for job in held] == [f"v{number}" for number in range(6)]
    fleet.wait_for_totals(crashed=0)


# -- what the user is told


def test_a_reload_is_reported_when_the_new_code_runs(start: Start, version: Path) -> None:
    fleet = start(VERSIONED).wait_ready()
    version.write_text("two")
    done = command(fleet.home, "reload")
    assert done.returncode == Exit.OK, done.stderr
    assert "the new code runs in " in done.stdout
    fleet.wait_for("fleet.reloaded", consumers=2)
    again = command(fleet.home, "status")
    assert "old code" not in again.stdout


def test_a_reload_of_broken_code_is_reported(start: Start, version: Path) -> None:
    fleet = start(VERSIONED).wait_ready()
    before = fleet.consumer_pids()
    version.write_text("broken")
    done = command(fleet.home, "reload")
    assert done.returncode == Exit.APP
    assert done.stdout == ""
    assert "the new code does not start" in done.stderr
    assert "this version does not work" in done.stderr
    assert "Traceback" not in done.stderr
    told = command(fleet.home, "status").stdout
    assert "old code in 2 of 2 consumers: the last reload failed (RuntimeError: this version does not work)" in told
    assert versioned.version.enqueue().result(timeout=10)[0] == "one"
    assert fleet.consumer_pids() == before
    version.write_text("three")
    assert command(fleet.home, "reload").returncode == Exit.OK
    fleet.wait_for("fleet.reloaded")
    assert "old code" not in command(fleet.home, "status").stdout


def test_the_log_tells_of_a_reload_by_signal_that_fails(start: Start, version: Path) -> None:
    fleet = start(VERSIONED, consumers=1).wait_ready()
    version.write_text("broken")
    fleet.kill(fleet.guardian_pid, signal.SIGHUP)
    failed = fleet.wait_for("fleet.reload_failed", level="error")
    assert failed["error"] == "RuntimeError: this version does not work"
    assert fleet.status()["reload"] == {"number": 1, "state": "failed", "error": failed["error"]}


def test_a_reload_that_waits_hears_of_the_end_of_the_fleet(start: Start, version: Path, gate: Gate) -> None:
    fleet = start(VERSIONED, consumers=1).wait_ready()
    version.write_text(f"late {gate.path}")
    line = [sys.executable, "-m", "taskq", "reload", str(fleet.home)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as waiting:
        wait_for_file(Path(gate.path + ".pid"))
        fleet.kill(fleet.broker_pid)
        _, told = waiting.communicate(timeout=DEADLINE_S)
    assert waiting.returncode == Exit.NO_FLEET
    assert "the reload has begun, but its outcome is not known" in told
    gate.open()
