"""Spawns, watches and buries consumers. Part of the broker process, which is their parent.

A slot is one incarnation of a consumer: its process, and everything that is shared with it alone: a queue, a counters
block, a socket, a pipe for its output. When the process ends, all of it is thrown away; a successor gets a slot of its
own. The order of a burial matters: hear what it still said, then look how it ended, then close its ends.

Who is started when, and who takes whose place, is decided in `taskq.succession`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

import msgpack

from taskq import descriptors
from taskq.config import Directory, Settings
from taskq.consumer_process import STACKS_SIGNAL, STOP, TIMEOUT_SIGNAL, Boot, main
from taskq.core import MAX_BATCH_BYTES
from taskq.counters import Counters, clear_flight_record, clear_flight_records, widen_flight_records
from taskq.effects import Batch, Death, Key
from taskq.forkservers import ForkServer, ForkServers
from taskq.inbox import Inbox
from taskq.log.excerpt import Excerpt
from taskq.model import JobError, JobRow, Progress, Spec
from taskq.outbox import Unsent
from taskq.outcome import Reason
from taskq.output import LineCutter, Stacks
from taskq.platform import kill_group, name_of_signal, oom_kills, open_pidfd
from taskq.succession import SlotState, Start, Succession
from taskq.wire import CHECKPOINT, CPU_TIMEOUT, DROP_RESULT, FOLLOWS, MEMORY_LIMIT, TIMEOUT, Decoder, Message

#: A consumer must have imported the application within this time.
BOOT_TIMEOUT_S = 120.0
#: A consumer that was told to stop has ended within this time after its last job, or is killed.
_EXIT_TIMEOUT_S = 5.0
_READ_BYTES = 256 * 1024


@dataclass(eq=False)
class Slot:
    """One incarnation of a consumer. Written by the broker's loop alone."""

    key: Key  # unique for each incarnation
    number: int  # 1, 2, 3 ...: what people call it; a successor gets the same
    record: int  # its place in the flight recorder
    process: BaseProcess
    pid: int
    inbox: Inbox
    counters: Counters
    unsent: Unsent
    socket: socket.socket  # the broker's end
    output: int  # the broker's end of the output pipe
    pidfd: int | None
    started_at: float
    replaces: Key | None  # the one that retires when this one is ready
    code: int  # which code it runs, as `Succession.code`
    state: SlotState = SlotState.STARTING
    kill_at: float | None = None  # when it is killed if it has not ended by itself
    messages: int = 0  # how often something was heard of it
    timed_out: int | None = None  # the number of the job it was killed for
    over_limit: JobError | None = None  # why, if it was not for its time
    killed_for: str = ""  # why the broker killed it, in words
    is_stopped: bool = False  # killed for reasons of ours: nobody is to blame
    server: ForkServer | None = None  # that it was forked from
    progress: dict[bytes, Progress] = field(default_factory=dict)  # of the jobs that run and have told of it
    progress_told_at: float = -1e9  # when the log was told of it last

    def __post_init__(self) -> None:
        self.children: dict[int, list[Any]] = {}  # by number: what running jobs will have enqueued if they succeed
        self.announced: set[int] = set()  # numbers told as started in the log, of those that run
        self.decoder = Decoder()
        self.lines = LineCutter()
        self.writer = 0  # the number of the job whose output was read last; 0 if none or several run
        self.excerpts: dict[int, Excerpt] = {}  # by number: how much is told of what running jobs print; 0 for nobody
        self.stacks = Stacks()
        self.stacks_at = 0.0  # when lines of them came last (monotonic)
        self.stacks_asked_for = 0  # the number of the job for which they were asked for last
        self.last_lines: dict[int, list[str]] = {}  # by number of the job: written last, once the process is dead
        self.boot_error: tuple[str, str] | None = None

    @property
    def death_fd(self) -> int:
        """Becomes readable when the process has ended."""
        return self.process.sentinel if self.pidfd is None else self.pidfd

    def send(self, batch: Batch) -> bool:
        """Sends jobs. Returns whether all of it is sent; else the inbox is to be flushed when it has room."""
        return self.inbox.put(msgpack.packb((batch.first, jobs_to_send(batch.rows))))

    def read_messages(self) -> list[Message]:
        """The messages that have arrived. Raises ProtocolError on garbage; OSError or EOFError at its end."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        return self.decoder.feed(data)

    def read_output(self) -> list[str]:
        """The lines of output that have arrived."""
        try:
            data = os.read(self.output, _READ_BYTES)
        except BlockingIOError:
            return []
        return self.lines.feed(data)

    def signal_timeout(self, number: int, reason: Reason) -> None:
        """Raises JobTimeout in the job with that number, if it is still running."""
        self.counters.mark_overdue(number, reason)
        self._signal(TIMEOUT_SIGNAL)

    def ask_for_stacks(self, number: int) -> None:
        """Has the process write where all its threads stand, once for a job: it is about to be killed for that."""
        if self.stacks_asked_for != number:
            self.stacks_asked_for = number
            self._signal(STACKS_SIGNAL)

    def kill(self, why: str = "") -> None:
        """Kills the process and its children, now.

        Args:
            why: told in the log, and with its jobs.
        """
        self.killed_for = self.killed_for or why
        kill_group(self.pid)
        self._signal(signal.SIGKILL)  # before it has made a group of its own

    def _signal(self, number: int) -> None:
        try:
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass


def jobs_to_send(rows: Iterable[JobRow]) -> list[tuple[Any, ...]]:
    """The jobs of a batch as they travel; see `taskq.wire.Extra`."""
    jobs: list[tuple[Any, ...]] = []
    spec, extra = None, dict[str, Any]()
    for row in rows:
        if row.spec is not spec:
            spec = row.spec
            extra = {} if spec.keep_result and not spec.is_watched else _extra(spec)
        own = extra
        if row.memo is not None and row.memo.checkpoint is not None:
            own = {**own, CHECKPOINT: row.memo.checkpoint}
        if row.terms is not None and row.terms.follows:
            own = {**own, FOLLOWS: True}
        if own:
            jobs.append((row.id, spec.task, row.attempts + 1, row.payload, own))
        else:
            jobs.append((row.id, spec.task, row.attempts + 1, row.payload))
    return jobs


def _extra(spec: Spec) -> dict[str, Any]:
    limits = {TIMEOUT: spec.timeout_s, CPU_TIMEOUT: spec.cpu_timeout_s, MEMORY_LIMIT: spec.memory_limit_bytes}
    extra: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    return extra if spec.keep_result else {**extra, DROP_RESULT: True}


class Supervisor(Succession[Slot]):
    """Keeps the wanted number of consumers alive: starts, replaces and kills them."""

    def __init__(self, app: str, title: str, directory: Directory, settings: Settings) -> None:
        super().__init__(settings.consumers)
        self._app = app
        self._title = title
        self._directory = directory
        self._settings = settings
        self._servers: ForkServers | None = None
        self._context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
        if settings.preload:
            self._context = multiprocessing.get_context("forkserver")
            self._servers = ForkServers(self._context, app, BOOT_TIMEOUT_S)
        self._keys = count(1)
        self._oom_kills = oom_kills()
        # twice the room: while one is replaced, two have its number
        clear_flight_records(directory.running, 2 * settings.consumers, settings.threads)

    # -- starting

    def look_after_servers(self, now: float) -> str | None:
        """Has a process at hand that consumers are forked from, with `--preload`. Returns what became of it, once, if
        it died."""
        return None if self._servers is None or self._is_stopping else self._servers.look_after(self.code, now)

    def start_due(self, now: float) -> Iterator[Slot]:
        """Starts the consumers whose time has come; yields their slots."""
        if self._servers is not None and self._servers.code is None:
            return
        for start in self.due(now):
            slot = self._spawn(start, now)
            if slot is not None:
                yield slot

    def _spawn(self, start: Start, now: float) -> Slot | None:
        number = start.number
        ours, theirs = socket.socketpair()
        output_reader, output_writer = self._context.Pipe(duplex=False)
        inbox = Inbox(self._context, MAX_BATCH_BYTES)
        counters = Counters(self._context, self._settings.threads)
        unsent = Unsent(self._context)
        record = self._free_record()
        widen_flight_records(self._directory.running, record, self._settings.threads)
        boot = Boot(
            app=self._app,
            directory=self._directory.path,
            title=f"consumer {number} [{self._title}]",
            record=record,
            seats=self._settings.threads,
            parent_pid=0 if self._settings.preload else os.getpid(),
            counters=counters,
            inbox=inbox.queue,
            socket=theirs,
            unsent=unsent,
            output=output_writer,
            open_files=descriptors.given(),
        )
        process = self._context.Process(target=main, args=(boot,), name=f"taskq-consumer-{number}", daemon=False)
        try:
            process.start()
            pid = process.pid
            assert pid is not None
            pidfd = open_pidfd(pid)
        except (OSError, EOFError):
            if self._servers is None:
                raise
            ours.close()  # the fork server has just died
            output_reader.close()
            inbox.handed_over()
            inbox.close()
            self.not_started(start, now)
            return None
        finally:
            theirs.close()
            output_writer.close()
        inbox.handed_over()
        ours.setblocking(False)
        output = os.dup(output_reader.fileno())
        output_reader.close()
        os.set_blocking(output, False)
        server = None if self._servers is None else self._servers.used()
        slot = Slot(
            next(self._keys),
            number,
            record,
            process,
            pid,
            inbox,
            counters,
            unsent,
            ours,
            output,
            pidfd,
            now,
            start.replaces,
            self.code if server is None else server.code,
            server=server,
        )
        slot.kill_at = now + BOOT_TIMEOUT_S
        self.slots[slot.key] = slot
        return slot

    def _free_record(self) -> int:
        taken = {slot.record for slot in self.slots.values()}
        return next(record for record in count() if record not in taken)

    def ready(self, slot: Slot) -> Slot | None:
        """A consumer has imported the application. Returns the one that it replaces, which is to retire now."""
        slot.kill_at = None
        slot.inbox.opened()
        slot.counters.opened()
        if self._servers is not None and slot.server is not None:
            self._servers.proven(slot.server)
        return super().ready(slot)

    def boot_failed(self, code: int, error: str) -> bool:
        """See `Succession.boot_failed`. With `--preload`, also those that are started later run the old code then."""
        ends_reload = super().boot_failed(code, error)
        if ends_reload and self._servers is not None:
            self._servers.go_back()
        return ends_reload

    # -- ending

    def reload(self) -> list[Slot]:
        """Has all consumers replaced, one by one, by ones that run the present code. Returns those that it kills: they
        were starting with the code of before."""
        superseded = super().reload()
        if self._servers is not None:
            self._servers.renew(self.code)
        for slot in superseded:
            slot.is_stopped = True
            slot.kill("there is newer code")
        return superseded

    def retire(self, slot: Slot) -> bool:
        """Tells a consumer to stop after what it is running; all else was taken back before. Returns as `Slot.send`."""
        slot.state = SlotState.RETIRING
        return slot.inbox.put(STOP)

    def expect_exit(self, slot: Slot, now: float) -> None:
        """A retiring consumer has no job any more: it must end soon."""
        if slot.kill_at is None:
            slot.kill_at = now + _EXIT_TIMEOUT_S

    def kill_overdue(self, now: float) -> list[Slot]:
        """Kills the consumers that did not come up or did not end in time; returns them."""
        overdue = [slot for slot in self.slots.values() if slot.kill_at is not None and slot.kill_at <= now]
        for slot in overdue:
            slot.kill_at = None
            slot.is_stopped = True
            if slot.state is SlotState.STARTING:
                slot.boot_error = f"it did not start within {BOOT_TIMEOUT_S:g} s", ""
            slot.kill(slot.boot_error[0] if slot.boot_error else "it did not end in time")
        return overdue

    def bury(self, slot: Slot, now: float) -> Death:
        """Clears away what a dead consumer left, after all that it sent was heard. Plans its successor."""
        code = self._clear_away(slot)
        if slot.server is not None and slot.server.has_died() and slot.timed_out is None:
            code, slot.is_stopped = None, True  # the kernel killed it for that
            slot.killed_for = slot.killed_for or f"the process that it was forked from {slot.server.ending}"
        self.ended(slot, now, did_jobs=slot.counters.jobs_done > 0)
        stacks = slot.stacks.take()
        return Death(
            exit_code=code if code is not None and code >= 0 else None,
            signal=name_of_signal(-code) if code is not None and code < 0 else None,
            output=(*(line for lines in slot.last_lines.values() for line in lines), *stacks),
            writers=(*(number for number, lines in slot.last_lines.items() for _ in lines), *(0 for _ in stacks)),
            timed_out=slot.timed_out,
            over_limit=slot.over_limit,
            out_of_memory=code == -signal.SIGKILL and self._has_memory_run_out(),
            stopped=slot.is_stopped,
            at=now,
            why=slot.killed_for,
        )

    def _clear_away(self, slot: Slot) -> int | None:
        """Returns the exit code of the process, negative for a signal; None if nobody knows it."""
        kill_group(slot.pid)  # what its job started must not outlive it; its number is not reused before the join
        code = slot.process.exitcode
        if code is None:  # the fork server has not told it yet
            slot.process.join(timeout=1.0)
            code = slot.process.exitcode
        slot.socket.close()
        os.close(slot.output)
        if slot.pidfd is not None:
            os.close(slot.pidfd)
        slot.inbox.close()
        slot.counters.opened()  # or never will be
        if code is not None:  # else the fork server is stopped, or busy
            slot.process.close()
        if self._servers is not None:
            self._servers.release([other.server for other in self.slots.values() if other is not slot])
        return code

    def _has_memory_run_out(self) -> bool:
        """Whether the kernel has killed a process for want of memory since the last time that we asked."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        return self._oom_kills > before

    def clear_record(self, slot: Slot) -> None:
        """Forgets what a buried consumer was running: all of it is settled, and durable."""
        clear_flight_record(self._directory.running, slot.record, self._settings.threads)

    # -- time

    def next_due(self, now: float) -> float | None:
        """When something is to be started or killed (monotonic)."""
        times = [slot.kill_at for slot in self.slots.values()]
        if self._servers is None or self._servers.code is not None:
            times.append(self.next_start())
        if self._servers is not None and not self._is_stopping:
            times.append(self._servers.next_look(now))
        return min((at for at in times if at is not None), default=None)
