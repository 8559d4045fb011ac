"""Answers requests about a directory without a fleet, in a process of its own that lives as long as one call takes.

    Client -> client/transport/reading.py -> this process -> lock -> engine -> Client

It holds the lock that a broker holds, so only one process has the journal open, and opens it as a broker does: a kill
at any moment leaves what a killed broker leaves. No job is started here. A fleet that starts tells it to go (SIGTERM):
it finishes its answer, which takes milliseconds, and closes the journal.

A look does not upgrade the journal of an older taskq, which may be the next to start there: it is answered from a copy.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from taskq.broker.consumers.succession import Succession
from taskq.broker.events import EventLog
from taskq.broker.parts import Parts, copy_directory, core_of, is_older, open_engine
from taskq.broker.status import StatusView
from taskq.model.attempt import Claim
from taskq.model.effects import Key
from taskq.model.errors import BrokerUnavailable, DirectoryError, JournalError, TaskQError
from taskq.model.info.status import BrokerStatus, QueueFlow, QueueStatus
from taskq.model.settings import Settings
from taskq.protocol import frames
from taskq.protocol.frames import Message
from taskq.protocol.ops import LOOKS, OPS, Op
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory
from taskq.system.locks import ReaderLock
from taskq.system.place import Place
from taskq.system.platform import name_process
from taskq.telemetry.setup import configure

_READ_BYTES = 256 * 1024


class _NoConsumers:
    """In place of a `taskq.broker.consumers.pool.ConsumerPool`: nothing runs."""

    is_stopping = True  # no schedule fires

    def is_running(self, _job_id: bytes) -> bool:
        """Nothing runs."""
        return False

    def withdraw(self, _job_id: bytes) -> bool:
        """No consumer was sent the job."""
        return True

    def cancel_running(self, _job_id: bytes) -> None:
        """Nothing runs."""

    def take_back_all(self, _now: float) -> None:
        """No consumer was sent any job."""

    def interrupt(self, _job_ids: Collection[bytes], _why: str) -> None:
        """Nothing runs."""

    def progress_of(self, _job_id: bytes) -> None:
        """Nothing runs."""

    def claims(self) -> dict[Key, list[Claim]]:
        """Nothing runs."""
        return {}


class _Client:
    """The only client, and the peer that requests name. It waits for each answer, and reads it at once."""

    closed = False
    may_read: bool = True

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._messages: list[tuple[Any, Message]] = []

    def ask(self, message: Message) -> None:
        """Takes a message of the client."""
        self._messages.append((self, message))

    def take_messages(self) -> list[tuple[Any, Message]]:
        """Returns its messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def send(self, _peer: object, frame: bytes) -> None:
        """Sends a frame; if the client is gone, its end is read next."""
        try:
            self._socket.sendall(frame)
        except OSError:
            self.closed = True

    def reject(self, peer: object, error: TaskQError) -> None:
        """Sends the client one error, and reads nothing more from it."""
        self.send(peer, frames.error_frame(0, error))
        self.closed = True

    def is_clogged(self, _peer: object) -> bool:
        """It always reads what it is sent."""
        return False

    def defer(self, _peer: object, _job_id: bytes) -> None:
        """Nothing is ever put off."""

    def take_deferred(self) -> tuple[tuple[Any, bytes], ...]:
        """Nothing was put off."""
        return ()

    def counted(self) -> tuple[None, None]:
        """It is the only one."""
        return None, None

    def shut(self) -> None:
        """The process ends soon, and with it the connection."""


class _Status(StatusView):
    """The status of a fleet that does not run."""

    _state = "stopped"

    def _broker(self) -> BrokerStatus:
        size = self._figures.vitals().journal_bytes
        return BrokerStatus(None, None, str(self._directory.path), None, self._state, journal_bytes=size)

    def _flows(self, _queues: dict[str, QueueStatus], _paused: frozenset[str]) -> dict[str, QueueFlow]:
        return {}


