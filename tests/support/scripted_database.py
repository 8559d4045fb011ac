"""The PostgreSQL engine for a scripted fleet: its clock is the database's, too, and its client speaks SQL.

A turn of the fleet goes on until the engine has the answers to all that it has asked: a test sees no difference to an
engine that answers at once.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, TypeVar, cast

import psycopg
from machines import SCHEMA
from postgres import Server
from scripted_fleet import LONGEST_S, Place, ScriptedClock, ScriptedFleet

from taskq.client.options.support import POSTGRES
from taskq.client.transport.api import QueueClient
from taskq.client.transport.postgres.blocking import _DO, PostgresClient
from taskq.client.transport.postgres.verbs import Hear, Sleep
from taskq.client.transport.verbs import Operation
from taskq.engines.postgres.engine import PostgresEngine
from taskq.engines.postgres.migrate import migrate
from taskq.model.settings import Settings
from taskq.system.directory import Directory
from taskq.system.place import DatabaseUrl
from taskq.system.place import Place as QueuePlace

T = TypeVar("T")
_TEMPLATE = "scripted"
#: What a call of the client takes.
_CALL_S = 0.001
#: How long a turn waits for what the server notifies after a commit: usually it is there within a millisecond.
_NOTIFIES_WITHIN_S = 0.02
_ANSWERS_WITHIN_S = 10.0
#: How long a client that waits looks for what the server notifies, in each turn.
_HEARS_WITHIN_S = 0.001


class DatabaseClock(ScriptedClock):
    """Tells the database, too, what the time is."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._now = 1_000.0

    @property
    def now(self) -> float:  # type: ignore[override]
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        self._connection.execute(f'UPDATE "{SCHEMA}".scripted_clock SET at = to_timestamp({self.time()!r})')


class PostgresPlace(Place):
    """The PostgreSQL engine, on a database of its own."""

    needs_server = True
    unsupported = frozenset(POSTGRES.unsupported) | {
        "items",
        "files of payloads",
        "at once: counts",
        "at once: which jobs run",
        "a look at the arguments of a known id",
        "a purge of what was sent and has not begun",
    }

    def __init__(self, home: Path, server: Server) -> None:
        super().__init__(home)
        make_template(server)
        self._server = server
        self._database = server.create_database(_TEMPLATE)
        self._connection = server.connect(self._database)
        self._url = DatabaseUrl(server.url(self._database), SCHEMA)
        self._clock: DatabaseClock | None = None
        self.has_told = False  # a client has just changed something, of which the server notifies the engine

    def clock(self) -> DatabaseClock:
        if self._clock is None:
            self._clock = DatabaseClock(self._connection)
            self._clock.now = self._clock.now  # the database learns it
        return self._clock

    def set_lease(self, lease_s: int) -> None:
        """How long fleets that are opened from now on may be silent until they are taken for dead."""
        url = self._server.url(self._database)
        self._url = DatabaseUrl(f"{url}{'&' if '?' in url else '?'}lease={lease_s}", SCHEMA)

    def another(self, home: Path) -> PostgresPlace:
        """The place of another fleet on the same database, with the same clock. Only one of them is to be closed."""
        other = copy(self)
        other.directory = Directory(home)
        home.mkdir()
        return other

    def sql(self, statement: str, *parameters: Any) -> list[Any]:
        """Asks the database: the schema is `taskq.` in the statement. Returns the rows."""
        cursor = self._connection.execute(statement.replace("taskq.", f'"{SCHEMA}".').encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def open(self, settings: Settings, clock: ScriptedClock) -> PostgresEngine:
        return PostgresEngine(self.directory, self._url, settings, clock)

    def client(self, fleet: ScriptedFleet) -> QueueClient:
        return AskingDatabase(QueuePlace(self.directory, self._url), fleet, self)

    def waits(self, engine: PostgresEngine) -> bool:
        """Waits for the server, if it has to say something. Returns whether the loop is to turn again."""
        has_told, self.has_told = self.has_told, False
        now = self.clock().now
        if not (has_told or engine.owes) or engine.next_at(now) <= now:
            return engine.next_at(now) <= now
        ready, _, _ = select.select(
            engine.link_descriptors(), [], [], _ANSWERS_WITHIN_S if engine.owes else _NOTIFIES_WITHIN_S
        )
        assert ready or not engine.owes, "the server does not answer"
        return True

    def kill(self, engine: PostgresEngine) -> None:
        """The process of an engine is killed: the server sees the end of its connections."""
        for descriptor in engine.link_descriptors():
            with suppress(OSError), socket.socket(fileno=descriptor) as end:
                end.shutdown(socket.SHUT_RDWR)
                end.detach()

    def close(self) -> None:
        self._connection.close()
        self._server.drop_database(self._database)


def make_template(server: Server) -> None:
    """Makes a database with the tables of taskq and a clock that a test moves, once for each server."""
    with server.connect() as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_TEMPLATE]).fetchone():
            return
        connection.execute(f"CREATE DATABASE {_TEMPLATE}")
    with server.connect(_TEMPLATE) as connection:
        migrate(connection, SCHEMA)
        for statement in (
            "CREATE TABLE {}.scripted_clock AS SELECT now() AS at",
            "CREATE OR REPLACE FUNCTION {}.now_() RETURNS timestamptz LANGUAGE sql STABLE"
            " AS 'SELECT at FROM {}.scripted_clock'",
        ):
            connection.execute(statement.replace("{}", f'"{SCHEMA}"'))


