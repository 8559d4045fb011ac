"""`taskq health`: what a probe says of a real fleet, and what it takes for that."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import DEADLINE_S, JOBS, Fleet
from terminal import Here, environment, here, refused, taskq

from taskq.cli.health.probe import probe
from taskq.model.exits import Exit
from taskq.model.info.readiness import why_not_ready
from taskq.system.directory import Directory

__all__ = ["here"]  # a fixture


def test_a_fleet_that_is_well(shared: Fleet) -> None:
    for arguments in ([], ["--live"], ["--ready"], ["--ready", "--timeout", "5s"], [str(shared.home)]):
        done = taskq(shared.home, "health", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (Exit.OK, "", "")


def test_no_fleet(home: Path) -> None:
    Directory(home).create()
    refused(taskq(home, "health"), Exit.NO_FLEET, "no fleet answers", str(home))


def test_a_broker_that_does_not_answer(start: Callable[..., Fleet]) -> None:
    fleet = start()
    pid = fleet.broker_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        health = probe(str(fleet.home), False, timeout_s=0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert health.exit == Exit.NO_FLEET
    assert "did not answer within 0.2 s" in health.reason
    assert probe(str(fleet.home), True, DEADLINE_S).exit == Exit.OK


def test_a_fleet_that_refuses_another_client_is_live(start: Callable[..., Fleet]) -> None:
    """It has as many clients as it may have: to start it again would help nobody."""
    fleet = start()
    place = str(fleet.home)
    lines = []
    try:
        while not (found := probe(place, True, DEADLINE_S)).reason:
            for _ in range(100):
                lines.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                lines[-1].connect(str(Directory(fleet.home).socket_path()))
        assert found.exit == Exit.FAILED
        assert "clients" in found.reason
        assert probe(place, False, DEADLINE_S).exit == Exit.OK
    finally:
        for line in lines:
            line.close()


def test_what_is_not_a_broker(home: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(Directory(home).create().socket_path()))
        listener.listen()
        code = "import sys\nfrom taskq.cli.health.probe import *\nprint(probe(sys.argv[1], False, 20.0))"
        with subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True) as process:
            line, _ = listener.accept()
            line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            told, _ = process.communicate(timeout=DEADLINE_S)
            line.close()
    assert "is not a broker" in told


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"state": "running", "consumers": ["starting", "idle"]}, ""),
        ({"state": "running", "consumers": ["running"]}, ""),
        ({"state": "running", "consumers": ["starting"]}, "no consumer has started yet"),
        ({"state": "running", "consumers": ["retiring"]}, "no consumer has started yet"),
        ({"state": "running", "consumers": []}, "no consumer has started yet"),
        ({"state": "stopping", "consumers": ["idle"]}, "the fleet is stopping"),
        (
            {"state": "running", "consumers": [], "errors": ["no module 'shop'\nTraceback"]},
            "no consumer is there: consumer 1 does not start (no module 'shop')",
        ),
    ],
)
def test_who_is_ready(status: dict[str, Any], reason: str) -> None:
    errors = enumerate(status.get("errors", ()), 1)
    told = {
        "broker": {"state": status["state"]},
        "consumers": [{"state": state} for state in status["consumers"]],
        "not_started": [{"number": number, "error": error} for number, error in errors],
    }
    assert why_not_ready(told) == reason


def test_a_fleet_whose_code_does_not_start_is_live_and_not_ready(
    start: Callable[..., Fleet], tmp_path: Path, home: Path
) -> None:
    app = tmp_path / "late.py"
    app.write_text("import taskq\nq = taskq.TaskQ('late')\n")
    fleet = start(app=f"{app}:q", consumers=1)
    app.write_text("import no_such_package\n")
    fleet.kill_consumer()
    fleet.wait_for("consumer.boot_failed")
    refused(taskq(home, "health", "--ready"), Exit.FAILED, "no_such_package")
    assert taskq(home, "health", "--live").returncode == Exit.OK


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([JOBS], Exit.USAGE, ["imports no application", "TASKQ_URL"]),
        (["--live", "--ready"], Exit.USAGE, ["--live or --ready"]),
        (["/no/such/queue"], Exit.DIRECTORY, ["/no/such/queue"]),
        (["--loud"], Exit.USAGE, ["--loud"]),
    ],
)
def test_a_probe_that_makes_no_sense(home: Path, arguments: list[str], code: Exit, words: list[str]) -> None:
    done = taskq(home, "health", *arguments)
    assert done.returncode == code
    assert all(word in done.stderr for word in words)


def test_a_queue_by_its_name(tmp_path: Path, here: Here) -> None:
    Directory(tmp_path / "taskq" / "shop").create()
    refused(
        taskq(None, "health", "shop", XDG_STATE_HOME=str(tmp_path)), Exit.NO_FLEET, str(tmp_path / "taskq" / "shop")
    )


def test_a_probe_is_light(shared: Fleet) -> None:
    """It is run every few seconds, and is mostly the start of Python."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "taskq", "health", "--ready"],
        env=environment(shared.home),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == Exit.OK
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "taskq.cli.health.probe" in names
    heavy = {"typer", "click", "rich", "asyncio", "logging", "structlog", "subprocess"}
    assert not names & heavy
