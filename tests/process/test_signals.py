"""What stops a fleet and what reloads it: a terminal that is closed, SIGHUP by `kill`, SIGTERM that comes twice at
once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

import psutil
import pytest
from apps import jobs
from fleet import Fleet, Gate, hurried, running, starts, wait_until

from taskq.model.exits import Exit
from taskq.system.platform import is_stopped

#: Runs a program on a terminal, as a login shell's only program, or as what a shell runs in the foreground.
_ON_TERMINAL = """
import os, signal, subprocess, sys
how, path, *program = sys.argv[1:]
terminal = os.open(path, os.O_RDWR)  # the leader of a session without a terminal gets it as its own
os.dup2(terminal, 2)
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in how else signal.SIG_DFL)  # whatever the tests have inherited
if "leader" in how:
    os.execvp(program[0], program)
sys.exit(subprocess.call(program))
"""


@pytest.fixture
def terminal() -> Iterator[tuple[IO[bytes], str]]:
    """A terminal: its end that a window holds, and the name of the other."""
    ours, theirs = os.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)) as window:
        yield window, os.ttyname(theirs)


def on_terminal(home: Path, how: str, path: str) -> Fleet:
    """A fleet of one consumer on a terminal."""
    prefix = [sys.executable, "-c", _ON_TERMINAL, how, path]
    return Fleet(home, prefix=prefix, consumers=1, stderr_level="critical").start().wait_ready()


def guardian_of(fleet: Fleet) -> int:
    """The guardian, which is the parent of the broker, whoever has started it."""
    return int(Path(f"/proc/{fleet.broker_pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("how", ["leader", "foreground"])
def test_a_terminal_that_is_closed_stops_the_fleet(
    home: Path, terminal: tuple[IO[bytes], str], gate: Gate, tmp_path: Path, how: str
) -> None:
    """In the orderly way: the job that runs may end."""
    window, path = terminal
    fleet = on_terminal(home, how, path)
    job = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    window.close()
    fleet.wait_for("fleet.stopping", running=1)
    gate.open()
    fleet.wait_for("fleet.stopped")
    fleet.wait_for_end()
    assert fleet.count("fleet.reloading") == 0
    assert fleet.count("job.succeeded", job_id=job.id) == 1
    fleet.finish()


@pytest.mark.parametrize("how", ["leader", "foreground"])
def test_kill_reloads_also_on_a_terminal(home: Path, terminal: tuple[IO[bytes], str], how: str) -> None:
    _, path = terminal
    fleet = on_terminal(home, how, path)
    os.kill(guardian_of(fleet), signal.SIGHUP)
    fleet.wait_for("fleet.reloading")
    assert jobs.add.enqueue(1).result(timeout=20) == 2
    assert fleet.count("fleet.stopping") == 0
    fleet.client.stop()
    fleet.wait_for_end()
    fleet.finish()


def test_nohup_outlives_the_terminal_and_is_reloaded_by_kill(home: Path, terminal: tuple[IO[bytes], str]) -> None:
    window, path = terminal
    fleet = on_terminal(home, "leader, nohup", path)
    window.close()
    time.sleep(1.5)  # as long as a signal counts as that of the terminal
    assert fleet.count("fleet.stopping") == fleet.count("fleet.reloading") == 0
    os.kill(guardian_of(fleet), signal.SIGHUP)
    fleet.wait_for("fleet.reloading")
    assert jobs.add.enqueue(1).result(timeout=20) == 2
    fleet.stop()
    fleet.finish()


def test_two_sigterms_at_once_are_one(home: Path, gate: Gate, tmp_path: Path) -> None:
    """`timeout` sends one to its child and one to all of its group; systemd one to the guardian and one to the
    broker."""
    fleet = Fleet(home, stop_timeout_s=60.0).start()
    job = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    broker = fleet.broker_pid
    os.kill(fleet.guardian_pid, signal.SIGTERM)
    os.kill(broker, signal.SIGTERM)
    os.kill(fleet.guardian_pid, signal.SIGTERM)
    fleet.wait_for("fleet.stopping", running=1)
    os.kill(broker, signal.SIGTERM)
    for _ in range(3):
        assert (
            fleet.status()["queues"]["default"]["running"] == 1
        )  # turns of its loop, in which the job could have been killed
    gate.open()
    assert fleet.wait_for_end() == 0
    assert fleet.count("job.succeeded", job_id=job.id) == 1
    assert fleet.count("consumer.killed") == 0
    fleet.finish()


def test_the_command_timeout_lets_jobs_end(home: Path, gate: Gate, tmp_path: Path) -> None:
    """SIGALRM tells `timeout` that its time is over."""
    fleet = Fleet(home, prefix=["timeout", "--preserve-status", "600"], stop_timeout_s=60.0).start()
    job = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    os.kill(fleet.guardian_pid, signal.SIGALRM)
    fleet.wait_for("fleet.stopping", running=1)
    gate.open()
    fleet.wait_for_end()
    assert fleet.count("job.succeeded", job_id=job.id) == 1
    fleet.finish()


@pytest.mark.parametrize("asks_guardian", [True, False])
def test_a_broker_that_is_stopped_does_not_hold_up_the_end(
    home: Path, gate: Gate, tmp_path: Path, asks_guardian: bool
) -> None:
    """Whether it was stopped before it was told to end, or while it waited for a job."""
    hurry = hurried({"taskq.broker.watch": {"STOP_GRACE_S": 2.0}})
    stop_timeout_s = 0.2 if asks_guardian else 5.0
    fleet = Fleet(home, consumers=1, stop_timeout_s=stop_timeout_s, stderr_level="error", environment=hurry).start()
    jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    pid = fleet.broker_pid
    if asks_guardian:
        fleet.kill(pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(pid), "the broker stopped")
        fleet.kill(fleet.guardian_pid, signal.SIGINT)
    else:
        fleet.client.stop()
        fleet.wait_for("fleet.stopping")
        fleet.kill(pid, signal.SIGSTOP)
    assert fleet.wait_for_end() == 0
    [killed] = fleet.events("broker.killed")
    assert (killed["pid"], killed["reason"].rpartition(": ")[2]) == (pid, "it is stopped")
    told = fleet.errors.read_text()
    assert "broker.killed" in told
    assert asks_guardian == (f"broker {pid} is stopped: it is killed in 2.2 s" in told)
    assert fleet.count("broker.died") == 1
    fleet.finish()


def test_a_fleet_stops_while_its_broker_starts(home: Path) -> None:
    """A broker that has just replaced a dead one is told to stop before its loop runs: it stops."""
    fleet = Fleet(home, consumers=1, stderr_level="critical").start().wait_ready()
    guardian, died = psutil.Process(guardian_of(fleet)), fleet.broker_pid
    fleet.kill(died)

    def is_next_broker(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.pid != died and "taskq: broker" in " ".join(process.cmdline())
        return False

    wait_until(lambda: any(map(is_next_broker, guardian.children())), "the next broker")
    assert fleet.stop() == 0


def test_a_fleet_that_is_stopped_while_it_starts_tells_of_no_death(home: Path, tmp_path: Path) -> None:
    """The signal ends a broker that is still importing: as it was told to."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif any('taskq.broker.process' in word for word in sys.orig_argv): time.sleep(60)\n"
    )

    def has_broker() -> bool:
        return any("taskq.broker.process" in word for one in fleet.processes() for word in one.cmdline())

    fleet = Fleet(home, environment={"PYTHONPATH": str(tmp_path)})
    with running(fleet, wait=False):
        wait_until(has_broker, "a broker")
        assert fleet.stop() == Exit.OK
    assert fleet.errors.read_text() == ""
    assert fleet.count("broker.died") == 0


def test_a_signal_at_the_very_end_is_no_error() -> None:
    """When nobody reads signals any more."""
    program = (
        "import os, signal; from taskq.system.signals import signals_as_bytes as read;"
        "read([signal.SIGTERM]).close(); os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
