"""For type checkers only: tasks by the number and types of their positional arguments.

A ParamSpec cannot be taken apart, so `map` and similar methods annotate `self` with the arguments of `enqueue`.
"""

from __future__ import annotations

from typing import Any, Protocol, TypedDict, TypeVar

from taskq.client.job import Job
from taskq.client.waiting import Progress

A = TypeVar("A", contravariant=True)
B = TypeVar("B", contravariant=True)
C = TypeVar("C", contravariant=True)
D = TypeVar("D", contravariant=True)
R = TypeVar("R", covariant=True)


class Takes1(Protocol[A, R]):
    """A task whose first argument is an A."""

    def enqueue(self, a: A, /, *args: Any, **kwargs: Any) -> Job[R]: ...


class Takes2(Protocol[A, B, R]):
    """A task whose first arguments are an A and a B."""

    def enqueue(self, a: A, b: B, /, *args: Any, **kwargs: Any) -> Job[R]: ...


class Takes3(Protocol[A, B, C, R]):
    """A task whose first arguments are an A, a B and a C."""

    def enqueue(self, a: A, b: B, c: C, /, *args: Any, **kwargs: Any) -> Job[R]: ...


class Takes4(Protocol[A, B, C, D, R]):
    """A task whose first arguments are an A, a B, a C and a D."""

    def enqueue(self, a: A, b: B, c: C, d: D, /, *args: Any, **kwargs: Any) -> Job[R]: ...


class MapOptions(TypedDict, total=False):
    """The options of `Task.map`."""

    ordered: bool
    timeout: float | None
    progress: Progress
