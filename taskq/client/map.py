"""`map` and `starmap`: calls are submitted while the results of earlier ones come in, with a bounded number unfinished.

calls -> submitted in chunks, endings heard in between -> counted -> in the order of the calls, or as they come
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

from taskq.client.job import value_of_ending
from taskq.client.transport.blocking import Client, Endings
from taskq.client.transport.submitting import when_there_is_room
from taskq.client.waiting import Progress, reporting
from taskq.model.errors import JobCancelled, JobFailed, JobNotFound
from taskq.model.spec import Spec
from taskq.protocol.endings import Ending
from taskq.protocol.submissions import Call, chunks

#: Calls are submitted in chunks that grow from the first to the second; the third is the most unfinished jobs.
_FIRST_CHUNK = 16
_LARGEST_CHUNK = 512
_WINDOW = 2_048

#: Ids newly submitted, and a job that ended, if one did.
_Step = tuple[list[bytes], tuple[bytes, Ending] | None]
#: The number of an item, its job, and how that ended.
_Numbered = tuple[int, bytes, Ending]


def results_of_calls(
    client: Client,
    spec: Spec,
    calls: Iterator[Call],
    caster: Callable[[Any], Any] | None,
    *,
    total: int | None,
    ordered: bool,
    timeout: float | None,
    progress: Progress,
    waits_for_room: bool,
) -> Iterator[Any]:
    """Submits calls, and yields what their jobs return.

    Args:
        caster: makes what the task returns of what a result holds; None leaves it as it is.
        total: how many calls there are, None if nobody knows.
        ordered, timeout, progress: as for `Task.map`.
        waits_for_room: whether to wait while the queue is full.

    Raises:
        As `Task.map`.
    """
    with client.watching() as endings, reporting(progress, total, spec.task) as tell:
        steps = _counted(_stream(endings, spec, calls, timeout, waits_for_room), tell)
        for number, job_id, ending in _in_order(steps) if ordered else _as_they_come(steps):
            try:
                value = value_of_ending(job_id, ending, caster)
            except (JobFailed, JobCancelled) as error:
                error.item = number
                raise
            yield value


def _stream(
    endings: Endings, spec: Spec, calls: Iterator[Call], timeout: float | None, waits_for_room: bool
) -> Iterator[_Step]:
    """Submits calls and hears of endings in turn. Yields ids newly submitted, and an ending."""
    chunk_size = _FIRST_CHUNK
    is_exhausted = False
    while True:
        submitted: list[bytes] = []
        while not is_exhausted and len(endings.waiting) <= _WINDOW - chunk_size:
            chunk = [call for _, call in zip(range(chunk_size), calls, strict=False)]
            is_exhausted = len(chunk) < chunk_size
            for part in chunks(chunk, spec.max_queued if waits_for_room else None):
                submit = partial(endings.submit, spec, part)
                when_there_is_room(endings.clock, submit) if waits_for_room else submit()
            submitted.extend(call.id for call in chunk)
            chunk_size = min(chunk_size * 2, _LARGEST_CHUNK)
            if len(endings.waiting) >= chunk_size:
                break  # hear of results in between
        if not endings.waiting:
            if submitted:
                yield submitted, None
            return
        job_id, ending = endings.next(timeout)
        if ending is None:
            raise JobNotFound(f"job {job_id.hex()} is no longer known: was the queue's directory replaced?")
        yield submitted, (job_id, ending)


def _counted(steps: Iterator[_Step], tell: Callable[[int], object]) -> Iterator[_Step]:
    """Tells how many jobs have ended so far."""
    done = 0
    for step in steps:
        if step[1] is not None:
            done += 1
            tell(done)
        yield step


def _in_order(steps: Iterator[_Step]) -> Iterator[_Numbered]:
    turn: deque[bytes] = deque()
    ended: dict[bytes, Ending] = {}
    numbers = count()
    for submitted, arrived in steps:
        turn.extend(submitted)
        if arrived is not None:
            ended[arrived[0]] = arrived[1]
        while turn and turn[0] in ended:
            job_id = turn.popleft()
            yield next(numbers), job_id, ended.pop(job_id)


def _as_they_come(steps: Iterator[_Step]) -> Iterator[_Numbered]:
    numbers = count()
    number_of: dict[bytes, int] = {}  # of jobs that are unfinished
    for submitted, arrived in steps:
        number_of.update(zip(submitted, numbers, strict=False))
        if arrived is not None:
            yield number_of.pop(arrived[0]), *arrived
