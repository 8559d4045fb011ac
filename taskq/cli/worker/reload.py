"""`taskq worker --reload`: a process beside the guardian that watches the code, and tells it to reload."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from taskq.cli.common import tell
from taskq.model.errors import ConfigError
from taskq.system.platform import die_with_parent, name_process

_WATCH = "import sys; from taskq.cli.worker.reload import watch; watch(*sys.argv[1:])"
#: How often to look whether the guardian still lives, where the system does not end its children with it.
_LOOK_EVERY_MS = 1_000


def reload_on_changes(folder: Path) -> None:
    """Has this process, which will be a guardian, reload its fleet when a Python file in a folder changes.

    Raises:
        ConfigError: watchfiles is not installed.
    """
    if find_spec("watchfiles") is None:
        raise ConfigError("--reload needs watchfiles: pip install 'taskq-fleet[reload]'")
    # a group of its own: Ctrl-C is for the guardian, with which it ends
    watching = subprocess.Popen([sys.executable, "-c", _WATCH, str(os.getpid()), str(folder)], process_group=0)
    watching.returncode = 0  # the guardian reaps all that it did not start itself, also this


def watch(guardian: str, folder: str) -> None:
    """Watches a folder until the guardian ends; the target of the process."""
    from watchfiles import PythonFilter
    from watchfiles import watch as changes_in

    die_with_parent()
    name_process(f"watches {folder}")
    pid = int(guardian)
    for changes in changes_in(
        folder, watch_filter=PythonFilter(), rust_timeout=_LOOK_EVERY_MS, yield_on_timeout=True, raise_interrupt=False
    ):
        if os.getppid() != pid:
            return
        if changes:
            names = sorted({os.path.relpath(path, folder) for _, path in changes})
            os.kill(pid, signal.SIGHUP)
            tell(f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} changed: loading the new code")
