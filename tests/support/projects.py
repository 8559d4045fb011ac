"""A project with tests of its own, and the way to run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SHOP = """
from taskq import TaskQ
q = TaskQ("shop")

@q.task(retries=0)
def double(number: int) -> int:
    if number == 13:
        raise RuntimeError("bad luck")
    return 2 * number
"""


def pytest_in(folder: Path, *arguments: str) -> str:
    """Runs pytest on a project, and returns what it says."""
    return run_pytest(folder, *arguments).stdout


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest on a project, whose users keep their queues in its folder `state`."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    if not has_entry_point():
        command += ["-p", "taskq.testing.pytest_plugin"]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    environment.pop("TASKQ_URL", None)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def has_entry_point() -> bool:
    from importlib.metadata import entry_points

    return any(point.value == "taskq.testing.pytest_plugin" for point in entry_points(group="pytest11"))
