"""Real fleets for the end-to-end tests: started, watched, killed and stopped, with a check that nothing of them is
left.

Nothing here sleeps for a guess of a time: waits are for events of the log, ends of processes, files and answers, each
with a deadline.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import proof
import psutil
from log_table import unlisted

from taskq import TaskQ
from taskq.client.transport.blocking import Client
from taskq.model.errors import BrokerUnavailable, TaskQError
from taskq.model.limits import MAX_PAYLOAD_BYTES
from taskq.model.settings import Settings
from taskq.system.directory import Directory
from taskq.system.place import Place
from taskq.telemetry.reader import Filter, follow, read

APPS = Path(__file__).parent / "apps"
JOBS = f"{APPS / 'jobs.py'}:q"

_GUARDIAN = """
import json, sys
from taskq.model.settings import Settings
from taskq.broker.guardian import Guardian
sys.exit(Guardian(sys.argv[1], Settings(**json.loads(sys.argv[2]))).run())
"""
#: Longer than anything here takes on a busy machine; a test that waits this long has failed.
DEADLINE_S = 60.0
_POLL_S = 0.005
#: Never right, in no test.
_BUGS = ("broker.failed", "store.failed", "store.damaged", "consumer.confused", "log.unreadable")


#: What multiprocessing writes in a process whose parent, a broker, is killed in the milliseconds in which it starts it.
_CUT_SHORT = re.compile(
    r'Traceback \(most recent call last\):\n  File "<string>", line 1, in <module>\n'
    r'  File "[^"]*multiprocessing/spawn\.py", line \d+, in spawn_main\n(?:  .*\n)+EOFError: Ran out of input\n'
)


class Databases(Protocol):
    """Where queues are, if not in directories."""

    def place(self, home: Path) -> Place:
        """Where the queue is that a test has in a directory."""


#: With `--engine=postgres`.
databases: Databases | None = None


class Late(AssertionError):
    """What was waited for did not happen in time."""


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Waits until a condition is true and returns its value, or fails."""
    give_up_at = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            raise Late(f"{what}: not within {deadline_s:g} s")
        time.sleep(_POLL_S)


def wait_for_file(path: Path, lines: int = 1) -> list[str]:
    """Waits until a file has this many whole lines, and returns them."""

    def whole() -> list[str]:
        text = path.read_text() if path.exists() else ""
        found = text.splitlines() if text.endswith("\n") else []
        return found if len(found) >= lines else []

    found: list[str] = wait_until(whole, f"{lines} lines in {path.name}")
    return found


class Started(NamedTuple):
    """A line that a job wrote with `jobs.record`: which start it was, and where."""

    label: str
    job_id: str
    attempt: int
    pid: int
    at: float  # time.monotonic(), which all processes share


def starts(path: Path, count: int = 0) -> list[Started]:
    """What jobs recorded in a file, after waiting until it has this many lines."""
    lines = wait_for_file(path, count) if count else path.read_text().splitlines() if path.exists() else []
    fields = [line.split() for line in lines]
    return [Started(label, job_id, int(attempt), int(pid), float(at)) for label, job_id, attempt, pid, at in fields]


def hurried(constants: Mapping[str, Mapping[str, float]], path: str = "") -> dict[str, str]:
    """The environment of a fleet that waits for a shorter time than others where a test would only wait with it.

    Args:
        constants: other values for the constants of modules, in each process of the fleet.
        path: what else is in PYTHONPATH.
    """
    paths = [str(APPS / "faults"), *([path] if path else [])]
    return {"PYTHONPATH": os.pathsep.join(paths), "TASKQ_TEST_CONSTANTS": json.dumps(constants)}


