"""Both ends of the queue that carries batches of jobs to one consumer.

It is a plain `multiprocessing.SimpleQueue`, and what travels is what its own methods read and write. The broker's loop
must never wait for the consumer (it may be stopped, with a full pipe), so the writing end does not block here, and what
does not fit waits for the selector to say that there is room. A `multiprocessing.Queue` writes in a thread, which
competes with the loop for Python's lock: a small job waited up to half a millisecond for its turn (measured with
`perf trace`; the round trip took 1.5 ms).
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from struct import Struct
from typing import Any

from taskq.system.platform import is_unread, widen_pipe
from taskq.system.semaphores import remove_name

#: What `multiprocessing.connection.Connection` puts before a message, and the largest that it describes so.
_LENGTH = Struct("!i")
_READ_BYTES = 64 * 1024


class Inbox:
    """One consumer's inbox. Used by the broker's loop alone."""

    def __init__(self, context: BaseContext, room: int) -> None:
        """
        Args:
            room: bytes that the pipe should hold.
        """
        self.queue: SimpleQueue[bytes] = context.SimpleQueue()
        ends: Any = self.queue
        self._reader, self._writer = ends._reader, ends._writer
        self._locks = ends._rlock, ends._wlock
        self._descriptor: int = self._writer.fileno()
        self._waiting: deque[memoryview] = deque()
        widen_pipe(self._descriptor, room)

    def handed_over(self) -> None:
        """The consumer has started and has a copy of the queue: keeps the writing end only."""
        self._reader.close()  # otherwise a write after the consumer's death would not fail
        os.set_blocking(self._descriptor, False)

    def opened(self) -> None:
        """The consumer has its copy, so the names of the queue's locks are not needed any more."""
        for lock in self._locks:
            remove_name(lock)

    def fileno(self) -> int:
        """The descriptor to select for writing while `put` or `flush` leave something over."""
        return self._descriptor

    def put(self, message: bytes) -> bool:
        """Sends a message: at once as far as the pipe takes it. Returns whether that was all."""
        pickled = pickle.dumps(
            message
        )  # not `ForkingPickler`, which is for more than bytes and takes ten times as long
        self._waiting.append(memoryview(_LENGTH.pack(len(pickled)) + pickled))
        return self.flush()

    def flush(self) -> bool:
        """Sends what is waiting, as far as the pipe takes it. Returns whether that was all."""
        while self._waiting:
            part = self._waiting[0]
            try:
                sent = os.write(self._descriptor, part)
            except BlockingIOError:
                return False
            except BrokenPipeError:
                self._waiting.clear()  # the consumer is dead, which its own descriptor tells
                return True
            if sent < len(part):
                self._waiting[0] = part[sent:]
            else:
                self._waiting.popleft()
        return True

    def close(self) -> None:
        """Throws the queue away."""
        self.opened()  # or never will be
        self._writer.close()


class InboxReader:
    """The consumer's end. Used by one thread: nobody else reads from the pipe, so it needs no lock, and one read may
    take several messages. A message takes 2 microseconds so; `empty` and `get` of the queue take 13."""

    def __init__(self, queue: SimpleQueue[bytes]) -> None:
        """
        Args:
            queue: as it was handed over; it must live as long as this.
        """
        ends: Any = queue
        self._descriptor: int = ends._reader.fileno()
        self._data = bytearray()  # read, and not returned yet

    def fileno(self) -> int:
        """What to select for reading."""
        return self._descriptor

    def is_empty(self) -> bool:
        """Whether `get` would wait. False, too, if the descriptor is not ours any more: the caller is to look at it."""
        try:
            return not self._data and not is_unread(self._descriptor)
        except OSError:
            return False

    def get(self) -> bytes:
        """Returns the next message; waits until it is there. Raises EOFError if the broker is gone."""
        while True:
            if len(self._data) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
                if len(self._data) >= end:
                    message: bytes = pickle.loads(self._data[_LENGTH.size : end])
                    del self._data[:end]
                    return message
            data = os.read(self._descriptor, _READ_BYTES)
            if not data:
                raise EOFError
            self._data += data
