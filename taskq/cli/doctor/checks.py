"""What can be wrong with the place of a queue. Each check looks at one subject, changes nothing, and starts nothing.

A check yields what it found. Nothing is wrong if it yields nothing that is "wrong"; what is "look" works now, and may
not for long.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from taskq import __version__
from taskq.client.transport.quick import ask_quickly
from taskq.model.errors import BrokerUnavailable, ConfigError, DirectoryError, TaskQError
from taskq.model.info.words import count_of
from taskq.model.job import check_clock
from taskq.model.limits import MAX_CLIENTS, MIB
from taskq.system.descriptors import without_clients
from taskq.system.directory import UNSAFE_FILESYSTEMS, Directory
from taskq.system.locks import holder_of
from taskq.telemetry.files import log_path

#: A queue needs this much for its journal's write-ahead log, its log and some jobs.
_LITTLE_ROOM = 500 * MIB
_NO_ROOM = 50 * MIB
#: multiprocessing keeps the memory that consumers share with the broker there: a page or two for each of them.
_SHARED_MEMORY = Path("/dev/shm")
_LITTLE_SHARED = 1 * MIB
#: A broker answers in milliseconds.
_ANSWER_S = 5.0
_SLOW_ANSWER_S = 1.0
#: Files made on another machine, or just now, may be a moment ahead of the clock.
_AHEAD_S = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        subject: what was looked at.
        state: "ok"; "look" if it works now and may not for long; "wrong" if something does not work.
        told: what was found.
        remedy: what to do about it; empty if nothing has to be done.
    """

    subject: str
    state: Literal["ok", "look", "wrong"]
    told: str
    remedy: str = ""


Check = Callable[[Directory], Iterator[Finding]]


def examine(directory: Directory) -> list[Finding]:
    """Runs all checks, in the order in which one problem may explain the next."""
    return [finding for check in CHECKS for finding in check(directory)]


def versions(_directory: Directory) -> Iterator[Finding]:
    """Which taskq and which Python answer here: another environment may be meant."""
    told = f"taskq {__version__}, Python {platform.python_version()} at {sys.executable}"
    yield Finding("versions", "ok", f"{told}, {platform.system()} {platform.release()}")


def owner(directory: Directory) -> Iterator[Finding]:
    """Whether the directory is there, ours, and closed to others."""
    if not directory.path.exists():
        remedy = "nothing has to be done: the first job or the first fleet makes it"
        yield Finding("directory", "look", f"{directory.path} does not exist", remedy)
        return
    try:
        directory.check_owner()
        directory.check()
        directory.check_content()
    except DirectoryError as error:
        yield Finding("directory", "wrong", str(error))
    else:
        yield Finding("directory", "ok", str(directory.path))


def disk(directory: Directory) -> Iterator[Finding]:
    """Whether a journal is safe there, and has room."""
    path = next(each for each in (directory.path, *directory.path.parents) if each.exists())
    kind = Directory(path).filesystem()
    if kind in UNSAFE_FILESYSTEMS:
        told = f"{kind}, on which a journal is not safe: its locks or syncs may do nothing"
        yield Finding("disk", "wrong", told, "choose a local disk with TASKQ_URL or url=")
    free, files = shutil.disk_usage(path).free, os.statvfs(path)
    told = f"{kind or 'a disk'} with {_size(free)} free"
    if free < _NO_ROOM or (files.f_files and not files.f_favail):
        yield Finding("disk", "wrong", f"{told} and {files.f_favail:,} files: jobs are refused", _more_room(directory))
    elif free < _LITTLE_ROOM:
        yield Finding("disk", "look", told, _more_room(directory))
    elif kind not in UNSAFE_FILESYSTEMS:
        yield Finding("disk", "ok", told)


def _more_room(directory: Directory) -> str:
    return f"make room on the disk of {directory.path}, or keep less (--keep-results, --log-size, --output-size)"


