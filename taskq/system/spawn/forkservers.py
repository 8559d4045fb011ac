"""The processes that consumers are forked from with `--preload`: each has imported the application once.

multiprocessing has one such server in a process, and no way to replace it, to go back to an earlier one, or to ask
whether it has imported what it should. Hence the private names used here; the tests use them on every supported Python.
A server answers nobody until it has imported the application, and whoever starts a process would wait for that. So the
server says when it is up (`taskq.consumer.preload`), and no process is started from it before: the broker's loop must
not wait.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

from taskq.system.platform import is_stopped, name_of_signal

#: The variables that tell a server what to import, and where to say that it is up.
READY_ADDRESS = "TASKQ_PRELOAD_READY"
PRELOADED_APP = "TASKQ_PRELOAD_APP"
#: How often to look whether a server is up: only while one imports the application.
_LOOK_EVERY_S = 0.01
#: The pause before another is started, after one that died.
_PAUSE_S = 1.0

_multiprocessing: Any = forkserver._forkserver
_connection: Any = connection


class ForkServer:
    """One such process. It ends when its `alive` descriptor is closed everywhere: by its consumers and by the
    broker."""

    def __init__(self, code: int, ready: socket.socket | None) -> None:
        self.code = code  # as `Succession.code`
        self.pid: int = _multiprocessing._forkserver_pid
        self.alive: int = _multiprocessing._forkserver_alive_fd
        self.address: str = _multiprocessing._forkserver_address
        self.since: float | None = None  # when we first looked at it
        self.is_up = ready is None
        self.is_proven = False  # whether a consumer came up that was forked from it
        self.ending = ""  # how it ended, in words
        self._ready = ready

    def has_died(self) -> bool:
        """Whether it has ended. If so, the kernel has killed what was forked from it (`die_with_parent`)."""
        if not self.ending:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # multiprocessing has reaped it
                self.ending = "ended in an unknown way"
            else:
                self.ending = _describe(os.waitstatus_to_exitcode(status)) if pid else ""
        return bool(self.ending)

    @property
    def is_stopped(self) -> bool:
        """Whether it is stopped (SIGSTOP): then it neither starts a process nor says how one ended."""
        return not self.has_died() and is_stopped(self.pid)

    def look(self) -> bool:
        """Whether it has imported the application."""
        if self._ready is not None:
            try:
                self.is_up = bool(self._ready.recv(16))
            except BlockingIOError:
                return False
            self._close_ready()
        return self.is_up

    def close(self) -> None:
        """Closes our end of it, as it is not needed any more: it ends with its last consumer."""
        self._close_ready()
        if self.alive >= 0:
            os.close(self.alive)
        if self.is_stopped:
            os.kill(self.pid, signal.SIGKILL)  # it would not see that

    def _close_ready(self) -> None:
        if self._ready is not None:
            address = self._ready.getsockname()
            self._ready.close()
            self._ready = None
            os.unlink(address)


class ForkServers:
    """The servers of a fleet. Used by the broker's loop alone."""

    def __init__(self, context: ForkServerContext, app: str, up_within_s: float) -> None:
        """
        Args:
            app: what they import.
            up_within_s: a server that has not imported it within this time is killed.
        """
        os.environ[PRELOADED_APP] = app
        context.set_forkserver_preload(["taskq.consumer.preload"])
        self._up_within_s = up_within_s
        self._present: ForkServer | None = None
        self._before: ForkServer | None = None  # the one to go back to until the present one has proved itself
        self._others: list[ForkServer] = []  # needed until their last consumer has ended: they say how consumers ended
        self._ended: list[ForkServer] = []  # released, but not reaped yet
        self._start_at = 0.0
        self._stopped = ""  # the message about one that was stopped

    def renew(self, code: int) -> None:
        """Has consumers forked from a new server from now on, which imports the application as it is now."""
        present, self._present = self._present, None
        if present is not None and present.is_proven and not present.has_died():
            self._keep_for_its_consumers(self._before)
            self._before = present
        else:
            self._keep_for_its_consumers(present)
        self._start(code)

    def go_back(self) -> None:
        """Gives up the present server: consumers are forked from the previous one again, if it lives."""
        if self._before is not None and not self._before.has_died():
            self._keep_for_its_consumers(self._present)
            self._present, self._before = self._before, None
            _hand_to_multiprocessing(self._present)

    def proven(self, server: ForkServer) -> None:
        """Notes that a consumer has come up: the present server works."""
        server.is_proven = True
        if server is self._present:
            self._keep_for_its_consumers(self._before)
            self._before = None

    def look_after(self, code: int, now: float) -> str | None:
        """Starts a server if there is none. Returns a message, once, if the present one has died."""
        present = self._present
        if present is None:
            if now >= self._start_at:
                self._start(code)
            told, self._stopped = self._stopped, ""
            return told or None
        present.since = now if present.since is None else present.since
        if present.has_died():
            self._keep_for_its_consumers(present)
            self._present, self._start_at = None, now + _PAUSE_S
            doing = "" if present.is_up else " while it imported the application"
            return f"the process that consumers are forked from (--preload) {present.ending}{doing}"
        if not present.look() and now - present.since > self._up_within_s:
            os.kill(present.pid, signal.SIGKILL)
        return None

    def next_look(self, now: float) -> float | None:
        """When `look_after` must be called next, if nothing else happens (monotonic)."""
        if self._present is None:
            return self._start_at
        return None if self._present.is_up else now + _LOOK_EVERY_S

    @property
    def code(self) -> int | None:
        """The version of the code that consumers started now will run; None if none can be started."""
        return self._present.code if self._present is not None and self._present.is_up else None

    def can_fork(self, now: float) -> bool:
        """Whether a process can be started now. A stopped server would hold up whoever starts one: another server
        takes its place, and the stopped one stays for the consumers that it has."""
        present = self._present
        if present is not None and present.is_stopped:
            self._stopped = f"the process that consumers are forked from (--preload, {present.pid}) is stopped"
            self._keep_for_its_consumers(present)
            self._present, self._start_at = None, now
        return self._present is not None

    def used(self) -> ForkServer:
        """The server that a process was just forked from: multiprocessing starts another by itself if ours has died."""
        assert self._present is not None
        if _multiprocessing._forkserver_pid != self._present.pid:
            self._present.alive = -1  # closed, too
            self._others.append(self._present)
            self._present = ForkServer(self._present.code, None)
        return self._present

    def release(self, in_use: Collection[ForkServer | None]) -> None:
        """Closes the servers that nobody needs any more."""
        for server in [server for server in self._others if server not in in_use]:
            self._others.remove(server)
            server.close()
            self._ended.append(server)
        self._ended = [server for server in self._ended if not server.has_died()]

    def _keep_for_its_consumers(self, server: ForkServer | None) -> None:
        if server is not None:
            self._others.append(server)

    def _start(self, code: int) -> None:
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.setblocking(False)
        address = _connection.arbitrary_address("AF_UNIX")  # in the folder that multiprocessing keeps for itself
        ready.bind(address)
        os.environ[READY_ADDRESS] = address
        _hand_to_multiprocessing(None)
        _multiprocessing.ensure_running()
        self._present = ForkServer(code, ready)


def _hand_to_multiprocessing(server: ForkServer | None) -> None:
    _multiprocessing._forkserver_pid = None if server is None else server.pid
    _multiprocessing._forkserver_alive_fd = None if server is None else server.alive
    _multiprocessing._forkserver_address = None if server is None else server.address


def _describe(code: int) -> str:
    return f"was killed by {name_of_signal(-code)}" if code < 0 else f"exited with code {code}"
