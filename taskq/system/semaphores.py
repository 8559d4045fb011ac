"""Locks of multiprocessing whose names are removed as soon as nobody needs them.

A lock that is shared with a spawned process has a name (in /dev/shm), by which that process opens it. multiprocessing
removes the name when the lock is freed, and its helper process removes it when the owner is killed. If the helper is
killed too, as at the end of a container or of a session, the name would stay for ever. A lock without a name works as
before, and is gone with the last process that has it.
"""

from __future__ import annotations

import weakref
from multiprocessing import resource_tracker
from multiprocessing.synchronize import SemLock
from multiprocessing.util import Finalize
from typing import Any


def remove_name(lock: SemLock) -> None:
    """Removes a lock's name once the other process has opened it, or is dead. Does nothing if the name is gone already.

    multiprocessing would remove it by a `Finalize` object of the lock. Called early, that object tells the helper as
    well, and does nothing later. A helper that has replaced a killed one does not know the name and would write a
    traceback to the terminal, so it is told of the name first.
    """
    for reference in weakref.getweakrefs(lock):
        finalize = reference.__callback__
        if isinstance(finalize, Finalize) and finalize.still_active():
            inside: Any = lock
            resource_tracker.register(inside._semlock.name, "semaphore")
            finalize()
