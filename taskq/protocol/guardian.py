"""What the processes around a broker tell each other, one message in a packet of a socket pair.

    resolver -- Resolved --> guardian -- Setup --> broker
    host     <--- Notice --- guardian <-- Notice -- broker

The resolver imports the application; the host is a program that runs a fleet by `q.fleet()`. All of them are of one
installation: the messages need not be understood by other versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from taskq.model.misfits import Needs
from taskq.system.place import Place

#: At least as large as any of these packets.
MAX_PACKET_BYTES = 1 << 20


class Resolved(NamedTuple):
    """What an application is.

    Attributes:
        exit_code: `Exit.OK`, or why it cannot be used.
        message: the reason for that, or "".
        title: its name.
        path: the queue's directory.
        database: its database, as `Place.to_wire` makes it, or None.
        needs: of each task: its queue, and the resources that it takes.
    """

    exit_code: int
    message: str
    title: str
    path: str
    database: list[str] | None
    needs: Needs

    @property
    def place(self) -> Place:
        """Where the queue is kept."""
        return Place.from_wire(self.path, self.database)

    def pack(self) -> bytes:
        """The packet."""
        return _pack(self)

    @classmethod
    def read(cls, packet: bytes) -> Resolved:
        """The opposite of `pack`."""
        return cls(*msgpack.unpackb(packet))


class Setup(NamedTuple):
    """What a broker is to run.

    Attributes:
        app: where the application is: module:attribute.
        title: its name.
        path: the queue's directory.
        database: its database, as `Place.to_wire` makes it, or None.
        settings: as `Settings.to_dict` makes them.
        guardian_pid: the process that starts brokers.
    """

    app: str
    title: str
    path: str
    database: list[str] | None
    settings: Mapping[str, Any]
    guardian_pid: int

    @property
    def place(self) -> Place:
        """Where the queue is kept."""
        return Place.from_wire(self.path, self.database)

    def pack(self) -> bytes:
        """The packet."""
        return _pack(self)

    @classmethod
    def read(cls, packet: bytes) -> Setup:
        """The opposite of `pack`."""
        return cls(*msgpack.unpackb(packet))


class Ready(NamedTuple):
    """The first consumer is ready for jobs.

    Attributes:
        pid: the broker's process.
        left: how many jobs it found, by state.
    """

    pid: int
    left: dict[str, int]


class Stopping(NamedTuple):
    """The fleet stops: should the broker die on the way, no other is wanted."""


class Failed(NamedTuple):
    """The fleet cannot run.

    Attributes:
        exit_code: one of `taskq.model.exits.Exit`.
        message: why.
    """

    exit_code: int
    message: str


#: What a broker, and then its guardian, tells of the fleet.
Notice = Ready | Stopping | Failed

_NAMES: dict[str, type[Ready] | type[Stopping] | type[Failed]] = {
    "ready": Ready,
    "stopping": Stopping,
    "failed": Failed,
}


def pack_notice(notice: Notice) -> bytes:
    """The packet of a notice."""
    name = next(name for name, kind in _NAMES.items() if isinstance(notice, kind))
    return _pack([name, *notice])


def read_notice(packet: bytes) -> Notice:
    """The opposite of `pack_notice`."""
    name, *fields = msgpack.unpackb(packet)
    return _NAMES[name](*fields)


def _pack(fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed
