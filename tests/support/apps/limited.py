"""Tasks that use much memory or CPU time. See apps/jobs.py."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time

from apps.jobs import pass_gate, record

from taskq import CpuTimeout, TaskQ, current_job

q = TaskQ("limited")
MB = 1_000_000


@q.task(retries=1, backoff=[0.01], memory_limit="300MB", crash_queue="big")
def eats(path: str, how: str, megabytes: int) -> str:
    """At its first start it takes memory, in one of several ways, and touches it."""
    record(path, "start")
    if current_job().attempt > 1:
        return "enough"
    match how:
        case "python":
            held = [bytearray(MB) for _ in range(megabytes)]
            del held
        case "caught":
            try:
                bytearray(megabytes * MB)
            except MemoryError:
                return "caught"
        case "malloc":
            libc = ctypes.CDLL(None)
            libc.malloc.restype = ctypes.c_void_p
            libc.malloc.argtypes = [ctypes.c_size_t]
            where = libc.malloc(megabytes * MB)
            if not where:
                raise MemoryError("malloc")
            ctypes.memset(where, 1, megabytes * MB)
        case "shared":
            # not counted by RLIMIT_DATA: only who looks at the process sees it
            block = mmap.mmap(-1, megabytes * MB)
            for start in range(0, megabytes * MB, mmap.PAGESIZE):
                block[start] = 1
            record(path, "full")
            time.sleep(30)
        case "children":
            program = f"data = bytearray({megabytes // 3} * 10**6); import time; time.sleep(30)"
            children = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
            [child.wait() for child in children]
    record(path, "end")
    return "eaten"


@q.task(retries=0)
def free_memory(megabytes: int) -> int:
    """No limit is left over from the jobs before."""
    return len(bytearray(megabytes * MB))


@q.task(retries=1, backoff=[0.01], cpu_timeout=0.3)
def burns(path: str, how: str, gate: str = "") -> str:
    """At its first start it uses CPU time, in one of several ways."""
    record(path, "start")
    if current_job().attempt > 1:
        return "enough"
    match how:
        case "python":
            while True:
                pass
        case "caught":
            try:
                while True:
                    pass
            except CpuTimeout as late:
                return str(late)
        case "in-c":
            ctypes.PyDLL(None).usleep  # noqa: B018  resolved before
            libc = ctypes.PyDLL(None)
            buffer = ctypes.create_string_buffer(1 << 24)
            while True:
                try:
                    libc.memset(buffer, 1, 1 << 24)
                except CpuTimeout:
                    record(path, "ignored")
        case "children":
            subprocess.run([sys.executable, "-c", "while True: pass"], check=False)
        case "waits":
            pass_gate(gate)
            return "waited"
    return "not reached"


@q.task(retries=0, cpu_timeout=0.3, timeout=0.4)
def both(how: str) -> None:
    if how == "sleeps":
        time.sleep(30)
    while True:
        os.getpid()
