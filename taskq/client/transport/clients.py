"""The clients of an application: a blocking one, and one for each event loop, made when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar

from taskq.client.options.support import EMBEDDED, POSTGRES, EngineSupport
from taskq.client.transport.api import AsyncQueueClient, QueueClient
from taskq.client.transport.blocking import Client
from taskq.model.errors import ConfigError
from taskq.protocol.payloads.files import PayloadFiles
from taskq.system.clock import SYSTEM_CLOCK, ClientClock
from taskq.system.directory import Directory
from taskq.system.place import Place

if TYPE_CHECKING:
    from taskq.client.transport.postgres.lent.within import Within

#: Adds to the meta of jobs that are about to be enqueued: called with the name of their task, and what there is so far.
EnqueueHook = Callable[[str, dict[str, str]], object]

#: Hides what is not to be shown of a job's arguments: called with the name of its task, and both kinds of arguments.
Redaction = Callable[[str, list[Any], dict[str, Any]], object]


class Guard:
    """What is asked before an application uses a fleet or its spool: tests must not (`taskq.testing.pytest_plugin`).

    Attributes:
        check: raises if it must not. None outside tests.
    """

    check: ClassVar[Callable[[FleetConnection], None] | None] = None


class FleetConnection:
    """What talks to the fleet of a queue. Tasks and job handles know of their application no more than this."""

    def __init__(self, place: Place, reply_timeout: float | None = None) -> None:
        """
        Args:
            place: where the queue is kept.
            reply_timeout: seconds; see `taskq.system.directory.reply_timeout_s`.
        """
        #: Where its queue is kept.
        self.place = place
        #: What its engine cannot do: tasks are checked when they are declared.
        self.engine: EngineSupport = _support_of(place)
        #: The directory with which it was made.
        self.home = place.directory
        self.reply_timeout = reply_timeout
        #: What tells the time to all that is done in its name.
        self.clock: ClientClock = SYSTEM_CLOCK
        #: What adds to the meta of jobs; see `TaskQ.on_enqueue`. Written while the application is imported.
        self.enqueue_hooks: Sequence[EnqueueHook] = ()
        #: What hides arguments of jobs; see `TaskQ.redact`. Written while the application is imported.
        self.redaction: Redaction | None = None
        self._client: QueueClient | None = None
        self._async_client: AsyncQueueClient | None = None  # in place of that of the event loop

    @property
    def directory(self) -> Directory:
        """The directory of the queue, or of what this machine's fleet has beside it."""
        return self.place.directory

    @property
    def client(self) -> QueueClient:
        """The blocking client of this application."""
        if Guard.check is not None:
            self.check_use()
        if self._client is None:
            if self.place.database is None:
                self._client = Client(self.directory, self.reply_timeout, self.clock)
            else:
                self._client = _client_of_database(self.place, self.reply_timeout, self.clock)
        return self._client

    @property
    def payloads(self) -> PayloadFiles:
        """The files of large arguments and results."""
        return self.client.queue.payloads

    def async_client(self) -> AsyncQueueClient:
        """The asyncio client of the running event loop."""
        if Guard.check is not None:
            self.check_use()
        if self._async_client is not None:
            return self._async_client
        if self.place.database is not None:
            return _async_client_of_database(self.place, self.reply_timeout)
        from taskq.client.transport.aio import (
            async_client,  # asyncio takes 40-70 ms to import; a consumer must start fast
        )

        return async_client(self.directory, self.reply_timeout)

    def within(self, connection: object) -> Within | nullcontext[None]:
        """Makes what is enqueued in a block a part of the application's own transaction: the jobs exist if and only if
        that commits. Only with a database as the URL::

            with q.within(session):  # or connection; `async with` for those of asyncio
                session.add(order)
                session.flush()
                send_invoice.enqueue(order.id)
            session.commit()

        The block commits nothing. Jobs of it cannot be waited for inside it.

        Args:
            connection: to the queue's own database: of psycopg 3, a Session or Connection of SQLAlchemy (with psycopg,
                or asyncpg), Django's connection, or a connection of asyncpg.

        Raises:
            ConfigError: the queue is in a directory, or the connection is none of these, leads to another database, or
                commits each statement by itself.
        """
        if self._async_client is not None:
            return nullcontext()  # `taskq.testing` keeps jobs in memory
        if self.place.database is None:
            raise ConfigError(
                f"q.within(...): the queue is in {self.place.shown}; jobs can be a part of your transaction only in "
                "the same PostgreSQL database: set TASKQ_URL=postgresql://..."
            )
        _import("taskq.client.transport.postgres.lent.within", self.place)
        from taskq.client.transport.postgres.lent.within import Within

        return Within(self.place, connection, lambda: self.client, self.async_client)

    def check_use(self) -> None:
        """Raises what the guard does, unless other clients are in place of those that go to a fleet."""
        __tracebackhide__ = True  # pytest shows the test, not this
        if Guard.check is not None and self._async_client is None:
            Guard.check(self)

    @contextmanager
    def use_client(self, client: QueueClient, async_client: AsyncQueueClient, clock: ClientClock) -> Iterator[None]:
        """Puts other clients and another clock in place of its own while the block runs; for `taskq.testing`."""
        before = self._client, self._async_client, self.clock
        self._client, self._async_client, self.clock = client, async_client, clock
        try:
            yield
        finally:
            self._client, self._async_client, self.clock = before

    def use_directory(self, directory: Directory) -> None:
        """Makes this application use the queue in a directory, whatever its URL says."""
        self.use_place(Place(directory))

    def use_place(self, place: Place) -> None:
        """Makes this application use the queue in a place, whatever its URL says."""
        self.place = place
        self.engine = _support_of(place)
        self._client = None


def _support_of(place: Place) -> EngineSupport:
    return EMBEDDED if place.database is None else POSTGRES


def _client_of_database(place: Place, reply_timeout: float | None, clock: ClientClock) -> QueueClient:
    """A blocking client. Raises ConfigError: the driver is not installed."""
    _import("taskq.client.transport.postgres.blocking", place)
    from taskq.client.transport.postgres.blocking import PostgresClient

    return PostgresClient(place, reply_timeout, clock)


def _async_client_of_database(place: Place, reply_timeout: float | None) -> AsyncQueueClient:
    """The client of the running event loop. Raises ConfigError: the driver is not installed."""
    _import("taskq.client.transport.postgres.aio", place)
    from taskq.client.transport.postgres.aio import async_client

    return async_client(place, reply_timeout)


#: The modules that `_import` has imported.
_imported: set[str] = set()


def _import(name: str, place: Place) -> None:
    """Imports a module that needs the driver of the database. A thread does it: a signal handler that enqueues a job
    meanwhile waits for its end, instead of finding half a module.

    Raises:
        ConfigError: the driver is not installed.
    """
    if name in _imported:
        return
    failed: list[ImportError] = []

    def import_it() -> None:
        try:
            import_module(name)
        except ImportError as error:
            failed.append(error)

    thread = Thread(target=import_it, name="taskq import")
    try:
        thread.start()
    except RuntimeError:  # the interpreter ends, and starts no threads any more
        import_it()
    else:
        thread.join()
    if failed:
        told = str(failed[0]).partition("\n")[0]
        driver = "the driver is missing: pip install 'taskq-fleet[postgres]'"
        raise ConfigError(f"{place.shown}: {driver} ({told})") from failed[0]
    _imported.add(name)
