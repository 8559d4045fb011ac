"""What the skeleton of the benchmark leaves behind. Figures are not tested: they depend on the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

_PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).parents[1] / "bench")!r})
from skeleton import Skeleton
if __name__ == "__main__":
    with Skeleton(2) as skeleton:
        skeleton.run(2_000)
        print("up", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("victim", ["nobody", "leader", "worker", "program"])
def test_the_skeleton_leaves_no_process_and_no_complaint(victim: str, tmp_path: Path) -> None:
    """It ends by SIGKILL; multiprocessing would complain of its semaphores as leaked."""
    path = tmp_path / "program.py"
    path.write_text(_PROGRAM)
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
