"""The tasks of the end-to-end tests. A job notes what it does in lines that it appends to a file, in one write each."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

from taskq import Cancel, JobTimeout, TaskQ, chain, current_job

q = TaskQ("tests", url="/proc/nonexistent" if __name__ == "apps.jobs" else None)


def append(path: str, line: str) -> None:
    """Appends a line to a file, whole, whoever else does."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def record(path: str, label: object) -> None:
    """Notes that a job has reached this place."""
    job = current_job()
    append(path, f"{label} {job.id} {job.attempt} {os.getpid()} {time.monotonic()}")


def pass_gate(path: str) -> None:
    """Waits until the test opens a gate."""
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 1)
    os.close(descriptor)


def die(how: str) -> None:
    """Ends this process in one of many ways."""
    match how:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit 0":
            os._exit(0)
        case "exit 3":
            os._exit(3)
        case "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        case "kill fleet":
            # our session: every process of the fleet, the test not among them. We do not go with the broker; the
            # guardian goes last, since the kernel wakes a stopped group whose parent ends
            ctypes.CDLL(None).prctl(1, 0)
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in sorted(pids, reverse=True):
                    try:
                        if os.getsid(pid) == os.getsid(0):
                            os.kill(pid, number)
                    except (ProcessLookupError, PermissionError):
                        pass
            os.kill(os.getpid(), signal.SIGKILL)


def block_forever_in_c() -> None:
    """Waits in C code that keeps the GIL and ignores signals: a mutex that is locked twice."""
    mutex = ctypes.create_string_buffer(64)
    ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@q.task
def add(a: int, b: int = 1) -> int:
    return a + b


@q.task(name="renamed", aliases=["once_renamed", "first_renamed"], give_up_on=KeyError)
def has_another_name(number: int) -> int:
    """A task that had other names before."""
    if number < 0:
        raise KeyError(number)
    return 10 * number


@q.task(retries=0)
def picky(number: int) -> int:
    """Takes most numbers."""
    if number == 13:
        raise ValueError(number)
    if number == 7:
        raise Cancel(str(number))
    return number


@q.task
def open_files() -> list[int]:
    """The limits on open files that a job has."""
    return list(resource.getrlimit(resource.RLIMIT_NOFILE))


@q.task
def echo(value: Any) -> Any:
    return value


@q.task(result=False)
def drop(value: int) -> Any:
    """Returns something that cannot be serialized; the result is dropped."""
    return [value, sys.stdout]


@q.task
def count(most: int) -> Generator[int, None, str]:
    """Yields numbers, and returns a text."""
    yield from range(most)
    return f"{most} in all"


@q.task
async def acount(most: int) -> AsyncGenerator[int, None]:
    import asyncio

    for number in range(most):
        await asyncio.sleep(0)
        yield number


@q.task(retries=2)
def yield_and_wait(path: str, gate: str) -> Generator[str, None, int]:
    """Yields its attempt three times, waits for a gate at its first start, then yields twice more."""
    attempt = current_job().attempt
    for number in range(3):
        yield f"{number} of {attempt}"
    record(path, "yielded")
    if attempt == 1:
        pass_gate(gate)
    for number in range(3, 5):
        yield f"{number} of {attempt}"
    return attempt


@q.task(retries=0)
def yield_and_fail(values: list[Any]) -> Generator[Any, None, None]:
    yield from values
    raise LookupError("no more")


@q.task
def yield_back(values: list[Any]) -> Generator[Any, None, None]:
    yield from values


@q.task(retries=0)
def yield_odd(how: str) -> Generator[Any, None, None]:
    """Yields what is refused."""
    yield "first"
    if how == "unserializable":
        yield sys.stdout
    if how == "large":
        yield bytes(5_000_000)
    while how == "many":
        yield None


@q.task(timeout=0.3, retries=0)
def yield_for_ever(path: str) -> Generator[int, None, None]:
    number = 0
    try:
        while True:
            yield number
            number += 1
            time.sleep(0.001)
    finally:
        record(path, "cleaned")


@q.task(retries=0)
def yield_after_fork() -> Generator[int, None, int]:
    """Forks in the middle: the child goes on as well, and must not report anything."""
    yield 0
    parent = os.getpid()
    child = os.fork()
    yield 1
    if os.getpid() == parent:
        os.waitpid(child, 0)
    return 2


@q.task(max_crashes=100)
def link(before: list[str], label: str, path: str | None = None) -> list[str]:
    """A step: adds its label to what came before."""
    if path is not None:
        record(path, label)
    return [*before, label]


@q.task(max_crashes=100)
def flatten(before: list[list[str]]) -> list[str]:
    return [label for labels in before for label in labels]


@q.task
def sizes(parts: list[bytes]) -> list[int]:
    return [len(part) for part in parts]


@q.task
def note_nothing() -> None:
    pass


