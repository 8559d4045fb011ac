"""What a fleet tells systemd: a socket in the place of its own hears it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest
from apps import jobs
from fleet import DEADLINE_S, Fleet, hurried, running, use, wait_until

from taskq.model.exits import Exit
from taskq.system.platform import is_stopped

WATCHDOG_S = 0.4


class Manager:
    """Hears what a service says, at once: what finds no room in its socket would be lost.

    Attributes:
        said: the last value of each field.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._heard: SimpleQueue[dict[str, str]] = SimpleQueue()
        self.said: dict[str, str] = {}
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        while told := self._socket.recv(4096):
            fields = dict(line.split("=", 1) for line in told.decode().splitlines())
            self.said.update(fields)
            self._heard.put(fields)

    def wait_for(self, field: str) -> dict[str, str]:
        """Waits for a message with a field, leaving out others."""
        while True:
            told = self._heard.get(timeout=DEADLINE_S)
            if field in told:
                return told

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing is heard for a time, besides what was said before."""
        while not self._heard.empty():
            self._heard.get()
        with suppress(Empty):
            self._heard.get(timeout=seconds)
            return False
        return True

    def close(self) -> None:
        address = self._socket.getsockname()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", address)
        self._listener.join()
        self._socket.close()


@pytest.fixture(params=["/"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    """A manager, and what NOTIFY_SOCKET says of it: a path, or a name that begins with @ for an abstract socket."""
    address = f"{tmp_path}/notify"
    manager = Manager(address if request.param == "/" else f"\0{address}")
    yield manager, address if request.param == "/" else f"@{address}"
    manager.close()


@pytest.mark.parametrize("manager", ["/", "@"], indirect=True)
def test_systemd_hears_of_a_fleet(manager: tuple[Manager, str], start: Callable[..., Fleet]) -> None:
    systemd, address = manager
    variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)), "WATCHDOG_PID": "1"}
    hurry = hurried({"taskq.broker.loop": {"_STATUS_EVERY_S": 0.5}})
    fleet = start(consumers=1, environment={**variables, **hurry})
    systemd.wait_for("READY")
    wait_until(
        lambda: systemd.said.get("STATUS") == "0 jobs to run, 1 consumers", "the status, which may begin with none"
    )
    for _ in range(3):
        systemd.wait_for("WATCHDOG")

    before_us = time.monotonic() * 1e6
    fleet.kill(fleet.guardian_pid, signal.SIGHUP)
    assert before_us <= int(systemd.wait_for("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic() * 1e6
    assert systemd.wait_for("READY") == {"READY": "1"}
    assert fleet.count("fleet.reloaded") == 1

    fleet.kill(fleet.broker_pid)
    systemd.wait_for("READY")  # another broker has come up

    fleet.stop()
    systemd.wait_for("STOPPING")


def test_a_broker_that_hangs_is_silent(manager: tuple[Manager, str], start: Callable[..., Fleet]) -> None:
    systemd, address = manager
    fleet = start(consumers=1, environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))})
    systemd.wait_for("WATCHDOG")
    broker = fleet.broker_pid
    fleet.kill(broker, signal.SIGSTOP)
    wait_until(lambda: systemd.is_silent(3 * WATCHDOG_S), "silence")
    fleet.kill(broker, signal.SIGCONT)
    systemd.wait_for("WATCHDOG")


def test_jobs_do_not_speak_for_the_service(manager: tuple[Manager, str], start: Callable[..., Fleet]) -> None:
    _, address = manager
    start(consumers=1, environment={"NOTIFY_SOCKET": address})
    assert jobs.variable.enqueue("NOTIFY_SOCKET").result(DEADLINE_S) is None
    assert jobs.variable.enqueue("TASKQ_URL").result(DEADLINE_S) is not None


def test_a_manager_that_is_gone_harms_nothing(tmp_path: Path, start: Callable[..., Fleet]) -> None:
    start(consumers=1, environment={"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"})
    assert jobs.variable.enqueue("PATH").result(DEADLINE_S) == os.environ["PATH"]


#: The priority of each level in the journal.
PRIORITIES = {"info": 6, "warning": 4, "error": 3, "critical": 2}


def journal_of(home: Path) -> str:
    """The file that is to be a fleet's stderr, as systemd names its journal."""
    errors = home.parent / f"{home.name}.stderr"
    errors.touch()
    return f"{errors.stat().st_dev}:{errors.stat().st_ino}"


