"""The loop of a consumer with one slot: it takes batches of jobs and runs them until it is told to stop.

    broker --(multiprocessing queue: batches of numbered jobs)--> consumer --(socket: outcomes)--> broker
                       counters block: claimed, finished, valid_from      (pipe: all output)----> broker

Nothing here is shared with another consumer. A consumer ends with its broker.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import msgpack

from taskq.client import context
from taskq.client.app import TaskQ
from taskq.consumer.outbox import Outbox
from taskq.consumer.own_descriptors import OwnDescriptors
from taskq.consumer.own_output import OwnOutput
from taskq.consumer.runner import Runner
from taskq.consumer.signals import handle_signals, ignore, is_forked_child
from taskq.consumer.streams import flush_output
from taskq.model.attempt import Verdict
from taskq.model.limits import MAX_FRAME_BYTES
from taskq.protocol.link.boot import STOP, TIMEOUT_SIGNAL, Boot
from taskq.protocol.link.flight_recorder import FlightRecorder
from taskq.protocol.ops import NO_START_OPTIONS, StartOptions
from taskq.system.directory import Directory

#: What takes no longer than that has hardly opened a file: whether it has closed one of ours is looked up later, with
#: the next job that took longer, or when something is sent. The look takes 0.8 microseconds.
_QUICK_S = 20e-6


#: Native output is heard by the broker before the next job starts, so that it is told with the right job. The wait for
#: that is bounded, should the broker be busy.
_OUTPUT_WAIT_S = 0.25


class _Stop(BaseException):
    """Interrupts the wait for a batch."""


class Consumer:
    """The loop: receive a batch, claim and run its jobs, report."""

    def __init__(self, boot: Boot, app: TaskQ, outbox: Outbox, own: OwnDescriptors, output: OwnOutput) -> None:
        self._inbox = boot.inbox
        self._own = own
        self._output = output
        self._counters = boot.counters
        self._recorder = FlightRecorder(Directory(boot.directory).running, boot.record)
        self._runner = Runner(app, outbox.add_item, self._check_time)
        self._outbox = outbox
        self._number = 0  # of the job that runs
        self._is_waiting = False
        self._is_stopping: bool = False  # set by a signal handler
        self._app_name = app.name
        self._schedules = app.schedules.declared

    def run(self) -> None:
        """Runs jobs until the broker says stop, or SIGTERM does (after the running job)."""
        handle_signals(
            {
                signal.SIGINT: ignore,  # not SIG_IGN, which the programs that jobs run would inherit
                signal.SIGHUP: ignore,
                signal.SIGTERM: self._on_stop,
                TIMEOUT_SIGNAL: self._on_timeout,
            }
        )
        threading.Thread(target=self._outbox.report_late, name="taskq-report", daemon=True).start()
        self._outbox.announce(self._app_name, self._schedules)
        while not self._is_stopping:
            batch = self._next_batch()
            if batch == STOP:
                return
            number, jobs = msgpack.unpackb(batch, max_bin_len=MAX_FRAME_BYTES)
            if not jobs:
                self._outbox.answer()
            self._run_batch(number, jobs)

    def _run_batch(self, number: int, jobs: list[Any]) -> None:
        for job in jobs:
            if self._is_stopping:
                return
            self._run_job(number, *job)
            number += 1

    def _next_batch(self) -> bytes:
        self._own.end_if_lost()
        if self._inbox.empty():
            self._outbox.report()
        try:
            self._is_waiting = True
            if self._is_stopping:
                return STOP
            batch = self._inbox.get()
            self._own.end_if_lost()  # a thread that a job has left may have done it meanwhile: no job is to blame
            return batch
        except _Stop:
            return STOP
        except EOFError:  # the broker is gone
            self._own.end_if_lost()  # or this was not its end
            return STOP
        finally:
            self._is_waiting = False

    def _run_job(
        self,
        number: int,
        job_id: bytes,
        task: str,
        attempt: int,
        payload: bytes,
        extra: StartOptions = NO_START_OPTIONS,
    ) -> None:
        if self._counters.claim(number) is None:
            return  # taken back: another consumer has it
        self._recorder.started(job_id, attempt)
        self._number = number
        verdict, duration_s, outcome = self._runner.run(job_id, task, attempt, payload, extra)
        if is_forked_child():
            os._exit(0)  # the job forked, and this is the child, which is not a consumer
        if duration_s > _QUICK_S:
            self._own.end_if_lost()  # then our end is charged to this job
            self._output.put_back()
        flush_output()
        if self._output.is_unread():
            self._wait_until_output_is_heard()
        if context.children:
            self._send_children(number, verdict)
        # in this order: an attempt is noted as finished when its outcome outlives us, so it ends once or is charged
        self._outbox.add(number, verdict, duration_s, outcome, time.monotonic())
        self._number = 0
        self._counters.finish(number, duration_s)
        self._recorder.idle()

    def _send_children(self, number: int, verdict: Verdict) -> None:
        """Hands over what the job has enqueued for the case that it succeeds."""
        children = context.children.copy()
        context.children.clear()
        if verdict == Verdict.SUCCEEDED:
            self._outbox.add_children(number, children)

    def _wait_until_output_is_heard(self) -> None:
        self._output.put_back()  # if a job that took no time has replaced it, the broker does not read that
        give_up_at = time.monotonic() + _OUTPUT_WAIT_S
        while self._output.is_unread() and time.monotonic() < give_up_at:
            time.sleep(0.0002)

    def _on_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_stopping = True
        if self._is_waiting:
            raise _Stop

    def _check_time(self) -> None:
        """Makes up for a signal that came while no code of the job ran."""
        if self._counters.is_overdue(self._number):
            raise context.timeout_error(self._counters.reason())

    def _on_timeout(self, _signal: int, _frame: FrameType | None) -> None:
        if self._runner.is_in_job and self._counters.is_overdue(self._number):
            context.interrupt(context.timeout_error(self._counters.reason()))
