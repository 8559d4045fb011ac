"""The asyncio client of a database: runs operations on an event loop, without a thread and without blocking the loop.

One for each event loop and queue. What is heard comes by callbacks of the loop, so that no task of ours is left when it
ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg.abc import PQGen

from taskq.client.transport.aio import PerLoop
from taskq.client.transport.api import AsyncQueueClient
from taskq.client.transport.postgres.lent.foreign import AsyncLent
from taskq.client.transport.postgres.lent.within import joined, refuse_wait
from taskq.client.transport.postgres.queue import PostgresQueue
from taskq.client.transport.postgres.sessions import (
    ASK_PID,
    LOST,
    Deaf,
    Patience,
    looks_s,
    options_of,
    within,
    without_options,
)
from taskq.client.transport.postgres.verbs import Hear, Listen, Run, Sleep
from taskq.client.transport.postgres.wire import Wire
from taskq.client.transport.verbs import Operation
from taskq.model.errors import ConfigError, TaskQError
from taskq.protocol.postgres.plans import Plan
from taskq.protocol.postgres.watching import Word, channel_of, new_client, words_in
from taskq.system.clock import SYSTEM_CLOCK
from taskq.system.directory import reply_timeout_s
from taskq.system.place import Place

T = TypeVar("T")

#: Connections of a loop at once: calls take a millisecond, and each costs the server a process.
_MOST_SESSIONS: Final = 4
_WAIT_INTERVAL_S: Final = 0.1

_clients: PerLoop[AsyncPostgresClient] = PerLoop()


def async_client(place: Place, reply_timeout: float | None = None) -> AsyncPostgresClient:
    """The client of the running event loop for the queue in a database.

    Args:
        reply_timeout: seconds; see `taskq.system.directory.reply_timeout_s`.

    Raises:
        RuntimeError: no event loop runs.
    """
    return _clients.get((place, reply_timeout), lambda: AsyncPostgresClient(place, reply_timeout))


class AsyncPostgresClient(AsyncQueueClient):
    """The calls of all tasks of one event loop to the queue in a database. Get it from `async_client`."""

    queue: PostgresQueue

    def __init__(self, place: Place, reply_timeout: float | None = None) -> None:
        super().__init__(PostgresQueue(place, SYSTEM_CLOCK), SYSTEM_CLOCK)
        self._place = place
        self._timeout_s = reply_timeout_s(reply_timeout)
        self._door = Door(self.queue, self._timeout_s)
        self._idle: list[AsyncSession] = []
        self._room = Room(_MOST_SESSIONS)
        self._listener = AsyncListener(self._door)
        self._is_deaf = False

    async def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end."""
        try:
            verb = operation.send(None)
            while True:
                try:
                    value = await _DO[type(verb)](self, verb)
                except GeneratorExit:  # the loop has ended: nothing can be waited for any more
                    operation.close()
                    raise
                except BaseException as error:
                    verb = operation.throw(error)
                else:
                    verb = operation.send(value)
        except StopIteration as end:
            return cast(T, end.value)

    async def _run_plan(self, verb: Run) -> Any:
        if verb.joins:
            lent = joined(self._place)
            if isinstance(lent, AsyncLent):
                return await lent.run(verb.make())
            if lent is not None:
                raise ConfigError("inside `with q.within(...)` of a blocking connection: write `task.enqueue(...)`")
        return await self._patiently(verb.within_s, lambda: self._run_once(verb.make))

    async def _listen(self, verb: Listen) -> AsyncEar | AsyncDeafEar:
        refuse_wait(self._place)
        if not self._is_deaf:
            try:
                heard = await self._patiently(verb.within_s, lambda: self._listener.ear(verb.waiting))
                return cast(AsyncEar, heard)
            except Deaf:
                self._is_deaf = True
        return AsyncDeafEar()

    async def _patiently(self, within_s: float | None, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Tries it until it succeeds, or there is no more time."""
        patience: Patience | None = None
        while True:
            try:
                return await attempt()
            except TaskQError:
                raise
            except (psycopg.Error, *LOST) as error:
                if patience is None:
                    own_s = self._timeout_s if within_s is not None and within_s < 0 else within_s
                    patience = Patience(self.queue.database, own_s, self.clock)
                pause_s = patience.pause_after(error)
            await asyncio.sleep(pause_s)

    async def _run_once(self, make: Callable[[], Plan[T]]) -> T:
        """Runs a plan with one of the connections."""
        async with self._room:
            session = self._idle.pop() if self._idle else await self._door.connect()
            try:
                result = await session.run(make())
            except TaskQError:
                self._idle.append(session)
                raise
            except BaseException as error:
                session.drop()
                if isinstance(error, LOST):
                    while self._idle:  # the others are lost, too
                        self._idle.pop().drop()
                raise
            self._idle.append(session)
            return result

    async def _hear(self, verb: Hear) -> list[Word] | None:
        return await cast("AsyncEar | AsyncDeafEar", verb.ear).hear(verb.within_s)


class Door:
    """Makes the connections of a client."""

    def __init__(self, queue: PostgresQueue, answer_s: float) -> None:
        """
        Args:
            answer_s: within how many seconds the server has to answer.
        """
        self._queue, self._answer_s = queue, answer_s
        self.schema = queue.database.schema

    async def connect(self) -> AsyncSession:
        """A connection in autocommit mode. Raises psycopg.Error, OSError or TimeoutError: the database is away."""
        options = options_of(self._queue.database, self._answer_s)
        try:
            session = await AsyncSession.connect(cursor_factory=psycopg.AsyncRawCursor, **options)
        except psycopg.OperationalError as error:
            options = without_options(error, options)
            session = await AsyncSession.connect(cursor_factory=psycopg.AsyncRawCursor, **options)
        session.answer_s = self._answer_s
        [(pid,)] = await (await session.execute(ASK_PID)).fetchall()
        session.is_pooled = pid != session.info.backend_pid
        session.wire = Wire(session.pgconn, self.schema, prepares=not session.is_pooled)
        self._queue.kinds.forget()  # the server may have been away, and have come back with older tables
        return session

    async def connect_to_listen(self) -> AsyncSession:
        """One that hears what is notified. Raises Deaf, and as `connect`."""
        session = await self.connect()
        if session.is_pooled:
            session.drop()
            raise Deaf
        return session


class Room:
    """Lets a number of tasks in at once, and the others wait outside, in their order. A semaphore of asyncio would do
    that, too, but once a task has waited for it, it keeps the loop, which then could not go before its client."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place that it was given
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class AsyncSession(psycopg.AsyncConnection[Any]):
    """A connection whose server has to answer in time."""

    wire: Wire
    answer_s = 5.0  #: Seconds.
    is_pooled = False  #: Whether a pooler stands before the server; see `sessions.ASK_PID`.

    async def wait(self, gen: PQGen[T], interval: float = _WAIT_INTERVAL_S, timeout: float | None = None) -> T:
        """Waits for the server. Raises TimeoutError if it does not answer."""
        return await super().wait(within(gen, timeout or self.answer_s), interval)

    async def run(self, plan: Plan[T]) -> T:
        """Runs a plan in a transaction."""
        is_open = False
        try:
            step = next(plan)
            while True:
                rows = await self.wait(self.wire.run(step, is_open=is_open))
                is_open = not step.commits
                step = plan.send(rows)
        except StopIteration as end:
            if is_open:
                await self.execute("COMMIT")
            return cast(T, end.value)
        except TaskQError:  # the plan has decided so: nothing is wrong with the connection
            if is_open:
                await self.execute("ROLLBACK")
            raise

    def drop(self) -> None:
        """Closes it, without waiting for the server."""
        self.pgconn.finish()

    def __del__(self, *_: Any) -> None:
        """It goes with its loop: psycopg would warn of that."""


class AsyncListener:
    """One connection on which a loop hears when jobs end, for all its tasks that wait."""

    # Between calls nothing here refers to the client or the loop, as in `taskq.client.transport.aio.AsyncClient`.

    def __init__(self, door: Door) -> None:
        self._door = door
        self._client = new_client()
        self._session: AsyncSession | None = None
        self._connecting = Room(1)
        self._ears: set[AsyncEar] = set()

    async def ear(self, waiting: Mapping[bytes, Any]) -> AsyncEar:
        """An ear of its own, for one who waits. Raises psycopg.Error: the database is away."""
        async with self._connecting:
            if self._session is None:
                session = await self._door.connect_to_listen()
                try:
                    await session.execute(f'LISTEN "{channel_of(self._door.schema, self._client)}"'.encode())
                except BaseException:
                    session.drop()
                    raise
                self._session = session
        ear = AsyncEar(self, self._client, waiting)
        if not self._ears:  # a loop that ends has no reader then, unless somebody waits
            asyncio.get_running_loop().add_reader(self._session.fileno(), self._on_readable)
        self._ears.add(ear)
        return ear

    def _on_readable(self) -> None:
        session = self._session
        if session is None:
            return
        try:
            session.pgconn.consume_input()
            while (notify := session.pgconn.notifies()) is not None:
                self._pass_on(words_in(notify.extra.decode()))
        except (psycopg.Error, ValueError):
            self._lost()

    def _pass_on(self, words: list[Word]) -> None:
        for ear in self._ears:
            ear.told([word for word in words if word.id in ear.waiting], not words)

    def _lost(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(OSError, ValueError, psycopg.Error):
                asyncio.get_running_loop().remove_reader(session.fileno())
            session.drop()
        ears, self._ears = self._ears, set()  # each listens again
        for ear in ears:
            ear.told([], True)

    def forget(self, ear: AsyncEar) -> None:
        """Nobody listens with it any more."""
        if ear in self._ears:
            self._ears.discard(ear)
            session = self._session
            if not self._ears and session is not None:
                with suppress(OSError, ValueError, RuntimeError, psycopg.Error):  # the loop may have ended
                    asyncio.get_running_loop().remove_reader(session.fileno())


class AsyncEar:
    """Hears for a task that waits: an `Ear`."""

    def __init__(self, listener: AsyncListener, client: int, waiting: Mapping[bytes, Any]) -> None:
        self._listener = listener
        self.client = client
        self.waiting = waiting
        self._heard: list[Word] = []
        self._has_missed = False
        self._is_told = asyncio.Event()

    def told(self, words: list[Word], has_missed: bool) -> None:
        """Some jobs have ended, or may have."""
        if words or has_missed:
            self._heard += words
            self._has_missed |= has_missed
            self._is_told.set()

    async def hear(self, within_s: float) -> list[Word] | None:
        """See `verbs.Hear`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._is_told.wait()
        self._is_told.clear()
        heard, self._heard = self._heard, []
        has_missed, self._has_missed = self._has_missed, False
        return None if has_missed else heard

    def close(self) -> None:
        """Hears no more."""
        self._listener.forget(self)


class AsyncDeafEar:
    """As `DeafEar`, for a task."""

    client = 0

    def __init__(self) -> None:
        self._looks = looks_s()

    async def hear(self, within_s: float) -> list[Word] | None:
        """See `verbs.Hear`."""
        await asyncio.sleep(min(within_s, next(self._looks)))
        return []

    def close(self) -> None:
        """Nothing is open."""


_DO: dict[type, Callable[[AsyncPostgresClient, Any], Coroutine[Any, Any, Any]]] = {
    Run: AsyncPostgresClient._run_plan,
    Listen: AsyncPostgresClient._listen,
    Hear: AsyncPostgresClient._hear,
    Sleep: lambda _, verb: asyncio.sleep(verb.seconds),
}
