"""What an operation of the client wants done: it yields one of these, and a shell does it and sends the result back.

    blocking.py      with sockets and sleeps
    aio.py           with an event loop
    taskq.testing    with a fleet in this process

An operation is a generator, so it is written once; how to wait is all that a shell knows. A shell raises in the
operation what went wrong: ConnectionLost, TimeoutError, or what the broker says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from taskq.client.transport.conversation import Conversation

T = TypeVar("T")


class Line(Protocol):
    """A connection, for one operation."""

    talk: Conversation
    #: Whether it was made for this operation. Another may have been closed by the broker since it was last used.
    is_fresh: bool

    def leave(self) -> None:
        """Ends the use of it. The shell keeps it for other operations, if nothing can come on it any more."""


class Open(NamedTuple):
    """A line to the broker.

    Attributes:
        is_looking: nothing is to be changed; root may look at the fleets of others.
        must_be_fresh: what was connected earlier led to a broker that is gone.
    Result: the Line.

    Raises:
        BrokerSilent: a broker is there that has not answered for a while.
        ConnectionLost: no broker listens.
        DirectoryError: the directory belongs to another user.
    """

    is_looking: bool = False
    must_be_fresh: bool = False


class Reach(NamedTuple):
    """A line to the broker, as soon as one is there.

    Attributes:
        within_s: seconds to wait for it; None for as long as it takes.
        watched: the jobs whose endings are to come on it.
    Result: the Line; None if there was no broker in time.
    """

    within_s: float | None
    watched: Sequence[bytes] = ()


class OpenReader(NamedTuple):
    """A line to a process that reads the journal of a directory without a fleet. Raises as Open."""


class EndReader(NamedTuple):
    """Lets that process go, and waits until it has closed the journal."""

    line: Line


class Ask(NamedTuple):
    """Sends a request, and waits for its answer, which a broker gives at once. Result: the Message.

    Attributes:
        watched: the jobs whose endings come by themselves.
    """

    line: Line
    number: int
    frame: bytes
    watched: Sequence[bytes] = ()


class AskLate(NamedTuple):
    """Sends a request that the broker may answer late, and waits for its answer. Result: the Message.

    Raises:
        TimeoutError: none came in time.
    """

    line: Line
    number: int
    frame: bytes
    within_s: float | None


class Send(NamedTuple):
    """Sends a request; others may be sent before its answer is waited for."""

    line: Line
    number: int
    frame: bytes


class Answer(NamedTuple):
    """The answer to a request that was sent. Result: the Message."""

    line: Line
    number: int


class Next(NamedTuple):
    """The next endings of jobs that are watched. Result: the Messages, one or more.

    Raises:
        TimeoutError: none came in time.
    """

    line: Line
    within_s: float | None


class Sleep(NamedTuple):
    """Lets time pass."""

    seconds: float


class UseDisk(NamedTuple):
    """Calls a function that reads or writes files, which may take the time of a sync. Result: what it returns."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


Verb = Open | Reach | OpenReader | EndReader | Ask | AskLate | Send | Answer | Next | Sleep | UseDisk

#: What a call does: it yields what it wants, and returns the result of the call. Each engine has verbs of its own, and
#: shells that know them: `Verb` are those of a directory.
Operation = Generator[Any, Any, T]
