"""The start of an engine, which alone may wait for the database: nothing runs yet."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4, uuid5

import psycopg

from taskq.engines.postgres.link.link import Exchange, Link, conninfo_for
from taskq.engines.postgres.migrate import grants_for, migrate
from taskq.model.errors import BrokerUnavailable, JournalError
from taskq.protocol.postgres.refusals import POOLED, STANDBY, sentence
from taskq.system.clock import Clock
from taskq.system.directory import Directory
from taskq.system.place import DatabaseUrl

T = TypeVar("T")

#: Pauses between tries to reach a database, doubling; and how many tries tell at once that it is away.
_PAUSE_FIRST_S: Final = 0.2
_PAUSE_LONGEST_S: Final = 5.0
#: What a server says that will be there soon; it says other things to those whom it does not want.
_SOON: Final = ("starting up", "shutting down", "recovery", "too many", "remaining connection slots")


def open_database(database: DatabaseUrl, log: Any) -> None:
    """Waits for the database, and brings its tables up to date.

    Raises:
        JournalError: it does not want us, or its tables are not for this code.
    """
    pause_s = _PAUSE_FIRST_S
    while True:
        try:
            before, now = _migrated(database)
        except psycopg.OperationalError as error:
            text = str(error).strip()
            if "FATAL" in text and not any(word in text for word in _SOON):
                raise JournalError(f"{database.shown}: {sentence(text)}") from None
            told = sentence(text)
        except psycopg.errors.ReadOnlySqlTransaction:
            told = STANDBY  # one day it may be promoted
        except psycopg.Error as error:
            raise JournalError(_no_tables(database, error)) from None
        else:
            if before != now:
                log.info("database.migrated", schema=database.schema, before=before, now=now)
            return
        log.error("database.away", error=told, again_in_s=pause_s)
        select.select([], [], [], pause_s)
        pause_s = min(2 * pause_s, _PAUSE_LONGEST_S)


def make_tables(database: DatabaseUrl) -> tuple[int, int]:
    """Brings the tables up to date, once.

    Returns:
        Their version before, 0 if there were none, and that of now.

    Raises:
        BrokerUnavailable: the database does not answer, or refuses the connection.
        JournalError: the role may not make tables, or they are not for this code.
    """
    try:
        return _migrated(database)
    except psycopg.OperationalError as error:
        raise BrokerUnavailable(f"{database.shown}: {sentence(str(error))}") from None
    except psycopg.errors.ReadOnlySqlTransaction:
        raise BrokerUnavailable(f"{database.shown}: {STANDBY}") from None
    except psycopg.Error as error:
        raise JournalError(_no_tables(database, error)) from None


def grant(database: DatabaseUrl, role: str, *, may_work: bool) -> str:
    """Gives a role what it needs. Returns the statements.

    Raises:
        BrokerUnavailable: the database does not answer, or refuses the connection.
        JournalError: there is no such role, or ours may not give it that.
    """
    statements = grants_for(role, database.schema, may_work=may_work)
    try:
        with psycopg.connect(conninfo_for(database.conninfo, "taskq migrate")) as connection:
            connection.execute(statements.encode())
    except psycopg.OperationalError as error:
        raise BrokerUnavailable(f"{database.shown}: {sentence(str(error))}") from None
    except psycopg.Error as error:
        raise JournalError(f"{database.shown}: the role {role!r} was given nothing: {sentence(str(error))}") from None
    return statements


def _migrated(database: DatabaseUrl) -> tuple[int, int]:
    """Connects, and brings the tables up to date.

    Raises:
        JournalError: the connection is that of a pooler, or the tables are not for this code.
        psycopg.Error: the database does not want us, or it is a standby.
    """
    with psycopg.connect(conninfo_for(database.conninfo, "taskq migrate"), autocommit=True) as connection:
        [(pid, is_standby)] = connection.execute("SELECT pg_backend_pid(), pg_is_in_recovery()").fetchall()
        if pid != connection.info.backend_pid:
            raise JournalError(f"{database.shown}: {POOLED}")
        if is_standby:
            raise psycopg.errors.ReadOnlySqlTransaction(STANDBY)
        return migrate(connection, database.schema)


def _no_tables(database: DatabaseUrl, error: psycopg.Error) -> str:
    return (
        f"{database.shown}: the tables in schema {database.schema!r} cannot be made or read: {sentence(str(error))}; "
        "run `taskq migrate` with a role that may create them, and with --worker ROLE for that of the workers"
    )


def drive(link: Link, exchange: Exchange[T], clock: Clock) -> T:
    """Runs an exchange to its end, and waits for that.

    Raises:
        JournalError: it failed.
    """
    link.ask(exchange)
    while not exchange.is_over:
        link.turn(clock.monotonic())
        if not exchange.is_over:
            link.wait(0.05)
    link.take()
    if exchange.error is not None:
        raise JournalError(f"the database failed: {exchange.error}")
    return exchange.value  # type: ignore[return-value]


def machine_of(directory: Directory) -> UUID:
    """Returns which machine a fleet is: its directory, which one fleet has at a time. The caller holds its lock.

    The next broker there takes over at once what an earlier one had. A copy of the directory on another machine, or in
    another container, must not do that.

    Raises:
        OSError: it cannot be read or written.
    """
    path = directory.path / "machine.id"
    random = None
    with suppress(FileNotFoundError, ValueError):
        random = UUID(path.read_text(encoding="ascii").strip())
    if random is None:
        random = uuid4()
        path.write_text(f"{random}\n", encoding="ascii")
    return uuid5(random, f"{host_name()} {path.stat().st_ino}")


def host_name() -> str:
    """The name of this machine."""
    return os.uname().nodename
