"""The jobs that a consumer holds: each is claimed, run by the executor, noted and finished.

    broker --(multiprocessing queue: batches of numbered jobs)--> consumer --(socket: outcomes)--> broker
                       counters block: claimed, finished, valid_from      (pipe: all output)----> broker

Nothing here is shared with another consumer. A consumer ends with its broker.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from taskq.client.context import RunningJob, this_process
from taskq.consumer.outbox import Outbox
from taskq.consumer.own_descriptors import OwnDescriptors
from taskq.consumer.own_output import OwnOutput
from taskq.consumer.runner import Ended
from taskq.model.attempt import Verdict
from taskq.model.errors import JobTimeout
from taskq.protocol.link.batch import read_batch
from taskq.protocol.link.boot import Boot
from taskq.protocol.link.flight_recorder import FlightRecorder

#: A job that took no longer than this has hardly opened a file. Whether it has closed one of ours is checked later:
#: after the next job that took longer, or when something is sent. The check takes 0.8 microseconds.
_QUICK_S = 20e-6
#: A job that took no longer than this has written nothing but by Python's streams, which note it: a write that wakes
#: the broker takes that long alone. The system is asked after longer jobs only; that takes half a microsecond.
_SILENT_S = 3e-6

JobT = TypeVar("JobT", bound=RunningJob)


class Leases:
    """The jobs that the broker has leased to this process: those that wait for a slot, and those that run in one.

    How a job runs, and where, is up to the executor. It calls `note` in any thread, and everything else in one thread
    at a time.
    """

    def __init__(self, boot: Boot, outbox: Outbox, own: OwnDescriptors, output: OwnOutput) -> None:
        self._outbox = outbox
        self._own = own
        self._output = output
        self._counters = boot.counters
        self._recorder = FlightRecorder(boot.place.directory.running, boot.record, boot.slots, boot.number)
        self._free = list(range(boot.slots))
        self._waiting: deque[tuple[int, list[Any]]] = deque()  # sent to this process, not claimed yet
        self.is_stopping = False  # set by the executor, in a signal handler: no more jobs begin

    def take(self, batch: bytes) -> None:
        """Takes a batch of jobs. They are numbered in a row, and the batch says with which number it begins."""
        number, jobs = read_batch(batch)
        if not jobs:
            self._outbox.answer()
        self._waiting.extend(enumerate(jobs, number))

    def claim(self, new_job: Callable[..., JobT]) -> Iterator[JobT]:
        """Claims the jobs that wait, in their order, as long as a slot is free: each when the caller asks for the next.

        Args:
            new_job: makes the object of a job: called with its number, when it was claimed, and what was sent of it.
        """
        claim = self._counters.claim
        while self._waiting and self._free and not self.is_stopping:
            number, sent = self._waiting.popleft()
            slot = self._free[-1]
            started_at = claim(number, slot)
            if started_at is None:
                continue  # taken back: another consumer has it
            self._free.pop()
            job = new_job(number, started_at, *sent)
            job.slot = slot
            self._recorder.started(job.id, job.attempt, slot)
            yield job

    def note(self, job: RunningJob, ended: Ended) -> None:
        """Puts the outcome of a job where it outlives this process."""
        if this_process.was_forked:
            os._exit(0)  # the job forked, and this is the child: it is not a consumer
        job.is_over = True
        if job.current is not None:
            job.end()
        verdict, duration_s, outcome = ended
        if duration_s > _QUICK_S:
            self._own.end_if_lost()  # then this job is charged with our end, and so are those beside it
            self._output.put_back()
        self._output.end_job(job, duration_s > _SILENT_S)
        if job.children and verdict == Verdict.SUCCEEDED:
            self._outbox.add_children(job.number, job.children)
        self._outbox.add(job.number, verdict, duration_s, outcome, job.started_at + duration_s)

    def finish(self, job: RunningJob, ended: Ended) -> None:
        """Frees the slot of a job whose outcome is noted. In this order, so that each attempt either has an outcome or
        is charged with the death of this process."""
        self._counters.finish(job.number, ended[1], job.slot)
        self._recorder.idle(job.slot)
        self._free.append(job.slot)

    @property
    def has_waiting(self) -> bool:
        """Whether jobs wait for a slot."""
        return bool(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no job runs."""
        return len(self._free) == self._counters.slots

    def timeout_of(self, job: RunningJob) -> JobTimeout | None:
        """The exception to raise in a job, if the broker has said that it is to end."""
        if not self._counters.is_overdue(job.number, job.slot):
            return None
        return job.timeout_error(self._counters.reason(job.slot))
