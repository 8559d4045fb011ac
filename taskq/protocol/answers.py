"""Answers to requests: how the broker writes them, and how clients read them.

    OK     [op, request, value]     or, if the value may be large, [op, request, nil] with the value as the body
    ERROR  see taskq.protocol.frames

What the value is, a file says for each subject: submissions, endings, items, jobs, schedules, status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgpack

from taskq.model.errors import ProtocolError, TaskQError
from taskq.protocol.frames import Message, error_of, frame
from taskq.protocol.ops import Op

T = TypeVar("T")


class ConnectionLost(TaskQError):
    """The connection ended or was refused; whether the last request arrived is unknown."""


class BrokerSilent(ConnectionLost):
    """The broker is there, and does not answer."""


def ok_frame(request: int, value: Any) -> bytes:
    """Makes the frame that answers a request with a value."""
    return frame([Op.OK, request, None], [msgpack.packb(value)])


def value_of(message: Message, request: int) -> Any:
    """Reads the value in the answer to a request.

    Raises:
        TaskQError: what the broker says went wrong, as the class that it names.
    """
    envelope, body = message
    if envelope[0] == Op.ERROR and envelope[1] in (0, request):
        raise error_of(envelope)
    if envelope[0] != Op.OK or envelope[1] != request:
        raise ProtocolError(f"an answer out of turn: {envelope[:2]}")
    return msgpack.unpackb(body, max_map_len=100_000, max_array_len=100_000) if len(body) else envelope[2]


def known(kind: type[T], told: Any) -> T:
    """Reads a dataclass that travels by the names of its fields.

    A client and a broker of different versions understand each other: fields that the reader does not know are left
    out, and those that the writer did not know have their defaults.

    Raises:
        ProtocolError: it is not a map, or lacks a field that has no default.
    """
    from dataclasses import fields  # who has one has imported that, and a probe need not

    if not isinstance(told, Mapping):
        raise ProtocolError(f"not a {kind.__name__}: {told!r:.50}")
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in told.items() if name in names})
    except TypeError as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from error
