"""The items that a job yields, for one who reads them: brokers tell of them as of its end.

Items are numbered, and what has once been stored under a number never changes: a reader goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from taskq.client.transport.postgres.endings import ending_in, pauses_s
from taskq.client.transport.postgres.verbs import Ear, Hear, Listen, Run
from taskq.client.transport.verbs import Operation
from taskq.model.errors import BrokerUnavailable, ResultTimeout
from taskq.protocol.endings import Ending
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.watching import look, watch
from taskq.system.clock import SHORTEST_WAIT_S, Clock, Deadline

#: Items in one answer, in number and in bytes (one at least).
_MOST_ITEMS = 1_000
_MOST_BYTES = 1 << 20
_ITEMS = """
    SELECT position, item FROM (
        SELECT position, item, sum(octet_length(item)) OVER (ORDER BY position) - octet_length(item) AS before FROM (
            SELECT position, item FROM taskq.items WHERE id = $1 AND position >= $2 ORDER BY position LIMIT $3) AS next
    ) AS measured WHERE before < $4 ORDER BY position"""


class Items:
    """A stream of the items of a job: a `taskq.client.transport.api.ItemStream`."""

    def __init__(self, clock: Clock, job_id: bytes, start: int, timeout_s: float | None) -> None:
        """
        Args:
            start: the number of the first item.
            timeout_s: wait for the next item for at most this many seconds.
        """
        self._clock = clock
        self._job_id = job_id
        self._start = start
        self._timeout_s = timeout_s
        self._ear: Ear | None = None
        self.ending: Ending | None = None  #: How the job ended; there are no more items.

    def next(self) -> Operation[Sequence[bytes]]:
        """The next items; none when the job has ended.

        Raises:
            ResultTimeout: the next one did not come in time.
            JobNotFound: nothing is known of the job.
        """
        timeout_s = self._timeout_s
        deadline = Deadline(None if timeout_s is None else max(SHORTEST_WAIT_S, timeout_s), self._clock)
        pauses = pauses_s()
        while self.ending is None:
            try:
                if self._ear is None:
                    self._ear = yield Listen({self._job_id: None}, deadline.wait_s())
                read = partial(_watched_items, self._job_id, self._start, self._ear.client)
                items, ended = yield Run(read, deadline.wait_s())
            except BrokerUnavailable:
                if not deadline.is_over:
                    raise  # it refuses
                items, ended = [], []
            if items:
                self._start += len(items)
                return list(items)
            if ended:
                self.ending = ending_in(self._job_id, ended)
                break
            if deadline.is_over:
                told = f"job {self._job_id.hex()} has not yielded item {self._start} within {timeout_s:g} s"
                raise ResultTimeout(f"{told}; it goes on")
            left_s, pause_s = deadline.left_s(), next(pauses)
            if self._ear is not None:
                heard = yield Hear(self._ear, pause_s if left_s is None else min(left_s, pause_s))
                if heard is None:
                    self.close()
        return []

    def close(self) -> None:
        """Ends the stream."""
        if self._ear is not None:
            self._ear.close()
            self._ear = None


def _watched_items(job_id: bytes, start: int, client: int) -> Plan[tuple[list[bytes], Rows]]:
    """Watches a job, and then reads its next items; and its end, if it has ended and there are none."""
    query = Query(_ITEMS, (UUID(bytes=bytes(job_id)), start, _MOST_ITEMS, _MOST_BYTES))
    rows: list[Any] = yield Step(watch([job_id], client), after=(look([job_id]), query))
    return [bytes(item) for _, item in rows[2]], rows[1]
