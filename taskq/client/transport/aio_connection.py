"""One connection of an event loop to a broker, which the operations of all its tasks share, and what each has of it."""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from taskq.client.transport.absence import Absence
from taskq.client.transport.connection import check_broker
from taskq.client.transport.conversation import Conversation
from taskq.model.errors import DirectoryError, TaskQError
from taskq.protocol.answers import BrokerSilent, ConnectionLost
from taskq.protocol.endings import watch_frames
from taskq.protocol.frames import Message
from taskq.system.launch import Child

T = TypeVar("T")

#: More would be a mapping of its own for each call, which takes longer than to read.
_READ_BYTES = 64 * 1024
#: While more than this is not sent yet, new requests wait.
_HIGH_WATER_BYTES = 1024 * 1024


class Hearer(Protocol):
    """What the client of a loop hears of its connections and lines."""

    def on_ending(self, message: Message) -> None:
        """A job has ended."""

    def on_lost(self, connection: Connection, error: TaskQError) -> None:
        """A connection is lost."""

    def forget(self, line: Line) -> None:
        """Nobody waits any more for what comes on a line."""


class Line:
    """What one operation has of the connection of all: a `taskq.client.transport.verbs.Line`."""

    __slots__ = ("_arrived", "_bell", "_client", "connection", "ids", "is_fresh", "numbers", "talk")

    def __init__(self, client: Hearer, connection: Connection, is_fresh: bool) -> None:
        self._client = client
        self.connection = connection
        self.talk = connection.talk
        self.is_fresh = is_fresh
        self.numbers: list[int] = []  #: Of the requests that were sent without waiting.
        self.ids: set[bytes] = set()  #: The jobs whose endings are still to come.
        self._arrived: list[Message] = []
        self._bell: asyncio.Future[None] | None = None  # rings when something has arrived

    def leave(self) -> None:
        """Nothing that comes on it is for anybody any more."""
        for number in self.numbers:
            self.connection.forget(number)
        if self.ids:
            self._client.forget(self)
        self.connection.lines.discard(self)
        if self.connection.child is not None:
            self.connection.close()

    def arrive(self, message: Message) -> None:
        """The ending of a job."""
        self._arrived.append(message)
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def fail(self, error: TaskQError) -> None:
        """The connection is lost."""
        if self._bell is not None and not self._bell.done():
            self._bell.set_exception(error)

    async def endings(self, within_s: float | None) -> list[Message]:
        """The next RESULT frames. Raises TimeoutError: none came in time; or why none will come."""
        if not self._arrived:
            if self.connection.error is not None:
                raise self.connection.error
            self._bell = asyncio.get_running_loop().create_future()
            try:
                await within(self._bell, within_s)
            finally:
                self._bell = None
        found, self._arrived = self._arrived, []
        return found


