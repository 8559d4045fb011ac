"""The asyncio client: runs operations on an event loop, without a thread (except to sync the spool) and without
blocking the loop.

One connection per event loop and directory carries the calls of all tasks: an answer finds its request by the
number, an ending finds its waiters by the id of the job. Only callbacks of the loop drive it, so a loop that
ends leaves no task and no transport to close: the client goes with the loop, the socket with the client.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from taskq.client.transport import reading
from taskq.client.transport.absence import Absence, reconnect_pauses
from taskq.client.transport.aio_connection import Connection, Line, fail, within
from taskq.client.transport.api import AsyncQueueClient, arun_by
from taskq.client.transport.connection import owner_to_look_at
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
    UseDisk,
)
from taskq.model.errors import TaskQError
from taskq.protocol.answers import BrokerSilent, ConnectionLost
from taskq.protocol.frames import Message
from taskq.system.clock import SYSTEM_CLOCK
from taskq.system.directory import Directory, reply_timeout_s
from taskq.system.platform import is_listening

T = TypeVar("T")

#: How often to look whether a reader of the journal has ended: it takes some milliseconds.
_END_PAUSE_S = 0.005

C = TypeVar("C")


class PerLoop(Generic[C]):
    """The clients of one kind. Any thread may use it."""

    def __init__(self) -> None:
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, C]]
        self._clients = weakref.WeakKeyDictionary()

    def __contains__(self, loop: object) -> bool:
        return loop in self._clients

    def get(self, key: Hashable, make: Callable[[], C]) -> C:
        """The client of the running event loop for a queue.

        Args:
            key: what tells clients apart.
            make: makes one.

        Raises:
            RuntimeError: no event loop runs.
        """
        loop = asyncio.get_running_loop()
        own = os.getpid(), key  # what was connected before a fork belongs to the parent
        client = self._clients.get(loop, {}).get(own)
        if client is None:
            self._drop_closed_loops()
            client = self._clients.setdefault(loop, {})[own] = make()
        return client

    def _drop_closed_loops(self) -> None:
        """Frees the clients of loops that were closed under waiting tasks, whose futures keep the loop alive."""
        for reference in self._clients.keyrefs():  # a copy: other threads add theirs
            loop = reference()
            if loop is not None and loop.is_closed():
                self._clients.pop(loop, None)


_clients: PerLoop[AsyncClient] = PerLoop()


def async_client(directory: Directory, reply_timeout: float | None = None) -> AsyncClient:
    """The client of the running event loop for a queue's directory.

    Args:
        reply_timeout: seconds; see `taskq.system.directory.reply_timeout_s`.

    Raises:
        RuntimeError: no event loop runs.
    """
    return _clients.get((directory.path, reply_timeout), lambda: AsyncClient(directory, reply_timeout))


class AsyncClient(AsyncQueueClient):
    """The calls of all tasks of one event loop to one queue's directory. Get it from `async_client`."""

    # Between calls nothing here refers to the loop, which could not go before its client otherwise.

    def __init__(self, directory: Directory, reply_timeout: float | None = None) -> None:
        self.absence = Absence(directory, reply_timeout_s(reply_timeout))
        super().__init__(DirectoryQueue(directory, self.absence, SYSTEM_CLOCK), SYSTEM_CLOCK)
        self._directory = directory
        self._connection: Connection | None = None
        self._waiting: dict[bytes, list[Line]] = {}  # who waits for the end of which job
        self._reaching: set[asyncio.Future[None]] = set()  # who waits for a broker
        self._pauses: Iterator[float] | None = None  # of the present outage
        self._is_retrying = False  # a timer of the loop will connect
        self._is_looking = False  # a timer of the loop will look whether the broker answers
        self._is_reading = False  # a task has a reader

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

    def _open(self, verb: Open) -> Line:
        is_fresh = self._connection is None
        return Line(self, self._connected(verb.is_looking), is_fresh)

    async def _reach(self, verb: Reach) -> Line | None:
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
                await within(reached, verb.within_s)
            except TimeoutError:
                return None
            finally:
                self._reaching.discard(reached)
        line = Line(self, self._connected(False), is_fresh)
        if verb.watched:
            unwatched = [job_id for job_id in verb.watched if job_id not in self._waiting]
            self._expect(line, verb.watched)
            line.connection.watch(unwatched)
        return line

    def _connected(self, is_looking: bool) -> Connection:
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
                connection = Connection(weakref.proxy(self), self.absence, owner=owner)  # no cycle: it closes at once
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

    def on_lost(self, connection: Connection, error: TaskQError) -> None:
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
            fail(self._reaching, error)
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

    async def _open_reader(self, _verb: OpenReader) -> Line:
        await self._turn_to_read()
        try:
            child = reading.start_reader(self._directory, self.absence.reply_timeout_s)
            absence = Absence(self._directory, reading.ANSWER_TIMEOUT_S)
            return Line(self, Connection(weakref.proxy(self), absence, child=child), is_fresh=True)
        except BaseException:
            self._is_reading = False
            raise

    async def _turn_to_read(self) -> None:
        """Waits until no other task has a reader, as `taskq.client.transport.blocking.Client` does.

        Raises:
            ConnectionLost: a fleet has come up meanwhile, and can be asked.
        """
        has_waited = self._is_reading
        while self._is_reading:
            await asyncio.sleep(_END_PAUSE_S)
        if has_waited and is_listening(self.absence.path):
            raise ConnectionLost("a fleet has come up")
        self._is_reading = True

    async def _end_reader(self, verb: EndReader) -> None:
        line = cast(Line, verb.line)
        try:
            line.leave()
            child = line.connection.child
            if child is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(reading.END_TIMEOUT_S):
                        while child.process.poll() is None:
                            await asyncio.sleep(_END_PAUSE_S)
                reading.end_reader(child, 0.0)
        finally:
            self._is_reading = False

    # -- requests and answers

    def _ask(self, verb: Ask) -> Coroutine[Any, Any, Message]:
        if verb.watched:
            self._expect(cast(Line, verb.line), verb.watched)
        return cast(Line, verb.line).connection.ask(verb.number, verb.frame)

    def _ask_late(self, verb: AskLate) -> Coroutine[Any, Any, Message]:
        return cast(Line, verb.line).connection.ask_late(verb.number, verb.frame, verb.within_s)

    def _send(self, verb: Send) -> Coroutine[Any, Any, None]:
        line = cast(Line, verb.line)
        line.numbers.append(verb.number)
        return line.connection.request(verb.number, verb.frame)

    def _answer(self, verb: Answer) -> Coroutine[Any, Any, Message]:
        return cast(Line, verb.line).connection.answer(verb.number)

    def _expect(self, line: Line, ids: Iterable[bytes]) -> None:
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
        return cast(Line, verb.line).endings(verb.within_s)

    async def _sleep(self, verb: Sleep) -> None:
        await asyncio.sleep(verb.seconds)

    async def _use_disk(self, verb: UseDisk) -> Any:
        return await asyncio.to_thread(verb.function, *verb.args)

    # -- of a directory alone

    reload = arun_by(DirectoryQueue.reload)
    write_stacks = arun_by(DirectoryQueue.write_stacks)

    # -- who waits for what

    def on_ending(self, message: Message) -> None:
        """Wakes those who wait for a job; each looks into the message itself, so an error in it is theirs."""
        job_id = message[0][1]
        for line in self._waiting.pop(job_id, ()):
            line.ids.discard(job_id)
            line.arrive(message)

    def forget(self, line: Line) -> None:
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
    UseDisk: AsyncClient._use_disk,
}
#: What takes no time.
_AT_ONCE: dict[type, Callable[[AsyncClient, Any], Any]] = {Open: AsyncClient._open}


def _look(reference: weakref.ref[AsyncClient]) -> None:
    client = reference()
    if client is not None:
        client.look_at_broker()


def _retry(reference: weakref.ref[AsyncClient]) -> None:
    client = reference()
    if client is not None:
        client.try_again()
