"""What the judge asks of consumers that are replaced: for new code, or since they have done their share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from history import History


class Consumer(NamedTuple):
    """A consumer that is ready when all is quiet."""

    number: int
    is_old: bool  # it has imported what was there before the last reload was asked for
    is_told_as_old: bool


def the_fleet_is_whole(h: History) -> Iterator[str]:
    """I46: whoever died, and when: in the end each number has one consumer that is ready."""
    ready = Counter(consumer.number for consumer in h.consumers)
    for number in range(1, h.wanted_consumers + 1):
        if ready[number] != 1:
            yield f"{ready[number]} consumers are ready that have number {number}"


def a_reload_reaches_all_or_is_told(h: History) -> Iterator[str]:
    """I47: a reload ends; what runs old code after it is told as such, and only if the reload failed."""
    if h.reload_state == "running":
        yield "a reload never ended"
    for number in h.unreported:
        yield f"consumer {number} ran old code, and was told as one with the new"
    for number, is_old, is_told_as_old in h.consumers:
        if is_old and not is_told_as_old:
            yield f"consumer {number} runs old code, and is told as one with the new"
        if is_told_as_old and h.reload_state != "failed":
            yield f"consumer {number} is told as one with old code, and the reload as {h.reload_state}"


def a_replacement_interrupts_no_job(h: History) -> Iterator[str]:
    """I48: a consumer that is replaced ends after its job."""
    for process in h.interrupted:
        yield f"{process} was killed in a job, since it was to be replaced"


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (
    the_fleet_is_whole,
    a_reload_reaches_all_or_is_told,
    a_replacement_interrupts_no_job,
)
