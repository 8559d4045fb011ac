"""Spawns, watches and buries consumers. Part of the broker process, which is their parent.

A `ConsumerProcess` is one process and everything that the broker shares with it alone: a queue, a counters block, a
socket, a pipe for its output. When the process ends, all of it is thrown away; the successor gets a new set. The order
of a burial matters: first read what the process has still sent, then see how it ended, then close the ends.

`taskq.broker.consumers.succession` decides when a consumer is started, and which one it replaces.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
from contextlib import ExitStack
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.consumers.succession import ProcessState, Start, Succession
from taskq.broker.core.core import MAX_BATCH_BYTES
from taskq.broker.core.earliest import Earliest
from taskq.model.effects import ProcessExit
from taskq.model.errors import DirectoryError
from taskq.model.settings import Settings
from taskq.protocol.link.boot import STOP, Boot, main
from taskq.protocol.link.counters import Counters, widen_flight_records
from taskq.protocol.link.flight_recorder import clear_flight_record, clear_flight_records
from taskq.protocol.link.inbox import Inbox
from taskq.protocol.link.unsent import Unsent
from taskq.system import descriptors
from taskq.system.place import Place
from taskq.system.platform import kill_group, name_of_signal, oom_kills, open_pidfd
from taskq.system.spawn.forkservers import ForkServers
from taskq.system.spawn.helper import Helper

#: The module that a consumer process runs. The broker never imports it, and so starts 25 ms earlier.
_CONSUMER = "taskq.consumer.process"
#: A consumer must have imported the application within this time.
BOOT_TIMEOUT_S = 120.0


#: A consumer that was told to stop must end within this time after its last job, or is killed.
_EXIT_TIMEOUT_S = 5.0

#: Errors that only a change of the set-up will repair.
_LASTING = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSYS})
#: Errors of the system without a path that concern the folder of shared memory.
_OF_SHARED_MEMORY = _LASTING | {errno.ENOSPC, errno.EDQUOT}
_SHARED_MEMORY = "/dev/shm"


class Supervisor(Succession[ConsumerProcess]):
    """Keeps the wanted number of consumers alive: starts, replaces and kills them."""

    def __init__(self, app: str, title: str, place: Place, settings: Settings) -> None:
        super().__init__(settings.consumers)
        self._app = app
        self._title = title
        self._place = place
        self._directory = directory = place.directory
        self._settings = settings
        self._servers: ForkServers | None = None
        self._context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
        if settings.preload:
            self._context = multiprocessing.get_context("forkserver")
            self._servers = ForkServers(self._context, app, BOOT_TIMEOUT_S)
        self.helper = Helper(directory.path)
        self._keys = count(1)
        self._has_started = False  # any consumer
        self._next_kill = Earliest(self._kill_moments)
        self.not_startable: list[tuple[int, str]] = []  # numbers of consumers without a process, and why
        self._oom_kills = oom_kills()
        # twice the room: while a consumer is replaced, two have its number
        clear_flight_records(directory.running, 2 * settings.consumers, settings.threads)

    # -- starting

    def look_after_servers(self, now: float) -> str | None:
        """With `--preload`, keeps a process from which consumers are forked. If it died, returns how, once."""
        return None if self._servers is None or self._is_stopping else self._servers.look_after(self.code, now)

    def start_due(self, now: float) -> ConsumerProcess | None:
        """Starts the next consumer whose time has come, and returns it: one in a turn of the loop, as it takes up to
        7 ms. One that could not be started is tried again later, and is in `not_startable` until somebody takes it
        from there.

        Raises:
            DirectoryError: the first one of the fleet could not be started, for a reason that lasts.
        """
        if self._servers is not None and self._servers.code is None:
            return None
        start = self.due(now)
        if start is None:
            return None
        if self._servers is not None and not self._servers.can_fork(now):
            self.not_started(start, now)
            return None
        try:
            consumer = self._spawn(start, now)
        except (OSError, EOFError) as error:
            self._not_started_for(start, error, now)
            return None
        self._next_kill.bring_forward(consumer.kill_at)
        return consumer

    def _not_started_for(self, start: Start, error: OSError | EOFError, now: float) -> None:
        """Notes why a consumer could not be started. Whatever is missing, all of them lack it, so no consumer that runs
        a job should die for it."""
        if self._servers is not None and isinstance(error, (EOFError, ConnectionError)):
            self.not_started(start, now)  # the fork server has just died, which is reported by itself
            return
        self.not_started(start, now, is_failure=True)
        told = _start_error_text(error)
        if isinstance(error, OSError) and error.errno in _LASTING and not self._has_started:
            raise DirectoryError(told) from error
        self.not_startable.append((start.number, told))

    def _spawn(self, start: Start, now: float) -> ConsumerProcess:
        number = start.number
        with ExitStack() as on_error, ExitStack() as handed_over:
            ours, theirs = socket.socketpair()
            on_error.callback(ours.close)
            handed_over.callback(theirs.close)
            output_reader, output_writer = self._context.Pipe(duplex=False)
            on_error.callback(output_reader.close)
            handed_over.callback(output_writer.close)
            inbox = Inbox(self._context, MAX_BATCH_BYTES)
            on_error.callback(inbox.close)
            handed_over.callback(inbox.handed_over)
            counters = Counters(self._context, self._settings.threads)
            unsent = Unsent(self._context)
            record = self._free_record()
            widen_flight_records(self._directory.running, record, self._settings.threads)
            boot = Boot(
                program=_CONSUMER,
                app=self._app,
                place=self._place,
                title=f"consumer {number} [{self._title}]",
                number=number,
                record=record,
                slots=self._settings.threads,
                syncs_files=self._settings.durability == "power",
                parent_pid=0 if self._settings.preload else os.getpid(),
                counters=counters,
                inbox=inbox.queue,
                socket=theirs,
                unsent=unsent,
                output=output_writer,
                open_files=descriptors.given(),
            )
            process, pid, pidfd = self._start_process(boot, number)
            on_error.pop_all()
        ours.setblocking(False)
        server = None if self._servers is None else self._servers.used()
        consumer = ConsumerProcess(
            next(self._keys),
            number,
            record,
            process,
            pid,
            inbox,
            counters,
            unsent,
            ours,
            _read_without_waiting(output_reader),
            pidfd,
            now,
            start.replaces,
            self.code if server is None else server.code,
            server=server,
        )
        consumer.kill_at = now + BOOT_TIMEOUT_S
        self.consumers[consumer.key] = consumer
        self._has_started = True
        return consumer

    def _start_process(self, boot: Boot, number: int) -> tuple[Any, int, int | None]:
        """Returns the process of a consumer, its pid, and its pidfd where the system has one."""
        process = self._context.Process(target=main, args=(boot,), name=f"taskq-consumer-{number}", daemon=False)
        with self.helper.offered():
            process.start()
        pid = process.pid
        assert pid is not None
        try:
            return process, pid, open_pidfd(pid)
        except OSError:
            process.kill()
            process.join()
            raise

    def _free_record(self) -> int:
        taken = {consumer.record for consumer in self.consumers.values()}
        return next(record for record in count() if record not in taken)

    def ready(self, consumer: ConsumerProcess) -> ConsumerProcess | None:
        """Notes that a consumer has imported the application. Returns the one that it replaces, which the caller
        retires now."""
        consumer.kill_at = None
        consumer.inbox.opened()
        consumer.counters.opened()
        if self._servers is not None and consumer.server is not None:
            self._servers.proven(consumer.server)
        return super().ready(consumer)

    def boot_failed(self, code: int, error: str) -> bool:
        """As `Succession.boot_failed`. With `--preload`, consumers that are started later run the old code, too."""
        ends_reload = super().boot_failed(code, error)
        if ends_reload and self._servers is not None:
            self._servers.go_back()
        return ends_reload

    # -- ending

    def reload(self) -> list[ConsumerProcess]:
        """Has all consumers replaced, one by one, by ones that run the present code. Returns those that it kills: they
        were starting with the previous code."""
        superseded = super().reload()
        if self._servers is not None:
            self._servers.renew(self.code)
        for consumer in superseded:
            consumer.is_stopped = True
            consumer.kill("there is newer code")
        return superseded

    def retire(self, consumer: ConsumerProcess) -> bool:
        """Tells a consumer to stop after what it is running; all other jobs were taken back before. Returns the same as
        `ConsumerProcess.send`."""
        consumer.state = ProcessState.RETIRING
        return consumer.inbox.put(STOP)

    def expect_exit(self, consumer: ConsumerProcess, now: float) -> None:
        """Notes that a retiring consumer has no job any more: it must end soon."""
        if consumer.kill_at is None:
            consumer.kill_at = now + _EXIT_TIMEOUT_S
            self._next_kill.bring_forward(consumer.kill_at)

    def _kill_moments(self) -> list[float | None]:
        return [consumer.kill_at for consumer in self.consumers.values()]

    def kill_overdue(self, now: float) -> list[ConsumerProcess]:
        """Kills the consumers that did not come up or did not end in time; returns them."""
        if not self._next_kill.is_due(now):
            return []
        overdue = [
            consumer for consumer in self.consumers.values() if consumer.kill_at is not None and consumer.kill_at <= now
        ]
        for consumer in overdue:
            consumer.kill_at = None
            consumer.is_stopped = True
            if consumer.state is ProcessState.STARTING:
                consumer.boot_error = f"it did not start within {BOOT_TIMEOUT_S:g} s", ""
            consumer.kill(consumer.boot_error[0] if consumer.boot_error else "it did not end in time")
        return overdue

    def bury(self, consumer: ConsumerProcess, now: float) -> ProcessExit:
        """Clears away what a dead consumer left, after everything that it sent was read. Plans its successor."""
        code = self._clear_away(consumer)
        if consumer.server is not None and consumer.server.has_died() and consumer.timed_out is None:
            code, consumer.is_stopped = None, True  # the kernel killed it when its parent died
            consumer.killed_for = consumer.killed_for or f"the process that it was forked from {consumer.server.ending}"
        self.ended(consumer, now, did_jobs=consumer.counters.jobs_done > 0)
        stacks = consumer.stacks.take()
        return ProcessExit(
            exit_code=code if code is not None and code >= 0 else None,
            signal=name_of_signal(-code) if code is not None and code < 0 else None,
            output=(*(line for lines in consumer.last_lines.values() for line in lines), *stacks),
            writers=(*(number for number, lines in consumer.last_lines.items() for _ in lines), *(0 for _ in stacks)),
            timed_out=consumer.timed_out,
            over_limit=consumer.over_limit,
            out_of_memory=code == -signal.SIGKILL and self._has_memory_run_out(),
            stopped=consumer.is_stopped,
            at=now,
            why=consumer.killed_for,
            pid=consumer.pid,
            peak_bytes=consumer.peak_bytes,
        )

    def _clear_away(self, consumer: ConsumerProcess) -> int | None:
        """Returns the exit code of the process, negative for a signal; None if it is not known."""
        kill_group(consumer.pid)  # what its job started must not outlive it; its number is not reused before the join
        code = consumer.process.exitcode
        if code is None and not (
            consumer.server is not None and consumer.server.is_stopped
        ):  # the fork server has not reported it yet
            consumer.process.join(timeout=1.0)
            code = consumer.process.exitcode
        consumer.socket.close()
        os.close(consumer.output)
        if consumer.pidfd is not None:
            os.close(consumer.pidfd)
        consumer.inbox.close()
        consumer.counters.opened()  # or never will be
        if code is not None:  # else the fork server is stopped, or busy
            consumer.process.close()
        if self._servers is not None:
            self._servers.release([other.server for other in self.consumers.values() if other is not consumer])
        return code

    def _has_memory_run_out(self) -> bool:
        """Whether the kernel has killed a process for lack of memory since the last call."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        return self._oom_kills > before

    def clear_record(self, consumer: ConsumerProcess) -> None:
        """Clears the record of what a buried consumer was running: all of it is settled and durable."""
        clear_flight_record(self._directory.running, consumer.record, self._settings.threads)

    # -- time

    def is_idle(self, now: float) -> bool:
        """Whether no consumer has to be started, replaced or killed now, and no fork server needs a look."""
        return self._servers is None and not self._has_starts and not self._next_kill.is_due(now)

    def next_due(self, now: float) -> float | None:
        """When a consumer has to be started or killed (monotonic)."""
        if self._servers is None and not self._has_starts:
            return self._next_kill.next(now)
        times = [self._next_kill.next(now)]
        if self._servers is None or self._servers.code is not None:
            times.append(self.next_start())
        if self._servers is not None and not self._is_stopping:
            times.append(self._servers.next_look(now))
        return min((at for at in times if at is not None), default=None)


def _start_error_text(error: OSError | EOFError) -> str:
    """Says why a consumer could not be started, with the path that is to blame."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    path = error.filename or (_SHARED_MEMORY if error.errno in _OF_SHARED_MEMORY else None)
    told = f"{path}: {error.strerror}" if path else f"{error.strerror or error}"
    if str(path).startswith(_SHARED_MEMORY):
        told += f" (consumers keep their locks there: {_SHARED_MEMORY} must be writable, with some room left)"
    return told


def _read_without_waiting(reader: Connection) -> int:
    """Returns a descriptor for a connection, for a reader that never waits; closes the connection."""
    descriptor = os.dup(reader.fileno())
    reader.close()
    os.set_blocking(descriptor, False)
    return descriptor
