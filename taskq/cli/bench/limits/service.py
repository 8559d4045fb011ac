"""A limit that runs as a process of its own and is asked through a socket: a bare commit, or a skeleton of a queue.

It is a program that is given a directory and the path of a socket, listens there, and then prints a line. It takes
msgpack: after `["enqueue", [payload, ...]]` it answers with one byte when these are durable, after `["wait", N]` when N
jobs in total are done.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgpack
import psutil

from taskq.cli.bench.children import uninterrupted
from taskq.model.errors import TaskQError

#: What `taskq` sends in one frame, and how many frames it sends before it waits for an answer.
_FRAME = 500
_FRAMES_AHEAD = 8


class Service:
    """A running limit.

    Args:
        command: the arguments of Python that run it, without those of every such program.
        directory: where it keeps its files.
    """

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        # elsewhere, as the path of a socket must be short
        self._folder = TemporaryDirectory(prefix="taskq-bench-")
        with uninterrupted():
            self._process = subprocess.Popen(
                [sys.executable, *command, str(directory), str(self.path)],
                stdin=subprocess.PIPE,  # its end tells the program that this process has ended
                stdout=subprocess.PIPE,
                process_group=0,
            )
        assert self._process.stdout is not None
        try:
            if not self._process.stdout.readline():
                raise TaskQError(f"a limit did not start: python {' '.join(command)}")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._process.pid

    @property
    def path(self) -> Path:
        """Its socket."""
        return Path(self._folder.name, "socket")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stops the processes that it has started, while a block runs: it has no pause."""
        children = [child.pid for child in psutil.Process(self.pid).children()]
        for child in children:
            os.kill(child, signal.SIGSTOP)
        try:
            yield
        finally:
            for child in children:
                os.kill(child, signal.SIGCONT)

    def close(self) -> None:
        """Kills it, with all processes that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._folder.cleanup()


class ServiceClient:
    """A connection to a limit."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._enqueued = 0

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    def enqueue(self) -> None:
        """Enqueues one job, durable on return."""
        self._send(1)
        self._answer()

    def run(self, count: int) -> None:
        """Enqueues jobs, many at a time, and waits until all are done."""
        self.enqueue_many(count)
        self.wait()

    def enqueue_many(self, count: int) -> None:
        """Enqueues jobs, many at a time, durable on return."""
        under_way = 0
        for start in range(0, count, _FRAME):
            self._send(min(_FRAME, count - start))
            under_way += 1
            if under_way > _FRAMES_AHEAD:
                self._answer()
                under_way -= 1
        for _ in range(under_way):
            self._answer()

    def round_trip(self) -> None:
        """Enqueues one job, and waits for its end."""
        self.enqueue()
        self.wait()

    def wait(self) -> None:
        """Waits until all jobs that this connection enqueued are done. No other may have enqueued any."""
        self._socket.sendall(msgpack.packb(("wait", self._enqueued)))
        self._answer()

    def _send(self, count: int) -> None:
        payloads = [msgpack.packb(("noop", [number], {})) for number in range(count)]
        self._socket.sendall(msgpack.packb(("enqueue", payloads)))
        self._enqueued += count

    def _answer(self) -> None:
        if not self._socket.recv(1):
            raise TaskQError("a limit ended while it was measured")
