"""The asyncio client: runs operations on an event loop, without a thread (except to sync the spool) and without
blocking the loop.

One connection per event loop and directory carries the calls of all tasks: an answer finds its request by the
number, an ending finds its waiters by the id of the job. Only callbacks of the loop drive it, so a loop that
ends leaves no task and no transport to close: the client goes with the loop, the socket with the client.
"""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from taskq.client.transport import reading
from taskq.client.transport.absence import Absence, reconnect_pauses
from taskq.client.transport.api import AsyncQueueClient
from taskq.client.transport.connection import check_broker, owner_to_look_at
from taskq.client.transport.conversation import Conversation
from taskq.client.transport.operations import DirectoryQueue
from taskq.client.transport.verbs import (
    Answer,
    Ask,
    AskLate,
    EndReader,
    Next,
    Open,
    OpenReader,
    Operation,
    Reach,
    Send,
    Sleep,
    UseSpool,
)
from taskq.model.errors import DirectoryError, TaskQError
from taskq.protocol.answers import BrokerSilent, ConnectionLost
from taskq.protocol.endings import watch_frames
from taskq.protocol.frames import Message
from taskq.system.clock import SYSTEM_CLOCK
from taskq.system.directory import Directory, reply_timeout_s
from taskq.system.launch import Child

T = TypeVar("T")

#: More would be a mapping of its own for each call, which takes longer than to read.
_READ_BYTES = 64 * 1024
#: While more than this is not sent yet, new requests wait.
_HIGH_WATER_BYTES = 1024 * 1024
#: How often to look whether a reader of the journal has ended: it takes some milliseconds.
_END_PAUSE_S = 0.005

_Clients = dict[tuple[int, Path, float | None], "AsyncClient"]
_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Clients] = weakref.WeakKeyDictionary()


def async_client(directory: Directory, reply_timeout: float | None = None) -> AsyncClient:
    """The client of the running event loop for a queue's directory.

    Args:
        reply_timeout: seconds; see `taskq.system.directory.reply_timeout_s`.

    Raises:
        RuntimeError: no event loop runs.
    """
    loop = asyncio.get_running_loop()
    key = os.getpid(), directory.path, reply_timeout  # what was connected before a fork belongs to the parent
    client = _clients.get(loop, {}).get(key)
    if client is None:
        _drop_closed_loops()
        client = _clients.setdefault(loop, {})[key] = AsyncClient(directory, reply_timeout)
    return client


def _drop_closed_loops() -> None:
    """Frees the clients of loops that were closed under waiting tasks, whose futures keep the loop alive."""
    for reference in _clients.keyrefs():  # a copy: other threads add theirs
        loop = reference()
        if loop is not None and loop.is_closed():
            _clients.pop(loop, None)


