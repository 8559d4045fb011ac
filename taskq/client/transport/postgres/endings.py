"""The endings of jobs, for one who waits: brokers tell of them, and the client looks by itself now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from taskq.client.transport.postgres.verbs import Ear, Hear, Listen, Run
from taskq.client.transport.verbs import Operation
from taskq.model.errors import BrokerUnavailable, JobNotFound, ResultTimeout
from taskq.model.spec import Spec
from taskq.protocol.endings import Ending
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.watching import ending_of, look, watch
from taskq.protocol.submissions import Call
from taskq.system.clock import Clock, Deadline

#: A notification may be lost: whoever waits looks by itself after these pauses, the last one again and again.
_LOOK_AFTER_S = (2.0, 4.0, 8.0, 15.0, 30.0)
#: Jobs in one statement.
_MOST_IDS = 5_000


class Endings:
    """A stream of the endings of jobs: a `taskq.client.transport.api.EndingStream`."""

    def __init__(
        self,
        clock: Clock,
        ids: Iterable[bytes],
        submit: Callable[[Spec, Sequence[Call], Query], Operation[list[bytes]]],
    ) -> None:
        """
        Args:
            submit: submits jobs of one statement, and does something else with it.
        """
        self._clock = clock
        self._submit = submit
        self._ear: Ear | None = None
        self._is_watched = False  # all that wait, in the database
        self._arrived: deque[tuple[bytes, Ending | None]] = deque()
        self._pauses = pauses_s()
        self.waiting: dict[bytes, None] = dict.fromkeys(ids)  #: The jobs whose ending was not returned yet, in order.

    def submit(self, spec: Spec, chunk: Sequence[Call]) -> Operation[None]:
        """Submits jobs and watches them."""
        ids = [call.id for call in chunk]
        if self._ear is None:
            self._ear = yield Listen(self.waiting, -1.0)
        yield from self._submit(spec, chunk, watch(ids, self._ear.client))
        self._is_watched = self._is_watched or not self.waiting
        self.waiting.update(dict.fromkeys(ids))

    def next(self, timeout_s: float | None) -> Operation[tuple[bytes, Ending | None]]:
        """The next job that ended, and how; None for one that nothing is known of.

        Raises:
            ResultTimeout: none ended in time.
        """
        deadline = Deadline(timeout_s, self._clock)
        while True:
            while self._arrived:
                job_id, ending = self._arrived.popleft()
                if job_id in self.waiting:  # else it came twice
                    del self.waiting[job_id]
                    return job_id, ending
            try:
                is_over = not (yield from self._more(deadline))
            except BrokerUnavailable:
                if not deadline.is_over:
                    raise  # it refuses
                is_over = True
            if is_over:
                raise ResultTimeout(f"nothing ended within {timeout_s} s")

    def _more(self, deadline: Deadline) -> Operation[bool]:
        """Takes in further endings, if there are any. Returns False if there is no time left to wait for them."""
        if self._ear is None:
            self._ear = yield Listen(self.waiting, deadline.wait_s())
        if not self._is_watched:
            ids = list(self.waiting)
            for start in range(0, len(ids), _MOST_IDS):
                portion = ids[start : start + _MOST_IDS]
                self._take((yield Run(partial(_watched, portion, self._ear.client), deadline.wait_s())))
            self._is_watched = True
            return True
        left_s, pause_s = deadline.left_s(), next(self._pauses)
        heard = yield Hear(self._ear, pause_s if left_s is None else min(left_s, pause_s))
        if heard:
            self._pauses = pauses_s()
            self._take([word for word in heard if word.state is not None])
            if perhaps := [word.id for word in heard if word.state is None]:
                self._take((yield Run(partial(_looked_at, perhaps), deadline.wait_s())))
            return True
        if heard is None:
            self.close()
        self._is_watched = False
        return not deadline.is_over

    def _take(self, rows: Rows) -> None:
        self._arrived.extend(map(ending_of, rows))

    def arrived(self) -> list[tuple[bytes, Ending | None]]:
        """The further endings that have come already."""
        found = [(job_id, ending) for job_id, ending in dict(self._arrived).items() if job_id in self.waiting]
        self._arrived.clear()
        for job_id, _ in found:
            self.waiting.pop(job_id, None)
        return found

    def close(self) -> None:
        """Ends the stream."""
        if self._ear is not None:
            self._ear.close()
            self._ear = None


def pauses_s() -> Iterator[float]:
    """After how many seconds whoever waits looks by itself."""
    yield from _LOOK_AFTER_S
    while True:
        yield _LOOK_AFTER_S[-1]


def ending_in(job_id: bytes, rows: Rows) -> Ending:
    """The end of a job in what `look` has found. Raises JobNotFound: nothing is known of it."""
    _, ending = ending_of(rows[0])
    if ending is None:
        raise JobNotFound.of(job_id)
    return ending


def _watched(ids: Sequence[bytes], client: int) -> Plan[Rows]:
    """Watches jobs, and then looks at them."""
    _, ended = yield Step(watch(ids, client), after=(look(ids),))
    return ended


def _looked_at(ids: Sequence[bytes]) -> Plan[Any]:
    [ended] = yield Step(look(ids), commits=True)
    return ended
