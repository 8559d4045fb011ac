"""Submitting jobs: at once, when there is room in their queue, or when the job that runs here succeeds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, TypeVar

from taskq.client.context import keep_back
from taskq.client.options.call_options import CallOptions
from taskq.client.transport.blocking import Client
from taskq.client.transport.clients import FleetConnection
from taskq.model.errors import AppError, QueueFull
from taskq.model.spec import Spec
from taskq.protocol.submissions import Call, Flow, chunks
from taskq.system.clock import ClientClock

if TYPE_CHECKING:
    from taskq.client.transport.aio import AsyncClient

T = TypeVar("T")

#: What is being imported as an application, by the thread that does.
_importing: dict[int, str] = {}


@contextmanager
def importing(application: str) -> Iterator[None]:
    """While the block runs, this thread enqueues nothing: each command and each consumer imports the application, so a
    job that is enqueued by the import would be so again and again."""
    thread = get_ident()
    _importing[thread] = application
    try:
        yield
    finally:
        del _importing[thread]


def _check_import() -> None:
    application = _importing.get(get_ident())
    if application is not None:
        raise AppError(
            f"{application} enqueues a job while it is imported, and every command and consumer imports it: "
            "put that under `if __name__ == '__main__':`"
        )


def submit(app: FleetConnection, spec: Spec, call_options: CallOptions, calls: Iterable[Call]) -> list[bytes]:
    """Hands in jobs of one kind.

    Returns:
        Their ids; an EarlierId for each that was left out since there is one of its kind.

    Raises:
        EnqueueError: they were not accepted.
        BrokerUnavailable: neither a broker nor the spool takes them.
    """
    if _importing:
        _check_import()
    if call_options.on_success:
        return _keep_back(spec, calls)
    client = app.client
    if not call_options.waits_for_room:
        return client.submit(spec, calls)
    ids: list[bytes] = []
    for chunk in chunks(calls, spec.max_queued):
        ids += when_there_is_room(client.clock, partial(client.submit, spec, chunk))
    return ids


async def asubmit(app: FleetConnection, spec: Spec, call_options: CallOptions, calls: Iterable[Call]) -> list[bytes]:
    """`submit` for asyncio."""
    if _importing:
        _check_import()
    if call_options.on_success:
        return _keep_back(spec, calls)
    client = app.async_client()
    if not call_options.waits_for_room:
        return await client.submit(spec, calls)
    ids: list[bytes] = []
    for chunk in chunks(calls, spec.max_queued):
        ids += await _awhen_there_is_room(client, partial(client.submit, spec, chunk))
    return ids


def submit_flow(client: Client, flow: Flow, waits_for_room: bool) -> None:
    """Hands in jobs of several kinds, all or none. Raises as `submit`; PayloadTooLarge: they are too many."""
    if _importing:
        _check_import()
    if waits_for_room:
        when_there_is_room(client.clock, partial(client.submit_flow, flow))
    else:
        client.submit_flow(flow)


async def asubmit_flow(client: AsyncClient, flow: Flow, waits_for_room: bool) -> None:
    """`submit_flow` for asyncio."""
    if _importing:
        _check_import()
    if waits_for_room:
        await _awhen_there_is_room(client, partial(client.submit_flow, flow))
    else:
        await client.submit_flow(flow)


def _keep_back(spec: Spec, calls: Iterable[Call]) -> list[bytes]:
    flow = [(spec, call) for call in calls]
    keep_back(flow)
    return [call.id for _, call in flow]


def when_there_is_room(clock: ClientClock, submit: Callable[[], T]) -> T:
    """Tries again while the queue is full. Returns what `submit` does."""
    pauses = _pauses()
    while True:
        try:
            return submit()
        except QueueFull:
            clock.sleep(next(pauses))


async def _awhen_there_is_room(client: AsyncClient, submit: Callable[[], Awaitable[T]]) -> T:
    pauses = _pauses()
    while True:
        try:
            return await submit()
        except QueueFull:
            await client.pause(next(pauses))


def _pauses() -> Iterator[float]:
    """The pauses of one who waits for room in a queue: from 5 ms to 0.25 s."""
    pause_s = 0.005
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, 0.25)
