"""The metrics of a fleet as the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from taskq.client.transport.api import AsyncQueueClient, QueueClient
from taskq.model.errors import TaskQError
from taskq.web.metrics.families import Told, families


class Text(NamedTuple):
    """A text, and its type."""

    body: bytes
    content_type: str


class _Collected(Collector):
    """What was collected once, as the library wants it."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        return families(self._told)


def text_of(told: Told, accepted: str = "") -> Text:
    """Writes the metrics in the format that suits.

    Args:
        accepted: the Accept header of who asks: the text format, or OpenMetrics.
    """
    encode, content_type = choose_encoder(accepted)
    return Text(encode(_Collected(told)), content_type)


def ask(client: QueueClient) -> Told:
    """Asks a fleet; tells only that it is not there if nobody answers."""
    try:
        return Told(client.look(), client.counts(), client.schedules())
    except TaskQError:
        return Told(None)


async def aask(client: AsyncQueueClient) -> Told:
    """`ask` for asyncio."""
    try:
        return Told(await client.look(), await client.counts(), await client.schedules())
    except TaskQError:
        return Told(None)
