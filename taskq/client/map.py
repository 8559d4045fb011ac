"""`map` and `starmap`: calls are submitted while the results of earlier ones come in, with a bounded number unfinished.

calls -> submitted in chunks, endings read in between -> counted -> in the order of the calls, or as they come
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple, Protocol

from taskq.client.job import content_of, value_of_ending
from taskq.client.transport.api import AsyncQueueClient, QueueApi, QueueClient
from taskq.client.transport.handing_in import with_room
from taskq.client.transport.verbs import Operation
from taskq.client.waiting import Progress, reporting
from taskq.model.errors import JobCancelled, JobFailed, JobNotFound
from taskq.model.limits import SUBMIT_CHUNK_BYTES
from taskq.model.spec import Spec
from taskq.protocol.endings import Ending
from taskq.protocol.payloads.filed import is_reference, size_of
from taskq.protocol.payloads.files import PayloadFiles
from taskq.protocol.submissions import Call, chunks

#: Calls are submitted in chunks that grow from the first to the second; the third is the most unfinished jobs.
_FIRST_CHUNK = 16
_LARGEST_CHUNK = 512
_WINDOW = 2_048

#: The number of an item, its job, and how that ended.
_Numbered = tuple[int, bytes, Ending]


class MappedCalls(NamedTuple):
    """The calls of a `map`, and its options.

    Attributes:
        spec, calls: of the jobs.
        caster: converts a decoded result to what the task returns; None leaves it as it is.
        total: the number of calls, or None if it is not known.
        ordered, timeout, progress: as for `Task.map`.
        waits_for_room: whether to wait while the queue is full.
    """

    spec: Spec
    calls: Iterator[Call]
    caster: Callable[[Any], Any] | None
    total: int | None
    ordered: bool
    timeout: float | None
    progress: Progress
    waits_for_room: bool


def results_of_calls(client: QueueClient, mapped: MappedCalls) -> Generator[Any, None, None]:
    """Submits calls, and yields what their jobs return. Raises as `Task.map`."""
    with (
        reporting(mapped.progress, mapped.total, mapped.spec.task) as tell,
        closing(client.each(_Mapping(client.queue, mapped, tell))) as ended,
    ):
        for numbered in ended:
            yield _value(client.queue.payloads, numbered, mapped.caster)


async def aresults_of_calls(client: AsyncQueueClient, mapped: MappedCalls) -> AsyncGenerator[Any, None]:
    """`results_of_calls` for asyncio."""
    with reporting(mapped.progress, mapped.total, mapped.spec.task) as tell:
        async with aclosing(client.each(_Mapping(client.queue, mapped, tell))) as ended:
            async for numbered in ended:
                yield _value(client.queue.payloads, numbered, mapped.caster)


def _value(payloads: PayloadFiles, numbered: _Numbered, caster: Callable[[Any], Any] | None) -> Any:
    number, job_id, ending = numbered
    try:
        return value_of_ending(payloads, job_id, ending, caster)
    except (JobFailed, JobCancelled) as error:
        error.item = number
        raise


class _Mapping:
    """Submits calls and reads endings in turn: a `taskq.client.transport.api.Stream` of jobs that have ended."""

    def __init__(self, queue: QueueApi, mapped: MappedCalls, tell: Callable[[int], object]) -> None:
        """
        Args:
            tell: is called with the number of jobs that have ended so far.
        """
        self._mapped = mapped
        self._payloads = queue.payloads
        self._tell = tell
        self._endings = queue.watching()
        self._turns: _Turns = _InOrder() if mapped.ordered else _AsTheyCome()
        self._chunk_size = _FIRST_CHUNK
        self._is_exhausted = False
        self._done = 0

    def next(self) -> Operation[list[_Numbered]]:
        """Returns the jobs whose turn has come; an empty list when all have ended."""
        while True:
            yield from self._submit_more()
            if not self._endings.waiting:
                return []
            first = yield from self._endings.next(self._mapped.timeout)
            found: list[_Numbered] = []
            for job_id, ending in (first, *self._endings.arrived()):
                if ending is None:
                    raise JobNotFound(f"job {job_id.hex()} is no longer known: was the queue's directory replaced?")
                ending = self._with_result(job_id, ending)
                self._done += 1
                self._tell(self._done)
                found += self._turns.ended(job_id, ending)
            if found:
                return found

    def _with_result(self, job_id: bytes, ending: Ending) -> Ending:
        """Opens the file of a large result: it may be long until its turn comes, and the job may be pruned before."""
        result = ending.outcome.result
        if result is None or not is_reference(result):
            return ending
        return ending._replace(outcome=ending.outcome._replace(result=content_of(self._payloads, job_id, result)))

    def _submit_more(self) -> Operation[None]:
        spec, calls, waits_for_room = self._mapped.spec, self._mapped.calls, self._mapped.waits_for_room
        waiting = self._endings.waiting
        while not self._is_exhausted and len(waiting) <= _WINDOW - self._chunk_size:
            chunk, size = [], 0
            for call in islice(calls, self._chunk_size):
                chunk.append(call)
                size += size_of(call.payload)
                if size > SUBMIT_CHUNK_BYTES:
                    break
            else:
                self._is_exhausted = len(chunk) < self._chunk_size
            for part in chunks(chunk, spec.max_queued if waits_for_room else None):
                yield from with_room(partial(self._endings.submit, spec, part), waits_for_room)
            self._turns.submitted([call.id for call in chunk])
            self._chunk_size = min(self._chunk_size * 2, _LARGEST_CHUNK)
            if len(waiting) >= self._chunk_size:
                break  # read results in between

    def close(self) -> None:
        """Ends the stream."""
        self._endings.close()


class _Turns(Protocol):
    """Whose turn it is."""

    def submitted(self, ids: list[bytes]) -> None:
        """Jobs were submitted, in the order of the calls."""

    def ended(self, job_id: bytes, ending: Ending) -> list[_Numbered]:
        """Takes the end of a job. Returns the jobs whose turn comes with it."""


class _InOrder(_Turns):
    def __init__(self) -> None:
        self._turn: deque[bytes] = deque()
        self._ended: dict[bytes, Ending] = {}
        self._numbers = count()

    def submitted(self, ids: list[bytes]) -> None:
        self._turn.extend(ids)

    def ended(self, job_id: bytes, ending: Ending) -> list[_Numbered]:
        self._ended[job_id] = ending
        found: list[_Numbered] = []
        while self._turn and self._turn[0] in self._ended:
            first = self._turn.popleft()
            found.append((next(self._numbers), first, self._ended.pop(first)))
        return found


class _AsTheyCome(_Turns):
    def __init__(self) -> None:
        self._numbers = count()
        self._number_of: dict[bytes, int] = {}  # of jobs that are unfinished

    def submitted(self, ids: list[bytes]) -> None:
        self._number_of.update(zip(ids, self._numbers, strict=False))

    def ended(self, job_id: bytes, ending: Ending) -> list[_Numbered]:
        return [(self._number_of.pop(job_id), job_id, ending)]
