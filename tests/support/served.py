"""A dashboard that runs, as `taskq web` starts it."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from fleet import APPS, DEADLINE_S
from terminal import TASKQ, environment

APP = f"{APPS / 'shown.py'}:q"


class Served:
    """A dashboard that runs."""

    def __init__(self, home: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [*TASKQ, "web", APP, "--port", "0", *options],
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.link = self.line()

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def finish(self) -> tuple[int, str]:
        """Ends it; returns the exit code, and what it wrote to standard error."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors


def free_port() -> int:
    """A port of this machine that nobody has at this moment."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
    return port
