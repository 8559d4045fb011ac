"""One consumer process, as its broker sees it."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from taskq.broker.consumers.excerpt import Excerpt
from taskq.broker.consumers.succession import ProcessState
from taskq.model.attempt import Reason, Usage
from taskq.model.effects import Batch, Key
from taskq.model.job import JobError, Progress
from taskq.protocol.frames import Decoder, Message
from taskq.protocol.link.batch import pack_batch
from taskq.protocol.link.boot import STACKS_SIGNAL, TIMEOUT_SIGNAL
from taskq.protocol.link.counters import Counters
from taskq.protocol.link.inbox import Inbox
from taskq.protocol.link.output import LineCutter, Stacks
from taskq.protocol.link.unsent import Unsent
from taskq.system.platform import kill_group
from taskq.system.spawn.forkservers import ForkServer
from taskq.system.usage import CpuMeter, usage_of

#: More than the socket or the output pipe of a consumer holds, so one read takes it all.
_READ_BYTES = 256 * 1024


@dataclass(eq=False)
class ConsumerProcess:
    """One consumer process. Written by the broker's loop alone."""

    key: Key  # unique for each process
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
    code: int  # the number of the code that it runs, as `Succession.code`
    state: ProcessState = ProcessState.STARTING
    kill_at: float | None = None  # when it is killed if it has not ended by itself
    messages: int = 0  # how often something arrived from it
    timed_out: int | None = None  # the number of the job for which it was killed
    over_limit: JobError | None = None  # why, if it was not for the job's time
    killed_for: str = ""  # why the broker killed it, in words
    is_stopped: bool = False  # killed for reasons of ours: no job is to blame
    server: ForkServer | None = None  # the one that it was forked from
    progress: dict[bytes, Progress] = field(default_factory=dict)  # of the running jobs that have reported it
    progress_told_at: float = -1e9  # when it was logged last
    peak_bytes: int | None = None  # the most memory that it had used when it was looked at last
    tasks: bytes = b""  # the names of its application's tasks, one a line; empty if it did not tell them

    def __post_init__(self) -> None:
        self.cpu = CpuMeter(self.pid)
        self.children: dict[int, list[Any]] = {}  # by number: what running jobs will have enqueued if they succeed
        self.announced: set[int] = set()  # numbers of running jobs whose start was logged
        self.decoder = Decoder()
        self.lines = LineCutter()
        self.writer = 0  # the number of the job whose output was read last; 0 if none or several run
        self.excerpts: dict[int, Excerpt] = {}  # by number of the running job that printed it; 0 for none
        self.stacks = Stacks()
        self.stacks_at = 0.0  # when lines of them came last (monotonic)
        self.stacks_asked_for = 0  # the number of the job for which they were asked for last
        self.last_lines: dict[int, list[str]] = {}  # by number of the job: written last, once the process is dead
        self.boot_error: tuple[str, str] | None = None

    @property
    def death_fd(self) -> int:
        """Becomes readable when the process has ended."""
        return self.process.sentinel if self.pidfd is None else self.pidfd

    def has_task(self, name: str) -> bool:
        """Whether its application has a task, as far as it told."""
        return not self.tasks or name.encode() in self.tasks.split(b"\n")

    def send(self, batch: Batch) -> bool:
        """Sends jobs. Returns whether all of it is sent; else the inbox is to be flushed when it has room."""
        return self.inbox.put(pack_batch(batch))

    def read_messages(self, most_bytes: int = _READ_BYTES) -> list[Message]:
        """Returns the messages that have arrived.

        Args:
            most_bytes: how much is read; by default all that the socket holds.

        Raises:
            ProtocolError: it sends garbage.
            OSError, EOFError: this is its end.
        """
        try:
            data = self.socket.recv(most_bytes)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        return self.decoder.feed(data)

    def read_output(self) -> list[str]:
        """Returns the lines of output that have arrived: all that the pipe holds now, and no more, since a writer, such
        as a program that a job has started, may go on without end."""
        try:
            data = os.read(self.output, _READ_BYTES)
        except BlockingIOError:
            return []
        return self.lines.feed(data)

    def usage(self) -> Usage | None:
        """Returns the memory and CPU time that the process and its descendants use; None if it is gone."""
        return usage_of(self.pid)

    def signal_timeout(self, number: int, reason: Reason) -> None:
        """Raises JobTimeout in the job with that number, if it is still running."""
        self.counters.mark_overdue(number, reason)
        self._signal(TIMEOUT_SIGNAL)

    def ask_for_stacks(self, number: int) -> None:
        """Has the process write the stacks of all its threads, once for each job for which it is about to be killed."""
        if self.stacks_asked_for != number:
            self.stacks_asked_for = number
            self.write_stacks()

    def write_stacks(self) -> None:
        """Has the process write the stacks of all its threads. Its jobs go on."""
        self._signal(STACKS_SIGNAL)

    def kill(self, why: str = "") -> None:
        """Kills the process and its children, now.

        Args:
            why: the reason, for the log and for the errors of its jobs.
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
