"""What a guardian does while its broker lives: it passes on signals, reaps orphans, and waits.

It imports little, as most of a fleet's life is spent here: see `taskq.broker.small`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Self, TypedDict

from taskq.system.platform import is_stopped
from taskq.system.signals import signals_as_bytes
from taskq.system.terminal import CLOSING_S, Terminal
from taskq.telemetry.journald import print_error

#: At least as large as any packet of a broker.
_PACKET_BYTES = 1 << 20
#: A broker that was told to stop has this time besides its stop timeout. Then it is suspended or hangs, and is killed.
STOP_GRACE_S = 10.0
#: The operating system's timers are bounded; a stop timeout may be infinite.
_LONGEST_WAIT_S = 3_600.0

#: The signals that concern a guardian.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class PassedOn(TypedDict):
    """What one program passes on to the next, which watches in the same process.

    Attributes:
        pid: of the broker.
        sockets: to the broker, and to the host if there is one.
    """

    pid: int
    sockets: list[int]
    stop_timeout_s: float
    has_terminal: bool
    outlives_terminal: bool


class Watch:
    """Watches the brokers of a fleet, one after the other, and hears signals. One in a process.

    Attributes:
        is_stopping: whether the fleet is to end.
        kill_at: when a broker that is to stop is killed; None: it is not to stop.
        host: a socket to the program whose fleet this is, if there is one that still lives.
    """

    def __init__(self, stop_timeout_s: float, host: socket.socket | None, passed_on: PassedOn | None = None) -> None:
        """
        Args:
            stop_timeout_s: how long running jobs may take to end when the fleet stops.
            passed_on: by the program that has watched before this one in the same process.
        """
        self._terminal = Terminal(was_there=passed_on is not None and passed_on["has_terminal"])
        self.is_stopping = False
        self.kill_at: float | None = None
        self.host = host
        self._outlives_terminal = (
            signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
            if passed_on is None
            else passed_on["outlives_terminal"]
        )
        self._stop_timeout_s = stop_timeout_s
        self._reload_at: float | None = None  # when a SIGHUP was none of the terminal, which is still there
        self._pid: int | None = None  # of the broker, until it is reaped
        self._socket: socket.socket | None = None
        self._signals = signals_as_bytes(SIGNALS)
        self._poll = select.poll()
        self._poll.register(self._signals, select.POLLIN)
        if host is not None:
            self._poll.register(host, select.POLLIN)
        if self._terminal.watch is not None:
            self._poll.register(self._terminal.watch, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process of the broker."""
        assert self._pid is not None
        return self._pid

    @property
    def broker_socket(self) -> socket.socket:
        """The socket to the broker."""
        assert self._socket is not None
        return self._socket

    @property
    def is_idle(self) -> bool:
        """Whether nothing has happened that is still to be dealt with."""
        return not self.is_stopping and self._reload_at is None and not self._poll.poll(0)

    def begin(self, pid: int, broker_socket: socket.socket) -> None:
        """Watches a broker, which this process has started."""
        self._pid, self._socket = pid, broker_socket

    @classmethod
    def taken_over(cls, passed_on: PassedOn) -> Self:
        """Watches on, in place of the program that this process was. The signals of `SIGNALS` are still blocked."""
        broker, *host = map(_socket_of, passed_on["sockets"])
        watch = cls(passed_on["stop_timeout_s"], host[0] if host else None, passed_on)
        watch.begin(passed_on["pid"], broker)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        watch.reap_adopted()
        return watch

    def passed_on(self) -> PassedOn:
        """What `taken_over` needs to know in another program, which inherits the sockets."""
        host = [] if self.host is None else [self.host.fileno()]
        return {
            "pid": self.pid,
            "sockets": [self.broker_socket.fileno(), *host],
            "stop_timeout_s": self._stop_timeout_s,
            "has_terminal": self._terminal.watch is not None,
            "outlives_terminal": self._outlives_terminal,
        }

    # -- waiting

    def wait(self, until: float | None = None) -> bytes | None:
        """Waits for the broker, passing on what happens meanwhile.

        Args:
            until: how long (monotonic).

        Returns:
            What the broker says, in one packet; b"" if it has closed its socket, so that it is gone or going; None
            when `until` or `kill_at` has come.
        """
        broker = self.broker_socket
        self._poll.register(broker, select.POLLIN)
        try:
            while True:
                for descriptor, _ in self._poll.poll(self._timeout_ms(until)):
                    if descriptor == broker.fileno():
                        return self._read(broker)
                    self._on_readable(descriptor)
                now = time.monotonic()
                if self._reload_at is not None and now >= self._reload_at:
                    self._reload_at = None
                    self._forward(signal.SIGHUP)
                if any(at is not None and now >= at for at in (until, self.kill_at)):
                    return None
        finally:
            self._poll.unregister(broker)

    def _timeout_ms(self, until: float | None) -> float | None:
        times = [at for at in (self._reload_at, self.kill_at, until) if at is not None]
        return min(max(0.0, min(times) - time.monotonic()), _LONGEST_WAIT_S) * 1000 if times else None

    @staticmethod
    def _read(peer: socket.socket) -> bytes:
        try:
            return peer.recv(_PACKET_BYTES)
        except OSError:  # also if it is gone, and had not read all that was sent to it
            return b""

    def _on_readable(self, descriptor: int) -> None:
        if descriptor == self._signals.fileno():
            self._on_signals()
        elif descriptor == self._terminal.watch:
            self._on_terminal_gone()
        elif self.host is not None and descriptor == self.host.fileno():
            self._on_host_gone(self.host)

    def end(self) -> int:
        """Waits until the broker has ended, and returns its status: an exit code, or the number of a signal,
        negative."""
        self.broker_socket.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._pid = self._socket = None
        return status

    def kill(self) -> None:
        """Kills the broker."""
        self._forward(signal.SIGKILL)

    # -- signals, the terminal and the host

    def _on_signals(self) -> None:
        for number in self._signals.recv(64):
            if number == signal.SIGHUP:
                self._on_sighup()
            elif number == signal.SIGCHLD:
                self.reap_adopted()
            elif number in (signal.SIGTERM, signal.SIGINT):
                is_again = number == signal.SIGINT and self.kill_at is not None
                self.begin_stop()
                if is_again:  # it does not wait for running jobs any more
                    self.kill_at = min(self.kill_at or 0.0, time.monotonic() + STOP_GRACE_S)
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
        self._poll.unregister(self._terminal.watch)
        self._terminal.gone()
        if self._reload_at is not None:
            self._reload_at = None
            self._hang_up()

    def _hang_up(self) -> None:
        if not self._outlives_terminal and not self.is_stopping:
            self.begin_stop()
            self._forward(signal.SIGTERM)

    def begin_stop(self) -> None:
        """Notes that the broker should stop. It does so by itself, unless it is suspended or hangs."""
        if self.is_stopping:
            return
        self.is_stopping = True
        wait_s = self._stop_timeout_s + STOP_GRACE_S
        self.kill_at = time.monotonic() + wait_s
        if self.is_suspended:
            told = f"broker {self._pid} is stopped: it is killed in {wait_s:g} s"
            print_error(f"{told}, unless `kill -CONT {self._pid}` lets it go on", "warning")

    @property
    def is_suspended(self) -> bool:
        """Whether a signal has stopped the broker."""
        return self._pid is not None and is_stopped(self._pid)

    def reap_adopted(self) -> None:
        """Reaps what jobs left to us, while the broker lives; its own end is waited for elsewhere."""
        while self._pid is not None:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid == self._pid:
                return
            os.waitpid(ended.si_pid, 0)

    def _forward(self, number: signal.Signals) -> None:
        if self._pid is not None:  # it is not reaped, so that is still its number
            os.kill(self._pid, number)

    def _on_host_gone(self, host: socket.socket) -> None:
        if not self._read(host):
            self._poll.unregister(host)
            self.host = None
            self.begin_stop()
            self._forward(signal.SIGTERM)


def _socket_of(descriptor: int) -> socket.socket:
    inherited = socket.socket(fileno=descriptor)
    inherited.set_inheritable(False)
    return inherited
