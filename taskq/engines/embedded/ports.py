"""What the queue asks of those around it: clients to answer, consumers that hold its jobs, a log.

A fleet has sockets and processes for it; a stopped one, `taskq.testing` and the simulator of the tests have less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from taskq.engines.embedded.server import Peer
from taskq.model.attempt import Claim
from taskq.model.effects import Event, Key, Success
from taskq.model.errors import TaskQError
from taskq.model.job import JobRow


class Clients(Protocol):
    """Those who ask; see `taskq.engines.embedded.server.Server`. Ones that take whatever they are sent, at once, are
    described by `send` and `reject`: the others have an answer here."""

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

    def take_deferred(self) -> Iterable[tuple[Peer, bytes]]:
        """The ends of jobs that clients can hear of now."""
        return ()


class Consumers(Protocol):
    """Those who have jobs; see `taskq.broker.consumers.pool.ConsumerPool`."""

    is_stopping: bool

    def is_running(self, job_id: bytes, /) -> bool:
        """Whether a job runs now."""

    def withdraw(self, job_id: bytes, /) -> bool:
        """Takes a job back from the consumer it was sent to; returns False if it runs."""

    def cancel_running(self, job_id: bytes, /) -> None:
        """Stops a job that runs."""

    def take_back_all(self, now: float, /) -> None:
        """Takes back what no consumer has started."""

    def claims(self) -> dict[Key, list[Claim]]:
        """What each consumer is running."""

    def progress_of(self, job_id: bytes, /) -> tuple[float, float | None, str] | None:
        """How far a running job is, if it said so: done, total, note."""


class Events(Protocol):
    """What becomes of jobs, for the log; see `taskq.broker.events.EventLog`."""

    log: Any

    def enqueued(self, rows: Sequence[JobRow], now: float, /) -> None:
        """Jobs that came in."""

    def notes(self, notes: Sequence[Event], /) -> None:
        """What was decided."""

    def successes(self, done: Sequence[Success], now: float, /) -> None:
        """Jobs that succeeded."""
