"""What both shells know of a database: how to connect, how to send statements, and what its errors mean."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format
from psycopg.waiting import Ready

from taskq.model.errors import BrokerUnavailable, StoreFull, TaskQError
from taskq.protocol.postgres.arrays import Array
from taskq.protocol.postgres.refusals import STANDBY, UNKNOWN_OPTIONS, sentence
from taskq.system.clock import Clock
from taskq.system.place import DatabaseUrl

T = TypeVar("T")
logger = logging.getLogger("taskq")
# psycopg tells on stderr, if nobody handles its log, of each error that ends a pipeline: we raise these ourselves
logging.getLogger("psycopg").addHandler(logging.NullHandler())

#: Nothing has come, or gone, while psycopg waited.
READY_NONE: Final = Ready.NONE

#: One session in the server's list of them (`pg_stat_activity`).
_APPLICATION_NAME: Final = "taskq client"
#: For the sessions of clients: a client that is stopped in the middle of a transaction holds nobody up for longer.
_OPTIONS: Final = "-c idle_in_transaction_session_timeout=15s -c lock_timeout=5s -c jit=off"
#: When to tell that a server is still away.
_TELL_AFTER_S: Final = 3.0
#: Bounds of the pauses between attempts to reach a server that is away.
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5

#: After these a plan is begun again at once.
CONFLICTS: Final = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable)
#: After these the connection is of no use any more.
LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction, TimeoutError, OSError)
#: What a server says that will be there soon; all other refusals are final.
_SOON: Final = (
    "starting up",
    "shutting down",
    "recovery mode",
    "not yet accepting",
    "too many",
    "remaining connection",
)


class ArrayDumper(Dumper):
    """Sends an `Array` as it is. There is one for each type of array."""

    format = Format.BINARY

    def __init__(self, cls: type, context: Any = None, oid: int = 0) -> None:
        super().__init__(cls, context)
        self.oid = oid

    def get_key(self, obj: Any, _format: Any) -> Any:
        """Tells arrays of different types apart."""
        return self.cls, obj.oid

    def upgrade(self, obj: Any, _format: Any) -> Dumper:
        """The dumper for the type of an array."""
        return ArrayDumper(self.cls, None, obj.oid)

    def dump(self, obj: Array) -> Buffer:
        """The array as PostgreSQL reads it."""
        return obj.data


def adapters() -> AdaptersMap:
    """What a connection, or one that an application has lent, must know to send our parameters."""
    known = AdaptersMap(psycopg.adapters)
    known.register_dumper(Array, ArrayDumper)
    return known


ADAPTERS: Final = adapters()


def options_of(database: DatabaseUrl, timeout_s: float) -> dict[str, Any]:
    """The arguments of `connect`."""
    return {
        "conninfo": database.conninfo,
        "autocommit": True,
        "context": ADAPTERS,
        "application_name": _APPLICATION_NAME,
        "client_encoding": "utf8",
        "options": _OPTIONS,
        "connect_timeout": max(2, round(timeout_s)),  # libpq takes whole seconds, and 1 for 2
        "tcp_user_timeout": round(timeout_s * 1000),
    }


@lru_cache(maxsize=1_000)
def in_schema(sql: str, schema: str) -> str:
    """A statement with the name of the schema in it."""
    return sql.replace("taskq.", f'"{schema}".')


def within(gen: PQGen[T], answer_s: float) -> PQGen[T]:
    """What psycopg waits for, until the server must have answered. Raises TimeoutError."""
    until = time.monotonic() + answer_s
    ready: Ready | int = READY_NONE
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready == READY_NONE and time.monotonic() >= until:
                raise TimeoutError(f"no answer within {answer_s:g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        return cast(T, end.value)


class Patience:
    """What follows from errors of a database, for one operation: it is tried again for a while."""

    def __init__(self, database: DatabaseUrl, within_s: float | None, clock: Clock) -> None:
        """
        Args:
            within_s: seconds to try; None for as long as it takes.
        """
        self._database = database
        self._clock = clock
        self._until = None if within_s is None else clock.monotonic() + within_s
        self._pauses = _pauses()
        self._tell_at = clock.monotonic() + _TELL_AFTER_S
        self._is_told = False

    def pause_after(self, error: Exception) -> float:
        """Returns the seconds to wait before the next attempt.

        Raises:
            TaskQError: there is to be none.
        """
        if isinstance(error, psycopg.Error) and not isinstance(error, (*CONFLICTS, *LOST)):
            raise meaning_of(error, self._database) from error
        if is_refusal(error) or isinstance(error, errors.DiskFull):
            raise meaning_of(error, self._database) from error
        pause_s = 0.0 if isinstance(error, CONFLICTS) else next(self._pauses)
        if not self._is_told and self._clock.monotonic() >= self._tell_at:
            self._is_told = True
            logger.warning("%s; still waiting", meaning_of(error, self._database))
        if self._until is None:
            return pause_s
        left_s = self._until - self._clock.monotonic()
        if left_s <= 0:
            raise meaning_of(error, self._database) from error
        return min(pause_s, left_s)


def _pauses() -> Iterator[float]:
    yield 0.0  # a connection that was idle may have been closed long ago
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def is_refusal(error: Exception) -> bool:
    """Whether a server has refused a connection for good: the password is wrong, or there is no such database."""
    text = str(error)
    return isinstance(error, psycopg.OperationalError) and "FATAL" in text and not any(word in text for word in _SOON)


def meaning_of(error: Exception, database: DatabaseUrl) -> TaskQError:
    """The error that an application gets. None of them shows a password."""
    told = sentence(str(error))
    match error:
        case errors.UndefinedTable() | errors.InvalidSchemaName() | errors.UndefinedFunction():
            return BrokerUnavailable(
                f"there are no tables of taskq in the schema {database.schema!r} of {database.shown}: start a fleet "
                "with `taskq worker module:app`, or run `taskq migrate APP` (or name another schema with ?schema=)"
            )
        case errors.InsufficientPrivilege():
            return BrokerUnavailable(
                f"{database.shown}: the role may not use the tables of taskq like that: {told}; see `taskq migrate "
                "--worker` and `--enqueuer`"
            )
        case errors.ReadOnlySqlTransaction():
            return BrokerUnavailable(f"the database {database.shown} takes no jobs: {STANDBY}")
        case errors.DiskFull():
            return StoreFull(f"the disk of {database.shown} is full")
        case psycopg.Error() if not isinstance(error, LOST):
            return BrokerUnavailable(f"{database.shown} refused: {told}")
    if is_refusal(error):
        return BrokerUnavailable(f"the database {database.shown} refuses us: {told}")
    return BrokerUnavailable(f"the database {database.shown} does not answer: {told or type(error).__name__}")


def without_options(error: psycopg.OperationalError, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `connect` for a pooler that does not know our settings. Raises the error if that is not it."""
    if UNKNOWN_OPTIONS not in str(error) or "options" not in options:
        raise error
    return {name: value for name, value in options.items() if name != "options"}


#: A pooler gives each transaction another session of the server: nothing can be prepared or listened for there. It is
#: known by the number of the session, which is not the one that it told when we connected.
ASK_PID: Final = "SELECT pg_backend_pid()"


class Deaf(Exception):
    """Behind a pooler nobody is told of anything."""


#: After how many seconds to look for the ends of jobs where nobody can tell us.
_FIRST_LOOK_S: Final = 0.005
_LAST_LOOK_S: Final = 0.5


def looks_s() -> Iterator[float]:
    """The pauses between the looks of one who cannot be told."""
    pause_s = _FIRST_LOOK_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, _LAST_LOOK_S)
