"""Requests about a directory without a fleet: a process is started that opens the journal under the broker's lock.

It is a process of its own because whatever opens the journal must own the lock alone: a lock taken here would be
inherited by whatever this program forks meanwhile, and would keep the next fleet out. That process runs
`taskq.broker.stopped`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import TimeoutExpired
from typing import Any

from taskq.client.transport.absence import Absence
from taskq.client.transport.connection import Connection
from taskq.model.errors import AlreadyRunning, BrokerUnavailable
from taskq.protocol.answers import BrokerSilent, ConnectionLost
from taskq.protocol.ops import OPS, Op
from taskq.system.directory import Directory
from taskq.system.launch import spawn_reader

#: A journal is opened in milliseconds, but read as a whole after a crash of the system.
_ANSWER_TIMEOUT_S = 60.0


_END_TIMEOUT_S = 10.0


class FleetIsThere(ConnectionLost):
    """A fleet has the directory, or is about to: it is the one to ask."""


class _Reading(Connection):
    """A connection to a reader that was started for it."""

    def __init__(self, directory: Directory) -> None:
        self._child = spawn_reader(str(directory.path))
        try:
            super().__init__(directory.path, Absence(directory, _ANSWER_TIMEOUT_S), self._child.socket)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Lets the reader go, and waits until it has closed the journal."""
        self._child.socket.close()
        try:
            self._child.process.wait(_END_TIMEOUT_S)
        except TimeoutExpired:  # it is stopped, or hangs; a kill leaves nothing broken
            self._child.process.kill()
            self._child.process.wait()


class StoppedFleet:
    """What a directory without a fleet can be asked. Any thread may ask."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._local = threading.local()  # of each thread: the reader that it has, and how many calls share that

    def knows(self, op: Op) -> bool:
        """Whether there is something to ask. To look makes a journal only of jobs that wait for the first fleet."""
        if op not in OPS:
            return False
        if os.path.exists(self._directory.journal):
            return True
        return op in (Op.JOBS, Op.STATUS) and any(self._directory.spool.glob("*.jobs"))

    def ask(self, op: Op, *fields: Any) -> Any:
        """Asks for something that may be asked again.

        Raises:
            FleetIsThere: a fleet has come up meanwhile; ask that.
            TaskQError: what the answer is, or why the journal cannot be read.
        """
        with self.keeping():
            try:
                if self._local.reading is None:
                    self._local.reading = _Reading(self._directory)
                return self._local.reading.request(op, *fields)
            except BrokerSilent as error:
                self._end()
                told = f"the journal in {self._directory.path} was not read within {_ANSWER_TIMEOUT_S:g} s"
                raise BrokerUnavailable(told) from error
            except (AlreadyRunning, ConnectionLost) as error:
                self._end()
                raise FleetIsThere(str(error)) from error

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """The requests of this thread in the block have one reader together."""
        depth = getattr(self._local, "depth", 0)
        if depth == 0:
            self._local.reading = None
        self._local.depth = depth + 1
        try:
            yield
        finally:
            self._local.depth = depth
            if depth == 0:
                self._end()

    def _end(self) -> None:
        reading, self._local.reading = self._local.reading, None
        if reading is not None:
            reading.end()
