"""The limit on open files: raised for the broker, not for jobs; a fleet that needs more is refused, with the number."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil
import pytest
from apps import jobs
from fleet import JOBS, Fleet, Gate, environment_of, starts, wait_until

from taskq.client.transport.blocking import Client
from taskq.protocol import frames
from taskq.system.descriptors import without_clients
from taskq.system.directory import Directory

Start = Callable[..., Fleet]


def ulimit(limit: str) -> list[str]:
    """Runs what follows with a limit."""
    return ["sh", "-c", f'ulimit {limit} && exec "$0" "$@"']


@pytest.mark.parametrize("preload", [False, True])
def test_a_low_soft_limit_is_raised_for_the_broker_and_not_for_jobs(start: Start, preload: bool) -> None:
    fleet = start(consumers=4, prefix=ulimit("-Sn 64"), preload=preload).wait_ready()
    assert resource.prlimit(fleet.broker_pid, resource.RLIMIT_NOFILE)[0] >= 1_000
    soft, hard = jobs.open_files.enqueue().result(timeout=20)
    assert (soft, hard) == (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(closing(Client(Directory(fleet.home)).connect()))
        assert jobs.add.enqueue(1).result(timeout=20) == 2
    assert fleet.count("client.rejected") == 0


@pytest.mark.parametrize("consumers", [4, 60])
def test_a_fleet_that_needs_more_than_the_hard_limit_is_refused_with_the_number(home: Path, consumers: int) -> None:
    worker = [sys.executable, "-m", "taskq", "worker", JOBS, "--consumers", str(consumers)]
    environment = {**os.environ, **environment_of(home)}
    limited = [*ulimit(f"-n {consumers * 16}"), *worker]
    ended = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2, ended.stderr
    needed = without_clients(consumers) + 16
    assert f"a fleet of {consumers} consumers needs {needed:,} open files" in ended.stderr
    assert f"the hard limit is {consumers * 16:,}" in ended.stderr
    assert f"LimitNOFILE={needed}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.not_on_postgres("the path of its socket is too long there")
def test_with_the_fewest_that_are_allowed_it_serves(start: Start, gate: Gate, tmp_path: Path) -> None:
    """Also while every consumer is being replaced and still runs a job, and clients take what they can get."""
    consumers = 3
    fleet = start(consumers=consumers, prefix=ulimit(f"-n {without_clients(consumers) + 16}")).wait_ready()
    for _ in range(consumers):
        jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", consumers)
    with ExitStack() as stack:
        for _ in range(30):
            sock = stack.enter_context(closing(knock(fleet.home)))
            with suppress(BrokenPipeError):  # those that are too many may have been turned away by now
                sock.sendall(frames.hello(1))
        fleet.wait_for("client.rejected", reason="more than 16 clients")
        os.kill(fleet.broker_pid, signal.SIGHUP)  # all are replaced, and those that run a job stay until it ends
        wait_until(lambda: fleet.count("consumer.started") == 2 * consumers, "the new ones are up")
        assert len(psutil.Process(fleet.broker_pid).children()) >= 2 * consumers
    wait_until(lambda: jobs.add.enqueue(1).result(timeout=20) == 2, "it serves")
    gate.open()
    wait_until(lambda: len(fleet.consumer_pids()) == consumers, "the old ones have gone")
    assert fleet.count("broker.died") == 0


def knock(home: Path) -> socket.socket:
    """A connection to the broker."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(home / "taskq.sock"))
    return sock
