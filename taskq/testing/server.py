"""Where a fleet in this process hears its clients, and answers them."""

from __future__ import annotations

from typing import Any, Protocol

from taskq.engines.embedded.ports import Clients
from taskq.model.errors import TaskQError
from taskq.protocol import frames
from taskq.protocol.frames import Message


class InProcessPeer(Protocol):
    """A client, as the fleet sees it."""

    closed: bool
    watched: set[bytes]

    def deliver(self, frame: bytes) -> None:
        """Hands the client a frame."""


class InProcessServer(Clients):
    """In place of a `taskq.engines.server.Server`: clients take everything.

    What the engine calls a `Peer`, the connection of a socket, is an `InProcessPeer` here.
    """

    def __init__(self) -> None:
        self._messages: list[tuple[Any, Message]] = []

    def hear(self, peer: InProcessPeer, message: Message) -> None:
        """A client says this."""
        self._messages.append((peer, message))

    def take_messages(self) -> list[tuple[Any, Message]]:
        """What they have said since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def send(self, peer: Any, frame: bytes) -> None:
        """Sends a frame to a client."""
        peer.deliver(frame)

    def reject(self, peer: Any, error: TaskQError) -> None:
        """A client that says what no client says."""
        self.send(peer, frames.error_frame(0, error))
