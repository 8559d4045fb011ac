"""The clients of the embedded engine: those of a socket, or what a stopped fleet, `taskq.testing` and the simulator of
the tests have in their place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from taskq.engines.server import Peer
from taskq.model.errors import TaskQError
from taskq.protocol.frames import Message


class Clients(Protocol):
    """The clients; see `taskq.engines.server.Server`. Clients that always read at once need only the first
    three methods: the others are defined here."""

    #: Whether it may read from them: not while the engine has more of their messages than it takes up in a turn.
    may_read: bool = True

    def take_messages(self) -> list[tuple[Peer, Message]]:
        """Returns their messages since the last call, in order of arrival."""

    def send(self, peer: Peer, frame: bytes, /) -> None:
        """Sends a frame to a client."""

    def reject(self, peer: Peer, error: TaskQError, /) -> None:
        """Sends a client one error, and reads nothing more from it."""

    def is_clogged(self, _peer: Peer, /) -> bool:
        """Whether a client does not read what it is sent."""
        return False

    def defer(self, _peer: Peer, _job_id: bytes, /) -> None:
        """Notes that a client has to be told of the end of a job when it has read what it was sent."""
        raise AssertionError("none of these clients is ever clogged")

    def shut(self) -> None:
        """Disconnects all of them."""
        return

    def counted(self) -> tuple[int | None, int | None]:
        """How many are connected, and how many were refused or dropped so far; None where nobody can connect."""
        return None, None

    def take_deferred(self) -> Iterable[tuple[Peer, bytes]]:
        """Returns the deferred ends of jobs, for the clients that can be told now."""
        return ()
