"""The child side: a process that imports the application and runs jobs until it is told to stop.

    broker --(multiprocessing queue: batches of numbered jobs)--> consumer --(socket: outcomes)--> broker
                       counters block: claimed, finished, valid_from      (pipe: all output)----> broker

Nothing here is shared with another consumer. It lives and dies with its broker.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import msgpack

from taskq import context, descriptors
from taskq.app import TaskQ
from taskq.config import Directory
from taskq.consumer_process import STACKS_SIGNAL, STOP, TIMEOUT_SIGNAL, Boot
from taskq.context import write_record
from taskq.counters import FlightRecorder
from taskq.errors import AppError
from taskq.hooks import StartFailed
from taskq.limits import MAX_FRAME_BYTES
from taskq.loader import IN_CONSUMER, load_app
from taskq.locks import hold_consumer_lock
from taskq.model import JobError
from taskq.outbox import Outbox
from taskq.outcome import Verdict, pack_failure
from taskq.own_descriptors import OwnDescriptors
from taskq.platform import die_with_parent, is_unread, name_process
from taskq.runner import Runner
from taskq.streams import flush_output, mark_output, open_output
from taskq.wire import NO_EXTRA, Extra, Op

#: What takes no longer than that has hardly opened a file: whether it has closed one of ours is looked up later, with
#: the next job that took longer, or when something is sent. The look takes 0.8 microseconds.
_QUICK_S = 20e-6
#: Native output is heard by the broker before the next job starts, so that it is told with the right job. The wait for
#: that is bounded, should the broker be busy.
_OUTPUT_WAIT_S = 0.25
_is_forked_child = False  # set in what a job forks


def run(boot: Boot) -> None:
    """Runs a consumer, to its end."""
    live_and_die_with_the_broker(boot)
    descriptors.restore(boot.open_files)
    send_output_to(boot.output)
    if boot.seats > 1:
        mark_output()
    name_process(boot.title)
    reader = boot.inbox._reader.fileno()  # type: ignore[attr-defined]
    own = OwnDescriptors(
        {boot.socket.fileno(): "the consumer's way to its broker", reader: "the way of jobs to their consumer"}
    )
    outbox = Outbox(boot.socket, boot.unsent, own.end_if_lost)
    os.environ[IN_CONSUMER] = str(os.getpid())
    try:
        app = load_app(boot.app)
        app.use_directory(Directory(boot.directory))
        log_to_output_unless_the_application_does()
        app.hooks.run_starts()
    except BaseException as error:
        message = str(error) if isinstance(error, (AppError, StartFailed)) else f"{type(error).__name__}: {error}"
        told = JobError(type(error).__name__, message, "" if isinstance(error, AppError) else traceback.format_exc())
        outbox.send([Op.BOOT_FAILED], [pack_failure(None, None, told)])
        flush_output()
        os._exit(1)
    gc.freeze()  # what was imported stays: the collector need not look at it again
    gc.enable()
    context.use_channel(outbox)
    if boot.seats > 1:
        from taskq.seats import SeatedConsumer  # imports asyncio, which takes 40-70 ms

        SeatedConsumer(boot, app, outbox, own).run()
    else:
        Consumer(boot, app, outbox, own).run()
    outbox.report()
    app.hooks.run_stops()
    flush_output()


def live_and_die_with_the_broker(boot: Boot) -> None:
    """Ties this process to its broker and cuts it off from everything else that it inherited."""
    os.setpgid(0, 0)  # Ctrl-C in a terminal is not for us, and a kill takes our children with us
    die_with_parent()
    if boot.parent_pid and os.getppid() != boot.parent_pid:
        os._exit(1)  # the broker died before we asked
    boot.inbox._writer.close()  # type: ignore[attr-defined]  # else our own end keeps the queue from ending with the broker
    lock = hold_consumer_lock(Directory(boot.directory).consumers_lock)

    def forget_in_child() -> None:
        global _is_forked_child  # noqa: PLW0603
        _is_forked_child = True
        faulthandler.unregister(STACKS_SIGNAL)
        context.forget_children()
        # what a job forks must not speak for this consumer, nor keep its lock
        for descriptor in (boot.socket.fileno(), lock):
            try:
                os.close(descriptor)
            except OSError:
                pass

    os.register_at_fork(after_in_child=forget_in_child)


_Handler = Callable[[int, FrameType | None], None]


def handle_signals(handlers: dict[int, _Handler]) -> None:
    """Sets signal handlers for this process alone: what a job forks begins with the default ones, as elsewhere.
    (`multiprocessing.Pool` ends its workers with SIGTERM, and waits for their end.)

    A signal may reach a child before it has changed its handlers, and CPython forgets what arrives so early. So they
    are blocked around the fork, and arrive when the handlers are right.
    """
    for number, handler in handlers.items():
        signal.signal(number, handler)
    mask = threading.local()

    def before_fork() -> None:
        mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)

    def after_fork() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.before)

    def after_fork_in_child() -> None:
        for number, handler in handlers.items():
            if signal.getsignal(number) == handler:  # and not one of the job's own
                signal.signal(number, signal.SIG_DFL)
        after_fork()

    os.register_at_fork(before=before_fork, after_in_parent=after_fork, after_in_child=after_fork_in_child)


def ignore(_signal: int, _frame: FrameType | None) -> None:
    pass


def send_output_to(output: Connection) -> None:
    """Points this process's output, native output included, at the broker's pipe; input is empty."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.close(nothing)
    output.close()
    open_output()
    faulthandler.enable(file=2)
    faulthandler.register(STACKS_SIGNAL, file=2)


def log_to_output_unless_the_application_does() -> None:
    """Gives `logging` a way out, unless the application has set it up: level and logger stay fields of the event."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_RecordHandler())
        if root.level == logging.WARNING:
            root.setLevel(logging.INFO)


class _RecordHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, Any] = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                fields["traceback"] = logging.Formatter().formatException(record.exc_info)
            write_record(record.levelname.lower(), fields)
        except Exception:
            self.handleError(record)


def is_forked_child() -> bool:
    """Whether this process is what a job has forked, and no consumer."""
    return _is_forked_child


class _Stop(BaseException):
    """Interrupts the wait for a batch."""


class Consumer:
    """The loop: receive a batch, claim and run its jobs, report."""

    def __init__(self, boot: Boot, app: TaskQ, outbox: Outbox, own: OwnDescriptors) -> None:
        self._inbox = boot.inbox
        self._own = own
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
        self, number: int, job_id: bytes, task: str, attempt: int, payload: bytes, extra: Extra = NO_EXTRA
    ) -> None:
        if self._counters.claim(number) is None:
            return  # taken back: another consumer has it
        self._recorder.started(job_id, attempt)
        self._number = number
        verdict, duration_s, outcome = self._runner.run(job_id, task, attempt, payload, extra)
        if _is_forked_child:
            os._exit(0)  # the job forked, and this is the child, which is no consumer
        if duration_s > _QUICK_S:
            self._own.end_if_lost()  # then our end is charged to this job
        flush_output()
        if is_unread(1):
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
        give_up_at = time.monotonic() + _OUTPUT_WAIT_S
        while is_unread(1) and time.monotonic() < give_up_at:
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
