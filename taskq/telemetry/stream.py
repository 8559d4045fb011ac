"""The log on stderr, which may be a terminal, a pipe, a socket, full, stopped (Ctrl-S) or closed.

A blocked stderr must not stop the fleet, so nothing here waits: what cannot be written at once is dropped and counted.
The file has it anyway.

O_NONBLOCK on descriptor 2 would also hold for the shell and for everybody else who shares the open file description. So
pipes and terminals are opened once more through /proc, non-blocking for us alone. Where that is not possible (sockets,
another user's pipe), `poll` is asked before each piece of at most PIPE_BUF bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from collections.abc import Callable

from taskq.telemetry.record import Event
from taskq.telemetry.sink import Drops

_GONE = frozenset({errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET, errno.ENOTCONN})
_WHOLE = 1 << 30


class Stream:
    """Writes log lines to a descriptor without ever waiting or raising."""

    def __init__(self, fd: int, render: Callable[[Event], bytes]) -> None:
        """
        Args:
            fd: usually 2. A private copy is made; `fd` itself is never written to, so that a file that gets
                the number of a closed stderr (such as the journal) gets no log lines.
            render: makes the line of an event, newline included.
        """
        self.drops = Drops()
        self.render = render
        self._torn = False
        self._fd, self._piece = _private_copy(fd)
        self._poll = select.poll()
        if self._fd >= 0:
            self._poll.register(self._fd, select.POLLOUT)

    @property
    def alive(self) -> bool:
        """False once the other end has gone for good."""
        return self._fd >= 0

    @property
    def dropped(self) -> int:
        """How many lines were lost since the start."""
        return self.drops.total

    def write(self, line: bytes) -> None:
        """Write one line, which ends with a newline, if that is possible at once."""
        try:
            if self.drops.unreported:
                self._put(self.render(self.drops.notice()))
                self.drops.told()
            self._put(line)
        except OSError as error:
            self.drops.note(error)
            if error.errno in _GONE:
                self.close()

    def close(self) -> None:
        """Close the private copy; later lines are dropped."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _put(self, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        rest = memoryview(line)
        while rest:
            if self._piece != _WHOLE and not self._poll.poll(0):
                raise BlockingIOError(errno.EAGAIN, "nobody reads it")
            written = os.write(self._fd, rest[: self._piece])
            rest = rest[written:]
            self._torn = len(rest) > 0  # if the next piece does not fit, the next line starts with a newline


def _private_copy(fd: int) -> tuple[int, int]:
    """A descriptor of our own for the file of `fd`, and how many bytes it takes without asking `poll` first.

    Returns:
        (-1, 0) if `fd` is closed.
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            own = _reopened(fd)
            if own >= 0:
                return own, _WHOLE
        # at least 3: a lower number would be taken for a standard stream
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        return -1, 0
    return copy, _WHOLE if stat.S_ISREG(mode) else select.PIPE_BUF


def _reopened(fd: int) -> int:
    """A second, non-blocking open file description of a pipe or terminal; -1 if there can be none."""
    try:
        opened = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        return fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(opened)
