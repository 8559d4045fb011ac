"""One connection of a client to the broker of its directory, and those that wait to be used again."""

from __future__ import annotations

import os
import select
import socket
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from taskq.client.transport.absence import Absence
from taskq.client.transport.conversation import Conversation
from taskq.model.errors import DirectoryError, TaskQError
from taskq.protocol.answers import BrokerSilent, ConnectionLost
from taskq.protocol.frames import Message
from taskq.system.directory import Directory, reply_timeout_s, user_of
from taskq.system.platform import peer_uid, timeval

if TYPE_CHECKING:
    from taskq.system.launch import Child

#: More would be a mapping of its own for each call, which takes longer than to read.
_READ_BYTES = 64 * 1024
_MAX_IDLE_CONNECTIONS = 16


def check_broker(connection: socket.socket, path: os.PathLike[str], owner: int | None = None) -> None:
    """Refuses a broker of another user, who may have made the directory, or the socket's folder, before us.

    Raises:
        DirectoryError: the process that listens is not ours.
    """
    uid = peer_uid(connection)
    if uid is not None and uid not in (os.geteuid(), 0, owner):
        raise DirectoryError(
            f"a process of {user_of(uid)} listens on {os.fspath(path)}: run as that user, or choose another directory"
        )


def owner_to_look_at(directory: Directory, is_looking: bool) -> int | None:
    """The id of the other user whose fleet root may look at, if the directory belongs to one.

    Raises:
        DirectoryError: more is to be done than to look.
    """
    owner = directory.other_owner() if os.geteuid() == 0 else None
    if owner is not None and not is_looking:
        told = f"{directory.path} belongs to {user_of(owner)}: root may look at it; for this run as that user"
        raise DirectoryError(told)
    return owner


class Connection:
    """One connection to the broker: a `taskq.client.transport.verbs.Line`. For one thread at a time."""

    def __init__(
        self,
        path: os.PathLike[str],
        absence: Absence | None = None,
        *,
        child: Child | None = None,
        pool: Pool | None = None,
        owner: int | None = None,
        within_s: float | None = None,
    ) -> None:
        """Connects.

        Args:
            path: of the broker's socket.
            absence: is told if the broker does not answer; one of its own if left out.
            child: a process that this one has started, which is spoken to in place of a broker.
            pool: keeps the connection when it is left.
            owner: the id of the user whose broker it may be, besides ours.
            within_s: seconds to wait for its first word, if not as long as for any answer.

        Raises:
            ConnectionLost: no broker listens there.
        """
        self._absence = absence or Absence(Directory(Path(path).parent), reply_timeout_s())
        self._pool = pool
        self.talk = Conversation(str(self._absence.directory.path))
        self.is_fresh = True
        self._poll = select.poll()
        self.child = child
        self._socket = child.socket if child else socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.close = weakref.finalize(self, self._socket.close)  #: Closes it; what was watched is forgotten.
        try:
            # connected while it blocks: a Unix socket with a timeout is refused at once when too many others knock
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self._absence.reply_timeout_s))
            if child is None:
                self._connect(path)
                check_broker(self._socket, path, owner)
            self._socket.setblocking(False)
            self._poll.register(self._socket, select.POLLIN)
            self.send(self.talk.hello())
            while not self.talk.is_greeted:
                self._hear_in_time(within_s)
        except OSError as error:
            self.close()
            raise ConnectionLost(str(error)) from error
        except TaskQError:
            self.close()
            raise

    def _connect(self, path: os.PathLike[str]) -> None:
        try:
            self._socket.connect(os.fspath(path))
            self._absence.connected()
        except (ConnectionRefusedError, FileNotFoundError):
            self._absence.refused()
            raise
        except BlockingIOError:  # SO_SNDTIMEO is over: so many wait that the kernel takes no more of them
            raise self._silent() from None

    def _silent(self) -> BrokerSilent:
        """The error for a broker that did not answer in time, which is noted."""
        self._absence.begin_silence()
        return BrokerSilent(self._absence.describe())

    def leave(self) -> None:
        """Keeps the connection for the next call, if nothing can come on it any more; else closes it."""
        if not self.talk.is_over or self._pool is None or not self._pool.keep(self):
            self.close()

    def send(self, data: bytes) -> None:
        """Sends frames.

        Raises:
            ConnectionLost: the broker is gone, or does not read.
        """
        try:
            sent = self._socket.send(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:])
        except BlockingIOError:
            self._send_rest(memoryview(data))
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def _send_rest(self, rest: memoryview) -> None:
        try:
            while rest:
                self._wait_for_room()
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    pass
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def _wait_for_room(self) -> None:
        """Takes in what arrives meanwhile: the broker reads nothing from a client that leaves too much unread."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        events = poll.poll(self._absence.reply_timeout_s * 1000)
        if not events:
            raise self._silent()
        if events[0][1] & select.POLLIN:
            self._hear()

    def answer(self, number: int) -> Message:
        """Waits for the answer to a request. Raises ConnectionLost, or what the broker says."""
        answers = self.talk.answers
        while number not in answers:
            self._hear_in_time()
        return answers.pop(number)

    def late_answer(self, number: int, within_s: float | None) -> Message:
        """Waits for an answer that may come late. Raises as `answer`; TimeoutError: it did not come in time."""
        answers = self.talk.answers
        while number not in answers:
            self._hear_within(within_s)
        return answers.pop(number)

    def endings(self, within_s: float | None) -> list[Message]:
        """Waits for the next RESULT frames. Raises as `late_answer`."""
        while not self.talk.endings:
            self._hear_within(within_s)
        found, self.talk.endings = self.talk.endings, []
        return found

    def _hear_in_time(self, within_s: float | None = None) -> None:
        longest_s = self._absence.reply_timeout_s
        if not self._poll.poll((longest_s if within_s is None else min(within_s, longest_s)) * 1000):
            if within_s is not None and within_s < longest_s:
                raise ConnectionLost(f"the broker did not answer within {within_s:g} s")
            raise self._silent()
        self._hear()

    def _hear_within(self, within_s: float | None) -> None:
        """Hears what comes next. Whoever waits for longer than for an answer is told if the broker answers nobody."""
        longest_s = self._absence.reply_timeout_s
        while within_s is None or within_s > longest_s:
            if self._poll.poll(longest_s * 1000):
                self._hear()
                return
            self._absence.look_while_waiting()
            if within_s is not None:
                within_s -= longest_s
        if not self._poll.poll(within_s * 1000):
            raise TimeoutError
        self._hear()

    def _hear(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        if not data:
            raise ConnectionLost("the broker closed the connection")
        self.talk.hear(data)


class Pool:
    """Connections that nobody uses at the moment. Any thread takes and keeps them; a forked child begins anew."""

    def __init__(self) -> None:
        self._idle: list[Connection] = []  # appended to and popped by any thread: both are atomic
        self._pid = os.getpid()

    def take(self) -> Connection | None:
        """A connection that is used no longer, if there is one."""
        if self._pid != os.getpid():
            self._idle = []  # these belong to the parent; closing our copies does not disturb it
            self._pid = os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        connection.is_fresh = False
        return connection

    def keep(self, connection: Connection) -> bool:
        """Keeps a connection for the next call. Returns whether there is room for it."""
        if len(self._idle) >= _MAX_IDLE_CONNECTIONS or self._pid != os.getpid():
            return False
        self._idle.append(connection)
        return True

    def clear(self) -> None:
        """Closes all."""
        while (connection := self.take()) is not None:
            connection.close()
