"""Jobs that end in exceptions whose own code misbehaves, and jobs that leave a broken standard output. See
apps/jobs.py."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from apps.jobs import pass_gate, record

from taskq import Cancel, Retry, Snooze, TaskQ, current_job
from taskq.consumer import runner
from taskq.model.attempt import pack_success
from taskq.system.platform import is_unread

q = TaskQ("misbehaved")


class TooMany(Retry):
    """Calls `__init__`, and then sets what it was given."""

    def __init__(self, after: Any) -> None:
        super().__init__()
        self.delay = after


class Early(Snooze):
    """Forgets to call `__init__`."""

    def __init__(self) -> None:
        pass


class AtOnce(Early):
    """A snooze that takes no time would run for ever."""

    delay = 0


class Unwanted(Cancel):
    """Forgets to call `__init__`."""

    def __init__(self) -> None:
        pass


class Odd(Cancel):
    """Its reason is not a text, and has none."""

    def __init__(self) -> None:
        self.reason = Mute()  # type: ignore[assignment]


class Broken(Retry):
    """Looks at nothing without an error."""

    def __init__(self) -> None:
        pass

    @property
    def delay(self) -> float:  # type: ignore[override]
        raise RuntimeError("no delay")


class Mute:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Dumb(ValueError):
    """Has no text either."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Text(str):
    """A text that cannot be looked at."""

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def encode(self, *_: Any) -> bytes:
        raise RuntimeError("no bytes")

    def __bool__(self) -> bool:
        raise RuntimeError("not even that")


class Dressed(ValueError):
    """Its text is one of those."""

    def __str__(self) -> str:
        return Text("dressed up")


class Liar(ValueError):
    """Says of itself what it is not, or nothing."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no traceback")

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no cause")


class Undecided(type):
    """Makes classes that cannot say what is an instance of them."""

    def __instancecheck__(cls, _instance: object) -> bool:
        raise RuntimeError("no instances")


class Doubtful(ValueError, metaclass=Undecided):
    """Of such a class."""


class Nameless(type):
    """Makes classes without a name."""

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class Stranger(ValueError, metaclass=Nameless):
    """Of such a class."""


class Wish(float):
    """A number that answers as it likes."""

    def __le__(self, _other: object) -> bool:
        return True

    __ge__ = __gt__ = __lt__ = __le__


#: What a job raises, and the type of its reported error; None for a job that is cancelled.
RAISED: dict[str, tuple[Callable[[], BaseException], str | None]] = {
    "text as delay": (lambda: TooMany("30"), "ConfigError"),
    "negative delay": (lambda: TooMany(-0.5), "ConfigError"),
    "no number as delay": (lambda: TooMany(float("nan")), "ConfigError"),
    "delay that lies": (lambda: TooMany(Wish("nan")), "ConfigError"),
    "endless delay": (lambda: TooMany(10**400), "ConfigError"),
    "delay without text": (lambda: TooMany(Mute()), "RuntimeError"),
    "delay that raises": (Broken, "RuntimeError"),
    "snooze without delay": (Early, "ConfigError"),
    "snooze of no time": (AtOnce, "ConfigError"),
    "cancel without reason": (Unwanted, None),
    "cancel with an odd reason": (Odd, None),
    "no text": (lambda: Dumb("never seen"), "Dumb"),
    "text that cannot be read": (lambda: Dressed("never seen"), "Dressed"),
    "lies": (lambda: Liar("a lie"), "Liar"),
    "no name": (lambda: Stranger("whose?"), "Stranger"),
    "interrupt": (KeyboardInterrupt, "KeyboardInterrupt"),
}


@q.task(retries=1, backoff=[0.0])
def ends_by(path: str, how: str) -> None:
    record(path, how.replace(" ", "_"))
    raise RAISED[how][0]()


@q.task(retries=1, backoff=[0.0])
async def ends_by_async(path: str, how: str) -> None:
    ends_by.function(path, how)


@q.task(retries=1, backoff=[0.0], give_up_on=Doubtful)
def asks_the_doubtful(path: str) -> None:
    """Whether an error is one of those, nobody can tell."""
    record(path, "start")
    raise ValueError("known")


@q.task(retries=0)
def fine(path: str) -> None:
    record(path, "fine")


@q.task(retries=0)
def scribbles(size: int) -> str:
    """Returns normally, but its report is overwritten, this one time."""

    def scribble(*_: object) -> bytes:
        runner.pack_success = pack_success
        return b"\xc1" * size

    runner.pack_success = scribble  # type: ignore[assignment]
    return "never seen"


@q.task(retries=0)
def takes(value: str) -> str:
    return value


class Stuck:
    """A standard output that takes nothing."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise self._error("the disk is full")


