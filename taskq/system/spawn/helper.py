"""The helper process of multiprocessing, which starts only when a job needs it.

multiprocessing has a helper (its resource tracker) that removes the names of locks and of shared memory when their
owner was killed. It starts with the first process that is spawned, and takes 6 MB. A broker shares nothing but locks,
whose names it removes itself (`taskq.system.semaphores`), so on Linux it does without: what a broker that was killed
has left, the next one of the directory finds by its prefix. The code of a job may need the helper. A consumer inherits
the way to it, a socket; when something is written there, the broker starts the helper, which reads it from then on.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import process, resource_tracker
from pathlib import Path
from typing import Any

from taskq.system.platform import IS_LINUX

#: Where names are, and what the system puts before them.
_NAMES, _BEFORE = Path("/dev/shm"), "sem."
#: What multiprocessing begins names with if nobody says otherwise.
_USUAL_PREFIX = "/mp"
_PROGRAM = "import sys; from multiprocessing.resource_tracker import main; main(int(sys.argv[1]))"
#: multiprocessing writes this to the helper before it starts a process, to see whether it lives.
_PROBE = b"PROBE:0:noop\n"
#: multiprocessing has no public way to choose another helper; the tests use this one on every supported Python.
_tracker: Any = resource_tracker._resource_tracker


class Helper:
    """The helper of a broker's consumers. Used by the broker's loop alone.

    Attributes:
        needed: a socket that becomes readable when the helper is to be started; None where multiprocessing has started
            it, or will.
    """

    def __init__(self, directory: Path) -> None:
        """Removes the names of locks that an earlier broker has left.

        Args:
            directory: the fleet's, whose lock the caller holds.
        """
        self.needed: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if not IS_LINUX:
            return
        found = directory.stat()
        prefix = f"taskq-{found.st_dev:x}-{found.st_ino:x}-"
        _remove_names(f"{_BEFORE}{prefix}")
        _begin_names_with(f"/{prefix}")
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        _tracker._fd = self._nowhere
        self.needed, self._way = socket.socketpair()

    @contextmanager
    def offered(self) -> Iterator[None]:
        """While a process is started: it inherits the way to the helper."""
        if not IS_LINUX:
            yield
            return
        _tracker._fd = self._way.fileno()
        try:
            yield
        finally:
            _tracker._fd = self._nowhere
            self._drop_probes()

    def _drop_probes(self) -> None:
        if self.needed is not None:
            with suppress(BlockingIOError):
                told = self.needed.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                if not told.replace(_PROBE, b""):
                    self.needed.recv(len(told))

    def start(self) -> None:
        """Starts the helper: a consumer has written to it."""
        assert self.needed is not None
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore:resource_tracker:UserWarning", "-c", _PROGRAM, str(self.needed.fileno())],
            pass_fds=[self.needed.fileno()],
            stdin=subprocess.DEVNULL,
        )
        self.needed.close()
        self.needed = None


def name_locks_as_usual() -> None:
    """For a consumer: what its jobs share is not ours, and must not be taken for it."""
    _begin_names_with(_USUAL_PREFIX)


def _begin_names_with(prefix: str) -> None:
    this_process: Any = process.current_process()
    this_process._config["semprefix"] = prefix


def _remove_names(beginning: str) -> None:
    with suppress(FileNotFoundError):
        for name in os.listdir(_NAMES):
            if name.startswith(beginning):
                with suppress(FileNotFoundError, PermissionError):
                    os.unlink(_NAMES / name)
