"""`taskq backup`: of a fleet that works, of one that does not run, and what a kill in the middle leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import million
import pytest
from apps import jobs
from fleet import DEADLINE_S, JOBS, Fleet, Gate, running, wait_for_file, wait_until
from terminal import environment, refused, taskq

from taskq import TaskQ
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.rescue.backup import Backups, check_copy
from taskq.model.exits import Exit
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("a journal is copied")

LARGE = os.urandom(8 << 20)


def looked_at(copy: Path) -> TaskQ:
    """The queue of a copy."""
    return TaskQ("copy", str(copy))


def test_a_copy_of_a_fleet_at_work_goes_on_from_there(
    start: Callable[..., Fleet], home: Path, tmp_path: Path, gate: Gate
) -> None:
    """All that was accepted before is in it once, also what runs, waits for others, or has large arguments; and what
    comes in meanwhile is there as a whole or not at all."""
    fleet, copy = start(), tmp_path / "copy"
    done = jobs.echo.enqueue("done")
    assert done.result(DEADLINE_S) == "done"
    held = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    wait_for_file(tmp_path / "held", 1)
    jobs.q.pause("default")
    large = jobs.echo.enqueue(LARGE)
    waiting = jobs.echo.enqueue_many([(number,) for number in range(5_000)])
    stopped = threading.Event()

    def go_on() -> None:
        while not stopped.is_set():
            jobs.add.enqueue_many([(1, 2)] * 100)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        told = taskq(home, "backup", JOBS, str(copy))
    finally:
        stopped.set()
        thread.join()
    assert (told.returncode, told.stderr) == (Exit.OK, "")
    assert "1 file of large payloads" in told.stdout
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []
    gate.open()
    fleet.stop()
    status = looked_at(copy).client.look()
    living = sum(queue.queued + queue.running for queue in status.queues.values())
    assert status.totals.enqueued == status.totals.succeeded + living
    assert status.totals.enqueued >= 5_003
    with running(Fleet(copy)) as again:
        copied = looked_at(copy)
        copied.resume("default")
        assert copied.job(done.id).result(DEADLINE_S) == "done"
        assert copied.job(large.id).result(DEADLINE_S) == LARGE
        assert copied.job(held.id).result(DEADLINE_S) == "held"
        assert copied.job(waiting[-1].id).result(DEADLINE_S) == 4_999
        wait_until(lambda: again.client.status().totals.succeeded == status.totals.enqueued, "all of it ran, once")


class StoppedClock:
    """On which no time passes."""

    def time(self) -> float:
        return 1e9

    def monotonic(self) -> float:
        return 1.0


def test_one_turn_of_the_broker_copies_a_bounded_number_of_pages(tmp_path: Path) -> None:
    """However large the journal is; and fewer of them if it has committed in that turn."""
    with closing(SQLiteStore(tmp_path / "journal.db", "memory")) as store:
        million.fill(store, 10_000)
        backups = Backups(store.connection, StoppedClock())
        copied, is_done = [0], False
        backups.ask(str(tmp_path / "copy.db"), False)
        while not is_done:
            backups.step(float(len(copied)), is_busy=len(copied) % 2 == 0)
            pages, all_pages, is_done = backups.ask(str(tmp_path / "copy.db"), False)
            copied.append(pages)
        steps = [after - before for before, after in pairwise(copied)]
        assert all_pages > 400
        assert max(steps[::2]) <= 256
        assert max(steps[1::2]) <= 64
        backups.ask(str(tmp_path / "copy.db"), True)
    assert check_copy(tmp_path / "copy.db") == ""


def test_a_copy_of_a_fleet_that_does_not_run(start: Callable[..., Fleet], home: Path, tmp_path: Path) -> None:
    fleet = start()
    assert jobs.add.enqueue(1, 2).result(DEADLINE_S) == 3
    fleet.stop()
    spooled = jobs.add.enqueue(3, 4)
    told = taskq(home, "backup", str(home), str(tmp_path / "copy"))
    assert told.returncode == Exit.OK
    assert "no fleet runs" in told.stderr
    status = looked_at(tmp_path / "copy").client.look()
    assert (status.totals.succeeded, status.totals.enqueued) == (1, 2)
    assert looked_at(tmp_path / "copy").job(spooled.id).info().state == "queued"


def test_what_is_not_copied(shared: Fleet, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    refused(taskq(shared.home, "backup", str(tmp_path / "there")), Exit.USAGE, "there already")
    refused(taskq(shared.home, "backup", str(tmp_path / "no" / "copy")), Exit.DIRECTORY, "cannot write")
    Directory(tmp_path / "empty").create()
    refused(taskq(None, "backup", str(tmp_path / "empty"), str(tmp_path / "copy")), Exit.NO_FLEET, "no journal")
    assert not (tmp_path / "copy").exists()


def test_a_kill_in_the_middle_leaves_no_copy(start: Callable[..., Fleet], home: Path, tmp_path: Path) -> None:
    """Neither that of the command, after which the next one begins again, nor that of the broker."""
    fleet = start()
    jobs.q.pause("default")
    jobs.echo.enqueue_many([(bytes(1_000),)] * 20_000)

    def begun(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "taskq", "backup", str(home), str(tmp_path / name)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(home))
        wait_until(lambda: list(tmp_path.glob(f"{name}.*.part/journal.db")), "it has begun")
        return process

    with begun("first") as process:
        process.send_signal(signal.SIGKILL)
    with begun("second") as process:
        fleet.kill(fleet.broker_pid)
        _, errors = process.communicate(timeout=DEADLINE_S)
    for name in ("first", "second"):
        if (tmp_path / name).exists():  # it was done before
            assert looked_at(tmp_path / name).client.look().totals.enqueued == 20_000
    assert (
        errors == "" or errors.startswith(("taskq: the broker of ", "taskq: no fleet answers")) or "try again" in errors
    )
