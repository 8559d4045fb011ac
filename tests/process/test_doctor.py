"""`taskq doctor`: what it finds wrong around a real queue, and what it says of one that is well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import DEADLINE_S, Fleet
from terminal import taskq

from taskq.cli.doctor import checks
from taskq.cli.doctor.checks import Finding, examine
from taskq.model.exits import Exit
from taskq.model.limits import MIB
from taskq.system.directory import Directory

Usage = namedtuple("Usage", "total used free")


def found(directory: Directory, subject: str) -> Finding:
    """The one finding about a subject."""
    [finding] = [finding for finding in examine(directory) if finding.subject == subject]
    return finding


def test_a_fleet_that_is_well(shared: Fleet) -> None:
    done = taskq(shared.home, "doctor", "--json")
    told = {each["subject"]: each for each in json.loads(done.stdout)}
    assert done.returncode == Exit.OK, done
    assert list(told) == ["versions", "directory", "disk", "open files", "clock", "fleet"]
    assert {each["state"] for each in told.values()} <= {"ok", "look"}
    assert f"broker {shared.broker_pid}, 2 consumers" in told["fleet"]["told"]
    assert sys.executable in told["versions"]["told"]


def test_what_people_read(shared: Fleet) -> None:
    done = taskq(shared.home, "doctor", LANG="C", NO_COLOR="1")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["subject", "state"]
    assert any(line.startswith("fleet") and "running: broker" in line for line in lines)


def test_no_queue_yet(home: Path) -> None:
    finding = found(Directory(home), "directory")
    assert finding.state == "look"
    assert "first fleet makes it" in finding.remedy


@pytest.mark.not_on_postgres("a database has no spool")
def test_no_fleet_and_jobs_in_the_spool(home: Path, tmp_path: Path) -> None:
    code = "import sys; from taskq import TaskQ; TaskQ('doctor', url=sys.argv[1]).enqueue('nothing')"
    subprocess.run([sys.executable, "-c", code, str(home)], check=True, timeout=DEADLINE_S, capture_output=True)
    directory = Directory(home)
    assert "1 file with jobs wait" in found(directory, "spool").told
    assert found(directory, "fleet").state == "look"
    assert taskq(home, "doctor").returncode == Exit.OK


@pytest.mark.not_on_postgres("it is about the directory itself")
def test_a_directory_that_others_may_enter(home: Path) -> None:
    Directory(home).create()
    home.chmod(0o755)
    finding = found(Directory(home), "directory")
    assert finding.state == "wrong"
    assert f"chmod 700 {home}" in finding.told
    assert taskq(home, "doctor").returncode == Exit.FAILED


def test_a_link_among_its_files(home: Path) -> None:
    (Directory(home).create().path / "log" / "taskq.jsonl").symlink_to("/etc/hostname")
    assert "is a link" in found(Directory(home), "directory").told


def test_a_broker_that_is_stopped(start: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_ANSWER_S", 0.2)
    fleet = start()
    pid = fleet.broker_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        finding = found(Directory(fleet.home), "fleet")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert finding.state == "wrong"
    assert f"process {pid} holds the directory" in finding.told
    assert f"kill -CONT {pid}" in finding.remedy


def test_a_fleet_whose_code_does_not_start(start: Callable[..., Fleet], tmp_path: Path) -> None:
    app = tmp_path / "late.py"
    app.write_text("import taskq\nq = taskq.TaskQ('late')\n")
    fleet = start(app=f"{app}:q", consumers=1)
    app.write_text("import no_such_package\n")
    fleet.kill_consumer()
    fleet.wait_for("consumer.boot_failed")
    finding = found(Directory(fleet.home), "consumers")
    assert finding.state == "wrong"
    assert "no_such_package" in finding.told


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
def test_a_paused_queue(start: Callable[..., Fleet]) -> None:
    fleet = start()
    fleet.client.pause(["mail"], True, "a test")
    assert "paused: mail" in found(Directory(fleet.home), "queues").told


@pytest.mark.parametrize(
    ("free", "state", "word"),
    [(10 * MIB, "wrong", "jobs are refused"), (200 * MIB, "look", "free"), (10**12, "ok", "1,000.0 GB free")],
)
def test_room_on_the_disk(home: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str, word: str) -> None:
    directory = Directory(home).create()
    real = checks.shutil.disk_usage
    usage = lambda path: Usage(free, 0, free) if path == directory.path else real(path)  # noqa: E731
    monkeypatch.setattr(checks.shutil, "disk_usage", usage)
    finding = found(directory, "disk")
    assert finding.state == state
    assert word in finding.told


@pytest.mark.parametrize("kind", ["nfs4", "9p"])
def test_a_disk_on_which_no_journal_is_safe(home: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    directory = Directory(home).create()
    monkeypatch.setattr(Directory, "filesystem", lambda _self: kind)
    finding = found(directory, "disk")
    assert finding.state == "wrong"
    assert kind in finding.told


def test_too_few_open_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.resource, "getrlimit", lambda _which: (256, 256))
    finding = found(Directory(home).create(), "open files")
    assert finding.state == "look"
    assert "LimitNOFILE=" in finding.remedy


@pytest.mark.parametrize(("ahead_s", "state"), [(3_600.0, "look"), (0.0, "ok")])
def test_a_clock_that_was_set_back(home: Path, ahead_s: float, state: str) -> None:
    directory = Directory(home).create()
    directory.journal.touch()
    at = checks.time.time() + ahead_s
    os.utime(directory.journal, (at, at))
    assert found(directory, "clock").state == state


def test_a_fleet_of_another_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is what any client is told."""
    told: Any = checks.TaskQError("the fleet speaks protocol 9: upgrade taskq")
    monkeypatch.setattr(checks, "ask_quickly", lambda *_: told)
    finding = found(Directory(home).create(), "fleet")
    assert (finding.state, finding.told) == ("wrong", str(told))