class Fleet:
    """A fleet as `taskq worker` starts it, in a session of its own, on a directory."""

    #: Where a broker may have been killed: a database lacks what that had counted in its last second.
    _killed: ClassVar[set[Path]] = set()

    def __init__(
        self,
        home: Path,
        app: str = JOBS,
        *,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        has_own = "TASKQ_URL" in (environment or {})
        place = {} if has_own else environment_of(home)
        self.home = home if has_own or databases is None else databases.place(home).directory.path
        self.settings = Settings(**{"consumers": 2, "log_format": "json", **settings})
        self.errors = home.parent / f"{home.name}.stderr"
        self.expected: set[str] = set()  # bugs that a test provokes
        self._app = app
        self._prefix = prefix
        self._environment = {**os.environ, **place, **(environment or {})}
        self._sessions: list[int] = []
        self._guardian: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    # -- its life

    def start(self, *, wait: bool = True) -> Self:
        """Starts a guardian; by default waits until a consumer is ready."""
        seen = self.count("consumer.started")
        arguments = [*self._prefix, sys.executable, "-c", _GUARDIAN, self._app, json.dumps(self.settings.to_dict())]
        with self.errors.open("ab") as errors:
            self._guardian = subprocess.Popen(
                arguments, env=self._environment, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._sessions.append(self._guardian.pid)
        if wait:
            self.wait_for("consumer.started", skip=seen)
        return self

    def wait_ready(self) -> Self:
        """Waits until all consumers are ready."""
        wait_until(lambda: len(self.consumer_pids()) >= self.settings.consumers, "all consumers ready")
        return self

    def stop(self) -> int:
        """Ends the fleet in its orderly way; returns the exit code of the guardian."""
        assert self._guardian is not None
        with suppress(ProcessLookupError):
            self._guardian.terminate()
        return self.wait_for_end()

    def wait_for_end(self) -> int:
        """Waits until the guardian, and with it all that it started, has ended; returns its exit code."""
        assert self._guardian is not None
        code = self._guardian.wait(DEADLINE_S)
        self.wait_until_nothing_is_left()
        return code

    def wait_until_nothing_is_left(self, deadline_s: float = DEADLINE_S) -> None:
        """Waits for the end of every process of the fleet."""
        _, alive = psutil.wait_procs(self.processes(), timeout=deadline_s)
        alive += self.processes()  # those that were started meanwhile
        assert not alive, f"left: {[process.cmdline() for process in alive]}"

    def kill_all(self) -> None:
        """Kills every process of the fleet at once, as a power cut does: stopped first, so that none sees another die.
        The guardian goes last, since the kernel wakes a stopped process group whose parent ends."""
        self._killed.add(self.home)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in sorted(self.processes(), key=lambda process: -process.pid):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        self.wait_for_end()

    def finish(self) -> None:
        """Stops what still runs; fails if anything is left or went wrong."""
        try:
            if self._guardian is not None and self._guardian.poll() is None:
                self.stop()
            self.wait_until_nothing_is_left(20.0)
        finally:
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if self._guardian is not None:
                self._guardian.wait(DEADLINE_S)
        events = self.events()
        bugs = [event for event in events if event["event"] in _BUGS and event["event"] not in self.expected]
        assert not bugs, json.dumps(bugs, indent=1)[:6000]
        assert unlisted(events) == [], "docs/events.md does not have these"
        told = _CUT_SHORT.sub("", self.errors.read_text(errors="replace"))
        assert "Traceback (most recent call last):\n" not in told or self.expected, told[-6000:]
        assert "resource_tracker" not in told, told[-6000:]  # multiprocessing's helper, at the user's terminal

    # -- its processes

    def processes(self) -> list[psutil.Process]:
        """Every process of its sessions that still lives."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) in self._sessions and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, PermissionError, psutil.Error):
                pass
        return found

    @property
    def guardian_pid(self) -> int:
        """The process that the test started."""
        assert self._guardian is not None
        return self._guardian.pid

    @property
    def broker_pid(self) -> int:
        """The process that owns the journal."""
        pid: int = self.status()["broker"]["pid"]
        return pid

    def consumer_pids(self) -> list[int]:
        """The consumers that have imported the application, by number."""
        return [consumer["pid"] for consumer in self.status()["consumers"] if consumer["state"] != "starting"]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to a process of this fleet, and to no other."""
        assert os.getsid(pid) in self._sessions
        os.kill(pid, number)
        if number == signal.SIGKILL:
            self._killed.add(self.home)
        proof.count("kills", number == signal.SIGKILL)

    def kill_consumer(self, position: int = 0) -> None:
        """Kills a consumer that lives: the broker may name one that died a moment ago."""

        def is_killed() -> bool:
            pids = self.consumer_pids()
            try:
                self.kill(pids[position % len(pids)])
            except (IndexError, ZeroDivisionError, ProcessLookupError):
                return False
            return True

        wait_until(is_killed, "a consumer to kill")

    # -- what it tells

    @property
    def client(self) -> Client:
        """A client of this fleet."""
        if self._client is None:
            self._client = Client(Directory(self.home))
        return self._client

    def status(self) -> dict[str, Any]:
        """The fleet's status, as `taskq status --json` prints it, as soon as there is a broker to ask."""

        def ask() -> dict[str, Any] | None:
            try:
                return asdict(self.client.status())
            except (BrokerUnavailable, TaskQError):
                return None

        status: dict[str, Any] = wait_until(ask, "a status")
        return status

    def totals(self) -> dict[str, int]:
        """The counts of all jobs that ever were. A database has them up to a second later than the log."""
        if databases is None:
            totals: dict[str, int] = self.status()["totals"]
            return totals
        queue = TaskQ("tests")
        use(queue, self.home)

        def told() -> dict[str, int] | None:
            totals = asdict(queue.status().totals)
            if self.home in self._killed or self.count("fleet.started") > 1:
                return totals
            own = self.status()["totals"]
            return totals if all(totals[name] == own[name] for name in ("retried", "crashed")) else None

        counted: dict[str, int] = wait_until(told, "what the broker has counted")
        return counted

    def wait_for_totals(self, **expected: int) -> None:
        """Waits until so much has been counted: no time at all in a directory, and up to a second in a database, which
        may lack what a broker that was killed had counted in its last second."""

        def counted() -> dict[str, int]:
            return {name: count for name, count in self.totals().items() if name in expected}

        def are_told() -> bool:
            told = counted()
            is_less = all(told[name] <= expected[name] for name in told)
            return told == expected or (self.home in self._killed and is_less)

        if databases is not None:
            with suppress(Late):
                wait_until(are_told, "the counts")
            assert are_told(), (counted(), expected)
        else:
            assert counted() == expected

    def events(self, event: str = "*", **fields: Any) -> list[dict[str, Any]]:
        """The events in the log now that have this name (wildcards allowed) and these fields."""
        if databases is not None:
            self._let_it_tell()
        return [found for found in read(self.home) if _fits(found, event, fields)]

    def _let_it_tell(self) -> None:
        """A broker writes its log when it has the database's answer, which wakes those who wait for a job as well."""
        for _ in range(2):  # it is asked in one turn of its loop, and has turned when it is asked again
            if self._guardian is not None and self._guardian.poll() is None:
                with suppress(BrokerUnavailable, TaskQError):
                    self.client.status()

    def count(self, event: str, **fields: Any) -> int:
        """How many such events there are now."""
        return len(self.events(event, **fields))

    def wait_for(self, event: str, *, skip: int = 0, deadline_s: float = DEADLINE_S, **fields: Any) -> dict[str, Any]:
        """Waits for an event with these fields, past or to come, and returns it; `skip` leaves out the first ones."""
        give_up_at = time.monotonic() + deadline_s

        def wait(_seconds: float) -> bool:
            time.sleep(_POLL_S)
            return time.monotonic() > give_up_at

        for found in follow(self.home, Filter(), last=1_000_000, wait=wait):
            if _fits(found, event, fields):
                if not skip:
                    return found
                skip -= 1
        last = "\n".join(str(found)[:300] for found in self.events()[-12:])
        errors = self.errors.read_text(errors="replace")[-1500:]
        raise Late(f"no {event} with {fields} within {deadline_s:g} s; the log ends:\n{last}\nstderr:\n{errors}")


def _fits(found: dict[str, Any], event: str, fields: dict[str, Any]) -> bool:
    return fnmatch.fnmatchcase(found["event"], event) and all(
        found.get(name) == value for name, value in fields.items()
    )


@contextmanager
def running(fleet: Fleet, *, wait: bool = True) -> Iterator[Fleet]:
    """A fleet while the block runs; checks its remains afterwards, unless the block itself failed."""
    try:
        yield fleet.start(wait=wait)
    except BaseException:
        with suppress(BaseException):
            fleet.finish()
        raise
    fleet.finish()


def use(app: TaskQ, home: Path) -> None:
    """Makes the tasks of an imported application talk to the fleet of a directory."""
    if databases is None:
        app.use_directory(Directory(home))
    else:
        app.use_place(databases.place(home))


def in_directory() -> bool:
    """Whether queues are in directories, and not in databases."""
    return databases is None


def place_of(home: Path) -> Path:
    """Where the fleet keeps its log of the queue that a test has in a directory: there, or beside its database."""
    return home if databases is None else databases.place(home).directory.path


def shown(home: Path) -> str:
    """What messages call the queue that a test has in a directory."""
    return str(home) if databases is None else databases.place(home).shown


def too_large() -> int:
    """So many bytes are more than a result may have."""
    return MAX_PAYLOAD_BYTES if databases is None else 5 << 20


def is_in_database() -> bool:
    """Whether queues are in databases in this run."""
    return databases is not None


def url_of(home: Path) -> str:
    """What an application of another name gives as `url=`, so that it asks the queue of a directory."""
    return environment_of(home)["TASKQ_URL"]


def environment_of(home: Path) -> dict[str, str]:
    """What says to a process where the queue is that a test has in a directory."""
    if databases is None:
        return {"TASKQ_URL": str(home)}
    place = databases.place(home)
    assert place.database is not None
    place.directory.create()
    return {"TASKQ_URL": place.database.text, "XDG_STATE_HOME": str(place.directory.path.parent.parent)}


class Gate:
    """Holds jobs that call `jobs.pass_gate` until it is opened: they read a pipe that has a writer until then."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._writer: int | None = os.open(path, os.O_RDWR)

    def open(self) -> None:
        """Lets all pass, now and later."""
        if self._writer is not None:
            os.write(self._writer, b"x" * 4096)  # more than there are jobs; each takes one byte
            # the pipe stays open: what was written must not go with its last holder
