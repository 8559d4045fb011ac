"""The descriptors that a consumer needs, and that a job may close and open again as something else.

The number alone says nothing: it may be a file of the job by now, which must not get what is meant for the broker. So
each is compared with what it was. A consumer that has lost one cannot go on; it ends, and its broker starts another.
"""

from __future__ import annotations

import os

from taskq.model.exits import LOST_DESCRIPTORS

_OUTPUT = 2


class OwnDescriptors:
    """Descriptors and what is behind them. Used by all threads: nothing of it changes."""

    def __init__(self, descriptors: dict[int, str]) -> None:
        """
        Args:
            descriptors: each with what it is for, in words.
        """
        self._names = descriptors
        self._identities = {descriptor: _identity(descriptor) for descriptor in descriptors}
        self._output = _identity(_OUTPUT)

    def lost(self) -> int | None:
        """One that is closed, or another's, if there is one."""
        for descriptor, (device, inode) in self._identities.items():
            try:
                found = os.fstat(descriptor)
            except OSError:
                return descriptor
            if found.st_ino != inode or found.st_dev != device:
                return descriptor
        return None

    def end_if_lost(self) -> None:
        """Ends this process, with a word to its log, if one is lost."""
        descriptor = self.lost()
        if descriptor is not None:
            try:
                if _identity(_OUTPUT) == self._output:  # else it is a file of somebody, perhaps
                    os.write(_OUTPUT, f"{self._told(descriptor)}\n".encode())
            finally:
                os._exit(LOST_DESCRIPTORS)

    def _told(self, descriptor: int) -> str:
        return (
            f"descriptor {descriptor} was closed, or opened as something else, by a job or what it has started: it is "
            f"{self._names[descriptor]}, which ends without it. Close only what you have opened"
        )


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
