"""The blocking client of a database: runs operations with connections of its own.

Safe across threads (each call borrows a connection), `fork` (a child opens new ones) and the end of the interpreter
(nothing is buffered).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg.abc import PQGen

from taskq.client.transport.api import QueueClient
from taskq.client.transport.postgres.lent.foreign import Lent
from taskq.client.transport.postgres.lent.within import joined, refuse_wait
from taskq.client.transport.postgres.listener import BlockingEar, DeafEar, Listener
from taskq.client.transport.postgres.queue import PostgresQueue
from taskq.client.transport.postgres.sessions import (
    ASK_PID,
    LOST,
    Deaf,
    Patience,
    options_of,
    within,
    without_options,
)
from taskq.client.transport.postgres.verbs import Hear, Listen, Run, Sleep
from taskq.client.transport.postgres.wire import Wire
from taskq.client.transport.verbs import Operation
from taskq.model.errors import ConfigError, TaskQError
from taskq.protocol.postgres.plans import Plan
from taskq.protocol.postgres.watching import Word
from taskq.system.clock import SYSTEM_CLOCK, ClientClock
from taskq.system.directory import reply_timeout_s
from taskq.system.place import Place

T = TypeVar("T")

#: Connections of a process at once: calls take a millisecond, and each costs the server a process.
_MOST_SESSIONS: Final = 4
#: psycopg lets the interpreter see to signals so often while it waits.
_WAIT_INTERVAL_S: Final = 0.1


class PostgresClient(QueueClient):
    """The calls of one application to the queue in a database."""

    queue: PostgresQueue

    def __init__(self, place: Place, reply_timeout: float | None = None, clock: ClientClock = SYSTEM_CLOCK) -> None:
        """
        Args:
            reply_timeout: seconds; see `taskq.system.directory.reply_timeout_s`.
        """
        super().__init__(PostgresQueue(place, clock), clock)
        self._place = place
        self._timeout_s = reply_timeout_s(reply_timeout)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._sessions = Sessions(self._connect)
        self._listener = Listener(self._connect_to_listen, self.queue.database.schema)
        self._is_deaf = False

    @property
    def is_stopped(self) -> bool:  # type: ignore[override]  # only read
        """Whether no fleet runs on any machine: what the database tells is what they have left."""
        return not self.run(self.queue.is_served())

    def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end."""
        if self._pid != os.getpid():  # what was connected before a fork belongs to the parent
            self._left = self._sessions, self._listener  # to drop them would be to close them
            self._begin()
        try:
            verb = operation.send(None)
            while True:
                try:
                    value = _DO[type(verb)](self, verb)
                except BaseException as error:
                    verb = operation.throw(error)
                else:
                    verb = operation.send(value)
        except StopIteration as end:
            return cast(T, end.value)

    def _run_plan(self, verb: Run) -> Any:
        if verb.joins:
            lent = joined(self._place)
            if isinstance(lent, Lent):
                return lent.run(verb.make())
            if lent is not None:
                raise ConfigError("inside `async with q.within(...)`: write `await task.aenqueue(...)`")
        return self._patiently(verb.within_s, lambda: self._sessions.run(verb.make))

    def _listen(self, verb: Listen) -> BlockingEar | DeafEar:
        refuse_wait(self._place)
        if not self._is_deaf:
            try:
                return cast(BlockingEar, self._patiently(verb.within_s, lambda: self._listener.ear(verb.waiting)))
            except Deaf:
                self._is_deaf = True
        return DeafEar()

    def _patiently(self, within_s: float | None, attempt: Callable[[], Any]) -> Any:
        """Tries it until it succeeds, or there is no more time."""
        patience: Patience | None = None
        while True:
            try:
                return attempt()
            except TaskQError:
                raise
            except (psycopg.Error, *LOST) as error:
                patience = patience or self._patience(within_s)
                self.clock.sleep(patience.pause_after(error))

    def _patience(self, within_s: float | None) -> Patience:
        own_s = self._timeout_s if within_s is not None and within_s < 0 else within_s
        return Patience(self.queue.database, own_s, self.clock)

    def _connect(self) -> Session:
        options = options_of(self.queue.database, self._timeout_s)
        try:
            session = Session.connect(cursor_factory=psycopg.RawCursor, **options)
        except psycopg.OperationalError as error:
            session = Session.connect(cursor_factory=psycopg.RawCursor, **without_options(error, options))
        session.answer_s = self._timeout_s
        [(pid,)] = session.execute(ASK_PID).fetchall()
        session.is_pooled = pid != session.info.backend_pid
        session.wire = Wire(session.pgconn, self.queue.database.schema, prepares=not session.is_pooled)
        self.queue.kinds.forget()  # the server may have been away, and have come back with older tables
        return session

    def _connect_to_listen(self) -> Session:
        session = self._connect()
        if session.is_pooled:
            session.close()
            raise Deaf
        return session

    def _hear(self, verb: Hear) -> list[Word] | None:
        return cast("BlockingEar | DeafEar", verb.ear).hear(verb.within_s)

    def close(self) -> None:
        """Closes the connections that nobody uses at the moment; the next call opens another."""
        self._sessions.clear()
        self._listener.close()


class Session(psycopg.Connection[Any]):
    """A connection whose server has to answer in time."""

    wire: Wire
    answer_s = 5.0  #: Seconds.
    is_pooled = False  #: Whether a pooler stands before the server; see `sessions.ASK_PID`.

    def wait(self, gen: PQGen[T], interval: float = _WAIT_INTERVAL_S, timeout: float | None = None) -> T:
        """Waits for the server. Raises TimeoutError if it does not answer."""
        return super().wait(within(gen, timeout or self.answer_s), interval)

    def run(self, plan: Plan[T]) -> T:
        """Runs a plan in a transaction."""
        is_open = False
        try:
            step = next(plan)
            while True:
                rows = self.wait(self.wire.run(step, is_open=is_open))
                is_open = not step.commits
                step = plan.send(rows)
        except StopIteration as end:
            if is_open:
                self.execute("COMMIT")
            return cast(T, end.value)
        except TaskQError:  # the plan has decided so: nothing is wrong with the connection
            if is_open:
                self.execute("ROLLBACK")
            raise

    def __del__(self, *_: Any) -> None:
        """It goes with its client: psycopg would warn of that."""


class Sessions:
    """The connections of a client. Each is used by one call at a time."""

    def __init__(self, connect: Callable[[], Session]) -> None:
        self._connect = connect
        self._idle: list[Session] = []
        self._room = BoundedSemaphore(_MOST_SESSIONS)

    def run(self, make: Callable[[], Plan[T]]) -> T:
        """Runs a plan with one of them."""
        with self._room:
            try:
                session = self._idle.pop()
            except IndexError:
                session = self._connect()
            try:
                result = session.run(make())
            except TaskQError:
                self._idle.append(session)
                raise
            except BaseException as error:
                session.close()
                if isinstance(error, LOST):
                    self.clear()  # the others are lost, too
                raise
            self._idle.append(session)
            return result

    def clear(self) -> None:
        """Closes those that nobody uses."""
        while self._idle:
            self._idle.pop().close()


_DO: dict[type, Callable[[PostgresClient, Any], Any]] = {
    Run: PostgresClient._run_plan,
    Listen: PostgresClient._listen,
    Hear: PostgresClient._hear,
    Sleep: lambda client, verb: client.clock.sleep(verb.seconds),
}
