"""Locks of multiprocessing whose names are removed as soon as nobody needs them.

A lock that a spawned process is to share has a name (in /dev/shm), by which that process opens it. multiprocessing
removes the name when the lock goes, and its helper process when the owner was killed. Whoever kills the helper too, as
the end of a container or of a session does, would leave the names for ever. A lock without a name works as before, and
ends with the last process that has it.
"""

from __future__ import annotations

import weakref
from multiprocessing import resource_tracker
from multiprocessing.synchronize import SemLock
from multiprocessing.util import Finalize
from typing import Any


def remove_name(lock: SemLock) -> None:
    """Removes a lock's name, once the other process has opened it, or is dead. Does nothing if it is gone already.

    What multiprocessing would do when the lock goes is a `Finalize` that hangs on it: called early, it tells the helper
    as well, and does nothing later. A helper that has followed one that was killed does not know the name, and would
    write a traceback to the terminal: so it is told of it first.
    """
    for reference in weakref.getweakrefs(lock):
        finalize = reference.__callback__
        if isinstance(finalize, Finalize) and finalize.still_active():
            inside: Any = lock
            resource_tracker.register(inside._semlock.name, "semaphore")
            finalize()
