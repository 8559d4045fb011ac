"""The differences between Linux, which is tested, and other Unix systems, for which there are fallbacks."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import termios
from array import array
from pathlib import Path

import setproctitle

IS_LINUX: bool = sys.platform.startswith("linux")


_PR_SET_PDEATHSIG = 1


_PR_SET_CHILD_SUBREAPER = 36


#: Takes the answer of FIONREAD, an int. It is larger than what `ioctl` copies (1 KiB): 0.47 microseconds a call, where
#: bytes take 1.0, and so does a call through ctypes.
_unread = array("i", [0] * 512)


_PEER_CREDENTIALS = struct.Struct("3i")


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends (Linux).

    Elsewhere the end of the parent shows as the end of the pipe that this process reads.
    """
    if IS_LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Makes this process the new parent of descendants whose parent died, so that it can reap them (Linux)."""
    if IS_LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process has ended, or None where there are none.

    Unlike the sentinel of multiprocessing, which is the end of a pipe, it does not stay silent while a grandchild lives
    (measured: 4 s late).
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return None


def peer_uid(connection: socket.socket) -> int | None:
    """The user at the other end of a Unix socket, or None where the system does not tell."""
    if hasattr(socket, "SO_PEERCRED"):
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        return int(_PEER_CREDENTIALS.unpack(data)[1])
    return None


def is_listening(path: Path) -> bool:
    """Whether a broker has its socket there, also one that does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # too many others knock
        return True


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP, or a debugger), where the system tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def kill_group(leader_pid: int) -> None:
    """Kills a process group with SIGKILL. Call it before the leader is reaped: then its number is not used again.

    Raises:
        ValueError: this is the number of no leader; 0 would be our own group.
    """
    if leader_pid <= 0:
        raise ValueError(f"{leader_pid} is not a process that leads a group")
    try:
        os.killpg(leader_pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left in it (macOS says so with EPERM)


def widen_pipe(pipe: int, size: int) -> None:
    """Makes a pipe hold this many bytes, if it may: a large message costs its writer one wait then (Linux)."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
        except OSError:
            pass  # this user's pipes take all that the system allows already


def is_unread(pipe: int) -> bool:
    """Whether the reader of a pipe has not taken all that was written to it."""
    fcntl.ioctl(pipe, termios.FIONREAD, _unread)
    return _unread[0] != 0


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since the system started; 0 where it does not say."""
    try:
        with open("/proc/vmstat", "rb") as counters:
            return next((int(line.split()[1]) for line in counters if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0


def name_process(title: str) -> None:
    """Names this process in `ps` and `top`."""
    setproctitle.setproctitle(f"taskq: {title}")


def name_of_signal(number: int) -> str:
    """SIGKILL for 9; a plain number for those without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def sync_directory(path: Path) -> None:
    """Makes durable which names a directory holds."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
