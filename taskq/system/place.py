"""Where a queue is kept: a directory of this machine, or a PostgreSQL database, which the fleets of several machines
share.

With a database there still is a directory, for what belongs to the fleet of this machine: its socket, lock and log.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from taskq.model.errors import ConfigError
from taskq.system.directory import Directory, check_name, queue_directory, state_directory

_SCHEMES = ("postgresql://", "postgres://")
_FORM = "postgresql://user:password@host/database"
#: The parameters of libpq that say which database it is.
_LEADS = frozenset({"host", "hostaddr", "port", "dbname", "service"})
#: The parameters that are ours.
_OURS = frozenset({"schema", "lease"})
_LEASE_S, _MIN_LEASE_S, _MAX_LEASE_S = 30.0, 1.0, 3600.0
_AFTER_HOSTS = re.compile("[/?#]")
#: PostgreSQL takes names of 63 bytes, and channels of notifications are made of this one.
_MAX_SCHEMA_BYTES = 48
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")


class DatabaseUrl:
    """The URL of a PostgreSQL database. It may have a password: what is shown of it does not.

    Attributes:
        text: the URL as it was given, with its password: never show it.
        conninfo: the URL for libpq, with its password: never show it.
        schema: where the tables of the queue are.
        lease_s: after so many seconds in which nobody has heard of a fleet, others take its jobs.
        names_schema: whether the URL itself says so.
        shown: the URL for people, without a password.
        digest: the same for all URLs of one database, whatever the schema and the user are.
    """

    __slots__ = ("conninfo", "digest", "lease_s", "names_schema", "schema", "shown", "text")

    def __init__(self, text: str, schema: str, source: str = "url=") -> None:
        """
        Args:
            text: the URL: postgresql://user:password@host:port/database?schema=...&lease=...; other parameters are
                libpq's.
            schema: where the tables are, unless the URL says that.
            source: where the URL comes from, for errors.

        Raises:
            ConfigError: it makes no sense.
        """
        told = f"{source}postgresql://..."  # not the whole of it, which may have a password
        try:
            netloc = _AFTER_HOSTS.split(text.partition("://")[2], maxsplit=1)[0]  # of several hosts: not for urlsplit
            if netloc.count("[") != netloc.count("]"):
                raise ValueError
            parts = urlsplit(text.replace(netloc, "", 1))
            query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            raise ConfigError(f"{told}: this is not a URL: write {_FORM}") from None
        if netloc.count("@") > 1 or "@" in parts.path or parts.fragment:
            raise ConfigError(f"{told}: write @ as %40, # as %23, / as %2F and ? as %3F in a password")
        named = [value for key, value in query if key == "schema"]
        self.lease_s = _lease_s(dict(query).get("lease", ""), told)
        self.text = text
        self.names_schema = bool(named)
        self.schema = _checked_schema(named[-1] if named else schema, told)
        login, _, host = netloc.rpartition("@")
        user = login.partition(":")[0]
        of_libpq = [(key, value) for key, value in query if key not in _OURS]
        self.conninfo = _url(netloc, parts.path, of_libpq)
        public = [(key, value) for key, value in query if "password" not in key]
        self.shown = _url(f"{user}@{host}" if user else host, parts.path, public)
        self.digest = _digest(host, parts.path, [pair for pair in of_libpq if pair[0] in _LEADS])

    def __repr__(self) -> str:
        return self.shown

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DatabaseUrl) and (other.text, other.schema) == (self.text, self.schema)

    def __hash__(self) -> int:
        return hash((self.text, self.schema))


def _lease_s(text: str, told: str) -> float:
    try:
        seconds = float(text or _LEASE_S)
    except ValueError:
        seconds = 0.0
    if not _MIN_LEASE_S <= seconds <= _MAX_LEASE_S:
        raise ConfigError(
            f"{told}: lease={text}: use seconds, from {_MIN_LEASE_S:g} to {_MAX_LEASE_S:g}: so long after it was "
            "heard of last, others take the jobs of a machine"
        )
    return seconds


def _checked_schema(schema: str, told: str) -> str:
    if not _SCHEMA.match(schema) or len(schema) > _MAX_SCHEMA_BYTES or schema.startswith("pg_"):
        raise ConfigError(
            f"{told}: the schema {schema!r} cannot be used: name another with ?schema=, of 1 to {_MAX_SCHEMA_BYTES} of "
            "the characters A-Z a-z 0-9 _ . -, with a letter first"
        )
    return schema


def _url(netloc: str, path: str, query: list[tuple[str, str]]) -> str:
    return f"postgresql://{netloc}{path}" + (f"?{urlencode(query, quote_via=quote, safe='/:,')}" if query else "")


def _digest(*leads_there: object) -> str:
    from hashlib import sha256  # takes 4 ms to import

    return sha256(repr(leads_there).encode()).hexdigest()[:8]


def has_password(url: str) -> bool:
    """Whether a URL has a password in it, wherever that is; it need not be valid."""
    name, _, _ = url.partition("://")[2].partition("@")
    return ("@" in url and ":" in name) or "password=" in url.lower()


class Place(NamedTuple):
    """Where a queue is kept.

    Attributes:
        directory: all of an embedded queue; otherwise what belongs to the fleet of this machine.
        database: what the fleets of all machines share, or None.
    """

    directory: Directory
    database: DatabaseUrl | None = None

    @property
    def shown(self) -> str:
        """The queue, for people: a path, or a URL without a password."""
        if self.database is None:
            return str(self.directory.path)
        told = "" if self.database.names_schema else f" (schema {self.database.schema})"
        return f"{self.database.shown}{told}"

    def to_wire(self) -> tuple[str, list[str] | None]:
        """The path of the directory, and the database. This has the password: no other user may see it."""
        database = self.database
        return str(self.directory.path), None if database is None else [database.text, database.schema]

    @classmethod
    def from_wire(cls, path: str, database: list[str] | None) -> Place:
        """The opposite of `to_wire`."""
        return cls(Directory(Path(path)), None if database is None else DatabaseUrl(*database))


def place_of(name: str, url: str | None = None) -> Place:
    """Finds the place of a queue.

    Args:
        name: the name of the TaskQ.
        url: an absolute path, a `file:` URL or one of PostgreSQL; if None, TASKQ_URL counts, then the user's state
            directory.

    Raises:
        ConfigError: the name or the URL is not valid.
    """
    check_name(name)
    given = url or os.environ.get("TASKQ_URL")
    if isinstance(given, str) and given.startswith(("postgresql:", "postgres:")) and not given.startswith(_SCHEMES):
        raise ConfigError(f"{'url' if url else 'TASKQ_URL'}: two slashes are missing: write {_FORM}")
    if not isinstance(given, str) or not given.startswith(_SCHEMES):
        return Place(Directory(queue_directory(name, url)))
    return place_in(DatabaseUrl(given, f"taskq_{name}", "url=" if url else "TASKQ_URL="))


def place_in(database: DatabaseUrl) -> Place:
    """The place of a queue in a database."""
    return Place(Directory(state_directory() / f"{database.schema}@{database.digest}"), database)


#: The database of a fleet, in the environment of its guardian.
_DATABASE_OF_FLEET = "TASKQ_FLEET_DATABASE"


def set_database_of_fleet(database: DatabaseUrl | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tells a guardian, or the program that it becomes, its database by the environment, which other users cannot
    see."""
    environment.pop(_DATABASE_OF_FLEET, None)
    if database is not None:
        environment[_DATABASE_OF_FLEET] = f"{database.schema} {database.text}"


def place_of_fleet(path: str) -> Place:
    """The place of the fleet of a guardian, whose directory it was told in its arguments."""
    schema, _, text = os.environ.get(_DATABASE_OF_FLEET, "").partition(" ")
    return Place.from_wire(path, [text, schema] if text else None)
