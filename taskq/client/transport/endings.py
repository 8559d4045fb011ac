"""Streams over a connection of their own, which is renewed when it is lost: the endings of jobs, and the items of one.

Items are numbered 0, 1, 2 ... and what has once been stored under a number never changes. A retry begins the generator
anew: items that it yields again, under stored numbers, are dropped, so every reader sees every number once. The reader
asks for the items from a number on; the broker answers when there are some, or when the job has ended. So nothing is
polled, a slow reader holds up nobody, and a reader that lost its connection goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from taskq.client.transport.handing_in import CallFiles
from taskq.client.transport.verbs import Ask, AskLate, Line, Next, Operation, Reach
from taskq.model.errors import BehindSpool, EnqueueError, JobNotFound, ResultTimeout
from taskq.model.spec import Spec
from taskq.protocol.answers import ConnectionLost, value_of
from taskq.protocol.endings import Ending, ending_of
from taskq.protocol.frames import Message
from taskq.protocol.items import read_items_answer
from taskq.protocol.requests import ReadItems
from taskq.protocol.submissions import Call
from taskq.system.clock import SHORTEST_WAIT_S, Clock, Deadline


class Endings:
    """A stream of the endings of jobs. Its methods are operations, except `close`."""

    def __init__(
        self,
        clock: Clock,
        ids: Iterable[bytes],
        submit: Callable[[Spec, Sequence[Call]], Operation[list[bytes]]],
        files: CallFiles,
    ) -> None:
        """
        Args:
            submit: submits jobs in another way, where that over this connection fails.
            files: of their large arguments.
        """
        self._clock = clock
        self._submit = submit
        self._files = files
        self._line: Line | None = None
        self._arrived: deque[tuple[bytes, Ending | None]] = deque()
        self.waiting: dict[bytes, None] = dict.fromkeys(ids)  #: The jobs whose ending was not returned yet, in order.

    def submit(self, spec: Spec, chunk: Sequence[Call]) -> Operation[None]:
        """Submits jobs (of one frame) and watches them."""
        try:
            if self._line is None:
                self._line = yield self._reach(Deadline(0.0, self._clock))
            line = self._line
            if line is not None:
                yield from self._files.write(line, chunk)
                number, frame = line.talk.submit(spec, chunk, watch=True)
                value_of((yield Ask(line, number, frame, [call.id for call in chunk])), number)
                self.waiting.update((call.id, None) for call in chunk)
                return
        except (ConnectionLost, BehindSpool):
            self._leave()
        except EnqueueError:
            yield from self._files.remove(chunk)
            raise
        yield from self._submit(spec, chunk)
        self.waiting.update((call.id, None) for call in chunk)
        self._leave()  # the next connection is asked for these as well

    def next(self, timeout_s: float | None) -> Operation[tuple[bytes, Ending | None]]:
        """The next job that ended, and how; None for one that the broker does not know.

        Raises:
            ResultTimeout: none ended in time.
        """
        deadline: Deadline | None = None
        while True:
            while self._arrived:
                job_id, ending = self._arrived.popleft()
                if job_id in self.waiting:  # else it came twice, or is not ours
                    del self.waiting[job_id]
                    return job_id, ending
            deadline = deadline or Deadline(timeout_s, self._clock)
            try:
                if self._line is None:
                    self._line = yield self._reach(deadline)
                if self._line is None:
                    raise TimeoutError
                messages: list[Message] = yield Next(self._line, deadline.wait_s())
            except ConnectionLost:
                self._leave()
            except TimeoutError:
                raise ResultTimeout(f"nothing ended within {timeout_s} s") from None
            else:
                self._arrived.extend(map(ending_of, messages))

    def arrived(self) -> list[tuple[bytes, Ending | None]]:
        """The further endings that have come already."""
        found = [(job_id, ending) for job_id, ending in self._arrived if job_id in self.waiting]
        self._arrived.clear()
        for job_id, _ in found:
            self.waiting.pop(job_id, None)
        return found

    def _reach(self, deadline: Deadline) -> Reach:
        """For the line on which all waiting jobs are watched; None if there is no broker until the deadline."""
        return Reach(deadline.left_s(), list(self.waiting))

    def _leave(self) -> None:
        if self._line is not None:
            self._line.leave()
            self._line = None

    def close(self) -> None:
        """Ends the stream."""
        self._leave()


class Items:
    """A stream of the items of a job, and of how it ended in the end."""

    def __init__(self, clock: Clock, job_id: bytes, start: int, timeout_s: float | None) -> None:
        """
        Args:
            timeout_s: the longest wait for the next item; None for no end.
        """
        self._clock = clock
        self._job_id = job_id
        self._start = start
        self._timeout_s = timeout_s
        self._line: Line | None = None
        self.ending: Ending | None = None  #: How the job ended; there are no more items.

    def next(self) -> Operation[list[bytes]]:
        """The next items; none when the job has ended.

        Raises:
            ResultTimeout: the next one did not come in time.
            JobNotFound: nothing is known of the job.
        """
        timeout_s = self._timeout_s
        deadline = Deadline(None if timeout_s is None else max(SHORTEST_WAIT_S, timeout_s), self._clock)
        while self.ending is None:
            try:
                if self._line is None:
                    self._line = yield Reach(deadline.left_s())
                if self._line is None:
                    raise TimeoutError
                number, frame = self._line.talk.request(ReadItems(self._job_id, self._start))
                answer = value_of((yield AskLate(self._line, number, frame, deadline.wait_s())), number)
            except ConnectionLost:
                self.close()
                continue
            except TimeoutError:
                told = f"job {self._job_id.hex()} has not yielded item {self._start} within {timeout_s:g} s"
                raise ResultTimeout(f"{told}; it goes on") from None
            items, self.ending = read_items_answer(answer)
            self._start += len(items)
            if items:
                return items
        return []

    def close(self) -> None:
        """Ends the stream."""
        if self._line is not None:
            self._line.leave()
            self._line = None


class EndingStream(Protocol):
    """The endings of jobs, as each engine's clients have them."""

    def next(self, timeout_s: float | None) -> Operation[tuple[bytes, Ending | None]]:
        """The next ending. Raises ResultTimeout."""

    def close(self) -> None:
        """Ends the stream."""


def only_ending(endings: EndingStream, job_id: bytes, timeout_s: float | None) -> Operation[Ending]:
    """Waits for the end of the one job of a stream, and closes it.

    Raises:
        ResultTimeout: it did not end in time.
        JobNotFound: nothing is known of the job.
    """
    try:
        _, ending = yield from endings.next(timeout_s)
    except ResultTimeout:
        raise ResultTimeout(f"job {job_id.hex()} has not ended within {timeout_s:g} s; it goes on") from None
    finally:
        endings.close()
    if ending is None:
        raise JobNotFound.of(job_id)
    return ending
