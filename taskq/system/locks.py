"""The two locks of a queue's directory. The kernel owns both, so neither outlives the process that holds it.

The broker holds `lock` (flock); who holds it may open the journal. Every consumer holds `consumers.lock` (POSIX,
shared): a new broker leases nothing before the consumers of the old one are gone. It is a POSIX lock because processes
that a job forks do not inherit it, and because the kernel says which process holds it.

A reader (`taskq.broker.stopped`) opens the journal of a stopped fleet, so it holds `lock` as a broker does. It also
holds the POSIX lock of that file: so a broker that starts knows that this is a reader, and tells it to go.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path

from taskq.model.errors import AlreadyRunning, BrokerUnavailable, DirectoryError
from taskq.system.platform import IS_LINUX, is_listening, kill_group, open_pidfd

#: How long a new fleet waits for one that is ending, such as after `kill -9` of its guardian.
_ENDING_S = 3.0
_CONSUMERS_GONE_S = 10.0
#: A reader that was told to go finishes its answer first; one that is stopped, or hangs, is killed after this time.
_READER_GONE_S = 1.0
_POLL_S = 0.01
#: More than two process ids.
_NOTE_BYTES = 64
_LOOKS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
# struct flock: type, whence, start, length, pid (Linux); start, length, pid, type, whence (macOS)
_FLOCK = struct.Struct("@hhqqi4x" if IS_LINUX else "@qqihh")


def take_broker_lock(path: Path, guardian_pid: int) -> int:
    """Takes the broker's lock, for the life of this process. Returns the descriptor that holds it.

    Raises:
        AlreadyRunning: another fleet holds it; the message names its process.
    """
    descriptor = _open(path)
    give_up_at = time.monotonic() + _ENDING_S
    told: dict[int, float] = {}  # readers that were told to go, and when
    while not _lock(descriptor):
        reader = _holder(descriptor)
        if reader is not None:
            _send_away(reader, told)
            give_up_at = time.monotonic() + _ENDING_S
        elif _has_fleet(descriptor, guardian_pid) or time.monotonic() > give_up_at:
            pid = _broker_of(descriptor)
            os.close(descriptor)
            raise AlreadyRunning(
                f"a fleet already runs on {path.parent} (broker process {pid}): use it, or end it with `taskq stop`"
            )
        time.sleep(_POLL_S)  # for a reader to go, or for a fleet without guardian to end: at most _ENDING_S
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d %d" % (os.getpid(), guardian_pid), 0)
    return descriptor


def _open(path: Path) -> int:
    return os.open(path, _LOOKS | os.O_CREAT, 0o600)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_fleet(descriptor: int, guardian_pid: int) -> bool:
    """Whether a living fleet holds the lock. Ours does not count: then its last broker died while it told a reader to
    go."""
    holder = os.pread(descriptor, _NOTE_BYTES, 0).split()
    return len(holder) == 2 and int(holder[1]) != guardian_pid and all(_is_alive(int(pid)) for pid in holder)


def holder_of(path: Path) -> int | None:
    """The broker that holds its lock; None if there is none. It only asks: a broker that starts at this moment tries
    again."""
    try:
        descriptor = os.open(path, _LOOKS)
    except OSError:
        return None
    note = _held_with(descriptor)
    pid = "" if note is None else _broker_in(note)
    return int(pid) if pid.isdecimal() and _is_alive(int(pid)) else None


def note_of_holder(path: Path) -> bytes:
    """What a broker has written into its lock: its process id and its guardian's."""
    return path.read_bytes()


def is_held(path: Path, note: bytes) -> bool:
    """Whether the broker that has written this still holds its lock. Unlike a process id, that can be asked from
    another container, whose processes have numbers of their own."""
    try:
        descriptor = os.open(path, _LOOKS)
    except FileNotFoundError:
        return False
    return _held_with(descriptor) == note