class AskingDatabase(PostgresClient):
    """A client in this process: while it waits, the fleet turns."""

    def __init__(self, place: QueuePlace, fleet: ScriptedFleet, scripted: PostgresPlace) -> None:
        super().__init__(place, clock=fleet.clock)
        self._fleet = fleet
        self._scripted = scripted

    def run(self, operation: Operation[T]) -> T:
        return self._go_on(operation, lambda: operation.send(None))

    def begin(self, operation: Operation[T]) -> UnderWay:
        """Runs an operation until it waits for something: that comes in a later turn."""
        under_way = UnderWay(lambda: self._go_on(operation, under_way.go_on))
        try:
            verb = operation.send(None)
            while not isinstance(verb, (Hear, Sleep)):
                verb = self._step(operation, verb)
        except StopIteration as end:
            value = end.value
            under_way.finish = lambda: value
        except Exception as error:
            raised = error

            def fail() -> Any:
                raise raised

            under_way.finish = fail
        else:
            waited_for = verb
            under_way.go_on = lambda: waited_for
        return under_way

    def _go_on(self, operation: Operation[T], first: Callable[[], Any]) -> T:
        try:
            verb = first()
            while True:
                verb = self._step(operation, verb)
        except StopIteration as end:
            return cast(T, end.value)

    def _step(self, operation: Operation[T], verb: Any) -> Any:
        try:
            value = self._do(verb)
        except Exception as error:
            return operation.throw(error)
        return operation.send(value)

    def _do(self, verb: Any) -> Any:
        match verb:
            case Hear(ear, within_s):
                return self._hear_in_turns(ear, LONGEST_S if within_s is None else within_s)
            case Sleep(seconds):
                self.clock.sleep(seconds)
                return self._fleet.turn()
        self._scripted.has_told = True
        self.clock.sleep(_CALL_S)  # ids of jobs that are made later are higher
        return _DO[type(verb)](self, verb)

    def _hear_in_turns(self, ear: Any, within_s: float) -> Any:
        until = self._fleet.clock.now + within_s
        while self._fleet.clock.now < until:
            heard = ear.hear(_HEARS_WITHIN_S)
            if heard != []:
                return heard
            self._fleet.turn()
        return []


class UnderWay:
    """An operation that waits for something, or is over."""

    def __init__(self, finish: Callable[[], Any]) -> None:
        self.finish = finish
        self.go_on: Callable[[], Any] = lambda: None

    def result(self) -> Any:
        """Runs it to its end."""
        return self.finish()
