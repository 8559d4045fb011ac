"""Wakes a loop when files appear in a folder (Linux: inotify), so that it need not look again and again."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from taskq.system.platform import IS_LINUX

#: A file that was open for writing was closed, or one got its name here.
_APPEARS = 0x008 | 0x080
#: Many events in one read; what they say does not matter.
_READ_BYTES = 64 * 1024


class FolderWatch:
    """Watches a folder.

    Attributes:
        descriptor: becomes readable when something was written there; None where the system has no such thing, or no
            more of it for this user.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.fsencode(folder)
        self._libc = ctypes.CDLL(None) if IS_LINUX else None
        self.descriptor: int | None = None
        if self._libc is not None:
            descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            self.descriptor = descriptor if descriptor >= 0 else None
        if not self.renew():
            self.close()

    def renew(self) -> bool:
        """Watches the folder that has the path now, if another was put there. Returns whether it is watched."""
        if self._libc is None or self.descriptor is None:
            return False
        return bool(self._libc.inotify_add_watch(self.descriptor, self._folder, _APPEARS) >= 0)

    def forget(self) -> None:
        """Forgets what has happened so far."""
        assert self.descriptor is not None
        try:
            os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            pass  # it is known already

    def close(self) -> None:
        """Ends it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
