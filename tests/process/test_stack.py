"""`taskq stack`: where the consumers of a real fleet are, while their jobs go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from apps import jobs
from fleet import Fleet, Gate, use, wait_for_file, wait_until
from terminal import NO_JOB, Here, here, refused, taskq

from taskq.cli.stack import command
from taskq.model.exits import Exit

__all__ = ["here"]  # a fixture

HANGS_IN_C = """
import re
import taskq
q = taskq.TaskQ("hangs")

@q.task(retries=0)
def backtrack(path: str) -> None:
    open(path, "w").write("begun\\n")
    re.match(r"(a+)+$", "a" * 64 + "b")  # holds the interpreter for longer than anybody waits
"""


@pytest.fixture
def fleet(start: Callable[..., Fleet]) -> Fleet:
    """Two consumers."""
    fleet = start()
    use(jobs.q, fleet.home)
    wait_until(lambda: len(fleet.consumer_pids()) == 2, "both consumers")
    return fleet


def test_the_stack_of_a_running_job(fleet: Fleet, gate: Gate, tmp_path: Path) -> None:
    job = jobs.hold.enqueue(gate.path, str(tmp_path / "starts"))
    wait_for_file(tmp_path / "starts")
    for which in ([job.id], [job.id[-8:]]):
        [found] = json.loads(taskq(fleet.home, "stack", *which, "--json").stdout)
        assert (found["job_id"], found["task"]) == (job.id, "hold")
        assert "hold" in found["stack"]
        assert found["running_s"] > 0
    by_number = taskq(fleet.home, "stack", str(found["consumer"])).stdout
    assert by_number.startswith(f"consumer {found['consumer']} (pid {found['pid']}): hold, job {job.id}, for ")
    both = {each["consumer"]: each for each in json.loads(taskq(fleet.home, "stack", "--json").stdout)}
    assert set(both) == {1, 2}
    assert both[3 - found["consumer"]]["task"] is None
    gate.open()
    job.result(timeout=10)
    assert fleet.count("consumer.crashed") == fleet.count("consumer.killed") == 0


def test_a_job_that_hangs_in_c(start: Callable[..., Fleet], tmp_path: Path) -> None:
    app, began = tmp_path / "hangs.py", tmp_path / "began"
    app.write_text(HANGS_IN_C)
    fleet = start(app=f"{app}:q", consumers=1)
    job_id = taskq(fleet.home, "enqueue", f"{app}:q", "backtrack", str(began)).stdout.strip()
    wait_for_file(began)
    done = taskq(fleet.home, "stack", job_id)
    assert done.returncode == Exit.OK, done
    assert 'hangs.py", line 9 in backtrack' in done.stdout
    fleet.kill_consumer()


def test_what_has_no_stack(fleet: Fleet, here: Here) -> None:
    job = jobs.add.enqueue(1, 2)
    job.result(timeout=10)
    refused(here(fleet.home, "stack", job.id), Exit.FAILED, "is succeeded", "only a running job has a stack")
    refused(here(fleet.home, "stack", "7"), Exit.USAGE, "there is no consumer 7", "1, 2")
    refused(here(fleet.home, "stack", NO_JOB), Exit.NOT_FOUND, NO_JOB)


def test_no_fleet(home: Path, here: Here) -> None:
    refused(here(home, "stack"), Exit.NO_FLEET, "taskq worker")


def test_a_consumer_that_is_stopped(fleet: Fleet, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_WAIT_S", 3.0)
    first = next(consumer for consumer in fleet.status()["consumers"] if consumer["number"] == 1)
    os.kill(first["pid"], signal.SIGSTOP)
    try:
        done = here(fleet.home, "stack")
    finally:
        os.kill(first["pid"], signal.SIGCONT)
    assert "consumer 2" in done.stdout
    assert "consumer 1 did not write its stacks within 3 s" in done.stderr
    assert done.returncode == Exit.FAILED