def limits(_directory: Directory) -> Iterator[Finding]:
    """Whether a fleet with one consumer per CPU may open as many files as it needs, and has shared memory."""
    consumers = os.cpu_count() or 1
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = without_clients(consumers) + MAX_CLIENTS
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        yield Finding("open files", "ok", f"enough for {count_of(consumers, 'consumer')} and {MAX_CLIENTS:,} clients")
    else:
        room = max(0, hard - without_clients(consumers))
        told = f"the hard limit of {hard:,} has room for {count_of(room, 'client')} beside {consumers} consumers"
        remedy = f"raise it: ulimit -Hn {wanted}, or LimitNOFILE={wanted} in a systemd unit"
        yield Finding("open files", "look" if room else "wrong", told, remedy)
    if not os.access(_SHARED_MEMORY, os.W_OK):
        told = f"{_SHARED_MEMORY} cannot be written: consumers cannot start"
        yield Finding("shared memory", "wrong", told, "mount it, as a container does by default")
    elif (free := shutil.disk_usage(_SHARED_MEMORY).free) < _LITTLE_SHARED:
        told = f"{_SHARED_MEMORY} has {_size(free)} free: consumers may not start"
        yield Finding("shared memory", "wrong", told, "make room there, or give the container more (--shm-size)")


def clock(directory: Directory) -> Iterator[Finding]:
    """Whether the time makes sense: ids, delays and schedules go by it."""
    now = time.time()
    try:
        check_clock(now)
    except ConfigError as error:
        yield Finding("clock", "wrong", str(error))
        return
    newest = max((_changed_at(path) for path in (directory.journal, log_path(directory.path))), default=0.0)
    if newest > now + _AHEAD_S:
        told = f"it was {newest - now:,.0f} s ahead when the queue was last used: delays wait, results stay longer"
        yield Finding("clock", "look", told, "check it with `timedatectl`")
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)))


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def fleet(directory: Directory) -> Iterator[Finding]:
    """Whether a fleet answers, how fast, and what it says of itself."""
    if not directory.path.is_dir():
        return
    asked_at = time.monotonic()
    try:
        told = ask_quickly(directory, True, _ANSWER_S)
    except BrokerUnavailable:
        yield from _no_answer(directory)
        return
    except DirectoryError as error:
        yield Finding("fleet", "wrong", str(error))
        return
    if isinstance(told, TaskQError):
        yield Finding("fleet", "wrong", str(told))
        return
    took_s = time.monotonic() - asked_at
    broker, consumers = told["broker"], told["consumers"]
    said = f"{broker['state']}: broker {broker['pid']}, {count_of(len(consumers), 'consumer')}"
    if took_s > _SLOW_ANSWER_S:
        yield Finding(
            "fleet", "look", f"{said}; the answer took {took_s:.1f} s", "see what the broker does: taskq logs"
        )
    else:
        yield Finding("fleet", "ok", said)
    for missing in told["not_started"]:
        first = str(missing["error"]).partition("\n")[0]
        remedy = "mend the application, and run `taskq reload`"
        yield Finding("consumers", "wrong", f"consumer {missing['number']} does not start: {first}", remedy)
    if told["reload"]["state"] == "failed":
        first = str(told["reload"]["error"]).partition("\n")[0]
        yield Finding("code", "wrong", f"the last reload failed, so the old code runs: {first}", "run `taskq reload`")
    if told["paused"]:
        yield Finding("queues", "look", f"paused: {', '.join(told['paused'])}", "`taskq resume` lets their jobs run")


def _no_answer(directory: Directory) -> Iterator[Finding]:
    pid = holder_of(directory.lock)
    if pid is not None:
        told = f"process {pid} holds the directory, and does not answer within {_ANSWER_S:g} s: is it stopped?"
        remedy = f"look at it (ps -o stat,cmd -p {pid}); kill -CONT {pid} lets it go on, kill -9 {pid} restarts it"
        yield Finding("fleet", "wrong", told, remedy)
    else:
        yield Finding("fleet", "look", "none runs", "start one: taskq worker APP")


def spool(directory: Directory) -> Iterator[Finding]:
    """Whether jobs wait that no fleet has taken in."""
    try:
        files = sorted(directory.spool.iterdir(), key=_changed_at)
    except OSError:
        return  # the check of the directory says why
    if files:
        age_s = max(0.0, time.time() - _changed_at(files[0]))
        told = f"{count_of(len(files), 'file')} with jobs wait, the oldest for {age_s:,.0f} s"
        yield Finding("spool", "look", told, "a fleet that starts takes them in; spool.refused in the log says why not")


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


CHECKS: tuple[Check, ...] = (versions, owner, disk, limits, clock, fleet, spool)
