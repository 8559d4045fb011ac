"""What an operation on a database wants done: it yields one of these, and a shell (`blocking.py`, `aio.py`) does it.

An operation is a generator, so it is written once. What it asks of the database is a plan, which a shell may begin
again: after a deadlock, and when a connection is lost before its commit was confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from taskq.client.transport.verbs import Sleep
from taskq.protocol.postgres.plans import Plan


class Ear(Protocol):
    """Hears when jobs end, for one who waits for them."""

    #: The number by which brokers know whom to tell.
    client: int

    def close(self) -> None:
        """Hears no more."""


class Run(NamedTuple):
    """Runs a plan in a transaction. Result: what the plan returns.

    Attributes:
        make: makes the plan; called again if it has to be repeated.
        within_s: seconds to wait for the database, if that is away; None for as long as it takes; negative: as long as
            the client waits for any answer.
        joins: whether it becomes part of the application's own transaction inside `TaskQ.within`.

    Raises:
        BrokerUnavailable: the database does not answer, or refuses.
        StoreFull: its disk is full.
    """

    make: Callable[[], Plan[Any]]
    within_s: float | None = -1.0
    joins: bool = False


class Listen(NamedTuple):
    """Begins to hear when jobs end. Result: an Ear. Raises as Run.

    Attributes:
        waiting: the jobs that are waited for, now and later.
        within_s: as for Run.
    """

    waiting: Mapping[bytes, Any]
    within_s: float | None


class Hear(NamedTuple):
    """Waits until jobs have ended, or may have. Result: a list of `taskq.protocol.postgres.watching.Word`, empty if
    nothing was heard in time; None if something may have been missed: listen again.

    Attributes:
        within_s: seconds to wait.
    """

    ear: Ear
    within_s: float


__all__ = ["Ear", "Hear", "Listen", "Run", "Sleep"]
