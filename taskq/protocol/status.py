"""The answer to STATUS: the fields of `FleetStatus` by name, and those of what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from taskq.model.errors import ProtocolError
from taskq.model.info.status import (
    BrokerStatus,
    ConsumerStatus,
    FleetStatus,
    JobTotals,
    MissingConsumer,
    QueueFlow,
    QueueStatus,
    ReloadStatus,
)
from taskq.model.job import Progress
from taskq.protocol.answers import known

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def status_value(status: FleetStatus) -> dict[str, Any]:
    """The status as it travels. The progress of a job is a list there: done, total, note.

    A fleet may have thousands of queues, so nothing is copied that need not be.
    """
    return {
        **_fields(status, left_out="machines"),  # clients of a database make them
        "broker": _fields(status.broker),
        "reload": _fields(status.reload),
        "not_started": [_fields(each) for each in status.not_started],
        "queues": {name: _fields(queue) for name, queue in status.queues.items()},
        "totals": _fields(status.totals),
        "consumers": [
            {**_fields(each), "progress": None if each.progress is None else list(astuple(each.progress))}
            for each in status.consumers
        ],
        "flows": {name: _fields(flow) for name, flow in status.flows.items()},
    }


def _fields(told: DataclassInstance, left_out: str = "") -> dict[str, Any]:
    """The fields by name, as they are."""
    return {name: getattr(told, name) for name in _names(type(told)) if name != left_out}


@cache
def _names(kind: type[DataclassInstance]) -> list[str]:
    return [each.name for each in fields(kind)]


def status_of(value: Any) -> FleetStatus:
    """Reads the answer.

    Raises:
        ProtocolError: it is not a status.
    """
    try:
        return FleetStatus(
            broker=known(BrokerStatus, value["broker"]),
            reload=known(ReloadStatus, value.get("reload", {})),
            not_started=[known(MissingConsumer, each) for each in value.get("not_started", ())],
            queues={name: known(QueueStatus, counts) for name, counts in value.get("queues", {}).items()},
            spooled_files=value.get("spooled_files", 0),
            paused=list(value.get("paused", ())),
            totals=known(JobTotals, value.get("totals", {})),
            consumers=[_consumer(each) for each in value.get("consumers", ())],
            flows={name: known(QueueFlow, flow) for name, flow in value.get("flows", {}).items()},
            unserved=list(value.get("unserved", ())),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"not the status of a fleet: {type(error).__name__}: {error}") from error


def _consumer(told: Mapping[str, Any]) -> ConsumerStatus:
    progress = told.get("progress")
    return known(ConsumerStatus, {**told, "progress": None if progress is None else Progress(*progress)})
