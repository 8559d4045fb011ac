"""Those who watch a fleet, as people leave them open: a page in a browser, Prometheus, `taskq top`, and a log.

python -m taskq.cli.bench.watchers DIRECTORY: watches until standard input ends, and prints a line when all of them do.
"""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from taskq.cli.bench.children import uninterrupted
from taskq.cli.bench.machine import family
from taskq.model.errors import TaskQError
from taskq.system.platform import die_with_parent

#: What they need beside taskq itself.
EXTRAS = {"web": "starlette", "top": "textual", "prometheus": "prometheus_client"}
#: How often a page asks for what is new, and how often Prometheus reads the figures.
PAGE_EVERY_S, SCRAPE_EVERY_S = 2.0, 5.0
_APP = "taskq.cli.bench.app:q"
_ROWS, _COLUMNS = 40, 120
_TIMEOUT_S = 30.0


def missing_extras() -> list[str]:
    """The extras that watching needs, and that are not installed."""
    return [extra for extra, module in EXTRAS.items() if find_spec(module) is None]


class Watchers:
    """Processes that watch a fleet. They can be stopped for a while, and then cost nothing.

    Args:
        directory: of the fleet.
    """

    def __init__(self, directory: Path) -> None:
        with uninterrupted():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "taskq.cli.bench.watchers", str(directory)],
                env={**os.environ, "TASKQ_URL": str(directory), "TERM": "xterm-256color"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - other threads only wait here, and hold no lock
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.close()
            raise TaskQError("those who watch did not start: try `taskq web`, `taskq top` and `taskq metrics`")

    @property
    def processes(self) -> list[psutil.Process]:
        """All of them."""
        return family([self._process.pid])

    def rest(self) -> None:
        """Has them do nothing until `go_on`."""
        for process in self.processes:
            process.suspend()

    def go_on(self) -> None:
        """Has them watch again."""
        for process in self.processes:
            process.resume()

    def close(self) -> None:
        """Ends them."""
        for process in reversed(self.processes):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.communicate()


# -- in their process


def main(directory: str) -> None:
    """Watches a fleet until standard input ends."""
    page = _Page(_first_line(_started("web", _APP, "--port", "0", stdout=subprocess.PIPE)))
    figures = _Page(_first_line(_started("metrics", directory, "--listen", "127.0.0.1:0", stdout=subprocess.PIPE)))
    _started("logs", directory, "--follow")
    _run_top(directory)
    for watched, every_s in ((page, PAGE_EVERY_S), (figures, SCRAPE_EVERY_S)):
        watched.look()
        threading.Thread(target=watched.look_again, args=(every_s,), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


def _started(
    *arguments: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "taskq", *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stdout if stdout == stdin else subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - no other thread runs yet
    )


def _first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def _run_top(directory: str) -> None:
    """Runs `taskq top` on a terminal that nobody looks at; returns when it has drawn something."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    _started("top", directory, stdin=theirs, stdout=theirs)
    os.close(theirs)
    os.read(ours, 1)
    threading.Thread(target=_read_all, args=(ours,), daemon=True).start()


def _read_all(descriptor: int) -> None:
    with suppress(OSError):  # the end of a terminal
        while os.read(descriptor, 1 << 16):
            pass


class _Page:
    """Something that is asked for again and again, as a browser or Prometheus does it.

    Args:
        link: its address; one that works once becomes a cookie.
    """

    def __init__(self, link: str) -> None:
        parts = urlsplit(link)
        self._connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        self._path, self._headers = parts.path or "/", {"taskq-part": "1"}
        if parts.query:
            self._connection.request("GET", f"{self._path}?{parts.query}")
            answer = self._connection.getresponse()
            answer.read()
            self._headers["Cookie"] = (answer.headers["Set-Cookie"] or "").partition(";")[0]

    def look(self) -> None:
        """Asks for it once.

        Raises:
            TaskQError: it is refused.
        """
        try:
            self._connection.request("GET", self._path, headers=self._headers)
            answer = self._connection.getresponse()
        except (HTTPException, OSError):  # a connection that nobody used for long was closed
            self._connection.close()
            self._connection.request("GET", self._path, headers=self._headers)
            answer = self._connection.getresponse()
        answer.read()
        if answer.status not in (200, 304):
            raise TaskQError(f"{self._path} was answered {answer.status}")
        if answer.headers["ETag"]:
            self._headers["If-None-Match"] = answer.headers["ETag"]

    def look_again(self, every_s: float) -> None:
        """Asks for it again and again."""
        while True:
            time.sleep(every_s)
            self.look()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(*sys.argv[1:])
