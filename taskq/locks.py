"""The two locks of a queue's directory. The kernel owns both, so none outlives its holder.

`lock` (flock) is held by the broker, and decides who may open the journal. `consumers.lock` (POSIX) is held shared by
every consumer: a new broker leases nothing before the consumers of the old one are gone. It is a POSIX lock because
that one is not inherited by what a job forks, and because the kernel tells who holds it.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import time
from pathlib import Path

from taskq.errors import AlreadyRunning, DirectoryError
from taskq.platform import IS_LINUX, kill_group, open_pidfd

#: How long a new fleet waits for one that is ending, such as after `kill -9` of its guardian.
_ENDING_S = 3.0
_CONSUMERS_GONE_S = 10.0
# struct flock: type, whence, start, length, pid (Linux); start, length, pid, type, whence (macOS)
_FLOCK = struct.Struct("@hhqqi4x" if IS_LINUX else "@qqihh")


def take_broker_lock(path: Path, guardian_pid: int) -> int:
    """Takes the broker's lock, for the life of this process. Returns the descriptor that holds it.

    Raises:
        AlreadyRunning: another fleet has it; the message names its process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    give_up_at = time.monotonic() + _ENDING_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).split()
            if (len(holder) == 2 and _is_alive(int(holder[1]))) or time.monotonic() > give_up_at:
                os.close(descriptor)
                pid = holder[0].decode() if holder else "unknown"
                raise AlreadyRunning(
                    f"a fleet already runs on {path.parent} (broker process {pid}): use it, or end it with `taskq stop`"
                ) from None
            time.sleep(0.01)  # its guardian is dead, so it is ending: bounded by _ENDING_S
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d %d" % (os.getpid(), guardian_pid), 0)
    return descriptor


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def hold_consumer_lock(path: Path) -> int:
    """Takes the consumers' lock, shared, for the life of this process. Returns the descriptor that holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.lockf(descriptor, fcntl.LOCK_SH)
    return descriptor


def end_old_consumers(path: Path) -> list[int]:
    """Kills the consumers of a dead broker, and waits until none is left. Returns their process ids.

    The kernel already kills them when their broker dies (see `platform.die_with_parent`), so this finds a process only
    in the moment between, and where the kernel has no such service.

    Raises:
        DirectoryError: one does not go away (it may hang in the kernel).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    killed: list[int] = []
    give_up_at = time.monotonic() + _CONSUMERS_GONE_S
    try:
        while (pid := _holder(descriptor)) is not None:
            if time.monotonic() > give_up_at:
                raise DirectoryError(
                    f"consumer process {pid} of an earlier fleet does not end; its jobs cannot be run again"
                )
            if pid not in killed:
                killed.append(pid)
            kill_group(pid)
            _wait_for_end(pid)
        return killed
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> int | None:
    wanted = _flock(fcntl.F_WRLCK)
    lock_type, pid = _type_and_pid(fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))
    return None if lock_type == fcntl.F_UNLCK else pid


def _flock(lock_type: int) -> bytes:
    if IS_LINUX:
        return _FLOCK.pack(lock_type, os.SEEK_SET, 0, 0, 0)
    return _FLOCK.pack(0, 0, 0, lock_type, os.SEEK_SET)


def _type_and_pid(data: bytes) -> tuple[int, int]:
    fields = _FLOCK.unpack(data)
    return (fields[0], fields[4]) if IS_LINUX else (fields[3], fields[2])


def _wait_for_end(pid: int) -> None:
    """Waits a moment for a process that was killed; its end releases the lock, which is asked again."""
    try:
        descriptor = open_pidfd(pid)
    except ProcessLookupError:
        return
    if descriptor is None:
        time.sleep(0.01)
        return
    try:
        poll = select.poll()  # `select.select` knows no descriptor above 1,023
        poll.register(descriptor, select.POLLIN)
        poll.poll(1_000)
    finally:
        os.close(descriptor)
