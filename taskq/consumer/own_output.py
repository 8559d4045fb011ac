"""The descriptors of a consumer's standard output and error: a job may put other things in their place, or close them.

That is a job's own business while it runs. What it leaves there is not inherited: the next job would lose what it
prints, or hang, or fail for it.
"""

from __future__ import annotations

import fcntl
import os

from taskq.client.context import write_record
from taskq.system.platform import is_unread

_STDOUT, _STDERR = 1, 2


class OwnOutput:
    """Copies of the two, to put back. Used by all threads: after `keep_as_it_is` nothing of it changes."""

    def __init__(self) -> None:
        """Call it while both lead to the broker."""
        self._copies = {number: fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (_STDOUT, _STDERR)}
        self._kinds = {number: _identity(number) for number in self._copies}
        self._is_heard = True  # whether the broker reads standard output

    def keep_as_it_is(self) -> None:
        """The application is loaded: where it has sent them, they are to stay."""
        for number, copy in self._copies.items():
            found = _identity(number)
            if found is None:
                os.dup2(copy, number)
            elif found != self._kinds[number]:
                os.dup2(number, copy, inheritable=False)
                self._kinds[number] = found
                self._is_heard &= number != _STDOUT

    def put_back(self) -> None:
        """Puts back what a job has replaced or closed, and tells of it."""
        lost = [number for number, kind in self._kinds.items() if _identity(number) != kind]
        for number in lost:
            os.dup2(self._copies[number], number)
        for number in lost:
            told = f"a job left descriptor {number}, its standard {'output' if number == _STDOUT else 'error'}"
            write_record("warning", {"event": f"{told}, closed or opened as something else: it is put back"})

    def is_unread(self) -> bool:
        """Whether the broker has not taken all that was written to standard output."""
        if not self._is_heard:
            return False
        try:
            return is_unread(_STDOUT)
        except OSError:  # a job that took no time has replaced it
            self.put_back()
            return False


def _identity(descriptor: int) -> tuple[int, int] | None:
    """What is behind a descriptor; None if it is closed."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino
