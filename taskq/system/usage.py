"""The memory and CPU time that processes use, and the limits on them."""

from __future__ import annotations

import os
import resource
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskq.model.attempt import Usage
from taskq.system.platform import IS_LINUX


def usage_of(pid: int) -> Usage | None:
    """What a process and its descendants use now; None if it is gone. Takes 50 microseconds for each on Linux."""
    return _linux_usage(pid) if IS_LINUX else _portable_usage(pid)


def _linux_usage(pid: int) -> Usage | None:
    ticks, pages, waiting = 0, 0, [pid]
    while waiting:
        current = waiting.pop()
        try:
            # after the name, which may contain anything: state is the first field, utime to cstime are the 12th to 15th
            fields = Path(f"/proc/{current}/stat").read_bytes().rpartition(b")")[2].split()
            pages += int(Path(f"/proc/{current}/statm").read_bytes().split()[1])
            for thread in os.listdir(f"/proc/{current}/task"):
                waiting += map(int, Path(f"/proc/{current}/task/{thread}/children").read_bytes().split())
        except (OSError, IndexError):
            if current == pid:
                return None
            continue  # a child has just ended: the next figures of its parent include it
        ticks += sum(map(int, fields[11:15]))
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))


def _portable_usage(pid: int) -> Usage | None:
    import psutil  # takes 17 ms: only fleets that have jobs with such limits pay for it

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return None
    cpu_s, rss_bytes = 0.0, 0
    for each in family:
        try:
            cpu_s += sum(each.cpu_times()[:4])
            rss_bytes += each.memory_info().rss
        except psutil.Error:
            continue
    return Usage(cpu_s, rss_bytes)


def rss_bytes(pid: int) -> int:
    """The resident memory of a process; 0 if it is gone."""
    if IS_LINUX:
        try:
            return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0
    import psutil  # takes 17 ms, in which a broker that is asked for its status for the first time answers nobody

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


class CpuMeter:
    """How much of a core a process uses now, of samples that are taken about once a second."""

    def __init__(self, pid: int) -> None:
        """
        Args:
            pid: the process.
        """
        self._pid = pid
        self._samples: deque[tuple[float, float]] = deque(maxlen=2)

    def sample(self, now: float) -> None:
        """Notes how much the process has used until now. Takes 20 microseconds on Linux.

        Args:
            now: monotonic seconds.
        """
        used_s = cpu_s_of(self._pid)
        if used_s is not None:
            self._samples.append((now, used_s))

    def read(self, now: float) -> tuple[float | None, int | None]:
        """Returns the seconds of CPU time that the process has used, and the part of one core in percent since one of
        the last two samples; None for what is not known.

        Args:
            now: monotonic seconds.
        """
        used_s = cpu_s_of(self._pid)
        if used_s is None or not self._samples or now <= self._samples[0][0]:
            return used_s, None
        at, used_before_s = self._samples[0]
        return used_s, round(100 * (used_s - used_before_s) / (now - at))


def cpu_s_of(pid: int) -> float | None:
    """The seconds of CPU time that a process and its children that have ended have used; None if it is gone."""
    if IS_LINUX:
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    import psutil  # see `rss_bytes`

    try:
        return float(sum(psutil.Process(pid).cpu_times()[:4]))
    except psutil.Error:
        return None


def own_cpu_s() -> float:
    """The CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


@contextmanager
def data_limit(limit_bytes: int) -> Iterator[None]:
    """Makes this process get a MemoryError if it asks for more memory than this while the block runs (Linux).

    The kernel counts all memory that was asked for, whether it is used or not. What was asked for before the block and
    is unused (such as the buffers of a library) does not count against the limit.
    """
    if not IS_LINUX:
        yield  # the broker looks at the memory from time to time
        return

    before = resource.getrlimit(resource.RLIMIT_DATA)
    soft = max(0, limit_bytes + _unused_data_bytes())
    if before[1] != resource.RLIM_INFINITY:
        soft = min(soft, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _unused_data_bytes() -> int:
    """Memory that the process has asked for but not touched, minus the files that it has in memory.

    Added to a limit, it makes the kernel bound the growth of the resident memory, which is what the broker measures.
    """
    sizes = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmData", "VmRSS"):
            sizes[name] = int(value.split()[0]) * 1024
    return sizes.get("VmData", 0) - sizes.get("VmRSS", 0)


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_bytes_of(pid: int) -> int | None:
    """The most resident memory that another process has had; None if it is gone, or if the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    _, found, rest = status.partition(b"\nVmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else None
