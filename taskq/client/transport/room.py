"""Waiting for room in a queue that is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from taskq.client.transport.verbs import Operation, Sleep
from taskq.model.errors import QueueFull

T = TypeVar("T")

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.25


def with_room(submit: Callable[[], Operation[T]], waits_for_room: bool) -> Operation[T]:
    """Submits jobs; tries again while the queue is full, if that is wanted."""
    for pause_s in _pauses():
        try:
            return (yield from submit())
        except QueueFull:
            if not waits_for_room:
                raise
        yield Sleep(pause_s)
    raise AssertionError  # pauses have no end


def _pauses() -> Iterator[float]:
    """The pauses of one who waits for room in a queue: from 5 ms to 0.25 s."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
