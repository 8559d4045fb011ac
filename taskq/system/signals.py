"""Signals as bytes at a socket, for loops that wait for sockets anyway."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable


def signals_as_bytes(numbers: Iterable[int]) -> socket.socket:
    """Turns signals with these numbers into bytes, one each, at the socket that is returned; they have no other effect.

    Bytes wait in the socket until they are read. Call this once in a process, in its main thread."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    os.dup(reader.fileno())  # so that there is no error if a signal comes when the reader has gone, at the very end
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)  # open for the life of the process
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)
    return reader