@q.task(retries=0)
def leaves_output(path: str, how: str) -> None:
    """Succeeds, and leaves a standard output on which nobody can write any more."""
    record(path, how)
    match how:
        case "closed":
            sys.stdout.close()
        case "none":
            sys.stdout = None  # type: ignore[assignment]
        case "deleted":
            del sys.stdout
        case "error":
            sys.stdout = Stuck(RuntimeError)  # type: ignore[assignment]
        case "exit":
            sys.stdout = sys.stderr = Stuck(SystemExit)  # type: ignore[assignment]
        case "interrupt":
            sys.stderr = Stuck(KeyboardInterrupt)  # type: ignore[assignment]


@q.task(retries=0)
def logs_with_stuck_output() -> str:
    """The record is logged all the same."""
    before, sys.stdout = sys.stdout, Stuck(RuntimeError)  # type: ignore[assignment]
    try:
        current_job().log.info("told all the same")
    finally:
        sys.stdout = before
    return "logged"


@q.task(retries=0)
def speaks(text: str) -> int:
    print(text)
    print(text, file=sys.stderr)
    return os.getpid()


def take_over_descriptors(first: int = 3) -> None:
    """Closes what it has not opened, and opens other things, which get the same numbers."""
    os.closerange(first, 1000)
    for _ in range(40):
        os.open(os.devnull, os.O_RDWR)


@q.task(retries=0, max_crashes=2)
def takes_descriptors(path: str) -> None:
    record(path, "start")
    take_over_descriptors()


@q.task(retries=0, max_crashes=2)
async def takes_descriptors_async(path: str) -> None:
    takes_descriptors.function(path)


@q.task(retries=0, max_crashes=2)
def takes_them_and_speaks(path: str) -> None:
    """What a job keeps for its next attempt must not go to the file that has the descriptor's number now."""
    record(path, "start")
    copy = os.open(path + ".foreign", os.O_RDWR | os.O_CREAT, 0o600)
    os.dup2(copy, 500)
    os.closerange(3, 400)
    for descriptor in range(3, 40):
        os.dup2(500, descriptor)
    current_job().checkpoint("half")


@q.task(retries=0)
def leaves_a_closer(gate: str) -> int:
    """A thread that it leaves puts pipes in the place of what is not its own, when the consumer waits for jobs."""

    def close_later() -> None:
        pass_gate(gate)
        reader, writer = os.pipe()
        os.dup2(writer, 500)
        for descriptor in (*range(3, 60), 501):
            os.dup2(reader, descriptor)

    threading.Thread(target=close_later, daemon=True).start()
    return os.getpid()


@q.task(retries=0, max_crashes=1)
def leaves_a_writer_and_dies() -> None:
    """What it has started is in a session of its own, and goes on writing to the output of the consumer."""
    subprocess.Popen(["yes"], start_new_session=True)
    while not is_unread(1):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


@q.task(retries=0, max_crashes=1)
def leaves_descriptors(path: str, how: str) -> None:
    """Succeeds, and leaves other things where its standard output and error were, or nothing."""
    record(path, how)
    if how == "closed":
        os.close(1)
        os.close(2)
        return
    match how:
        case "null":
            other = os.open(os.devnull, os.O_RDWR)
        case "folder":
            other = os.open("/", os.O_RDONLY)
        case "file":
            Path(path + ".file").write_text("what is not read yet")
            other = os.open(path + ".file", os.O_RDWR)
        case "dead socket":
            ours, theirs = socket.socketpair()
            theirs.close()
            other = ours.detach()
        case _:
            _, other = os.pipe()
            os.set_blocking(other, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(other, bytes(4096))
            os.set_blocking(other, True)
    os.dup2(other, 1)
    os.dup2(other, 2)


@q.task(retries=0)
async def fine_async(path: str) -> None:
    record(path, "fine")
    await asyncio.sleep(0.02)


@q.task(retries=0)
async def stops_the_loop(path: str) -> None:
    record(path, "stops")
    asyncio.get_running_loop().stop()
