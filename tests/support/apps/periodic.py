"""An application whose schedules are what a file says at the time of the import: a list of the options of each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from taskq import TaskQ

q = TaskQ("periodic", url="/proc/nonexistent" if __name__ == "apps.periodic" else None)


@q.task
def note(path: str, label: str) -> str:
    from jobs import record  # beside this file

    record(path, label)
    return label


@q.task(queue="gated")
def hold(path: str, gate: str) -> None:
    from jobs import pass_gate, record

    record(path, "held")
    pass_gate(gate)


def options_of(path: Path) -> list[dict[str, Any]]:
    """What the file says."""
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


if __name__ != "apps.periodic":
    for options in options_of(Path(os.environ["TASKQ_TEST_SCHEDULES"])):
        task, cron = q.tasks[options.pop("task")], options.pop("cron", None)
        q.periodic(cron, **options)(task)
