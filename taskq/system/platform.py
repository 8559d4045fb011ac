"""The differences between Linux, which is tested, and other Unix systems, for which there are fallbacks."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
import termios
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

IS_LINUX: bool = sys.platform.startswith("linux")


_PR_SET_PDEATHSIG = 1


_PR_SET_CHILD_SUBREAPER = 36


#: Receives the answer of FIONREAD, an int. It is larger than what `ioctl` copies (1 KiB): so a call takes 0.47
#: microseconds instead of 1.0 with bytes or through ctypes.
_unread = array("i", [0] * 512)


_TIMEVAL = struct.Struct("@ll")  # seconds, microseconds
_PEER_CREDENTIALS = struct.Struct("3i")


_SYNC_FILE_RANGE_WRITE = 2


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends (Linux).

    On other systems this process sees the end of its parent as the end of the pipe that it reads.
    """
    if IS_LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Makes this process the new parent of descendants whose parent died, so that it can reap them (Linux)."""
    if IS_LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process has ended, or None if the system has no such descriptors.

    Unlike the sentinel of multiprocessing, which is the end of a pipe, it does not wait until grandchildren have ended
    (measured: 4 s late).
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return None


def peer_uid(connection: socket.socket) -> int | None:
    """The user at the other end of a Unix socket, or None where the system does not say."""
    if hasattr(socket, "SO_PEERCRED"):
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        return int(_PEER_CREDENTIALS.unpack(data)[1])
    return None


def timeval(seconds: float) -> bytes:
    """A time limit as the options of a socket take it."""
    return _TIMEVAL.pack(*divmod(max(1, int(seconds * 1e6)), 1_000_000))  # 0 would be no limit


def is_listening(path: Path) -> bool:
    """Whether a broker listens there, even one that does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # too many others are connecting
        return True


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (by SIGSTOP or a debugger); False where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def kill_group(leader_pid: int) -> None:
    """Kills a process group with SIGKILL. Call it before the leader is reaped, while its number cannot be reused.

    Raises:
        ValueError: this cannot be the number of a leader; 0 would mean our own group.
    """
    if leader_pid <= 0:
        raise ValueError(f"{leader_pid} is not a process that leads a group")
    try:
        os.killpg(leader_pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left in it (macOS says so with EPERM)


def widen_pipe(pipe: int, size: int) -> None:
    """Makes a pipe hold this many bytes, if allowed, so that the writer of a large message waits only once (Linux)."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
        except OSError:
            pass  # this user's pipes already take all that the system allows


def is_unread(pipe: int) -> bool:
    """Whether a pipe holds something that its reader has not taken yet."""
    fcntl.ioctl(pipe, termios.FIONREAD, _unread)
    return _unread[0] != 0


def oom_kills() -> int:
    """How many processes the kernel has killed since the system started because memory ran out; 0 if unknown."""
    try:
        with open("/proc/vmstat", "rb") as counters:
            return next((int(line.split()[1]) for line in counters if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0


def name_process(title: str) -> None:
    """Names this process in `ps` and `top`."""
    import setproctitle  # it imports logging, which a process without a name can do without

    setproctitle.setproctitle(f"taskq: {title}")


def name_of_signal(number: int) -> str:
    """SIGKILL for 9; the number as text if it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


#: Makes what was written to a file durable, but not, say, its times (macOS has only the sync of everything).
sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def begin_writing_out(descriptor: int, start: int, size: int) -> None:
    """Has the disk begin to write a part of a file, and waits for nothing, so that a sync has less to wait for (Linux).
    Errors are left to that sync."""
    sync_file_range = _sync_file_range()
    if sync_file_range is not None:
        sync_file_range(descriptor, start, size, _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Any:
    """The call of the C library, or None if it has none."""
    import ctypes  # a probe starts without it

    found = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return found


def free_bytes(directory: Path) -> int:
    """The free space of the file system that a directory is on, without what is reserved for root."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
