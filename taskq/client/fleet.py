"""A fleet inside a script: `with q.fleet(): ...`."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from taskq.client.transport.absence import run_here
from taskq.client.transport.blocking import Client
from taskq.model.errors import (
    AlreadyRunning,
    AppError,
    ConfigError,
    DirectoryError,
    JournalError,
    TaskQError,
    TooFewDescriptors,
)
from taskq.model.exits import Exit
from taskq.model.settings import Settings
from taskq.protocol.answers import ConnectionLost
from taskq.protocol.guardian import MAX_PACKET_BYTES, Failed, Ready, read_notice
from taskq.protocol.link.boot import IN_CONSUMER
from taskq.system.place import Place, set_database_of_fleet

logger = logging.getLogger("taskq")

_GUARDIAN = "import sys; from taskq.broker.guardian import main; main(*sys.argv[1:])"


_ERRORS: dict[int, type[TaskQError]] = {
    Exit.USAGE: TooFewDescriptors,
    Exit.APP: AppError,
    Exit.ALREADY_RUNNING: AlreadyRunning,
    Exit.DIRECTORY: DirectoryError,
    Exit.JOURNAL: JournalError,
}


START_TIMEOUT_S = 60.0


#: How long a fleet whose program was killed may take to end.
_ENDING_S = 5.0


def settings_in_program(consumers: int) -> Settings:
    """Returns the settings of a fleet inside a program that gives only the number of its consumers."""
    return Settings(consumers=consumers, stderr_level="critical")


class Application(Protocol):
    """What this module must know of the application whose fleet it runs."""

    name: str
    #: When it was made, in seconds since 1970.
    made_at: float
    place: Place
    reply_timeout: float | None

    def check_use(self) -> None:
        """Raises an error if its fleet must not be used: in a test that has not asked for one."""


class RunningFleet(AbstractContextManager[None]):
    """A fleet for an application, while the block runs."""

    def __init__(
        self, app: Application, settings: Settings, fresh: bool = False, *, reference: str | None = None
    ) -> None:
        """
        Args:
            fresh: whether to drop what earlier runs have left.
            reference: how consumers find the application; by default it is looked for in the modules of this program.
        """
        self._running = _run_fleet(app, settings, fresh, reference)
        #: The process id of its guardian, once it has started.
        self.guardian_pid = 0

    def __enter__(self) -> None:
        """Starts the fleet. Raises AppError, AlreadyRunning, DirectoryError or JournalError if it cannot start."""
        self.guardian_pid = self._running.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, frames)

    # for the interpreter, not for type checkers, which should refuse `async with`
    if not TYPE_CHECKING:

        async def __aenter__(self) -> None:
            raise TypeError("a fleet is not an async context manager: write `with q.fleet():`, also in async code")

        async def __aexit__(self, *_raised: object) -> None: ...


@contextmanager
def _run_fleet(app: Application, settings: Settings, fresh: bool, reference: str | None) -> Iterator[int]:
    """Runs a fleet for an application while the block runs. Gives the process id of its guardian.

    Raises:
        AppError, AlreadyRunning, DirectoryError, JournalError: it could not be started.
        ConfigError: fresh, though the queue is in a database.
    """
    app.check_use()
    if fresh and app.place.database is not None:
        raise ConfigError(
            f"q.fleet(fresh=True) would drop jobs that other machines have enqueued in {app.place.shown}: "
            "drop those that you mean with `taskq purge`, or use a database or ?schema= of your own"
        )
    if IN_CONSUMER in os.environ:
        raise AppError(
            "the script starts a fleet while a consumer imports it: put that under `if __name__ == '__main__':`"
        )
    reference = reference or reference_of(app)
    app.place.directory.create()
    if fresh:
        _drop_left(app)
    ours, theirs = socket.socketpair()
    arguments = [sys.executable, "-c", _GUARDIAN, reference, json.dumps(settings.to_dict())]
    arguments += [app.name, str(app.place.directory.path), str(theirs.fileno())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    set_database_of_fleet(app.place.database, environment)
    process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], env=environment, process_group=0)
    theirs.close()
    run_here.add(app.place.directory.path)
    try:
        left = _wait_until_ready(ours)
        if any(left.values()) and not fresh:
            _warn_of_left(app, left)
        yield process.pid
    finally:
        ours.close()  # the guardian sees the end, and stops the fleet in its orderly way
        process.wait()
        run_here.discard(app.place.directory.path)


def _drop_left(app: Application) -> None:
    """Drops the jobs that are older than this program. One that was killed may have a fleet that is still ending."""
    give_up_at = time.monotonic() + _ENDING_S
    while True:
        try:
            dropped = Client(app.place.directory, app.reply_timeout).drop_unfinished(app.made_at)
        except ConnectionLost as error:
            if time.monotonic() > give_up_at:
                raise AlreadyRunning(str(error)) from error
            time.sleep(0.05)
        else:
            break
    if dropped:
        logger.info("dropped %d jobs of earlier runs in %s", dropped, app.place.directory.path)


def _warn_of_left(app: Application, left: dict[str, int]) -> None:
    told = ", ".join(f"{count} {state}" for state, count in left.items() if count)
    logger.warning(
        "jobs that an earlier run left in %s come first (%s); q.fleet(fresh=True) drops them",
        app.place.shown,
        told,
    )


def _wait_until_ready(host: socket.socket) -> dict[str, int]:
    """Returns how many jobs the fleet has found, by state."""
    host.settimeout(START_TIMEOUT_S)
    try:
        data = host.recv(MAX_PACKET_BYTES)
    except TimeoutError:
        raise TaskQError(f"the fleet did not start within {START_TIMEOUT_S:g} s; see its log") from None
    if not data:
        raise TaskQError("the fleet ended before it was ready; see its log")
    match read_notice(data):
        case Ready(_, left):
            return left
        case Failed(exit_code, message):
            raise _ERRORS.get(exit_code, TaskQError)(message)
    raise TaskQError("the fleet stopped before it was ready; see its log")


def reference_of(app: Application) -> str:
    """Returns how another process finds an application: the module that made it, and the name that it has there.

    Raises:
        AppError: it is not in a module that can be imported.
    """
    modules = sorted(sys.modules.items(), key=lambda item: item[0] in ("__main__", "__mp_main__"))
    for module_name, module in modules:  # a module of its own is better than the script that imported the name
        for attribute, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
            if value is app:
                return f"{_importable(module_name)}:{attribute}"
    raise AppError(f"{app!r} is not a global of any module, so consumers cannot find it: assign it to a global name")


def _importable(module_name: str) -> str:
    if module_name != "__main__":
        return module_name
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)  # python -m package.module
    file = getattr(main, "__file__", None)
    if not file or not os.path.exists(file):
        raise AppError("tasks defined at a prompt or in a notebook cannot be imported by consumers: put them in a file")
    return os.path.abspath(str(file))
