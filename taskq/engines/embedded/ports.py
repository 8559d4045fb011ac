"""Those whom the embedded engine answers: the clients of a socket, or what a stopped fleet, `taskq.testing` and the
simulator of the tests have in their place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from taskq.engines.embedded.server import Peer
from taskq.model.errors import TaskQError
from taskq.protocol.frames import Message


class Clients(Protocol):
    """Those who ask; see `taskq.engines.embedded.server.Server`. Ones that take whatever they are sent, at once, are
    described by the first three: the others have an answer here."""

    def take_messages(self) -> list[tuple[Peer, Message]]:
        """What they have said since the last call, in order of arrival."""

    def send(self, peer: Peer, frame: bytes, /) -> None:
        """Sends a frame to a client."""

    def reject(self, peer: Peer, error: TaskQError, /) -> None:
        """Tells a client why it is heard no more."""

    def is_clogged(self, _peer: Peer, /) -> bool:
        """Whether a client does not read what it is sent."""
        return False

    def defer(self, _peer: Peer, _job_id: bytes, /) -> None:
        """Keeps in mind that a client is to hear of the end of a job, when it has read what it was sent."""
        raise AssertionError("none of these clients is ever clogged")

    def shut(self) -> None:
        """Parts with all of them."""
        return

    def take_deferred(self) -> Iterable[tuple[Peer, bytes]]:
        """The ends of jobs that clients can hear of now."""
        return ()
