"""`taskq worker --reload`: the fleet runs new code as soon as a file is saved."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fleet import DEADLINE_S, environment_of, url_of, wait_until
from processes import lives

from taskq import BrokerUnavailable, TaskQ
from taskq.cli.worker.reload import reload_on_changes
from taskq.model.errors import ConfigError

APP = """
from taskq import TaskQ
from helper import VERSION

q = TaskQ("edited")

@q.task
def version() -> str:
    return VERSION
"""


def state_of(q: TaskQ) -> str:
    try:
        return q.status().reload.state
    except BrokerUnavailable:
        return "absent"


def test_a_saved_file_is_loaded(tmp_path: Path, home: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "edited.py").write_text(APP)
    (code / "helper.py").write_text('VERSION = "one"\n')
    q = TaskQ("edited", url_of(home))
    command = [sys.executable, "-m", "taskq", "worker", "edited.py:q", "--reload", "--consumers", "1"]
    environment = {**os.environ, **environment_of(home)}
    told = tmp_path / "stderr"
    with told.open("w") as errors, subprocess.Popen(command, cwd=code, env=environment, stderr=errors) as guardian:
        try:
            assert q.enqueue("version").result(DEADLINE_S) == "one"
            wait_until(lambda: watchers(guardian.pid), "the process that watches")
            [watcher] = watchers(guardian.pid)

            def is_new() -> bool:
                if state_of(q) != "running":  # the watch may not have begun; each save begins a reload anew
                    (code / "helper.py").write_text('VERSION = "two"\n')
                return q.enqueue("version").result(DEADLINE_S) == "two"

            wait_until(is_new, "the new code")
            (code / "helper.py").write_text("VERSION =\n")
            wait_until(lambda: state_of(q) == "failed", "a reload that fails")
            assert q.enqueue("version").result(DEADLINE_S) == "two"
        finally:
            guardian.send_signal(signal.SIGTERM)
            guardian.wait(DEADLINE_S)
    assert "helper.py changed: loading the new code" in told.read_text()
    assert guardian.returncode == 0
    wait_until(lambda: not lives(watcher), "the end of the watch")


def watchers(guardian: int) -> list[psutil.Process]:
    """The process that watches the code for a guardian."""
    return [each for each in psutil.Process(guardian).children() if "watches" in " ".join(each.cmdline())]


def test_it_needs_watchfiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("taskq.cli.worker.reload.find_spec", lambda _name: None)
    assert importlib.util.find_spec("watchfiles") is not None
    with pytest.raises(ConfigError, match=r"pip install 'taskq-fleet\[reload\]'"):
        reload_on_changes(tmp_path)
