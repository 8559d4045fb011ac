"""The descriptors that a consumer needs, and that a job may close and open again as something else.

A number alone says nothing: it may belong to a file of the job by now, which must not get what is meant for the broker.
So each is compared with what it was. A consumer that has lost one cannot go on: it ends, and its broker starts another.
"""

from __future__ import annotations

import os

from taskq.model.exits import LOST_DESCRIPTORS

_OUTPUT = 2


class OwnDescriptors:
    """Descriptors and what is behind them. All threads use it: nothing in it changes."""

    def __init__(self, descriptors: dict[int, str]) -> None:
        """
        Args:
            descriptors: what each is for, in words.
        """
        self._names = descriptors
        self._identities = {descriptor: _identity(descriptor) for descriptor in descriptors}
        self._output = _identity(_OUTPUT)

    def lost(self) -> int | None:
        """The first one that is closed or belongs to something else, if there is one."""
        for descriptor, (device, inode) in self._identities.items():
            try:
                found = os.fstat(descriptor)
            except OSError:
                return descriptor
            if found.st_ino != inode or found.st_dev != device:
                return descriptor
        return None

    def end_if_lost(self) -> None:
        """Ends this process if one is lost, and logs that."""
        descriptor = self.lost()
        if descriptor is not None:
            try:
                if _identity(_OUTPUT) == self._output:  # otherwise it may be somebody's file
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