class Reader:
    """A journal, and the engine that answers from it. The caller holds the lock."""

    def __init__(
        self, directory: Directory, place: Directory, client: _Client, log: Any, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """
        Args:
            directory: which the client asks about.
            place: where the journal is opened: the same, or a copy.
        """
        settings = Settings()
        self._clock = clock
        self._engine = open_engine(Place(place), settings, clock, client)
        events = EventLog(log, lambda _key: None, tells_enqueued=False)
        parts = Parts(directory, settings, self._engine, core_of(settings), events, clock, _Status)
        parts.recover(())  # what ran when a fleet died stays uncharged: the next broker has its records
        parts.start(_NoConsumers(), Succession(0), lambda _reason: None, lambda: 0)
        self._engine.take_all_spooled(clock.monotonic())
        self._client = client

    def answer(self, message: Message) -> None:
        """Answers one request."""
        self._client.ask(message)
        self._engine.serve(self._clock.monotonic())

    def close(self) -> None:
        """Closes the journal cleanly."""
        self._engine.close(self._clock.monotonic())


class Reading:
    """Opens the journal when the first request comes, and answers. The caller holds the lock.

    As long as nothing is to be changed, the journal of an older taskq is not upgraded either: a copy of it is.
    """

    def __init__(self, directory: Directory, client: _Client) -> None:
        self._directory = directory
        self._client = client
        self._reader: Reader | None = None
        self._is_copy = False
        self._opened = ExitStack()

    def answer(self, message: Message) -> None:
        """Answers one request. Raises JournalError: the journal cannot be used."""
        op = message[0][0]
        if op not in OPS:
            self._client.reject(self._client, BrokerUnavailable("this needs a running fleet"))
            return
        if self._reader is None or (self._is_copy and op not in LOOKS):
            self.close()
            self._is_copy = op in LOOKS and is_older(self._directory)
            self._reader = self._open_copy() if self._is_copy else self._open(self._directory)
        self._reader.answer(message)

    def _open_copy(self) -> Reader:
        from tempfile import TemporaryDirectory  # others do without

        path = Path(self._opened.enter_context(TemporaryDirectory(prefix="taskq-")))
        try:
            return self._open(copy_directory(self._directory, path))
        except JournalError as error:  # it is the original that has this fault
            raise JournalError(str(error).replace(f"{path}/", f"{self._directory.path}/")) from error

    def _open(self, place: Directory) -> Reader:
        quiet = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._opened.callback(os.close, quiet)
        log, fanout = configure(place.path, "json", stderr_level="critical", stderr_fd=quiet)
        self._opened.callback(fanout.close)
        reader = Reader(self._directory, place, self._client, log)
        self._opened.callback(reader.close)
        return reader

    def bring_up_to_date(self) -> None:
        """Upgrades the journal, and takes in what clients have spooled."""
        self._open(self._directory)

    def close(self) -> None:
        """Closes the journal cleanly, and removes a copy."""
        self._opened.close()


def bring_up_to_date(directory: Directory) -> None:
    """Upgrades the journal of a stopped fleet, and takes in what clients have spooled. The caller holds the lock.

    Raises:
        JournalError: the journal cannot be used.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(Reading(directory, _Client(ours))) as reading:
        reading.bring_up_to_date()


def main(descriptor: int, path: str, patience_s: float) -> None:
    """Answers a client until it leaves, or a fleet starts; the target of the process.

    Args:
        descriptor: of the socket to the client.
        path: the queue's directory.
        patience_s: see `taskq.system.locks.ReaderLock`.
    """
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the client gets them, and when it ends, so do we
    # after that there is nothing more to read, whatever the client is doing
    signal.signal(signal.SIGTERM, lambda _number, _frame: sock.shutdown(socket.SHUT_RD))
    directory = Directory(Path(path))
    client = _Client(sock)
    try:
        _become_owner(directory)
        name_process(f"reader [{directory.path.name}]")
        _serve(directory, client, sock, patience_s)
    except TaskQError as error:
        client.reject(client, error)
    except OSError as error:
        client.reject(client, DirectoryError(f"{error.filename or directory.path}: {error.strerror or error}"))
    except Exception as error:  # a bug: the client should hear of it
        client.reject(client, TaskQError(f"the journal could not be read: {type(error).__name__}: {error}"))
    # nothing is left to clean up, and the client waits for our end
    os._exit(0)


def _become_owner(directory: Directory) -> None:
    """Has root read as the owner of the directory, so that everything written there stays the owner's."""
    status = os.stat(directory.path)
    if os.geteuid() == 0 and status.st_uid != 0:
        _load_everything()
        os.setgroups([])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)


def _load_everything() -> None:
    """Loads all of our code that would be loaded later: the owner of the directory may not be allowed to read it."""
    from tempfile import TemporaryDirectory  # others do without

    ours, theirs = socket.socketpair()
    with TemporaryDirectory() as place, ours, theirs:
        theirs.sendall(frames.hello(0) + frames.frame([Op.STATUS, 1]) + frames.frame([Op.JOBS, 2, *[None] * 4, 1]))
        theirs.shutdown(socket.SHUT_WR)
        _serve(Directory(Path(place) / ("queue" * 30)), _Client(ours), ours, 0)


def _serve(directory: Directory, client: _Client, sock: socket.socket, patience_s: float) -> None:
    directory.create()
    lock = ReaderLock(directory.lock, directory.socket_path(), patience_s)
    try:
        with closing(Reading(directory, client)) as reading:
            _answer_all(reading, client, sock)
    finally:
        lock.release()


def _answer_all(reading: Reading, client: _Client, sock: socket.socket) -> None:
    decoder = frames.Decoder()
    is_greeted = False
    while not client.closed and (data := sock.recv(_READ_BYTES)):
        for message in decoder.feed(data):
            if is_greeted:
                reading.answer(message)
            else:
                frames.check_hello(message[0], peer="client")
                client.send(client, frames.hello(os.getpid()))
                is_greeted = True
