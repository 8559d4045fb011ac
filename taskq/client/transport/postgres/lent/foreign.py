"""Connections that applications lend, so that jobs come in with their own transaction: the driver's own is looked for
inside what the application has, and our statements are sent with it.

None of these libraries is imported here: whoever lends a connection has done that.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from taskq.client.transport.postgres.sessions import ArrayDumper, in_schema
from taskq.model.errors import ConfigError
from taskq.protocol.postgres.arrays import UUIDS_OID, Array, values_of
from taskq.protocol.postgres.plans import Plan, Query, Rows

T = TypeVar("T")

_ACCEPTED: Final = (
    "q.within(...) takes a connection of psycopg 3, a Session or Connection of SQLAlchemy (with psycopg, or asyncpg), "
    "Django's connection, or, with `async with`, their asyncio forms or a connection of asyncpg"
)
_NO_TRANSACTION: Final = (
    "the connection commits each statement by itself, so the jobs could not go with your transaction: begin one first"
)


def library_of(connection: object) -> str:
    """The library that a connection is of: the first part of the module of its class."""
    for cls in type(connection).__mro__:
        library = cls.__module__.partition(".")[0]
        if library in ("psycopg", "sqlalchemy", "django", "asyncpg", "psycopg2"):
            return library
    return type(connection).__module__


def lent_by(connection: Any) -> psycopg.Connection[Any]:
    """The connection of psycopg inside what an application lends, with a transaction that has begun or will begin.

    Raises:
        ConfigError: there is none, or it has no transaction.
    """
    found: Any = connection
    match library_of(connection):
        case "sqlalchemy":
            found = _inside_sqlalchemy(connection)
        case "django":
            if not connection.in_atomic_block:
                raise ConfigError(
                    f"{_NO_TRANSACTION}: `with transaction.atomic():` around `with q.within(connection):`"
                )
            connection.ensure_connection()
            found = connection.connection
    if not isinstance(found, psycopg.Connection):
        raise _refusal(connection, found, is_async=False)
    _check_transaction(found)
    return found


def _inside_sqlalchemy(connection: Any) -> Any:
    """The driver's connection inside a Session, a scoped session or a Connection."""
    if hasattr(connection, "registry"):
        connection = connection()  # a scoped session
    if hasattr(connection, "flush"):
        connection = connection.connection()
    if not hasattr(connection, "exec_driver_sql"):
        return connection
    if not connection.in_transaction():
        connection.exec_driver_sql("SELECT 1")  # the transaction begins: its commit does nothing otherwise
    return connection.connection.driver_connection


async def lent_by_async(connection: Any) -> psycopg.AsyncConnection[Any] | Any:
    """`lent_by` for asyncio: a connection of psycopg, or of asyncpg."""
    found: Any = connection
    if library_of(connection) == "sqlalchemy":
        if hasattr(connection, "registry"):
            connection = connection()
        if hasattr(connection, "flush"):
            connection = await connection.connection()
        if hasattr(connection, "get_raw_connection"):
            found = (await connection.get_raw_connection()).driver_connection
            if not connection.in_transaction() or getattr(found, "is_in_transaction", bool)() is False:
                await connection.exec_driver_sql("SELECT 1")  # the transaction begins: that of asyncpg does late
    if isinstance(found, psycopg.AsyncConnection):
        _check_transaction(found)
        return found
    if library_of(found) != "asyncpg" or not hasattr(found, "is_in_transaction"):
        raise _refusal(connection, found, is_async=True)
    if not found.is_in_transaction():
        raise ConfigError(f"{_NO_TRANSACTION}: `async with connection.transaction():` around it")
    return found


def _check_transaction(connection: psycopg.BaseConnection[Any]) -> None:
    if connection.autocommit and connection.pgconn.transaction_status == TransactionStatus.IDLE:
        raise ConfigError(f"{_NO_TRANSACTION}: `with connection.transaction():` around it")


def _refusal(lent: object, found: object, *, is_async: bool) -> ConfigError:
    if isinstance(found, (psycopg.Connection, psycopg.AsyncConnection)) or library_of(found) == "asyncpg":
        return ConfigError("write `with q.within(...)` for a blocking connection, and `async with` for one of asyncio")
    if library_of(found) == "psycopg2":
        return ConfigError(
            f"{_ACCEPTED}: this one is of psycopg2; write postgresql+psycopg:// in the URL of SQLAlchemy"
        )
    told = f"{type(lent).__module__}.{type(lent).__qualname__}"
    return ConfigError(f"{_ACCEPTED}: {told} is none of them{' (with async with)' if is_async else ''}")


# -- our statements on them


class Lent:
    """A blocking connection that an application has lent."""

    def __init__(self, lent: object, schema: str) -> None:
        """
        Args:
            lent: what the application has; the driver's connection inside it is looked for again each time, since a
                Session begins its transactions and savepoints only then.
        """
        self._lent = lent
        self._schema = schema

    def run(self, plan: Plan[T]) -> T:
        """Runs a plan as a part of the application's transaction, which it neither begins nor ends."""
        connection = lent_by(self._lent)
        try:
            step = next(plan)
            while True:
                step = plan.send([self._send(connection, query) for query in (*step, *step.after)])
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _send(self, connection: psycopg.Connection[Any], query: Query) -> Rows:
        with psycopg.RawCursor(connection, row_factory=tuple_row) as cursor:
            cursor.adapters.register_dumper(Array, ArrayDumper)
            cursor.execute(in_schema(query.sql, self._schema).encode(), query.params, binary=True)
            return cursor.fetchall() if cursor.description else []


class AsyncLent:
    """A connection of asyncio that an application has lent."""

    def __init__(self, lent: object, schema: str) -> None:
        """
        Args:
            lent: as for `Lent`.
        """
        self._lent = lent
        self._schema = schema

    async def run(self, plan: Plan[T]) -> T:
        """Runs a plan as a part of the application's transaction, which it neither begins nor ends."""
        connection = await lent_by_async(self._lent)
        send = self._send_by_psycopg if isinstance(connection, psycopg.AsyncConnection) else self._send_by_asyncpg
        try:
            step = next(plan)
            while True:
                step = plan.send([await send(connection, query) for query in (*step, *step.after)])
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _send_by_psycopg(self, connection: Any, query: Query) -> Rows:
        async with psycopg.AsyncRawCursor(connection, row_factory=tuple_row) as cursor:
            cursor.adapters.register_dumper(Array, ArrayDumper)
            await cursor.execute(in_schema(query.sql, self._schema).encode(), query.params, binary=True)
            return await cursor.fetchall() if cursor.description else []

    async def _send_by_asyncpg(self, connection: Any, query: Query) -> Rows:
        params = [_for_asyncpg(param) for param in query.params]
        return [tuple(row) for row in await connection.fetch(in_schema(query.sql, self._schema), *params)]


def _for_asyncpg(param: Any) -> Any:
    if not isinstance(param, Array):
        return param
    values = values_of(param)
    return [UUID(bytes=bytes(value)) for value in values] if param.oid == UUIDS_OID else values
