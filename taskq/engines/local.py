"""The broker's socket, for what concerns the fleet of this machine alone. Everything else is asked of the database."""

from __future__ import annotations

import selectors
from typing import Any

from taskq.engines.contract import Fleet
from taskq.engines.server import Peer, Server
from taskq.model.errors import ProtocolError, TaskQError
from taskq.protocol import frames
from taskq.protocol.answers import ok_frame
from taskq.protocol.requests import GetStatus, ReloadFleet, StopFleet, WriteStacks, read_request
from taskq.protocol.status import status_value
from taskq.system.clock import Clock
from taskq.system.directory import Directory
from taskq.system.timers import Timers

_LATE_EVERY_S = 0.1
_REACHABLE_EVERY_S = 5.0


class LocalServer:
    """Used by the engine alone."""

    def __init__(
        self, directory: Directory, selector: selectors.BaseSelector, fleet: Fleet, clock: Clock, max_clients: int
    ) -> None:
        """
        Args:
            selector: with callables as data.
            max_clients: how many clients are served at once; more are refused.
        """
        self._control = fleet.control
        rejected = lambda reason: fleet.events.rejected(reason, clock.monotonic())  # noqa: E731
        self._server = Server(directory, selector, rejected, lambda _peer: None, clock, max_clients)
        self._timers = Timers()
        now = clock.monotonic()
        self._timers.every(_LATE_EVERY_S, self._server.drop_late, now, self._server.may_be_late)
        self._timers.every(_REACHABLE_EVERY_S, self._server.stay_reachable, now)

    def gather(self, now: float) -> None:
        """Answers what has arrived."""
        self._timers.run(now)
        for peer, (envelope, _) in self._server.take_messages():
            if not peer.closed:
                self._answer(peer, envelope)

    def next_at(self, now: float) -> float:
        """When `gather` must be called, if nothing arrives before (monotonic)."""
        return self._timers.next_at(now)

    def _answer(self, peer: Peer, envelope: list[Any]) -> None:
        number = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
        try:
            self._server.send(peer, ok_frame(number, self._value(read_request(envelope))))
        except ProtocolError as error:
            self._server.reject(peer, error)
        except TaskQError as error:
            self._server.send(peer, frames.error_frame(number, error))

    def _value(self, request: object) -> Any:
        control = self._control
        match request:
            case GetStatus():
                return status_value(control.status())
            case StopFleet():
                control.stop("taskq stop")
                return True
            case ReloadFleet():
                return control.reload()
            case WriteStacks(number):
                return control.write_stacks(number)
        raise TaskQError("this fleet keeps its jobs in a PostgreSQL database: ask that, with its URL in TASKQ_URL")

    def shut(self) -> None:
        """Closes the socket, and disconnects all clients."""
        self._server.shut()
