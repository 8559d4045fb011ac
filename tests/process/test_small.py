"""A fleet that is idle is small, and does nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from apps import jobs
from fleet import Fleet, wait_until

from taskq.model.exits import Exit
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec
from taskq.protocol.codec import encode_call
from taskq.protocol.submissions import Call, submit_frame

Start = Callable[..., Fleet]

MB = 1_000_000


def is_small(pid: int) -> bool:
    """Whether a guardian has become small: it has let go of the modules that it needs in order to start a fleet."""
    return bool(psutil.Process(pid).memory_full_info().uss < 9 * MB) and "guardian [" in title(pid)


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def wait_small(fleet: Fleet) -> int:
    """Waits until the guardian is small; returns its pid, which it keeps."""
    pid = fleet.guardian_pid
    wait_until(lambda: is_small(pid), "the guardian became small")
    return pid


def test_a_small_guardian_replaces_its_broker_and_becomes_small_again(start: Start) -> None:
    fleet = start().wait_ready()
    guardian = wait_small(fleet)
    assert jobs.add.enqueue(1).result(timeout=10) == 2
    for deaths in (1, 2):
        broker = fleet.broker_pid
        fleet.kill(broker)
        fleet.wait_for("broker.died", skip=deaths - 1)
        assert jobs.add.enqueue(deaths).result(timeout=20) == deaths + 1
        assert fleet.broker_pid != broker
        wait_small(fleet)
    assert fleet.guardian_pid == guardian


def test_a_small_guardian_passes_on_signals(start: Start) -> None:
    fleet = start().wait_ready()
    guardian = wait_small(fleet)
    fleet.kill(guardian, signal.SIGHUP)
    fleet.wait_for("fleet.reloading")
    assert fleet.stop() == Exit.OK
    assert fleet.wait_for("fleet.stopping")["reason"] == "SIGTERM"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_while_the_guardian_becomes_small_is_obeyed(start: Start, number: signal.Signals) -> None:
    fleet = start().wait_ready()
    guardian = fleet.guardian_pid
    wait_until(lambda: "broker.small" in title(guardian) or is_small(guardian), "it becomes small")
    fleet.kill(guardian, number)
    if number == signal.SIGHUP:
        fleet.wait_for("fleet.reloading")
        assert fleet.stop() == Exit.OK
    else:
        assert fleet.wait_for_end() == Exit.OK
        assert fleet.wait_for("fleet.stopping")["reason"] == "SIGTERM"


def switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def test_an_idle_fleet_sleeps(start: Start) -> None:
    fleet = start().wait_ready()
    assert jobs.add.enqueue(1).result(timeout=10) == 2
    wait_small(fleet)
    pids = [process.pid for process in fleet.processes()]
    assert len(pids) >= 4, "guardian, broker and two consumers"

    def woken(seconds: float) -> int:
        before = sum(map(switches, pids))
        time.sleep(seconds)
        return sum(map(switches, pids)) - before

    wait_until(lambda: woken(2.0) < 10, "what follows a job is over")
    assert woken(6.0) <= 12, "nobody looks again and again whether something has happened"


def test_what_is_put_into_the_spool_is_seen_at_once(start: Start, home: Path) -> None:
    fleet = start().wait_ready()
    [job_id] = new_job_ids(1)
    frame = submit_frame(0, Spec("add"), [Call(job_id, encode_call(job_id, (1,), {}))], resend=True, watch=False)
    for name in (f"{job_id.hex()}.jobs", "not a frame.jobs"):
        began = time.monotonic()
        (home / "spool" / name).write_bytes(frame if name.startswith(job_id.hex()) else b"garbage")
        fleet.wait_for("spool.taken" if name.startswith(job_id.hex()) else "spool.unreadable")
        assert time.monotonic() - began < 9, "not only when it looks anyhow"


def is_guardian(process: psutil.Process) -> bool:
    """Whether it is a guardian, and lives."""
    try:
        return "guardian [" in " ".join(process.cmdline())
    except psutil.ZombieProcess:
        return False


def test_the_fleet_of_a_program_has_a_small_guardian_too(home: Path) -> None:
    with jobs.q.fleet(consumers=1):
        [guardian] = filter(is_guardian, psutil.Process().children())
        wait_until(lambda: is_small(guardian.pid), "the guardian became small")
        assert jobs.add.enqueue(1).result(timeout=10) == 2
    assert not guardian.is_running()
