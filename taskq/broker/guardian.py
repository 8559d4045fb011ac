"""The guardian: the process of `taskq worker` itself. Small on purpose: it touches no data and imports no user code.

It starts the broker, starts it again when it dies (within a budget), and forwards signals. When the guardian dies, the
broker notices it by the end of their socket, ends its consumers and then itself.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from taskq.model.exits import FINAL_EXITS, Exit
from taskq.model.misfits import misfits
from taskq.model.settings import Settings
from taskq.protocol.guardian import (
    MAX_PACKET_BYTES,
    Failed,
    Notice,
    Ready,
    Resolved,
    Setup,
    Stopping,
    pack_notice,
    read_notice,
)
from taskq.system.directory import Directory
from taskq.system.launch import take_broker, take_resolver
from taskq.system.platform import adopt_orphans, is_stopped, name_of_signal, name_process
from taskq.system.signals import signals_as_bytes
from taskq.system.terminal import CLOSING_S, Terminal
from taskq.telemetry.fanout import announce


def main(app: str, settings: str, title: str, directory: str, descriptor: str) -> None:
    """Runs the guardian of a fleet with these settings; the target of its process."""
    host = socket.socket(fileno=int(descriptor))
    host.set_inheritable(False)
    guardian = Guardian(app, Settings(**json.loads(settings)), host, known_as=(title, Path(directory)))
    sys.exit(guardian.run())


#: If a broker dies more often than this in this time, something is wrong that a restart does not repair.
_RESTARTS = 30


_RESTARTS_WITHIN_S = 60.0


#: Pause before a restart: none if the broker had come up; else doubling.
_PAUSE_FIRST_S = 0.1


_PAUSE_LONGEST_S = 5.0


#: A broker that was told to stop has this time besides its stop timeout. Then it is suspended or hangs, and is killed.
_STOP_GRACE_S = 10.0


#: The fleet is given up after this many brokers in a row that never came up.
_FAILURES = 5


#: The operating system's timers are bounded; a stop timeout may be infinite.
_LONGEST_WAIT_S = 3_600.0


#: How long to wait at the end for processes that end after their broker.
_ORPHANS_S = 0.5


class Guardian:
    """Runs one fleet from its start to its end."""

    def __init__(
        self,
        app: str,
        settings: Settings,
        host: socket.socket | None = None,
        known_as: tuple[str, Path] | None = None,
    ) -> None:
        """
        Args:
            app: the application, as for `taskq.client.loader.load_app`.
            settings: of the fleet.
            host: a socket to a program whose fleet this is (`TaskQ.fleet`): it hears when the fleet is ready or why
                not, and its end ends the fleet.
            known_as: the application's name and directory, if the host knows them; else they are looked up.
        """
        self._app = app
        self._settings = settings
        self._host = host
        self._selector = selectors.DefaultSelector()
        self._broker: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_stopping = False
        self._kill_at: float | None = None  # when a broker that is to stop is killed
        self._came_up = False  # the present broker
        self._failures = 0
        self._deaths: deque[float] = deque()
        self._terminal = Terminal()
        self._outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
        self._reload_at: float | None = None  # when a SIGHUP was none of the terminal, which is still there
        self._title, path = known_as or ("", None)
        self._directory = None if path is None else Directory(path)
        self._misfits: list[str] = []  # not told yet

    def run(self) -> int:
        """Runs the fleet. Returns the exit code."""
        name_process(f"guardian [{self._app}]")
        adopt_orphans()
        self._wake_on_signals()
        if self._host is not None:
            self._selector.register(self._host, selectors.EVENT_READ, self._on_host_gone)
        self._start_broker()  # it imports while the application is resolved
        code, message = (Exit.OK, "") if self._directory else self._resolve()
        if code != Exit.OK:
            self._abandon(message, code)
            return code
        while True:
            self._send_setup()
            status = self._wait_for_broker()
            final = self._after(status)
            _reap_orphans(_ORPHANS_S if final is not None else 0.0)
            if final is not None:
                return final
            self._start_broker()

    # -- the application

    def _resolve(self) -> tuple[int, str]:
        """Has a process of its own import the application, to learn its name and directory or what is wrong with it."""
        resolver = take_resolver(self._app)
        with resolver.socket, resolver.process:
            answer = b"".join(iter(lambda: resolver.socket.recv(65536), b""))
        if not answer:
            return Exit.APP, f"importing {self._app} ended the process ({_describe(resolver.process.returncode)})"
        resolved = Resolved.read(answer)
        self._title, self._directory = resolved.title, Directory(Path(resolved.path))
        self._misfits = misfits(resolved.needs, self._settings) if resolved.exit_code == Exit.OK else []
        name_process(f"guardian [{self._title}]")
        return resolved.exit_code, resolved.message

    def _abandon(self, message: str, code: int) -> None:
        print(f"taskq: {message}", file=sys.stderr)
        self._tell_host(Failed(code, message))
        assert self._socket is not None
        assert self._broker is not None
        self._socket.close()
        self._broker.wait()

    def _tell_misfits(self) -> None:
        """Logs the misfits once, and not before the directory is ours: another fleet may own it."""
        told, self._misfits = self._misfits, []
        for reason in told:
            self._log("fleet.misfit", "warning", reason=reason)

    # -- the broker

    def _start_broker(self) -> None:
        broker = take_broker()
        self._broker, self._socket = broker.process, broker.socket
        self._came_up = False

    def _send_setup(self) -> None:
        assert self._socket is not None
        assert self._directory is not None
        setup = Setup(self._app, self._title, str(self._directory.path), self._settings.to_dict(), os.getpid())
        try:
            self._socket.send(setup.pack())
        except OSError:
            pass  # it has died already; its status says how

    def _wait_for_broker(self) -> int:
        """Waits for the broker's end, passing on what happens meanwhile. Returns its status, as subprocess gives it."""
        assert self._socket is not None
        assert self._broker is not None
        self._selector.register(self._socket, selectors.EVENT_READ, self._on_broker)
        while not self._is_broker_gone():
            for key, _ in self._selector.select(self._timeout_s()):
                key.data()
            if self._reload_at is not None and time.monotonic() >= self._reload_at:
                self._reload_at = None
                self._forward(signal.SIGHUP)
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._kill_at = None
                self._kill_broker()
        return self._broker.wait()

    def _timeout_s(self) -> float | None:
        times = [at for at in (self._reload_at, self._kill_at) if at is not None]
        return min(max(0.0, min(times) - time.monotonic()), _LONGEST_WAIT_S) if times else None

    def _is_broker_gone(self) -> bool:
        return self._socket is None

    def _on_broker(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(MAX_PACKET_BYTES)
        except OSError:
            data = b""
        if data:
            self._on_notice(read_notice(data))
            return
        self._selector.unregister(self._socket)
        self._socket.close()
        self._socket = None

    def _on_notice(self, notice: Notice) -> None:
        if isinstance(notice, Ready):
            self._came_up = True
            self._failures = 0
            self._tell_misfits()
        elif isinstance(notice, Stopping):
            self._begin_stop()
            return
        self._tell_host(notice)

    def _after(self, status: int) -> int | None:
        """Decides what follows the broker's end. Returns an exit code, or None to start another broker."""
        if status in FINAL_EXITS:
            return status
        if self._is_stopping and not self._came_up and -status in (signal.SIGTERM, signal.SIGINT):
            return Exit.OK  # it was told so before it could handle that
        self._log("broker.died", "error", **_ending(status), came_up=self._came_up)
        if self._is_stopping:
            return Exit.OK  # what it had not finished is in the journal
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - _RESTARTS_WITHIN_S:
            self._deaths.popleft()
        self._failures = 0 if self._came_up else self._failures + 1
        if len(self._deaths) > _RESTARTS or self._failures >= _FAILURES:
            message = f"the broker died {len(self._deaths)} times within a minute ({_describe(status)}); giving up"
            print(f"taskq: {message}", file=sys.stderr)
            self._log("fleet.given_up", "critical", error=message)
            self._tell_host(Failed(Exit.UNSTABLE, message))
            return Exit.UNSTABLE
        if self._failures:
            time.sleep(min(_PAUSE_FIRST_S * 2 ** (self._failures - 1), _PAUSE_LONGEST_S))
        return None

    # -- signals and the host

    def _wake_on_signals(self) -> None:
        self._signals = signals_as_bytes((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD))
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        if self._terminal.watch is not None:
            self._selector.register(self._terminal.watch, selectors.EVENT_READ, self._on_terminal_gone)

    def _on_signals(self) -> None:
        for number in self._signals.recv(64):
            if number == signal.SIGHUP:
                self._on_sighup()
            elif number == signal.SIGCHLD:
                self._reap_adopted()
            elif number in (signal.SIGTERM, signal.SIGINT):
                is_again = number == signal.SIGINT and self._kill_at is not None
                self._begin_stop()
                if is_again:  # it does not wait for running jobs any more
                    self._kill_at = min(self._kill_at or 0.0, time.monotonic() + _STOP_GRACE_S)
                self._forward(signal.Signals(number))

    def _on_sighup(self) -> None:
        """Reloads if the signal came from `kill`; stops if a terminal was closed. A moment later it shows which."""
        if self._terminal.went_just_now:
            self._hang_up()
        elif self._terminal.watch is not None:
            self._reload_at = time.monotonic() + CLOSING_S
        else:
            self._forward(signal.SIGHUP)

    def _on_terminal_gone(self) -> None:
        assert self._terminal.watch is not None
        self._selector.unregister(self._terminal.watch)
        self._terminal.gone()
        if self._reload_at is not None:
            self._reload_at = None
            self._hang_up()

    def _hang_up(self) -> None:
        if not self._outlives_terminal and not self._is_stopping:
            self._begin_stop()
            self._forward(signal.SIGTERM)

    def _begin_stop(self) -> None:
        """Notes that the broker should stop. It does so by itself, unless it is suspended or hangs."""
        if self._is_stopping:
            return
        self._is_stopping = True
        wait_s = self._settings.stop_timeout_s + _STOP_GRACE_S
        self._kill_at = time.monotonic() + wait_s
        if self._broker is not None and is_stopped(self._broker.pid):
            told = f"broker {self._broker.pid} is stopped: it is killed in {wait_s:g} s"
            print(f"taskq: {told}, unless `kill -CONT {self._broker.pid}` lets it go on", file=sys.stderr)

    def _kill_broker(self) -> None:
        """Kills a broker that does not stop; all that it has answered is in the journal."""
        assert self._broker is not None
        how = "it is stopped" if is_stopped(self._broker.pid) else "it hangs"
        late = f"it did not end within {_STOP_GRACE_S:g} s after the stop timeout"
        self._log("broker.killed", "error", pid=self._broker.pid, reason=f"{late}: {how}")
        self._broker.kill()

    def _reap_adopted(self) -> None:
        """Reaps what jobs left to us, while the broker lives; its own end is waited for elsewhere."""
        while self._broker is not None:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid == self._broker.pid:
                return
            os.waitpid(ended.si_pid, 0)

    def _forward(self, number: signal.Signals) -> None:
        if self._broker is not None:
            self._broker.send_signal(number)

    def _on_host_gone(self) -> None:
        assert self._host is not None
        if not self._host.recv(1):
            self._selector.unregister(self._host)
            self._host = None
            self._begin_stop()
            self._forward(signal.SIGTERM)

    def _tell_host(self, notice: Notice) -> None:
        if self._host is not None:
            try:
                self._host.send(pack_notice(notice))
            except OSError:
                pass  # its end is heard in the loop

    def _log(self, event: str, level: str, **fields: Any) -> None:
        if self._directory is not None:
            announce(self._directory.path, self._settings.log_format, level, event, **fields)


def _reap_orphans(wait_s: float) -> None:
    """Reaps what a broker left to us, so that no zombies stay (in a container we may be process 1). Waits a moment for
    multiprocessing's resource tracker, which ends after its broker."""
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() >= give_up_at:
                return
            time.sleep(0.005)


def _ending(status: int) -> dict[str, Any]:
    return {"signal": name_of_signal(-status)} if status < 0 else {"exit_code": status}


def _describe(status: int) -> str:
    return f"killed by {name_of_signal(-status)}" if status < 0 else f"exit code {status}"
