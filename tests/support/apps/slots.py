"""The tasks of the tests of consumers that run several jobs at once. A job notes what it does in lines of a file."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a consumer has no other way to `apps`
from apps.jobs import append, block_forever_in_c, die, pass_gate, record

from taskq import JobTimeout, TaskQ, current_job

q = TaskQ("tests", url="/proc/nonexistent" if __name__ == "apps.slots" else None)
_crowds = [0]  # how many jobs were here at each of their comings and goings
_lock = threading.Lock()


def _enter(by: int) -> None:
    with _lock:
        _crowds.append(_crowds[-1] + by)


@q.task
async def nap(seconds: float) -> str:
    """Sleeps, as a coroutine."""
    _enter(1)
    await asyncio.sleep(seconds)
    _enter(-1)
    return current_job().id


@q.task
def doze(seconds: float) -> str:
    """Sleeps, in a thread."""
    _enter(1)
    time.sleep(seconds)
    _enter(-1)
    return current_job().id


@q.task
def largest_crowd() -> int:
    """How many of the two above ran at the same time in this process."""
    return max(_crowds)


@q.task
async def meet(folder: str, name: str, count: int) -> None:
    """Returns when this many jobs have met: they must run at the same time."""
    append(f"{folder}/{name}", "here")
    while len(os.listdir(folder)) < count:
        await asyncio.sleep(0.002)


@q.task
def meet_in_thread(folder: str, name: str, count: int) -> None:
    append(f"{folder}/{name}", "here")
    while len(os.listdir(folder)) < count:
        time.sleep(0.002)


@q.task
async def knows(seconds: float) -> list[str]:
    """The id that each of its parts sees, some of them after a while."""
    await asyncio.sleep(seconds)
    child = asyncio.create_task(_id_after(seconds))
    return [current_job().id, await asyncio.to_thread(_id), await child]


@q.task
def knows_in_thread(seconds: float) -> list[str]:
    time.sleep(seconds)
    found: list[str] = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: found.append(context.run(_id)))
    thread.start()
    thread.join()
    return [current_job().id, *found]


def _id() -> str:
    return current_job().id


async def _id_after(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return current_job().id


@q.task
async def speak(name: str) -> None:
    """Prints in pieces, between which other jobs print."""
    for _ in range(5):
        print(f"{name} by", end=" ")
        await asyncio.sleep(0.002)
        print("print", file=sys.stdout)
    logging.getLogger("app").warning("%s by logging", name)
    await asyncio.to_thread(current_job().log.info, f"{name} by job log", size=3)
    print(f"{name} by standard error", file=sys.stderr)
    print(f"{name} without an end", end="")


@q.task
def speak_in_thread(name: str) -> None:
    for _ in range(5):
        print(f"{name} by", end=" ")
        time.sleep(0.002)
        print("print")
    logging.getLogger("app").warning("%s by logging", name)
    current_job().log.info(f"{name} by job log", size=3)
    print(f"{name} by standard error", file=sys.stderr)
    print(f"{name} without an end", end="")


@q.task
def write_natively(line: str) -> None:
    os.write(2, f"{line}\n".encode())


@q.task(timeout=0.3, retries=0)
async def overdue(path: str, how: str) -> str:
    """Runs longer than it may, in one of several ways."""
    record(path, how)
    try:
        match how:
            case "awaits" | "caught":
                await asyncio.Event().wait()
            case "spins":
                while True:
                    pass
            case "sleeps":
                time.sleep(600)
            case "insists":
                while True:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        record(path, "caught")
    except asyncio.CancelledError:
        record(path, "caught")
        if how == "caught":
            return how
        raise
    return "not reached"


@q.task(timeout=0.3, retries=0)
async def block_loop() -> None:
    """Blocks its event loop, so that not even a signal handler runs."""
    block_forever_in_c()


@q.task(timeout=0.3, retries=0)
def overdue_in_thread(path: str, how: str, gate: str = "") -> str:
    record(path, how)
    try:
        match how:
            case "spins" | "caught":
                while True:
                    time.sleep(0.001)
            case "blocked":
                pass_gate(gate)
            case "in-c":
                block_forever_in_c()
    except JobTimeout:
        record(path, "caught")
        if how == "caught":
            return how
        raise
    return "not reached"


@q.task(timeout=0.002, retries=0)
def just_in_time(rounds: int) -> int:
    """Ends at about the time when it is interrupted."""
    total = 0
    for number in range(rounds):
        total += number
    return total


@q.task(retries=0)
async def hold(gate: str, path: str, label: str) -> str:
    """Tells that it runs, then waits for a gate without holding up the loop."""
    record(path, label)
    await asyncio.to_thread(pass_gate, gate)
    return label


@q.task(retries=0)
def hold_in_thread(gate: str, path: str, label: str) -> str:
    record(path, label)
    pass_gate(gate)
    return label


@q.task(retries=0)
async def end(path: str, how: str) -> None:
    """Ends this process in one of many ways."""
    record(path, how)
    die(how)


@q.task(retries=0)
def end_in_thread(path: str, how: str) -> None:
    record(path, how)
    die(how)


@q.task(retries=0)
async def go_wrong(how: str) -> None:
    """Does something to the loop that a job should not do."""
    match how:
        case "exit":
            sys.exit(3)
        case "child exits":
            await asyncio.create_task(_exit())
        case "cancels all":
            for task in asyncio.all_tasks():
                task.cancel()
            await asyncio.sleep(0)
        case "stops itself":
            raise KeyboardInterrupt


async def _exit() -> None:
    sys.exit(3)


@q.task(retries=0)
async def fork_and_return() -> int:
    os.fork()
    await asyncio.sleep(0.01)
    return os.getpid()


@q.task(retries=0)
def fork_in_thread_and_return() -> int:
    os.fork()
    return os.getpid()


@q.task(retries=0)
def close_descriptors(path: str) -> None:
    record(path, "start")
    os.closerange(3, 1000)


@q.task
def note(path: str, label: str) -> str:
    record(path, label)
    return label
