"""A consumer cannot be started, since a resource is used up or the system is not set up for it. Nothing else dies of
it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import APPS, JOBS, Fleet, Gate, starts, wait_until
from terminal import taskq

from taskq.model.exits import Exit

Start = Callable[..., Fleet]


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """The folder in which a file asks for a fault; see `apps/faults/sitecustomize.py`."""
    folder = tmp_path / "faults"
    folder.mkdir()
    return folder


def environment(faults: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(APPS / "faults"), "TASKQ_TEST_FAULTS": str(faults)}


def is_whole(fleet: Fleet) -> bool:
    status = fleet.status()
    return len(status["consumers"]) == 2 and all(each["state"] == "idle" for each in status["consumers"])


def kill_the_idle(fleet: Fleet) -> int:
    """Kills the consumer that runs no job; returns its number."""
    [idle] = [each for each in fleet.status()["consumers"] if each["state"] == "idle"]
    fleet.kill(idle["pid"])
    number: int = idle["number"]
    return number


def test_no_room_for_locks_costs_no_job(start: Start, faults: Path, gate: Gate, tmp_path: Path) -> None:
    """Others may fill /dev/shm. Who runs a job goes on, and what is missing follows when there is room again."""
    fleet = start(environment=environment(faults)).wait_ready()
    broker = fleet.broker_pid
    job = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    (faults / "enospc").touch()
    number = kill_the_idle(fleet)
    failed = fleet.wait_for("consumer.boot_failed", consumer=number)
    assert failed["error"].startswith("/dev/shm: No space left on device")
    assert fleet.status()["not_started"] == [{"number": number, "error": failed["error"]}]
    told = taskq(fleet.home, "status").stdout
    assert f"consumer {number} does not start: /dev/shm: No space left on device" in told
    gate.open()
    assert job.result(timeout=15) == "held"
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    (faults / "enospc").unlink()
    wait_until(lambda: is_whole(fleet), "the missing consumer")
    assert fleet.status()["not_started"] == []
    assert fleet.broker_pid == broker


def test_a_reload_without_room_keeps_the_old_consumers(start: Start, faults: Path) -> None:
    fleet = start(environment=environment(faults)).wait_ready()
    before = fleet.consumer_pids()
    (faults / "enospc").touch()
    done: Any = taskq(fleet.home, "reload")
    assert done.returncode != Exit.OK
    assert "/dev/shm: No space left on device" in done.stderr
    assert fleet.consumer_pids() == before
    assert jobs.add.enqueue(1).result(timeout=15) == 2


def test_a_read_only_shared_memory_is_reported_once_with_its_path(home: Path, faults: Path) -> None:
    (faults / "erofs").touch()
    done = taskq(home, "worker", JOBS, "--log-format", "json", **environment(faults))
    assert done.returncode == Exit.DIRECTORY, done
    assert "taskq: /dev/shm: Read-only file system (" in done.stderr
    assert "broker.died" not in done.stderr
    assert "Traceback" not in done.stderr