def test_the_journal_is_told_how_much_a_line_matters(home: Path, tmp_path: Path) -> None:
    """The broker, its consumers and the guardian write to stderr."""
    with running(Fleet(home, consumers=1, environment={"JOURNAL_STREAM": journal_of(home)})) as fleet:
        use(jobs.q, home)
        jobs.fail.enqueue("no").wait(DEADLINE_S)
        jobs.speak.enqueue().wait(DEADLINE_S)
        broker = fleet.broker_pid
        fleet.kill(broker, signal.SIGSTOP)
        wait_until(lambda: is_stopped(broker), "it is stopped, which it is not in the middle of a sync")
        fleet.kill(fleet.guardian_pid, signal.SIGTERM)
        told = "<4>taskq: broker"
        wait_until(lambda: told in fleet.errors.read_text(), "the guardian says that the broker is stopped")
        fleet.kill(broker, signal.SIGCONT)
        fleet.wait_for("fleet.stopped")
    lines = fleet.errors.read_text().splitlines()
    events = [json.loads(line[3:]) for line in lines if line[3] == "{"]
    assert {"job.failed", "job.log", "fleet.stopped"} <= {event["event"] for event in events}
    assert [line[:3] for line in lines if line[3] == "{"] == [f"<{PRIORITIES[event['level']]}>" for event in events]
    assert [line for line in lines if line[3] != "{"] == [line for line in lines if line.startswith(told)]
    assert [event["event"] for event in fleet.events()] == [event["event"] for event in events]


def test_errors_before_there_is_a_log_have_a_priority(home: Path) -> None:
    fleet = Fleet(home, str(home / "none.py:q"), environment={"JOURNAL_STREAM": journal_of(home)})
    fleet.start(wait=False)
    assert fleet.wait_for_end() == Exit.APP
    assert [line[:10] for line in fleet.errors.read_text().splitlines()] == ["<3>taskq: "]


JOURNALD = Path("/usr/lib/systemd/systemd-journald")
#: Makes the journal at a socket the stderr of a program, as systemd does: the lines are what sd_journal_stream_fd sends.
INTO_JOURNAL = r"""
import os, socket, sys
with socket.socket(socket.AF_UNIX) as journal:
    journal.connect(sys.argv[1])
    journal.sendall(b"taskq\n\n6\n1\n0\n0\n0\n")
    os.dup2(journal.fileno(), 2)
found = os.fstat(2)
os.execvpe(sys.argv[2], sys.argv[2:], {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
"""


@pytest.fixture
def journal() -> Iterator[str]:
    """The name of a real journal, beside that of the machine."""
    name = f"taskq{os.getpid()}"
    folder = Path(f"/run/systemd/journal.{name}")
    folder.mkdir(parents=True)
    with subprocess.Popen([JOURNALD, name]) as process:
        try:
            wait_until((folder / "stdout").exists, "it listens")
            yield name
        finally:
            process.terminate()
            process.wait(DEADLINE_S)
            for left in (folder, *Path("/var/log/journal").glob(f"*.{name}"), *Path("/run/log").glob(f"*/*.{name}")):
                shutil.rmtree(left)


@pytest.mark.soak
@pytest.mark.skipif(not JOURNALD.exists() or os.geteuid() != 0, reason="needs Debian's systemd, and to be root")
def test_a_real_journal_takes_the_priorities_off(home: Path, tmp_path: Path, journal: str) -> None:
    """`journalctl -p err` shows what failed, and nothing else."""
    prefix = [sys.executable, "-c", INTO_JOURNAL, f"/run/systemd/journal.{journal}/stdout"]
    with running(Fleet(home, consumers=1, prefix=prefix)) as fleet:
        use(jobs.q, home)
        jobs.fail.enqueue("no").wait(DEADLINE_S)
        jobs.die_once.enqueue(str(tmp_path / "died"), "kill").wait(DEADLINE_S)
    subprocess.run(["journalctl", f"--namespace={journal}", "--sync"], check=True)
    command = ["journalctl", f"--namespace={journal}", "-t", "taskq", "-o", "json"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    entries = [json.loads(line) for line in told.splitlines()]
    events = [json.loads(entry["MESSAGE"]) for entry in entries]
    assert [event["event"] for event in fleet.events()] == [event["event"] for event in events]
    assert [int(entry["PRIORITY"]) for entry in entries] == [PRIORITIES[event["level"]] for event in events]
    only_errors = subprocess.run([*command, "-p", "err"], check=True, capture_output=True, text=True).stdout
    errors = {event["event"] for event in events if event["level"] == "error"}
    assert {"job.failed", "job.crashed", "consumer.crashed"} == errors
    assert {json.loads(json.loads(line)["MESSAGE"])["event"] for line in only_errors.splitlines()} == errors
