"""Submitting jobs: at once, when there is room in their queue, or when the job that runs here succeeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident

from taskq.client.context import keep_back
from taskq.client.options.call_options import CallOptions
from taskq.client.transport.clients import FleetConnection
from taskq.model.errors import AppError
from taskq.model.spec import Spec
from taskq.protocol.submissions import Call, Flow

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
    """Submits jobs of one kind.

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
    return app.client.submit(spec, calls, call_options.waits_for_room)


async def asubmit(app: FleetConnection, spec: Spec, call_options: CallOptions, calls: Iterable[Call]) -> list[bytes]:
    """`submit` for asyncio."""
    if _importing:
        _check_import()
    if call_options.on_success:
        return _keep_back(spec, calls)
    return await app.async_client().submit(spec, calls, call_options.waits_for_room)


def submit_flow(app: FleetConnection, flow: Flow, waits_for_room: bool) -> None:
    """Submits jobs of several kinds, all or none. Raises as `submit`; PayloadTooLarge: they are too many."""
    if _importing:
        _check_import()
    app.client.submit_flow(flow, waits_for_room)


async def asubmit_flow(app: FleetConnection, flow: Flow, waits_for_room: bool) -> None:
    """`submit_flow` for asyncio."""
    if _importing:
        _check_import()
    await app.async_client().submit_flow(flow, waits_for_room)


def _keep_back(spec: Spec, calls: Iterable[Call]) -> list[bytes]:
    flow = [(spec, call) for call in calls]
    keep_back(flow)
    return [call.id for _, call in flow]