class AsyncClient(AsyncQueueClient):
    """The calls of all tasks of one event loop to one queue's directory. Get it from `async_client`."""

    # Between calls nothing here refers to the loop, which could not go before its client otherwise.

    def __init__(self, directory: Directory, reply_timeout: float | None = None) -> None:
        self.absence = Absence(directory, reply_timeout_s(reply_timeout))
        super().__init__(DirectoryQueue(directory, self.absence, SYSTEM_CLOCK), SYSTEM_CLOCK)
        self._directory = directory
        self._connection: _Connection | None = None
        self._waiting: dict[bytes, list[_Line]] = {}  # who waits for the end of which job
        self._reaching: set[asyncio.Future[None]] = set()  # who waits for a broker
        self._pauses: Iterator[float] | None = None  # of the present outage
        self._is_retrying = False  # a timer of the loop will connect
        self._is_looking = False  # a timer of the loop will look whether the broker answers

    async def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end."""
        try:
            verb = operation.send(None)
            while True:
                try:
                    at_once = _AT_ONCE.get(type(verb))
                    value = at_once(self, verb) if at_once is not None else await _DO[type(verb)](self, verb)
                except GeneratorExit:  # the loop has ended: nothing can be waited for any more
                    operation.close()
                    raise
                except BaseException as error:
                    verb = operation.throw(error)
                else:
                    verb = operation.send(value)
        except StopIteration as end:
            return cast(T, end.value)

    # -- lines

    def _open(self, verb: Open) -> _Line:
        is_fresh = self._connection is None
        return _Line(self, self._connected(verb.is_looking), is_fresh)

    async def _reach(self, verb: Reach) -> _Line | None:
        is_fresh = self._connection is None
        if is_fresh and not self._is_retrying:
            if self._pauses is None:
                self._connect_again()
            else:
                self._connect_later()
        if self._connection is None:
            reached = asyncio.get_running_loop().create_future()
            self._reaching.add(reached)
            try:
                await _within(reached, verb.within_s)
            except TimeoutError:
                return None
            finally:
                self._reaching.discard(reached)
        line = _Line(self, self._connected(False), is_fresh)
        if verb.watched:
            unwatched = [job_id for job_id in verb.watched if job_id not in self._waiting]
            self._expect(line, verb.watched)
            line.connection.watch(unwatched)
        return line

    def _connected(self, is_looking: bool) -> _Connection:
        """The connection of all.

        Raises:
            As `taskq.client.transport.verbs.Open`.
        """
        connection = self._connection
        if connection is None:
            if self.absence.is_silent:
                raise BrokerSilent(self.absence.describe())
            owner = owner_to_look_at(self._directory, is_looking)
            try:
                connection = _Connection(weakref.proxy(self), self.absence, owner=owner)  # no cycle: it closes at once
            except ConnectionLost:
                self._directory.check_owner()  # else nobody ever could answer
                raise
            self._connection = connection
            for reached in self._reaching:
                if not reached.done():
                    reached.set_result(None)
        elif connection.owner is not None:
            owner_to_look_at(self._directory, is_looking)
        return connection

    def on_lost(self, connection: _Connection, error: TaskQError) -> None:
        """Forgets a connection. A broker that says something and hangs up is not asked again at once."""
        if connection is self._connection:
            self._connection = None
            self._waiting.clear()  # each watches its jobs on the next one
            if connection.talk.is_greeted:
                self._pauses = None
            elif isinstance(error, ConnectionLost):
                self._pauses = self._pauses or reconnect_pauses(self.absence, self.clock)

    def _connect_again(self) -> None:
        self._is_retrying = False
        if self._connection is not None:
            return
        try:
            self._connected(False)
        except ConnectionLost:
            self._connect_later()
        except TaskQError as error:
            _fail(self._reaching, error)
            raise

    def _connect_later(self) -> None:
        self._pauses = self._pauses or reconnect_pauses(self.absence, self.clock)
        self._is_retrying = True
        asyncio.get_running_loop().call_later(next(self._pauses), _retry, weakref.ref(self))

    def try_again(self) -> None:
        """The pause after the last attempt to connect is over."""
        if self._reaching:
            with suppress(TaskQError):  # those who wait have it
                self._connect_again()
        else:
            self._is_retrying, self._pauses = False, None  # who waits next begins afresh

    async def _open_reader(self, _verb: OpenReader) -> _Line:
        child = reading.start_reader(self._directory)
        absence = Absence(self._directory, reading.ANSWER_TIMEOUT_S)
        return _Line(self, _Connection(weakref.proxy(self), absence, child=child), is_fresh=True)

    async def _end_reader(self, verb: EndReader) -> None:
        line = cast(_Line, verb.line)
        line.leave()
        child = line.connection.child
        if child is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(reading.END_TIMEOUT_S):
                    while child.process.poll() is None:
                        await asyncio.sleep(_END_PAUSE_S)
            reading.end_reader(child, 0.0)

    # -- requests and answers

    def _ask(self, verb: Ask) -> Coroutine[Any, Any, Message]:
        if verb.watched:
            self._expect(cast(_Line, verb.line), verb.watched)
        return cast(_Line, verb.line).connection.ask(verb.number, verb.frame)

    def _ask_late(self, verb: AskLate) -> Coroutine[Any, Any, Message]:
        return cast(_Line, verb.line).connection.ask_late(verb.number, verb.frame, verb.within_s)

    def _send(self, verb: Send) -> Coroutine[Any, Any, None]:
        line = cast(_Line, verb.line)
        line.numbers.append(verb.number)
        return line.connection.request(verb.number, verb.frame)

    def _answer(self, verb: Answer) -> Coroutine[Any, Any, Message]:
        return cast(_Line, verb.line).connection.answer(verb.number)

    def _expect(self, line: _Line, ids: Iterable[bytes]) -> None:
        for job_id in ids:
            lines = self._waiting.get(job_id)
            if lines is None:
                self._waiting[job_id] = [line]
            else:
                lines.append(line)
        line.ids.update(ids)
        line.connection.lines.add(line)
        if not self._is_looking:
            self._look_later()

    def _next(self, verb: Next) -> Coroutine[Any, Any, list[Message]]:
        return cast(_Line, verb.line).endings(verb.within_s)

    async def _sleep(self, verb: Sleep) -> None:
        await asyncio.sleep(verb.seconds)

    async def _use_spool(self, verb: UseSpool) -> Any:
        return await asyncio.to_thread(verb.function, *verb.args)

    # -- who waits for what

    def on_ending(self, message: Message) -> None:
        """Wakes those who wait for a job; each looks into the message itself, so an error in it is theirs."""
        job_id = message[0][1]
        for line in self._waiting.pop(job_id, ()):
            line.ids.discard(job_id)
            line.arrive(message)

    def forget(self, line: _Line) -> None:
        """Nobody waits any more for what comes on a line."""
        for job_id in line.ids:
            lines = self._waiting.get(job_id, [])
            if line in lines:
                lines.remove(line)
            if not lines:
                self._waiting.pop(job_id, None)
        line.ids.clear()

    def _look_later(self) -> None:
        self._is_looking = True
        asyncio.get_running_loop().call_later(self.absence.reply_timeout_s, _look, weakref.ref(self))

    def look_at_broker(self) -> None:
        """Somebody has been waiting for a while: does the broker still answer?"""
        self._is_looking = False
        if self._waiting:
            if self._connection is not None:
                self.absence.look_while_waiting()
            self._look_later()


#: How to do what an operation wants: a function of the client and the verb.
_DO: dict[type, Callable[[AsyncClient, Any], Coroutine[Any, Any, Any]]] = {
    Reach: AsyncClient._reach,
    OpenReader: AsyncClient._open_reader,
    EndReader: AsyncClient._end_reader,
    Ask: AsyncClient._ask,
    AskLate: AsyncClient._ask_late,
    Send: AsyncClient._send,
    Answer: AsyncClient._answer,
    Next: AsyncClient._next,
    Sleep: AsyncClient._sleep,
    UseSpool: AsyncClient._use_spool,
}
#: What takes no time.
_AT_ONCE: dict[type, Callable[[AsyncClient, Any], Any]] = {Open: AsyncClient._open}


class _Line:
    """What one operation has of the connection of all: a `taskq.client.transport.verbs.Line`."""

    __slots__ = ("_arrived", "_bell", "_client", "connection", "ids", "is_fresh", "numbers", "talk")

    def __init__(self, client: AsyncClient, connection: _Connection, is_fresh: bool) -> None:
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
                await _within(self._bell, within_s)
            finally:
                self._bell = None
        found, self._arrived = self._arrived, []
        return found


class _Connection:
    """One connection to the broker. What tasks send in one turn of the loop goes out together."""

    def __init__(
        self, client: AsyncClient, absence: Absence, *, owner: int | None = None, child: Child | None = None
    ) -> None:
        """Connects, which on a Unix socket succeeds or fails at once. Nobody needs to wait for the greeting.

        Args:
            absence: is told if the broker does not answer.
            owner: the id of the user whose broker it may be, besides ours.
            child: a process that this one has started, which is spoken to in place of a broker.

        Raises:
            ConnectionLost: no broker listens there.
        """
        self.talk = Conversation()
        self.absence = absence
        self.owner = owner
        self.child = child
        self.error: TaskQError | None = None  #: Why it is lost.
        self.lines: set[_Line] = set()
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
                check_broker(self._socket, absence.path, owner)
        except DirectoryError:
            self._close()
            raise
        except OSError as error:
            self._close()
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
            return await _within(self._answers[number], within_s)
        finally:
            self.forget(number)

    async def answer(self, number: int) -> Message:
        """The answer to a request. Raises ConnectionLost: it will not come, or did not come in time."""
        try:
            return await _within(self._answers[number], self.absence.reply_timeout_s)
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
        _fail(self._answers.values(), error)
        for line in self.lines:
            line.fail(error)


def _check_greeting(reference: weakref.ref[_Connection]) -> None:
    connection = reference()
    if connection is not None:
        connection.check_greeting()


def _look(reference: weakref.ref[AsyncClient]) -> None:
    client = reference()
    if client is not None:
        client.look_at_broker()


def _retry(reference: weakref.ref[AsyncClient]) -> None:
    client = reference()
    if client is not None:
        client.try_again()


async def _within(future: asyncio.Future[T], within_s: float | None) -> T:
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


def _fail(futures: Iterable[asyncio.Future[Any]], error: TaskQError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
