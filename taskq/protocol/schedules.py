"""The answers to requests about schedules: the fields of `ScheduleInfo` by name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from taskq.model.info.schedule import ScheduleInfo
from taskq.protocol.answers import known


def schedule_value(info: ScheduleInfo) -> dict[str, Any]:
    """The answer to a request about one schedule; SCHEDULES is answered by a list of them."""
    return asdict(info)


def schedule_of(value: Any) -> ScheduleInfo:
    """Reads the answer to a request about one schedule, or one of those in the answer to SCHEDULES.

    Raises:
        ProtocolError: it is not such an answer.
    """
    return known(ScheduleInfo, value)
