"""How many open files (descriptors) a broker needs, and the limit on them.

The soft limit is what processes get unless they ask for more, often 1,024; they may raise it up to the hard limit.
"""

from __future__ import annotations

import resource

from taskq.model.errors import TooFewDescriptors
from taskq.model.limits import MAX_CLIENTS

#: The lock, the journal, the log, sockets and standard streams: 19 of them, measured.
_OWN = 24
#: For files that are open for a moment only: spooled jobs, a log that is rotated, the pipes of a process that starts.
RESERVED = 32
#: What each consumer takes in the broker: a queue, a socket, a pipe for its output, its memory, a pidfd.
_EACH_CONSUMER = 8
#: A fleet that could serve only fewer clients than this at a time does not start.
_FEWEST_CLIENTS = 16


class _Given:
    """The soft limit with which this process was started: that of the jobs."""

    soft: int | None = None


def without_clients(consumers: int) -> int:
    """What a broker needs for itself and its consumers, if each is being replaced while it still runs a job."""
    return _OWN + RESERVED + 2 * _EACH_CONSUMER * consumers


def provide(consumers: int) -> None:
    """Raises the soft limit of this process to what a broker may need, or to the hard limit if that is lower.

    Raises:
        TooFewDescriptors: that is not enough for the consumers and a few clients.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _Given.soft = soft
    wanted = without_clients(consumers) + MAX_CLIENTS
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and raised > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    if room_for_clients(consumers) < _FEWEST_CLIENTS:
        needed = without_clients(consumers) + _FEWEST_CLIENTS
        raise TooFewDescriptors(
            f"a fleet of {consumers} consumers needs {needed:,} open files, and the hard limit is {hard:,}: raise it "
            f"(ulimit -Hn {needed}, LimitNOFILE={needed} in a systemd unit), or start fewer consumers"
        )


def room_for_clients(consumers: int) -> int:
    """How many clients a broker can serve at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CLIENTS
    return max(0, min(MAX_CLIENTS, soft - without_clients(consumers)))


def given() -> int | None:
    """The soft limit before it was raised, which consumers get; None if it was not raised."""
    return _Given.soft


def restore(soft: int | None) -> None:
    """Sets the soft limit of this process, a consumer, to the one that the fleet was started with."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft is not None and soft != before:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
