"""The consumer process: cut off from what it inherited, tied to its broker, with the application imported."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Protocol

from taskq.client import context
from taskq.client.app import TaskQ
from taskq.client.context import write_record
from taskq.client.hooks import StartFailed
from taskq.client.loader import load_app
from taskq.consumer.leases import Leases
from taskq.consumer.main_thread import MainThread
from taskq.consumer.outbox import Outbox
from taskq.consumer.own_descriptors import OwnDescriptors
from taskq.consumer.own_output import MarkedOutput, OwnOutput
from taskq.consumer.runner import Runner
from taskq.consumer.signals import handle_signals, ignore
from taskq.consumer.streams import flush_output, open_output
from taskq.model.errors import AppError
from taskq.model.job import JobError
from taskq.protocol.link.boot import IN_CONSUMER, STACKS_SIGNAL, TIMEOUT_SIGNAL, Boot
from taskq.protocol.link.inbox import InboxReader
from taskq.protocol.link.reports import boot_failed_frame
from taskq.system import descriptors
from taskq.system.locks import hold_consumer_lock
from taskq.system.platform import die_with_parent, name_process
from taskq.system.spawn.helper import name_locks_as_usual


class Executor(Protocol):
    """What has the main thread of the consumer, where batches arrive and signals are handled. It claims jobs from the
    consumer's `Leases`, runs them, and hands back what became of each of them."""

    def run(self) -> None:
        """Takes batches and runs their jobs until no more will come and the last job has ended."""

    def stop(self) -> None:
        """Called by a signal handler: no more jobs begin, and `run` returns when the running ones have ended."""

    def interrupt_overdue(self) -> None:
        """Called by a signal handler: a job is to end, for its time or because it was cancelled."""


def run(boot: Boot) -> None:
    """Runs a consumer, to its end."""
    live_and_die_with_the_broker(boot)
    descriptors.restore(boot.open_files)
    send_output_to(boot.output)
    name_process(boot.title)
    inbox = InboxReader(boot.inbox)
    own = OwnDescriptors(
        {boot.socket.fileno(): "the consumer's way to its broker", inbox.fileno(): "the way of jobs to their consumer"}
    )
    outbox = Outbox(boot.socket, boot.unsent, own.end_if_lost)
    output = OwnOutput() if boot.slots == 1 else MarkedOutput()
    os.environ[IN_CONSUMER] = str(os.getpid())
    try:
        app = load_app(boot.app)
        app.use_place(boot.place)
        app.payloads.syncs = boot.syncs_files
        with logging_of_the_application():
            app.hooks.run_starts()
        output.keep_as_it_is()
    except BaseException as error:
        message = str(error) if isinstance(error, (AppError, StartFailed)) else f"{type(error).__name__}: {error}"
        told = JobError(type(error).__name__, message, "" if isinstance(error, AppError) else traceback.format_exc())
        outbox.send(boot_failed_frame(told))
        flush_output()
        os._exit(1)
    gc.freeze()  # what was imported stays: the collector need not look at it again
    gc.enable()
    context.use_channel(outbox)
    executor = _executor(Leases(boot, outbox, own, output), boot, inbox, app, outbox, own)
    _obey_signals(executor)
    threading.Thread(target=outbox.report_late, name="taskq-report", daemon=True).start()
    outbox.announce(app.name, app.schedules.declared, app.tasks)
    executor.run()
    outbox.report()
    app.hooks.run_stops()
    flush_output()


def _executor(
    leases: Leases, boot: Boot, inbox: InboxReader, app: TaskQ, outbox: Outbox, own: OwnDescriptors
) -> Executor:
    number = boot.number
    if boot.slots == 1:
        return MainThread(leases, inbox, Runner(app, outbox.add_item, number), outbox, own)
    from taskq.consumer.event_loop import EventLoop  # imports asyncio, which takes 40-70 ms

    return EventLoop(leases, inbox, app, outbox, own, number)


def _obey_signals(executor: Executor) -> None:
    handle_signals(
        {
            signal.SIGINT: ignore,  # not SIG_IGN, which the programs that jobs run would inherit
            signal.SIGHUP: ignore,
            signal.SIGTERM: lambda _signal, _frame: executor.stop(),
            TIMEOUT_SIGNAL: lambda _signal, _frame: executor.interrupt_overdue(),
        }
    )


def live_and_die_with_the_broker(boot: Boot) -> None:
    """Ties this process to its broker and cuts it off from everything else that it inherited."""
    os.setpgid(0, 0)  # Ctrl-C in a terminal is not for us, and a kill takes our children with us
    die_with_parent()
    if boot.parent_pid and os.getppid() != boot.parent_pid:
        os._exit(1)  # the broker died before we asked
    name_locks_as_usual()
    boot.inbox._writer.close()  # type: ignore[attr-defined]  # else our own end keeps the queue from ending with the broker
    lock = hold_consumer_lock(boot.place.directory.consumers_lock)

    def forget_in_child() -> None:
        faulthandler.unregister(STACKS_SIGNAL)
        context.this_process.was_forked = True
        # what a job forks must not speak for this consumer, nor keep its lock
        for descriptor in (boot.socket.fileno(), lock):
            try:
                os.close(descriptor)
            except OSError:
                pass

    os.register_at_fork(after_in_child=forget_in_child)


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


# -- what the application logs


@contextmanager
def logging_of_the_application() -> Iterator[None]:
    """Gives the root logger a handler, unless the application does, in its code or in the functions for the start of a
    consumer, which run inside the block."""
    records = _RecordHandler()
    standard = logging.lastResort
    logging.lastResort = records  # not a handler of the root yet: basicConfig would do nothing then
    try:
        if not logging.root.handlers and logging.root.level == logging.WARNING:
            _keep_levels()
            logging.root.setLevel(logging.INFO)
        yield
    finally:
        logging.lastResort = standard
    if not logging.root.handlers:
        logging.root.addHandler(records)


def _keep_levels() -> None:
    """Keeps the level of loggers that have handlers and take their level from the root."""
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.handlers and logger.level == logging.NOTSET:
            is_of_the_root = logger.getEffectiveLevel() == logging.WARNING
            if is_of_the_root and any(not isinstance(each, logging.NullHandler) for each in logger.handlers):
                logger.setLevel(logging.WARNING)


class _RecordHandler(logging.Handler):
    """Writes records as events: their level, logger and traceback stay fields."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, unless a handler of its logger has printed it already."""
        try:
            if _is_printed(record):
                return
            fields = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                fields["traceback"] = logging.Formatter().formatException(record.exc_info)
            write_record(record.levelname.lower(), fields)
        except Exception:
            self.handleError(record)


def _is_printed(record: logging.LogRecord) -> bool:
    """Whether a handler of the application writes a record to this process's output, from where it reaches the log."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger is not logging.root:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and record.levelno >= handler.level:
                try:
                    # Django's own handler takes nothing in production: its filter says so
                    if handler.stream.fileno() in (1, 2) and handler.filter(record):
                        return True
                except (AttributeError, OSError, ValueError):
                    continue  # a stream of the application that is no file, or is closed
        logger = logger.parent if logger.propagate else None
    return False
