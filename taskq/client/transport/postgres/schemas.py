"""Which queues a database has."""

from __future__ import annotations

from typing import Any

import psycopg

from taskq.client.transport.postgres.sessions import meaning_of, options_of
from taskq.system.directory import reply_timeout_s
from taskq.system.place import DatabaseUrl

_SCHEMAS = """
    SELECT n.nspname::text FROM pg_namespace n
    WHERE to_regclass(quote_ident(n.nspname) || '.meta') IS NOT NULL
        AND to_regclass(quote_ident(n.nspname) || '.specs') IS NOT NULL
        AND to_regclass(quote_ident(n.nspname) || '.watches') IS NOT NULL ORDER BY 1"""


def find_schemas(database: DatabaseUrl) -> list[str]:
    """The schemas with tables of taskq. Raises BrokerUnavailable: the database does not answer."""
    options: dict[str, Any] = options_of(database, reply_timeout_s())
    try:
        with psycopg.connect(**options) as connection:
            return [schema for (schema,) in connection.execute(_SCHEMAS)]
    except psycopg.Error as error:
        raise meaning_of(error, database) from error
