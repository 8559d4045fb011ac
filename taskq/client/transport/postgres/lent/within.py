"""`q.within(connection)`: what is enqueued in the block becomes part of the application's own transaction."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final

from taskq.client.transport.api import AsyncQueueClient, QueueClient
from taskq.client.transport.postgres.lent.foreign import AsyncLent, Lent, lent_by, lent_by_async
from taskq.client.transport.postgres.verbs import Run
from taskq.client.transport.verbs import Operation
from taskq.model.errors import ConfigError
from taskq.protocol.postgres.plans import Plan, Query, Step
from taskq.system.place import Place

#: What identifies a server, and the tables of the queue in it: the same on all connections to one database.
_IDENTITY = Query(
    "SELECT current_database()::text, extract(epoch FROM pg_postmaster_start_time())::float8, "
    "coalesce(to_regclass('taskq.queue')::oid::bigint, 0)"
)
#: Connections that are known to lead to the queue's own database.
_checked: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_joined: ContextVar[tuple[Place, Lent | AsyncLent] | None] = ContextVar("taskq_within", default=None)


def joined(place: Place) -> Lent | AsyncLent | None:
    """The connection that the application has lent, for the queue in a place, where this is called; or None."""
    found = _joined.get()
    return found[1] if found is not None and found[0] == place else None


def refuse_wait(place: Place) -> None:
    """Refuses to wait for a job where a connection is lent: who waits would wait for the own commit."""
    if joined(place) is not None:
        raise ConfigError(
            "a job that is enqueued in `q.within(...)` begins after your commit: wait for it after the block"
        )


class Within(AbstractContextManager[None], AbstractAsyncContextManager[None]):
    """A block in which jobs come in with the application's own transaction."""

    def __init__(
        self,
        place: Place,
        connection: object,
        client: Callable[[], QueueClient],
        aclient: Callable[[], AsyncQueueClient],
    ) -> None:
        """
        Args:
            connection: what the application has lent.
            client, aclient: return the clients of the queue.
        """
        assert place.database is not None
        self._place = place
        self._schema = place.database.schema
        self._connection = connection
        self._client, self._aclient = client, aclient
        self._tokens: list[Token[Any]] = []

    def __enter__(self) -> None:
        """Begins the block. Raises ConfigError: the connection cannot be used; BrokerUnavailable."""
        connection = lent_by(self._connection)
        lent = Lent(self._connection, self._schema)
        if connection not in _checked:
            theirs, ours = lent.run(_identity()), self._client().run(_own_identity())
            self._compare(theirs if theirs == ours else lent.run(_identity()), ours)
            _checked.add(connection)
        self._tokens.append(_joined.set((self._place, lent)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        _joined.reset(self._tokens.pop())

    async def __aenter__(self) -> None:
        """`__enter__` for asyncio."""
        connection = await lent_by_async(self._connection)
        lent = AsyncLent(self._connection, self._schema)
        if connection not in _checked:
            theirs, ours = await lent.run(_identity()), await self._aclient().run(_own_identity())
            self._compare(theirs if theirs == ours else await lent.run(_identity()), ours)
            _checked.add(connection)
        self._tokens.append(_joined.set((self._place, lent)))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        _joined.reset(self._tokens.pop())

    def _compare(self, theirs: tuple[Any, ...], ours: tuple[Any, ...]) -> None:
        """Refuses a connection that leads elsewhere: its jobs would come into no queue, or into another."""
        if theirs != ours or not ours[-1]:
            raise ConfigError(
                f"q.within(...): the connection leads to database {theirs[0]!r} of its server, and the queue is in "
                f"{self._place.shown}: both must be the same database, with the tables of taskq in it (`taskq migrate`)"
            )


def _identity() -> Plan[tuple[Any, ...]]:
    [[row]] = yield Step(_IDENTITY, commits=True)
    return tuple(row)


def _own_identity() -> Operation[tuple[Any, ...]]:
    row: tuple[Any, ...] = yield Run(_identity)
    return row
