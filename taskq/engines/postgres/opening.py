"""The start of an engine, which alone may wait for the database: nothing runs yet."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4, uuid5

import psycopg

from taskq.engines.postgres.link.link import Exchange, Link, conninfo_for
from taskq.engines.postgres.migrate import migrate
from taskq.model.errors import BrokerUnavailable, JournalError
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
            with psycopg.connect(conninfo_for(database.conninfo, "taskq migrate"), autocommit=True) as connection:
                before, now = migrate(connection, database.schema)
                if before != now:
                    log.info("database.migrated", schema=database.schema, before=before, now=now)
                return
        except psycopg.OperationalError as error:
            text = str(error).strip()
            if "FATAL" in text and not any(word in text for word in _SOON):
                raise JournalError(f"{database.shown}: {text}") from None
            log.error("database.away", error=text, again_in_s=pause_s)
        except psycopg.Error as error:
            raise JournalError(
                f"{database.shown}: the tables in schema {database.schema!r} cannot be made or read: {error}; "
                "run `taskq migrate` with a role that may create them"
            ) from None
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
        with psycopg.connect(conninfo_for(database.conninfo, "taskq migrate"), autocommit=True) as connection:
            return migrate(connection, database.schema)
    except psycopg.OperationalError as error:
        raise BrokerUnavailable(f"{database.shown}: {str(error).strip()}") from None
    except psycopg.Error as error:
        raise JournalError(
            f"{database.shown}: the tables in schema {database.schema!r} cannot be made: {str(error).strip()}"
        ) from None


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
