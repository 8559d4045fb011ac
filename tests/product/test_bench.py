"""What `taskq bench` leaves behind. Its figures are no test: they depend on the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

_PROGRAM = """
import os, signal, sys
from taskq.cli.bench.skeleton import Skeleton
if __name__ == "__main__":
    with Skeleton(2) as skeleton:
        skeleton.enqueue_many(4, 500)
        skeleton.wait()
        print("up", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("victim", ["nobody", "leader", "worker", "program"])
def test_the_skeleton_leaves_no_process_and_no_complaint(victim: str, tmp_path: object) -> None:
    """It ends by SIGKILL; multiprocessing would complain of its semaphores as leaked."""
    path = f"{tmp_path}/skeleton.py"
    with open(path, "w") as file:
        file.write(_PROGRAM)
    program = subprocess.Popen(
        [sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    leader = next(child for child in psutil.Process(program.pid).children() if os.getpgid(child.pid) == child.pid)
    workers = leader.children()
    assert len(workers) == 2
    victims = {"leader": leader.pid, "worker": workers[0].pid, "program": program.pid}
    if victim in victims:
        os.kill(victims[victim], signal.SIGKILL)
    _, told = program.communicate("\n", timeout=20)
    assert told == ""
    _, alive = psutil.wait_procs([leader, *workers], timeout=20)
    assert not alive
