"""The `taskq` command of an application, as a command of the framework around it: `flask taskq`, `manage.py taskq`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from taskq.client.app import TaskQ
from taskq.client.fleet import reference_of


def become_taskq(app: TaskQ, words: Sequence[str], reference: str | None = None) -> None:
    """Runs `taskq` with these words in place of this process: signals and the exit code are its own.

    Args:
        app: the application that its commands are about; it must be a global of a module.
        words: what follows `taskq` on the command line.
        reference: how other processes find the application, if not by the module in which it is a global.

    Raises:
        AppError: the application is not a global of any module.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment["TASKQ_APP"] = reference or reference_of(app)
    environment["TASKQ_URL"] = str(app.directory.path)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "taskq", *words], environment)
