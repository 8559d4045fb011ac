"""The guardian: the process of `taskq worker` itself. It touches no data and imports no user code.

It starts the broker, and starts it again when it dies (within a budget); meanwhile it passes on signals (`watch.py`).
Soon after the fleet is ready it goes on as a smaller program (`small.py`), which has the same process id. When the
guardian dies, the broker notices it by the end of their socket, ends its consumers and then itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Self

from taskq.broker.watch import SIGNALS, STOP_GRACE_S, Watch
from taskq.model.exits import FINAL_EXITS, Exit
from taskq.model.misfits import misfits
from taskq.model.settings import Settings
from taskq.protocol.guardian import Failed, Notice, Ready, Resolved, Setup, Stopping, pack_notice, read_notice
from taskq.system.launch import become_small, take_broker, take_resolver
from taskq.system.place import Place, place_of_fleet, set_database_of_fleet
from taskq.system.platform import adopt_orphans, name_of_signal, name_process
from taskq.telemetry.fanout import announce
from taskq.telemetry.journald import print_error


def main(app: str, settings: str, title: str, directory: str, descriptor: str) -> None:
    """Runs the guardian of a fleet with these settings; the target of its process."""
    host = socket.socket(fileno=int(descriptor))
    host.set_inheritable(False)
    guardian = Guardian(app, Settings(**json.loads(settings)), host, known_as=(title, place_of_fleet(directory)))
    sys.exit(guardian.run())


#: If a broker dies more often than this in this time, something is wrong that a restart does not repair.
_RESTARTS = 30


_RESTARTS_WITHIN_S = 60.0


#: Pause before a restart: none if the broker had come up; else doubling.
_PAUSE_FIRST_S = 0.1


_PAUSE_LONGEST_S = 5.0


#: The fleet is given up after this many brokers in a row that never came up.
_FAILURES = 5


#: A guardian becomes small when its fleet has been ready for so long: the start of a program takes processor time.
_BECOMES_SMALL_AFTER_S = 1.0


#: How long to wait at the end for processes that end after their broker.
_ORPHANS_S = 0.5


class Guardian:
    """Runs one fleet from its start to its end."""

    def __init__(
        self,
        app: str,
        settings: Settings,
        host: socket.socket | None = None,
        known_as: tuple[str, Place] | None = None,
        watch: Watch | None = None,
        deaths: Sequence[float] = (),
    ) -> None:
        """
        Args:
            app: the application, as for `taskq.client.loader.load_app`.
            settings: of the fleet.
            host: a socket to a program whose fleet this is (`TaskQ.fleet`): it hears when the fleet is ready or why
                not, and its end ends the fleet.
            known_as: the application's name and place, if the host knows them; else they are looked up.
            watch: of a broker that runs already; one of its own if left out.
            deaths: when brokers have died (monotonic).
        """
        self._app = app
        self._settings = settings
        self._watch = watch or Watch(settings.stop_timeout_s, host)
        self._came_up = watch is not None  # the present broker
        self._failures = 0
        self._deaths = deque(deaths)
        self._small_at: float | None = None  # when this process becomes small
        self._title = ""
        self._place: Place | None = None
        if known_as is not None:
            self._title, self._place = known_as
        self._misfits: list[str] = []  # not told yet

    @classmethod
    def grown(cls, watch: Watch, kept: Mapping[str, Any]) -> Self:
        """Makes the guardian again that has become small.

        Args:
            watch: of its broker, which runs.
            kept: as `_become_small` has passed it on.
        """
        known_as = kept["title"], place_of_fleet(kept["directory"])
        return cls(kept["app"], Settings(**kept["settings"]), known_as=known_as, watch=watch, deaths=kept["deaths"])

    def run(self) -> int:
        """Runs the fleet. Returns the exit code."""
        name_process(f"guardian [{self._app}]")
        adopt_orphans()
        self._start_broker()  # it imports while the application is resolved
        code, message = (Exit.OK, "") if self._place else self._resolve()
        if code != Exit.OK:
            self._abandon(message, code)
            return code
        self._send_setup()
        return self.go_on(self._watch.wait())

    def go_on(self, packet: bytes | None) -> int:
        """Runs a fleet whose broker was started. Returns the exit code.

        Args:
            packet: what its watch has returned.
        """
        while True:
            status = self._look_after_broker(packet)
            final = self._after(status)
            _reap_orphans(_ORPHANS_S if final is not None else 0.0)
            if final is not None:
                return final
            self._start_broker()
            self._send_setup()
            packet = self._watch.wait()

    # -- most of the time

    def _become_small(self) -> None:
        """Goes on as a smaller program, unless something is happening just now."""
        self._small_at = time.monotonic() + _BECOMES_SMALL_AFTER_S  # again, if it does not succeed
        assert self._place is not None
        set_database_of_fleet(self._place.database)  # anyone may see the arguments of a process
        kept = {
            "app": self._app,
            "settings": self._settings.to_dict(),
            "title": self._title,
            "directory": str(self._place.directory.path),
            "deaths": list(self._deaths),
        }
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # those that come meanwhile wait for the new program
        try:
            if self._watch.is_idle:
                passed_on = self._watch.passed_on()
                become_small(json.dumps((passed_on, kept)), passed_on["sockets"])
        except OSError as error:
            self._small_at = None
            print_error(f"the guardian stays as large as it is: {error.strerror or error}")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    # -- the application

    def _resolve(self) -> tuple[int, str]:
        """Has a process of its own import the application, to learn its name and directory or what is wrong with it."""
        resolver = take_resolver(self._app)
        with resolver.socket, resolver.process:
            answer = b"".join(iter(lambda: resolver.socket.recv(65536), b""))
        if not answer:
            return Exit.APP, f"importing {self._app} ended the process ({_describe(resolver.process.returncode)})"
        resolved = Resolved.read(answer)
        self._title, self._place = resolved.title, resolved.place
        self._misfits = misfits(resolved.needs, self._settings) if resolved.exit_code == Exit.OK else []
        name_process(f"guardian [{self._title}]")
        return resolved.exit_code, resolved.message

    def _abandon(self, message: str, code: int) -> None:
        print_error(message)
        self._tell_host(Failed(code, message))
        self._watch.end()

    def _tell_misfits(self) -> None:
        """Logs the misfits once, and not before the directory is ours: another fleet may own it."""
        told, self._misfits = self._misfits, []
        for reason in told:
            self._log("fleet.misfit", "warning", reason=reason)

    # -- the broker

    def _start_broker(self) -> None:
        broker = take_broker()
        broker.process.returncode = 0  # the watch reaps it: subprocess would do so when it starts another process
        self._watch.begin(broker.process.pid, broker.socket)
        self._came_up, self._small_at = False, None

    def _send_setup(self) -> None:
        assert self._place is not None
        path, database = self._place.to_wire()
        setup = Setup(self._app, self._title, path, database, self._settings.to_dict(), os.getpid())
        try:
            self._watch.broker_socket.send(setup.pack())
        except OSError:
            pass  # it has died already; its status says how

    def _look_after_broker(self, packet: bytes | None) -> int:
        """Waits for the broker's end, and does what is to be done meanwhile. Returns its status."""
        watch = self._watch
        while packet != b"":
            if packet is not None:
                self._on_notice(read_notice(packet))
            elif watch.kill_at is not None and time.monotonic() >= watch.kill_at:
                watch.kill_at = None
                self._kill_broker()
            elif self._small_at is not None:
                self._become_small()
            packet = watch.wait(self._small_at)
        return watch.end()

    def _on_notice(self, notice: Notice) -> None:
        if isinstance(notice, Ready):
            self._came_up = True
            self._failures = 0
            self._small_at = time.monotonic() + _BECOMES_SMALL_AFTER_S
            self._tell_misfits()
        elif isinstance(notice, Stopping):
            self._small_at = None
            self._watch.begin_stop()
            return
        self._tell_host(notice)

    def _after(self, status: int) -> int | None:
        """Decides what follows the broker's end. Returns an exit code, or None to start another broker."""
        if status in FINAL_EXITS:
            return status
        if self._watch.is_stopping and not self._came_up and -status in (signal.SIGTERM, signal.SIGINT):
            return Exit.OK  # it was told so before it could handle that
        self._log("broker.died", "error", **_ending(status), came_up=self._came_up)
        if self._watch.is_stopping:
            return Exit.OK  # what it had not finished is in the journal
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - _RESTARTS_WITHIN_S:
            self._deaths.popleft()
        self._failures = 0 if self._came_up else self._failures + 1
        if len(self._deaths) > _RESTARTS or self._failures >= _FAILURES:
            message = f"the broker died {len(self._deaths)} times within a minute ({_describe(status)}); giving up"
            print_error(message, "critical")
            self._log("fleet.given_up", "critical", error=message)
            self._tell_host(Failed(Exit.UNSTABLE, message))
            return Exit.UNSTABLE
        if self._failures:
            time.sleep(min(_PAUSE_FIRST_S * 2 ** (self._failures - 1), _PAUSE_LONGEST_S))
        return None

    def _kill_broker(self) -> None:
        """Kills a broker that does not stop; all that it has answered is in the journal."""
        how = "it is stopped" if self._watch.is_suspended else "it hangs"
        late = f"it did not end within {STOP_GRACE_S:g} s after the stop timeout"
        self._log("broker.killed", "error", pid=self._watch.pid, reason=f"{late}: {how}")
        self._watch.kill()

    def _tell_host(self, notice: Notice) -> None:
        if self._watch.host is not None:
            try:
                self._watch.host.send(pack_notice(notice))
            except OSError:
                pass  # its end is heard in the loop

    def _log(self, event: str, level: str, **fields: Any) -> None:
        if self._place is not None:
            announce(self._place.directory.path, self._settings.log_format, level, event, **fields)


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
