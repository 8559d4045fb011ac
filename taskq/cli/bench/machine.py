"""What kind of machine this is, and what its processes use."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import apsw
import psutil

import taskq
from taskq.cli.bench.figures import Machine
from taskq.model.settings import default_consumers

_LOOK_S = 0.3
_NS = 1e9


def describe(directory: Path) -> Machine:
    """Returns what the figures of a directory depend on."""
    with CpuMeter() as meter:
        time.sleep(_LOOK_S)
    return Machine(
        taskq=taskq.__version__,
        python=platform.python_version(),
        sqlite=apsw.sqlite_lib_version(),
        kernel=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=default_consumers(),
        file_system=_file_system(directory),
        others_cores=round(meter.others_s / meter.wall_s, 2),
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _file_system(directory: Path) -> str:
    mounts = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in (directory, *directory.parents) if path in mounts), "")


def family(pids: Sequence[int]) -> list[psutil.Process]:
    """Some processes, and all that descend from them."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(pid)
            for process in (parent, *parent.children(recursive=True)):
                found[process.pid] = process
    return list(found.values())


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """The seconds of CPU that some processes have used, all their threads included."""
    return sum(map(_cpu_s, processes))


def _cpu_s(process: psutil.Process) -> float:
    try:  # counts nanoseconds, where psutil sees ticks of 10 ms
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / _NS
    except OSError:
        pass
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def memory_mb(processes: Iterable[psutil.Process]) -> float:
    """The memory of some processes; what several of them share counts once (PSS, where the system tells it)."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.uss)
    return total / 1e6


class _Reading(NamedTuple):
    wall_s: float
    idle_s: float
    ours_s: float


class CpuMeter:
    """The CPU time that this process, its descendants and all others use while a block runs.

    Attributes:
        wall_s: how long the block took.
        ours_s: what this process and its descendants used.
        others_s: what all others used.
    """

    wall_s = ours_s = others_s = 0.0

    def __enter__(self) -> CpuMeter:
        self._before = _reading()
        return self

    def __exit__(self, *_: object) -> None:
        before, after = self._before, _reading()
        self.wall_s = after.wall_s - before.wall_s
        self.ours_s = after.ours_s - before.ours_s
        busy_s = self.wall_s * (os.cpu_count() or 1) - (after.idle_s - before.idle_s)
        self.others_s = max(0.0, busy_s - self.ours_s)


def _reading() -> _Reading:
    system = psutil.cpu_times()
    idle_s = system.idle + getattr(system, "iowait", 0.0)
    return _Reading(time.perf_counter(), idle_s, cpu_s(family([os.getpid()])))
