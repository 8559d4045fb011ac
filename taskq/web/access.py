"""Who may see a dashboard, and what they may do there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from inspect import isawaitable
from typing import Literal

from starlette.requests import Request

from taskq.model.errors import ConfigError


class Right(StrEnum):
    """Something that a visitor may do, beside looking."""

    RETRY = "retry"  #: queue failed jobs again
    CANCEL = "cancel"  #: cancel jobs
    PURGE = "purge"  #: remove jobs for good
    PAUSE = "pause"  #: pause and resume queues
    SCHEDULE = "schedule"  #: pause, resume and run schedules
    ENQUEUE = "enqueue"  #: enqueue a job again, with other arguments
    RELOAD = "reload"  #: have the consumers load new code
    STACK = "stack"  #: have consumers write where they are in their code


ALL_RIGHTS: frozenset[Right] = frozenset(Right)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may look.

    Attributes:
        name: who that is, for the log; what they do is logged with it.
        rights: what they may do beside looking.
    """

    name: str
    rights: frozenset[Right] = ALL_RIGHTS


#: What a resolver answers: "all" rights, "read" for none, some rights by name, a `Visitor` with a name and rights, or
#: None for somebody who may not even look.
Access = Literal["all", "read"] | Collection[str] | Visitor | None

#: Says what the sender of a request may do. It may raise an `HTTPException` of its own.
Resolver = Callable[[Request], Access | Awaitable[Access]]


async def visitor_of(request: Request, resolver: Resolver, is_read_only: bool) -> Visitor | None:
    """Returns who sent a request; None if they may not look.

    Args:
        is_read_only: whether nobody may do anything beside looking.

    Raises:
        ConfigError: the resolver answers something that makes no sense.
    """
    answer = resolver(request)
    access = await answer if isawaitable(answer) else answer
    if access is None:
        return None
    visitor = access if isinstance(access, Visitor) else Visitor(name_of(request), rights_of(access))
    return Visitor(visitor.name, frozenset()) if is_read_only else visitor


def name_of(request: Request) -> str:
    """The name of whoever sent a request: that of Starlette's `AuthenticationMiddleware`, or their address."""
    user = request.scope.get("user")
    name = getattr(user, "display_name", "")
    if name:
        return str(name)
    return request.client.host if request.client else "a local user"


def rights_of(access: object) -> frozenset[Right]:
    """The rights that an answer of a resolver means. Raises ConfigError if it makes no sense."""
    if access == "all":
        return ALL_RIGHTS
    if access == "read":
        return frozenset()
    try:
        return frozenset(map(Right, access))  # type: ignore[call-overload]  # the answer may be anything
    except (TypeError, ValueError):
        raise ConfigError(
            f"{access!r:.100} does not say what somebody may do: use 'all', 'read', or some of {', '.join(Right)}"
        ) from None
