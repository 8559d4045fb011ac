"""The blocking client: runs operations with sockets and sleeps.

Safe across threads (each call borrows a connection of its own), `fork` (a child opens new ones) and the end of the
interpreter (nothing is buffered).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from threading import RLock
from typing import Any, TypeVar, cast

from taskq.client.transport.absence import Absence, reconnect_pauses
from taskq.client.transport.api import QueueClient, run_by
from taskq.client.transport.connection import Connection, Pool, owner_to_look_at
from taskq.client.transport.operations import DirectoryQueue
from taskq.client.transport.verbs import (
    Answer,
    Ask,
    AskLate,
    EndReader,
    Next,
    Open,
    OpenReader,
    Operation,
    Reach,
    Send,
    Sleep,
    UseDisk,
)
from taskq.protocol.answers import BrokerSilent, ConnectionLost
from taskq.protocol.frames import Message
from taskq.system.clock import SYSTEM_CLOCK, ClientClock
from taskq.system.directory import Directory, reply_timeout_s
from taskq.system.platform import is_listening

T = TypeVar("T")

#: Whoever waits for a shorter time than this waits so long for a broker's first word: it may be busy.
_GREETING_S = 1.0


class Client(QueueClient):
    """The calls of one application to one queue's directory."""

    queue: DirectoryQueue

    def __init__(
        self, directory: Directory, reply_timeout: float | None = None, clock: ClientClock = SYSTEM_CLOCK
    ) -> None:
        """
        Args:
            reply_timeout: seconds; see `taskq.system.directory.reply_timeout_s`.
        """
        self.absence = Absence(directory, reply_timeout_s(reply_timeout))
        super().__init__(DirectoryQueue(directory, self.absence, clock), clock)
        self.directory = directory
        self._pool = Pool()
        self._reading = RLock()  # held by the thread that has a reader; replaced in a forked child
        self._reading_pid = os.getpid()

    @property
    def is_stopped(self) -> bool:  # type: ignore[override]  # only read
        """Whether the last answer came from the journal of a fleet that does not run."""
        return self.queue.is_stopped

    def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end."""
        try:
            verb = operation.send(None)
            while True:
                try:
                    value = _DO[type(verb)](self, verb)
                except BaseException as error:
                    verb = operation.throw(error)
                else:
                    verb = operation.send(value)
        except StopIteration as end:
            return cast(T, end.value)

    def connect(self, *, is_looking: bool = False, within_s: float | None = None) -> Connection:
        """Opens a connection, or takes an idle one.

        Args:
            is_looking: whether nothing is to be changed; root may look at the fleets of others.
            within_s: seconds to wait for a broker's first word, if not as long as for any answer.

        Raises:
            As `taskq.client.transport.verbs.Open`.
        """
        if self.absence.is_silent:
            self._pool.clear()  # to the same broker
            raise BrokerSilent(self.absence.describe())
        return self._pool.take() or self._connect(is_looking, within_s)

    def _connect(self, is_looking: bool, within_s: float | None) -> Connection:
        owner = owner_to_look_at(self.directory, is_looking)
        pool = self._pool if owner is None else None
        try:
            return Connection(self.absence.path, self.absence, pool=pool, owner=owner, within_s=within_s)
        except ConnectionLost:
            self.directory.check_owner()  # else nobody ever could answer
            raise

    def _open(self, verb: Open) -> Connection:
        if verb.must_be_fresh:
            self._pool.clear()
        return self.connect(is_looking=verb.is_looking)

    def _reach(self, verb: Reach) -> Connection | None:
        clock = self.queue.clock
        deadline = None if verb.within_s is None else clock.monotonic() + verb.within_s
        pauses: Iterator[float] | None = None
        while True:
            try:
                left_s = None if deadline is None else max(_GREETING_S, deadline - clock.monotonic())
                line = self.connect(within_s=left_s)
                if verb.watched:
                    for frame in line.talk.watch(verb.watched):
                        line.send(frame)
                return line
            except ConnectionLost:
                now = clock.monotonic()
                if deadline is not None and now >= deadline:
                    return None
                pauses = pauses or reconnect_pauses(self.absence, clock)
                pause_s = next(pauses)
                clock.sleep(pause_s if deadline is None else min(pause_s, max(0.0, deadline - now)))

    def _open_reader(self, _verb: OpenReader) -> Connection:
        from taskq.client.transport import reading  # what starts a process takes a few ms to import

        turn = self._turn_to_read()
        try:
            child = reading.start_reader(self.directory, self.absence.reply_timeout_s)
            try:
                absence = Absence(self.directory, reading.ANSWER_TIMEOUT_S)
                return Connection(self.directory.path, absence, child=child)
            except BaseException:
                reading.end_reader(child)
                raise
        except BaseException:
            turn.release()
            raise

    def _turn_to_read(self) -> RLock:
        """Waits until no other thread has a reader: only one can have the journal, and a crowd of them would keep a
        fleet that starts from it, and from the processor.

        Raises:
            ConnectionLost: a fleet has come up meanwhile, and can be asked.
        """
        if self._reading_pid != os.getpid():
            self._reading, self._reading_pid = RLock(), os.getpid()
        turn = self._reading
        if not turn.acquire(blocking=False):
            turn.acquire()
            if is_listening(self.absence.path):
                turn.release()
                raise ConnectionLost("a fleet has come up")
        return turn

    def _end_reader(self, verb: EndReader) -> None:
        from taskq.client.transport import reading

        line = cast(Connection, verb.line)
        try:
            line.leave()
            if line.child is not None:
                reading.end_reader(line.child)
        finally:
            self._reading.release()

    def _sleep(self, verb: Sleep) -> None:
        self.queue.clock.sleep(verb.seconds)

    def close(self) -> None:
        """Closes the connections that nobody uses at the moment; the next call opens another."""
        self.absence.close()
        self._pool.clear()

    # -- of a directory alone

    ask = run_by(DirectoryQueue.ask)
    stop = run_by(DirectoryQueue.stop)
    reload = run_by(DirectoryQueue.reload)
    write_stacks = run_by(DirectoryQueue.write_stacks)
    spool = run_by(DirectoryQueue.spool)
    is_spooled = run_by(DirectoryQueue.is_spooled)
    drop_unfinished = run_by(DirectoryQueue.drop_unfinished)


def _ask(_client: Client, verb: Ask) -> Message:
    line = cast(Connection, verb.line)
    line.send(verb.frame)
    return line.answer(verb.number)


def _ask_late(_client: Client, verb: AskLate) -> Message:
    line = cast(Connection, verb.line)
    line.send(verb.frame)
    return line.late_answer(verb.number, verb.within_s)


#: How to do what an operation wants: a function of the client and the verb.
_DO: dict[type, Callable[[Client, Any], Any]] = {
    Open: Client._open,
    Reach: Client._reach,
    OpenReader: Client._open_reader,
    EndReader: Client._end_reader,
    Ask: _ask,
    AskLate: _ask_late,
    Send: lambda _, verb: verb.line.send(verb.frame),
    Answer: lambda _, verb: verb.line.answer(verb.number),
    Next: lambda _, verb: verb.line.endings(verb.within_s),
    Sleep: Client._sleep,
    UseDisk: lambda _, verb: verb.function(*verb.args),
}
