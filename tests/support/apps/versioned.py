"""An application whose code changes: it is what a file says at the time of the import."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from taskq import TaskQ, current_job

q = TaskQ("versioned", url="/proc/nonexistent" if __name__ == "apps.versioned" else None)

VERSION = ""
if __name__ != "apps.versioned":
    VERSION, *_argument = Path(os.environ["TASKQ_TEST_VERSION"]).read_text().split()
    if {"TASKQ_IN_CONSUMER", "TASKQ_PRELOAD_APP"} & os.environ.keys():
        if VERSION in ("slow", "late"):
            with open(_argument[0] + ".pid", "w") as told:
                told.write(f"{os.getpid()}\n")
            with open(_argument[0], "rb", buffering=0) as gate:
                gate.read(1)
        if VERSION == "deadly":
            os.kill(os.getpid(), signal.SIGSEGV)
        if VERSION in ("broken", "slow"):
            raise RuntimeError("this version does not work")


@q.task
def version() -> list[object]:
    return [VERSION, os.getpid()]


@q.task(retries=0)
def die_at_first() -> int:
    if current_job().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@q.task
def hold(gate: str, begun: str) -> str:
    Path(begun).write_text("begun\n")
    with open(gate, "rb", buffering=0) as opened:
        opened.read(1)
    return VERSION
