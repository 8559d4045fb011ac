"""Faults for a broker, and shorter waits for a fleet, on request: Python imports this at its start wherever this folder
is in PYTHONPATH.

A test makes a file in the folder TASKQ_TEST_FAULTS; the next broker that reaches the point of that name does what the name says. TASKQ_TEST_CONSTANTS holds other values for constants, as `fleet.hurried` writes them.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from pathlib import Path


def is_asked_for(name: str, *, once: bool = True) -> bool:
    """Whether the test asks for this fault now."""
    path = Path(os.environ["TASKQ_TEST_FAULTS"]) / name
    if not path.exists():
        return False
    if once:
        path.unlink()
    return True


def kill_around_commits() -> None:
    """Kills the broker just before or just after a commit that changes something."""
    from taskq.engines.embedded.journal.sqlite import SQLiteStore

    commit = SQLiteStore.commit

    def faulty(self: SQLiteStore) -> None:
        has_changes = self._db.in_transaction
        if has_changes and is_asked_for("kill-before-commit"):
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self)
        if has_changes and is_asked_for("kill-after-commit"):
            os.kill(os.getpid(), signal.SIGKILL)

    SQLiteStore.commit = faulty  # type: ignore[method-assign]


def fail_syncs() -> None:
    """Makes the syncs of the journal fail, as those of a broken disk do."""
    import apsw

    class File(apsw.VFSFile):
        def xSync(self, flags: int) -> None:
            if is_asked_for("eio", once=False):
                raise apsw.IOError("the disk is broken")
            super().xSync(flags)

    class Disk(apsw.VFS):
        def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:
            return File("unix", name, flags)  # type: ignore[arg-type]

    sys.taskq_test_disk = Disk("faulty", "unix", makedefault=True)  # type: ignore[attr-defined]  # kept alive


def refuse_locks() -> None:
    """Makes the locks that consumers share fail, as if /dev/shm were full or read-only: the system's error has no
    path."""
    from multiprocessing.synchronize import SemLock

    begin = SemLock.__init__

    def faulty(self: SemLock, *arguments: object, **more: object) -> None:
        for number in (errno.ENOSPC, errno.EROFS):
            if is_asked_for(errno.errorcode[number].lower(), once=False):
                raise OSError(number, os.strerror(number))
        begin(self, *arguments, **more)  # type: ignore[arg-type]

    SemLock.__init__ = faulty  # type: ignore[assignment,method-assign]


def hurry() -> None:
    """Gives constants of modules other values, before anybody reads them."""
    for module, constants in json.loads(os.environ["TASKQ_TEST_CONSTANTS"]).items():
        for name, value in constants.items():
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
            setattr(importlib.import_module(module), name, value)


if "TASKQ_TEST_CONSTANTS" in os.environ:
    hurry()
if "TASKQ_TEST_FAULTS" in os.environ and any("taskq.broker.process" in word for word in sys.orig_argv):
    kill_around_commits()
    fail_syncs()
    refuse_locks()
