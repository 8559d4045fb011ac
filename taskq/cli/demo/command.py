"""`taskq demo`: the whole story in ten seconds. It runs a fleet of its own in a temporary directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from taskq.cli.common import closed_pipe
from taskq.cli.config.options import defaults
from taskq.cli.demo.app import index, q
from taskq.cli.pictures import styled
from taskq.cli.status.picture import totals_line
from taskq.client.transport.api import QueueClient
from taskq.model.errors import BrokerUnavailable, TaskQError
from taskq.model.settings import default_consumers
from taskq.system.directory import Directory
from taskq.system.platform import die_with_parent
from taskq.telemetry.reader import Filter, read
from taskq.telemetry.record import Event
from taskq.telemetry.render import render_console
from taskq.telemetry.words import wants_colour

_APP = "taskq.cli.demo.app:q"
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01
_KILL_AT = 0.4  # of the work
_QUERIES = ("subprocess", "asyncio", "spam")
_TOLD_EVENTS = frozenset(
    {"fleet.started", "consumer.started", "consumer.crashed", "job.crashed", "job.summary", "fleet.stopped"}
)
_HINTS = (
    (f"taskq worker {_APP}", "a fleet, in a terminal of its own"),
    (f"taskq enqueue {_APP} index /etc/hosts --wait", "a job, from anywhere"),
    (f"taskq status {_APP}", "what the fleet is doing"),
    (f"taskq logs {_APP} -f", "what happened, as it happens"),
)

#: For each word, the files that contain it and how often they do.
Index = dict[str, list[tuple[int, str]]]


def demo() -> None:
    """See it work: index Python's library in parallel, and kill a consumer.

    It takes a few seconds, runs in a temporary directory, and leaves nothing behind.

    $ taskq demo
    """
    console = Console(highlight=False, soft_wrap=True)
    path = Path(tempfile.mkdtemp(prefix="taskq-demo-"))
    try:
        _play(console, path)
    except BrokenPipeError:
        closed_pipe()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _play(console: Console, path: Path) -> None:
    files = _sources()
    directory = Directory(path / "queue").create()
    q.use_directory(directory)
    client = q.client
    consumers = max(2, default_consumers())
    _step(console, "A fleet", f"taskq worker {_APP} --consumers {consumers}")
    began = time.monotonic()
    with _fleet(directory, consumers, client):
        broker = client.status().broker.pid
        console.print(f"  broker {broker} and {consumers} consumers, up in {time.monotonic() - began:.2f} s")
        _step(
            console,
            "Work",
            f"index all {len(files):,} source files of Python {sys.version.split()[0]}, one job each",
        )
        found = _index(console, client, files)
        _query(console, found)
        totals = client.status().totals
    _tell_log(console, directory)
    _step(console, "Totals", "")
    console.print("  ", *styled([totals_line(totals)]), sep="")
    _tell_next(console)


def _step(console: Console, title: str, text: str) -> None:
    console.print(f"\n[bold cyan]{title}[/]  {text}")


def _sources() -> list[str]:
    """All .py files of the running Python."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path for path in root.rglob("*.py") if "site-packages" not in path.parts and path.is_file())
    found = sorted(str(path) for path in paths)
    if not found:
        raise TaskQError(f"there are no .py files in {root}: the demo needs a Python with its library's sources")
    return found


# -- the fleet


@contextmanager
def _fleet(directory: Directory, consumers: int, client: QueueClient) -> Iterator[None]:
    """Runs the command that the demo shows. Its log is shown later, so its terminal output is dropped."""
    command = [
        sys.executable,
        "-m",
        "taskq",
        "worker",
        _APP,
        *defaults(),
        "--consumers",
        str(consumers),
        "--stop-timeout",
        "2",
    ]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TASKQ_URL": str(directory.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is for the demo, which stops the fleet
        preexec_fn=die_with_parent,  # noqa: PLW1509 - there are no threads yet
    )
    try:
        _wait_until_ready(process, directory, consumers, client)
        yield
    finally:
        client.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(
    process: subprocess.Popen[bytes], directory: Directory, consumers: int, client: QueueClient
) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            states = [consumer.state for consumer in client.status().consumers]
            if len(states) == consumers and "starting" not in states:
                return
        except BrokerUnavailable:
            pass
        time.sleep(_POLL_S)
    problems = read(directory.path, Filter(level="error"), last=1)
    reason = next((str(event.get("error")) for event in problems), "try it by hand, and read what it says")
    raise TaskQError(f"the fleet of the demo did not start: {reason}")


# -- work


def _index(console: Console, client: QueueClient, files: list[str]) -> Index:
    """Indexes the files, and kills a consumer on the way."""
    found: Index = {}
    kill_at = int(len(files) * _KILL_AT)
    began = time.monotonic()
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(files), rate="")
        for done, (path, words) in enumerate(index.map(files, ordered=False, timeout=60.0), 1):
            for word, count in words.items():
                found.setdefault(word, []).append((count, path))
            _advance(console, progress, bar, done, len(files), time.monotonic() - began)
            if done == kill_at:
                _kill_one(progress.console, client)
    elapsed_s = time.monotonic() - began
    console.print(
        f"  [green]{done:,} of {len(files):,} files indexed[/], nothing lost: "
        f"{len(found):,} different words, {len(files) / elapsed_s:,.0f} jobs/s"
    )
    return found


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn(" "),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _advance(console: Console, progress: Progress, bar: TaskID, done: int, total: int, elapsed_s: float) -> None:
    rate = f"{done / elapsed_s:,.0f} jobs/s" if elapsed_s > 0 else ""
    progress.update(bar, completed=done, rate=rate)
    if not console.is_terminal and done * 4 // total != (done - 1) * 4 // total:
        console.print(f"  {done:,} of {total:,} files, {rate}")


def _kill_one(console: Console, client: QueueClient) -> None:
    """Kills a consumer in the middle of a job, if it catches one: jobs are short."""
    consumers = client.status().consumers
    victim = next((consumer for consumer in consumers if consumer.state == "running"), consumers[0])
    os.kill(victim.pid, signal.SIGKILL)
    console.print(f"  [bold red]kill -9 {victim.pid}[/]  consumer {victim.number} dies; its job will run again")


def _query(console: Console, found: Index) -> None:
    _step(console, "Queries", "which files say it most?")
    for word in _QUERIES:
        places = sorted(found.get(word, ()), reverse=True)
        best = ", ".join(f"{_short(path)} [dim]({count})[/]" for count, path in places[:2])
        console.print(f"  [bold]{word:<11}[/] in {len(places):>3} files: {best}")


def _short(path: str) -> str:
    return str(Path(path).relative_to(sysconfig.get_path("stdlib")))


# -- the end


def _tell_log(console: Console, directory: Directory) -> None:
    _step(console, "Log", "one JSON line for each event; `taskq logs` shows them so (an excerpt)")
    colour = wants_colour(console.is_terminal, os.environ)
    width = console.width if console.is_terminal else None
    for event in _excerpt(read(directory.path)):
        print(render_console(event, colour=colour, width=width))


def _excerpt(events: Iterable[Event]) -> Iterator[Event]:
    """The events that tell the story, each kind at most twice."""
    told = Counter[str]()
    for event in events:
        name = str(event.get("event"))
        told[name] += 1
        if name in _TOLD_EVENTS and told[name] <= 2:
            yield event


def _tell_next(console: Console) -> None:
    _step(console, "What next", "the same by hand, in a directory that stays")
    width = max(len(command) for command, _ in _HINTS)
    for command, purpose in _HINTS:
        console.print(f"  $ {command:<{width}}  [dim]{purpose}[/]")
