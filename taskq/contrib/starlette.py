"""Starlette and FastAPI: `FastAPI(lifespan=lifespan(q))`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette

from taskq.client.app import TaskQ
from taskq.model.errors import AlreadyRunning, BrokerUnavailable

logger = logging.getLogger("taskq")

#: As Starlette takes it: what an inner one yields becomes the state of requests.
Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


def lifespan(q: TaskQ, *, fleet: bool = False, consumers: int = 1, inner: Lifespan | None = None) -> Lifespan:
    """Returns the lifespan of a web application that enqueues jobs::

        app = FastAPI(lifespan=lifespan(q, fleet=settings.debug))

    While the application runs, `app.state.taskq` is `q`. At the start it connects to the fleet, so that no request
    waits for that; without a fleet it logs a warning and goes on, as jobs are kept in the spool.

    Args:
        q: the application whose jobs are enqueued. With `fleet`, it must be a global of a module.
        fleet: run a fleet as well, for as long as the application runs; for development. If one runs already, as with
            several processes of the web server, that one is used.
        consumers: of that fleet.
        inner: a lifespan of your own, which runs inside of this one.

    Raises, when the application starts:
        AppError, DirectoryError, JournalError: the fleet cannot be started.
    """

    @asynccontextmanager
    async def run(app: Starlette) -> AsyncIterator[Mapping[str, Any] | None]:
        async with AsyncExitStack() as stack:
            if fleet:
                await stack.enter_async_context(_fleet(q, consumers))
            await _connect(q)
            app.state.taskq = q
            yield None if inner is None else await stack.enter_async_context(inner(app))

    return run


@asynccontextmanager
async def _fleet(q: TaskQ, consumers: int) -> AsyncIterator[None]:
    """A fleet, started and stopped in a thread, as both take a while."""
    fleet = q.fleet(consumers=consumers)
    try:
        await asyncio.to_thread(fleet.__enter__)
    except AlreadyRunning:
        yield  # it belongs to another process of the server, or was started by hand
        return
    try:
        yield
    finally:
        await asyncio.to_thread(fleet.__exit__, None, None, None)


async def _connect(q: TaskQ) -> None:
    try:
        status = await q.astatus()
    except BrokerUnavailable:
        is_running = False
    else:
        is_running = status.broker.state != "stopped"
    if not is_running:
        logger.warning("no fleet runs on %s: jobs are kept in the spool until one does", q.directory.path)