@q.task
def write(path: str, label: str) -> str:
    record(path, label)
    return label


@q.task(retries=1, timeout=20)
def bear(path: str, how: str, number: int = 3) -> int:
    """Enqueues children for the case that it succeeds, which its first attempt does not."""
    attempt = current_job().attempt
    kept = write.options(on_success=True, unique=how == "unique")
    kept.enqueue_many((path, f"{attempt}.{child}") for child in range(number))
    if how == "chain":
        chain(kept.step(path, f"{attempt}.chain"), write.step(path, f"{attempt}.last").without_input()).enqueue()
    record(path, "born")
    if attempt == 1 and how == "raise":
        raise ConnectionError("not yet")
    if attempt == 1 and how == "wait":
        time.sleep(60)
    if attempt == 1 and how in ("kill", "kill fleet"):
        die(how)
    return attempt


@q.task
async def abear(path: str, how: str) -> None:
    kept = write.options(on_success=True)
    await kept.aenqueue(path, how)
    if how == "raise":
        raise ConnectionError("no")


@q.task
def enqueue_next(path: str, left: int) -> None:
    """Each job makes the next one when it succeeds."""
    record(path, left)
    if left:
        enqueue_next.options(on_success=True).enqueue(path, left - 1)


@q.task
def variable(name: str) -> str | None:
    """A variable of the consumer's environment."""
    return os.environ.get(name)


@q.task(retries=0)
def fail(message: str) -> None:
    raise LookupError(message)


@q.task(retries=1)
def fail_once(path: str) -> int:
    record(path, "start")
    if current_job().attempt == 1:
        raise ConnectionError("not yet")
    return current_job().attempt


@q.task
def who() -> list[Any]:
    return [current_job().id, current_job().task, current_job().attempt, os.getpid()]


@q.task
async def double(number: int) -> int:
    import asyncio

    await asyncio.sleep(0)
    return 2 * number


@q.task
def say(text: str) -> None:
    """Prints and logs a text."""
    print(f"by print {text}")
    current_job().log.info(f"by log {text}")


@q.task(retries=0, max_crashes=1)
def say_and_die(text: str) -> None:
    """Prints a text, and dies."""
    print(f"last words {text}", flush=True)
    die("segfault")


@q.task
def speak() -> None:
    print("by print")
    logging.getLogger("app").warning("by %s", "logging")
    import structlog  # for this job alone: it imports rich, which takes longer than all that a consumer needs

    structlog.get_logger().info("by structlog", size=3)
    current_job().log.error("by job log", width=640)
    os.write(2, b"by descriptor\n")
    subprocess.run(["echo", "by subprocess"], check=True)


@q.task(retries=0)
def raise_system_exit(code: int) -> None:
    sys.exit(code)


@q.task(retries=0)
def raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


@q.task(retries=0)
def unserializable() -> Any:
    return object()


@q.task(retries=0)
def nasty() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    raise Nasty


@q.task
def big(count: int) -> bytes:
    return bytes(count)


@q.task
def huge(count: int) -> Any:
    import numpy as np

    return np.zeros(count, "u1")  # the kernel gives no memory for what is not written


@q.task
def nap(seconds: float) -> None:
    time.sleep(seconds)


@q.task
def nap_and_note(seconds: float, path: str, label: str) -> None:
    time.sleep(seconds)
    record(path, label)


@q.task
def hold(gate: str, path: str, label: str = "held") -> str:
    """Notes that it runs, then waits for a gate."""
    record(path, label)
    pass_gate(gate)
    record(path, f"{label}-end")
    return label


@q.task
def note(path: str, label: str) -> str:
    record(path, label)
    return label


@q.task(retries=0)
def mixed(path: str, label: str, how: str = "", gate: str = "") -> str:
    """A job of a batch; one of them may die."""
    record(path, label)
    if gate:
        pass_gate(gate)
    die(how)
    record(path, f"{label}-end")
    return label


@q.task(retries=0)
def last_words(path: str, how: str) -> None:
    record(path, "start")
    print("my last words")
    sys.stdout.flush()
    die(how)


@q.task(retries=0)
def die_once(path: str, how: str) -> int:
    """Dies at its first start only."""
    record(path, "start")
    if current_job().attempt == 1:
        die(how)
    return current_job().attempt


@q.task(timeout=0.3, retries=0)
def overdue(path: str, how: str, gate: str = "") -> str:
    """Runs longer than it may, in one of several ways."""
    record(path, how)
    try:
        match how:
            case "in-time":
                return how
            case "python" | "caught" | "insists":
                pass_gate(gate)
            case "in-c":
                block_forever_in_c()
            case "blocked":
                signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
                pass_gate(gate)
    except JobTimeout:
        record(path, "caught")
        if how == "caught":
            return how
        if how == "insists":
            pass_gate(gate)
        raise
    return "not reached"