def _held_with(descriptor: int) -> bytes | None:
    """What the holder of a lock has written into it; None if nobody holds it. Closes the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, _NOTE_BYTES, 0)
    finally:
        os.close(descriptor)
    return None


def _broker_of(descriptor: int) -> str:
    return _broker_in(os.pread(descriptor, _NOTE_BYTES, 0))


def _broker_in(note: bytes) -> str:
    holder = note.split()
    return holder[0].decode() if holder else "unknown"


def _send_away(reader: int, told: dict[int, float]) -> None:
    """Tells a reader to go, and kills it if it does not: it leaves nothing behind that a broker would not leave."""
    now = time.monotonic()
    is_late = now > told.setdefault(reader, now) + _READER_GONE_S
    if reader > 0 and (is_late or told[reader] == now):  # 0: it runs in another container
        with suppress(ProcessLookupError):
            os.kill(reader, signal.SIGKILL if is_late else signal.SIGTERM)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class ReaderLock:
    """The lock of a process that reads the journal of a stopped fleet."""

    def __init__(self, path: Path, socket_path: Path, patience_s: float = 5.0) -> None:
        """Takes the lock; waits a while for another reader, for a fleet that ends, or for one that starts and will
        answer.

        Args:
            path: of the lock.
            socket_path: where a broker listens.
            patience_s: how long it waits.

        Raises:
            AlreadyRunning: a fleet runs, and can be asked instead.
            BrokerUnavailable: a fleet holds it that cannot be asked, even after a while.
        """
        self._descriptor = _open(path)
        give_up_at = time.monotonic() + patience_s
        # in this order: a broker that does not get the lock must find out who has it
        while not (_lock_posix(self._descriptor) and _lock(self._descriptor)):
            if is_listening(socket_path):
                raise AlreadyRunning(f"a fleet runs on {path.parent}")
            if time.monotonic() > give_up_at:
                told = f"broker process {_broker_of(self._descriptor)} has {path.parent}, and does not answer"
                raise BrokerUnavailable(f"{told}: it starts, or ends, or hangs")
            time.sleep(_POLL_S)

    def release(self) -> None:
        """Releases both locks, in the order in which no broker can take this process for another fleet."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def _lock_posix(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def hold_consumer_lock(path: Path) -> int:
    """Takes the consumers' lock, shared, for the life of this process. Returns the descriptor that holds it."""
    descriptor = _open(path)
    fcntl.lockf(descriptor, fcntl.LOCK_SH)
    return descriptor


def end_old_consumers(path: Path) -> list[int]:
    """Kills the consumers of a dead broker, and waits until none is left. Returns their process ids.

    The kernel kills them when their broker dies (see `platform.die_with_parent`), so this finds a process only in the
    moment between, or on a system that has nothing of the kind.

    Raises:
        DirectoryError: one does not end (it may hang in the kernel, or run in another container).
    """
    descriptor = _open(path)
    killed: list[int] = []
    give_up_at = time.monotonic() + _CONSUMERS_GONE_S
    try:
        while (pid := _holder(descriptor)) is not None:
            if time.monotonic() > give_up_at:
                raise DirectoryError(f"{_name_of(pid)} of an earlier fleet does not end; its jobs cannot be run again")
            if pid <= 0:  # it has no process id here; 0 would mean our own group
                time.sleep(_POLL_S)
                continue
            if pid not in killed:
                killed.append(pid)
            kill_group(pid)
            _wait_for_end(pid)
        return killed
    finally:
        os.close(descriptor)


def _name_of(pid: int) -> str:
    return f"consumer process {pid}" if pid > 0 else "a consumer process in another container"


def _holder(descriptor: int) -> int | None:
    """The process that holds the lock; 0 or less if it has no process id here, None if nobody holds it."""
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
    """Waits a moment for a killed process to end, which releases the lock; then the lock is looked at again."""
    try:
        descriptor = open_pidfd(pid)
    except ProcessLookupError:
        return
    if descriptor is None:
        time.sleep(0.01)
        return
    try:
        poll = select.poll()  # `select.select` cannot take descriptors above 1,023
        poll.register(descriptor, select.POLLIN)
        poll.poll(1_000)
    finally:
        os.close(descriptor)