class Connection:
    """One connection to the broker. What tasks send in one turn of the loop goes out together."""

    def __init__(
        self, client: Hearer, absence: Absence, *, owner: int | None = None, child: Child | None = None
    ) -> None:
        """Connects, which on a Unix socket succeeds or fails at once. Nobody needs to wait for the greeting.

        Args:
            absence: is told if the broker does not answer.
            owner: the id of the user whose broker it may be, besides ours.
            child: a process that this one has started, which is spoken to in place of a broker.

        Raises:
            ConnectionLost: no broker listens there.
        """
        self.talk = Conversation(str(absence.directory.path))
        self.absence = absence
        self.owner = owner
        self.child = child
        self.error: TaskQError | None = None  #: Why it is lost.
        self.lines: set[Line] = set()
        self._client = client
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._to_watch: list[bytes] = []  # ids to ask for with the next flush
        self._unsent = bytearray()
        self._is_flushing = False  # a callback will send what is unsent
        self._has_room = asyncio.Event()
        self._socket = child.socket if child else socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._close = weakref.finalize(self, self._socket.close)  # when the loop drops us, without a warning
        try:
            self._socket.setblocking(False)
            if child is None:
                self._socket.connect(os.fspath(absence.path))
                absence.connected()
                check_broker(self._socket, absence.path, owner)
        except DirectoryError:
            self._close()
            raise
        except OSError as error:
            self._close()
            if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
                absence.refused()
            raise ConnectionLost(str(error)) from error
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._on_readable)
        # the timer is not kept: what we keep must not lead to the loop
        loop.call_later(absence.reply_timeout_s, _check_greeting, weakref.ref(self))
        self._send(self.talk.hello())

    # -- out

    async def request(self, number: int, frame: bytes) -> None:
        """Sends a request, when there is room.

        Raises:
            ConnectionLost: it cannot be sent.
        """
        while len(self._unsent) > _HIGH_WATER_BYTES:
            await self._has_room.wait()
        if self.error is not None:
            raise self.error
        self._answers[number] = asyncio.get_running_loop().create_future()
        self._send(frame)

    async def ask(self, number: int, frame: bytes) -> Message:
        """Sends a request, and waits for its answer. Raises as `request` and `answer`."""
        try:
            await self.request(number, frame)
            return await self.answer(number)
        finally:
            self.forget(number)

    async def ask_late(self, number: int, frame: bytes, within_s: float | None) -> Message:
        """`ask` for an answer that may come late. Raises TimeoutError: it did not come in time."""
        try:
            await self.request(number, frame)
            return await within(self._answers[number], within_s)
        finally:
            self.forget(number)

    async def answer(self, number: int) -> Message:
        """The answer to a request. Raises ConnectionLost: it will not come, or did not come in time."""
        try:
            return await within(self._answers[number], self.absence.reply_timeout_s)
        except TimeoutError:
            raise self.silent() from None

    def forget(self, number: int) -> None:
        """Nobody waits for an answer any more."""
        self.talk.forget(number)
        answer = self._answers.pop(number, None)
        if answer is not None and answer.done() and not answer.cancelled():
            answer.exception()  # seen, or asyncio complains

    def close(self) -> None:
        """The call for which it was made has ended."""
        self._lose(ConnectionLost("the call has ended"))

    def check_greeting(self) -> None:
        """The broker has had time enough for its first word."""
        if self.error is None and not self.talk.is_greeted:
            self.silent()

    def silent(self) -> BrokerSilent:
        """The error for a broker that did not answer in time, which is noted."""
        self.absence.begin_silence()
        error = BrokerSilent(self.absence.describe())
        self._lose(error)
        return error

    def watch(self, ids: Iterable[bytes]) -> None:
        """Asks for the RESULT frames of jobs. There is no other answer."""
        self._to_watch.extend(ids)
        self._send(b"")

    def _send(self, frame: bytes) -> None:
        self._unsent += frame
        if len(self._unsent) > _HIGH_WATER_BYTES:
            self._has_room.clear()
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self.error is not None:
            return
        for frame in watch_frames(self._to_watch):
            self._unsent += frame
        self._to_watch.clear()
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(ConnectionLost(str(error)))
            return
        self._is_flushing = bool(self._unsent)
        if self._is_flushing:
            asyncio.get_running_loop().add_writer(self._socket, self._flush)
        else:
            asyncio.get_running_loop().remove_writer(self._socket)
        if len(self._unsent) <= _HIGH_WATER_BYTES:
            self._has_room.set()

    # -- in

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionLost("the broker closed the connection")
            try:
                self.talk.hear(data)
            finally:
                self._pass_on()
        except BlockingIOError:
            pass
        except TaskQError as error:  # first: some of ours are OSErrors as well
            self._lose(error)
        except OSError as error:
            self._lose(ConnectionLost(str(error)))
        except BaseException:  # of the handler of a signal: what was read is lost
            self._lose(ConnectionLost("interrupted by a signal"))
            raise

    def _pass_on(self) -> None:
        talk = self.talk
        while talk.answers:
            number, message = talk.answers.popitem()
            answer = self._answers.get(number)
            if answer is not None and not answer.done():
                answer.set_result(message)
        endings, talk.endings = talk.endings, []
        for message in endings:
            self._client.on_ending(message)

    def _lose(self, error: TaskQError) -> None:
        if self.error is not None:
            return
        self.error = error
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._close()
        self._unsent.clear()
        self._has_room.set()
        self._client.on_lost(self, error)
        fail(self._answers.values(), error)
        for line in self.lines:
            line.fail(error)


def _check_greeting(reference: weakref.ref[Connection]) -> None:
    connection = reference()
    if connection is not None:
        connection.check_greeting()


async def within(future: asyncio.Future[T], within_s: float | None) -> T:
    """The result of a future. Raises TimeoutError: there was none in time.

    What has arrived counts, however late the loop comes to look: it reads before it looks at the time.
    """
    if within_s is None or future.done():
        return await future
    timer = asyncio.get_running_loop().call_later(within_s, _expire, future)
    try:
        return await future
    finally:
        timer.cancel()


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


def fail(futures: Iterable[asyncio.Future[Any]], error: TaskQError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