@q.task(retries=0)
def fork_sleeper(path: str, gate: str, session: bool = False) -> None:
    """Forks a child that goes on, then waits for a gate."""
    child = os.fork()
    if child == 0:
        if session:
            os.setpgid(0, 0)  # out of reach of a kill of the group
        append(path + ".child", f"{os.getpid()}")
        pass_gate(gate)
        os._exit(0)
    record(path, "start")
    pass_gate(gate)


@q.task(retries=0)
def fork_and_return() -> int:
    """Returns in two processes, one of which is not a consumer."""
    os.fork()
    return os.getpid()


@q.task(retries=0)
def end_a_fork(number: int) -> int:
    """Sends a signal to a process that it forked; returns how that ended."""
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@q.task(retries=0)
def use_multiprocessing() -> int:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(abs, [-1, -2, -3]))


@q.task(retries=0)
def close_descriptors(path: str, first: int) -> None:
    record(path, "start")
    os.closerange(first, 1000)


@q.task
def block_signals(path: str, gate: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    record(path, "start")
    pass_gate(gate)


@q.task
def storm(folder: str, number: int) -> int:
    """A small job, which notes its start and its end in a file of its process."""
    path = f"{folder}/{os.getpid()}"
    record(path, "start")
    if number % 3 == 0:
        time.sleep(0.001)
    record(path, "end")
    return number


@q.task(retries=0)
def print_much(lines: int) -> None:
    for number in range(lines):
        print(f"line {number}")


@q.task
def hold_gil(path: str, gate: str) -> str:
    """Waits for a gate in C code that keeps the GIL: no other thread of this process runs meanwhile."""
    descriptor = os.open(gate, os.O_RDONLY)
    record(path, "start")
    ctypes.PyDLL(None).read(descriptor, ctypes.create_string_buffer(1), 1)
    os.close(descriptor)
    return "held"


@q.task(retries=0, max_crashes=1)
def outgrow_group(group: str) -> int:
    """Moves its process to a control group with little memory, and takes more: the kernel kills it."""
    with open(f"{group}/cgroup.procs", "w") as members:
        members.write(str(os.getpid()))
    return len(bytes(1) * (512 * 1024 * 1024))


@q.task(retries=0)
def run_out_of_memory() -> None:
    """Asks for more memory than this process may have, for as long as the job runs."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, before[1]))
    try:
        bytearray(1 << 31)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@q.task
def large_item(path: str, gate: str, size: int) -> Generator[bytes, None, None]:
    """Waits for a gate, at its first start only, then yields a large item."""
    record(path, "start")
    if current_job().attempt == 1:
        pass_gate(gate)
    yield bytes(size)


@q.task
def print_behind(path: str, gate: str, lines: int) -> int:
    """Waits for a gate, then prints."""
    record(path, "start")
    pass_gate(gate)
    print_much(lines)
    return lines


@q.task(retries=0)
def raise_oddly(how: str) -> None:
    """Raises an exception that is hard to describe."""

    class NeedsTwo(Exception):
        def __init__(self, one: object, two: object) -> None:
            super().__init__(two and one)

    if how == "does not unpickle":
        raise NeedsTwo(1, lambda: None)
    if how == "recursive":
        raise_oddly(how)
    raise ValueError("x" * 100_000_000)


@q.task
def leave_orphan(path: str) -> None:
    """Leaves a process behind that ends after this job, as a child of the process that reaps orphans."""
    if os.fork() == 0:
        os.setpgid(0, 0)
        if os.fork() == 0:
            append(path, f"{os.getpid()}")
            os._exit(7)
        os._exit(0)
    os.wait()


@q.task(retries=0)
def need(path: str) -> int:
    """Fails until a file exists. Returns its attempt."""
    with open(path):
        return current_job().attempt


@q.task(retries=1)
def need_again(path: str) -> int:
    """The same, with a retry."""
    with open(path):
        return current_job().attempt


@q.task(retries=3)
def spin_until_told(path: str) -> None:
    """Runs until it is interrupted, and cleans up."""
    record(path, "spins")
    try:
        while True:
            time.sleep(0.01)
    except JobTimeout:
        record(path, "cleaned")
        raise


@q.task(retries=3)
def block_in_c(path: str) -> None:
    """Runs for ever, and ignores signals."""
    record(path, "blocks")
    block_forever_in_c()


@q.task(meta={"app": "jobs"})
def tell_meta() -> dict[str, str]:
    """What the job knows of its meta."""
    return current_job().meta


@q.task(retries=1, backoff=[0])
def fail_with_meta(path: str) -> None:
    """Notes its tenant, and fails."""
    append(path, current_job().meta["tenant"])
    raise LookupError("no")


class Declined(Exception):
    """An error of the application."""


@q.task(retries=0)
def decline() -> None:
    """Raises an error that came from another."""
    try:
        {}["card"]
    except KeyError as error:
        raise Declined("no card") from error
