"""Makes the tables of an application, or brings older ones up to date, by numbered scripts.

Each script is one transaction. A new version of taskq first widens the tables (`oldest_code` stays), so that machines
may be upgraded one by one; only a later one drops what is no longer used.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final, NamedTuple

import psycopg
from psycopg import sql

from taskq.model.errors import JournalError

#: The version of the tables that this code knows: the number of the last script.
VERSION: Final = 5
#: How long a script waits for a lock that others hold, before it gives up.
_LOCK_TIMEOUT: Final = "10s"


class Versions(NamedTuple):
    """What the tables say of themselves.

    Attributes:
        tables: the number of the last script that was run; 0: there are no tables.
        oldest_code: the oldest code that may use them.
    """

    tables: int
    oldest_code: int


def versions(connection: psycopg.Connection, schema: str) -> Versions:
    """Reads the versions of the tables in a schema."""
    found = connection.execute("SELECT to_regclass(%s)", [f'"{schema}".meta']).fetchone()
    if found is None or found[0] is None:
        return Versions(0, 0)
    row = connection.execute(sql.SQL("SELECT version, oldest_code FROM {}.meta").format(_name(schema))).fetchone()
    return Versions(0, 0) if row is None else Versions(*row)


def migrate(connection: psycopg.Connection, schema: str) -> tuple[int, int]:
    """Runs the scripts that have not been run. Several machines may do it at the same time: one does the work.

    Args:
        connection: in autocommit mode.
        schema: made if it does not exist.

    Returns:
        The version of the tables before, and that of now.

    Raises:
        JournalError: the tables are too new for this code.
        psycopg.Error: the role may not create tables, or the server cannot.
    """
    before = versions(connection, schema).tables
    now = check(connection, schema).tables
    lock = [f"taskq migrate {schema}"]
    while now < VERSION:
        # of the session: a transaction that waited for it would go on with the names that the server knew before
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", lock)
        try:
            with connection.transaction():
                connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(_LOCK_TIMEOUT))
                now = versions(connection, schema).tables  # another may have done it while this one waited
                if now < VERSION:
                    now += 1
                    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(_name(schema)))
                    connection.execute(_script(now).replace("taskq.", f'"{schema}".').encode())
        finally:
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", lock)
    return before, now


def check(connection: psycopg.Connection, schema: str) -> Versions:
    """Checks that this code may use the tables, whether or not they are up to date.

    Raises:
        JournalError: the tables are too new for this code.
    """
    found = versions(connection, schema)
    if found.oldest_code > VERSION:
        raise JournalError(
            f"the tables in schema {schema!r} are of version {found.tables}, which this taskq is too old for: "
            "upgrade taskq on this machine"
        )
    return found


def _name(schema: str) -> sql.Identifier:
    return sql.Identifier(schema)


def _script(number: int) -> str:
    return files(__package__).joinpath("schema", f"{number:03}.sql").read_text(encoding="utf-8")


def grants_for(role: str, schema: str, *, may_work: bool) -> str:
    """The statements that give a role what it needs.

    Args:
        may_work: whether it runs workers; otherwise it only enqueues, and waits for results.
    """
    name = "work" if may_work else "enqueue"
    script = files(__package__).joinpath("schema", f"{name}.sql").read_text(encoding="utf-8")
    quoted = '"' + role.replace('"', '""') + '"'
    return (
        script.replace("taskq.", f'"{schema}".')
        .replace("SCHEMA taskq ", f'SCHEMA "{schema}" ')
        .replace(":role", quoted)
    )
