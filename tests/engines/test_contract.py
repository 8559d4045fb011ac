"""The contract between the halves: whoever says that it keeps it is checked by the type checker, and by its names."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from taskq.broker.consumers.pool import ConsumerPool
from taskq.broker.core.core import Core
from taskq.broker.events import EventLog
from taskq.client.transport.api import QueueApi
from taskq.client.transport.operations import DirectoryQueue
from taskq.engines.contract import Consumers, Engine, Events, Jobs
from taskq.engines.embedded.engine import EmbeddedEngine


def engine_of(engine: EmbeddedEngine) -> Engine:
    """For the type checker."""
    return engine


def jobs_of(core: Core) -> Jobs:
    """For the type checker."""
    return core


def consumers_of(pool: ConsumerPool) -> Consumers:
    """For the type checker."""
    return pool


def events_of(events: EventLog) -> Events:
    """For the type checker."""
    return events


def queue_of(queue: DirectoryQueue) -> QueueApi:
    """For the type checker."""
    return queue


@pytest.mark.parametrize("protocol", [Engine, Jobs, Consumers, Events, QueueApi])
def test_each_operation_says_what_it_is_for(protocol: Any) -> None:
    members = {name: value for name, value in vars(protocol).items() if not name.startswith("_")}
    unreported = [name for name, value in members.items() if callable(value) and not inspect.getdoc(value)]
    assert unreported == []


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [
        (Engine, EmbeddedEngine),
        (Jobs, Core),
        (Consumers, ConsumerPool),
        (Events, EventLog),
        (QueueApi, DirectoryQueue),
    ],
)
def test_each_operation_is_there(protocol: Any, kind: type) -> None:
    names = [name for name, value in vars(protocol).items() if not name.startswith("_") and callable(value)]
    assert [name for name in names if not hasattr(kind, name)] == []
