"""What the commands share: finding the fleet of APP, error messages, and plain text for people."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from datetime import time as time_of_day
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import taskq
from taskq.cli.config.places import default_place
from taskq.cli.config.project import app_of
from taskq.model import errors
from taskq.model.errors import AppError, ConfigError, DirectoryError, TaskQError
from taskq.model.exits import Exit
from taskq.model.misfits import did_you_mean
from taskq.model.units import seconds_in
from taskq.system.directory import Directory
from taskq.system.place import Place

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

#: How many of the newest lines of the log are searched for names that somebody may have meant.
_LINES_FOR_NAMES = 20_000
#: The first that fits counts.
_EXITS: tuple[tuple[type[TaskQError], Exit], ...] = (
    (errors.AppError, Exit.APP),
    (errors.DirectoryError, Exit.DIRECTORY),
    (errors.ConfigError, Exit.USAGE),
    (errors.BrokerUnavailable, Exit.NO_FLEET),
    (errors.AlreadyRunning, Exit.ALREADY_RUNNING),
    (errors.JournalError, Exit.JOURNAL),
    (errors.JobFailed, Exit.JOB_FAILED),
    (errors.JobCancelled, Exit.JOB_FAILED),
    (errors.ResultTimeout, Exit.TIMEOUT),
    (errors.JobNotFound, Exit.NOT_FOUND),
    (errors.ScheduleNotFound, Exit.NOT_FOUND),
)


class UnknownTask(ConfigError):
    """The application has no such task."""


def version() -> None:
    """Show the version."""
    print(f"taskq {taskq.__version__}")


# -- errors


def tell(message: str, level: str = "warning") -> None:
    """Says something to the person at the terminal, apart from the output.

    Args:
        level: how much it matters, for systemd's journal.
    """
    from taskq.telemetry.journald import print_error
    from taskq.telemetry.words import escape  # `taskq worker` must start without it

    print_error("\n".join(escape(line) for line in message.split("\n")), level)


def tell_if_stopped(app: TaskQ) -> None:
    """Says that what was shown is not of a running fleet."""
    if app.client.is_stopped:
        tell(f"no fleet runs on {app.place.shown}: start one with `taskq worker`")


def tell_warnings() -> None:
    """Shows the warnings of clients too: that no fleet answers, and what happens to jobs then."""
    handler = logging.Handler()
    handler.emit = lambda record: tell(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("taskq").addHandler(handler)


def warn_of_name(directory: Directory, field: str, name: str, others: Iterable[str] = ()) -> None:
    """Says so if a name has never been in the log, with the nearest name that has.

    Args:
        others: names that may be missing there: those of the application.
    """
    from taskq.telemetry.reader import Filter, read  # takes 20 ms, which `taskq worker` must not pay

    events = read(directory.path, Filter(), last=_LINES_FOR_NAMES)
    # a queue that was paused need not exist
    known = {str(event[field]) for event in events if event.get(field) and not event["event"].startswith("queue.")}
    if not known:
        return  # no fleet has run yet
    known |= {"default", *others} if field == "queue" else {*others}
    if name not in known and not (field == "event" and any(fnmatchcase(each, name) for each in known)):
        tell(f"there is no {field} {name!r} in the log of {directory.path}{did_you_mean(name, known)}")


def guard(command: Callable[[], object]) -> None:
    """Runs a command, and ends the process with one of the codes of `taskq.model.exits` if it fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not an error where a terminal cannot show a letter
    try:
        try:
            command()
        finally:
            sys.stdout.flush()  # a closed pipe must raise here, not when the interpreter flushes at its end
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # click would take it for an error
            closed_pipe()
        raise
    except TaskQError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        closed_pipe()
    except OSError as error:
        if not isinstance(error, TaskQError) and error.filename is None:
            raise
        print(f"taskq: {os.fspath(error.filename)}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


def fail(error: TaskQError) -> NoReturn:
    """Prints an error and ends the process with its exit code."""
    sys.stdout.flush()
    tell(str(error), "error")
    if isinstance(error, UnknownTask):
        sys.exit(Exit.NOT_FOUND)
    sys.exit(next((code for kind, code in _EXITS if isinstance(error, kind)), Exit.FAILED))


def closed_pipe() -> NoReturn:
    """Ends the process quietly: whoever read our output has stopped reading."""
    # the interpreter flushes once more at its end, which must not fail
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(Exit.OK)


# -- applications and directories


def reference_of(app: str | None) -> str:
    """APP, or what TASKQ_APP or pyproject.toml says instead of it.

    Raises:
        ConfigError: none of them names an application, or pyproject.toml cannot be understood.
    """
    found = app_of(app)
    if found is None:
        raise ConfigError(
            "which application? name it as module:attribute or path/file.py:attribute, or set TASKQ_APP, "
            "or app in [tool.taskq] of pyproject.toml"
        )
    return found.text


def load(reference: str) -> TaskQ:
    """Imports an application.

    Raises:
        AppError: the import failed, in whatever way.
    """
    from taskq.client.loader import load_app  # takes 40 ms to import, which `taskq worker` must not pay

    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints must not mix with our output
            return load_app(reference)
    except TaskQError:
        raise
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}{_place(error)}"
        raise AppError(f"importing {reference} failed: {told}") from error


def _place(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen ")]
    if isinstance(error, SyntaxError) or not frames:
        return ""  # its message names the place
    return f" ({frames[-1].filename}, line {frames[-1].lineno})"


def find_directory(app: str | None) -> Directory:
    """The directory of the fleet that a command is about.

    Args:
        app: an application or a directory; None for TASKQ_APP, TASKQ_URL, app in pyproject.toml, or the only queue.

    Raises:
        ConfigError: none of these names a fleet, or there are several queues.
        AppError: the application cannot be imported.
        DirectoryError: the directory does not exist, or belongs to another user.
    """
    return find_place(app).directory


def find_place(app: str | None) -> Place:
    """Where the queue is kept that a command is about. As `find_directory`."""
    place = locate_place(app)
    place.directory.check_owner()
    return place


def queue_of(app: str | None) -> TaskQ:
    """The queue that a command is about, without the code of its application. As `find_directory`."""
    from taskq.client.app import TaskQ  # takes 40 ms to import, which `taskq worker` must not pay

    place = find_place(app)
    queue = TaskQ("taskq", str(place.directory.path))
    queue.use_place(place)
    return queue


def named_application(app: str | None) -> TaskQ | None:
    """The application that is named, by APP or in another place; None if only a directory is."""
    named = _named(app)
    return None if named is None or _is_directory(named) else load(named)


def names_in_code(app: str | None, field: str) -> set[str]:
    """The names of the tasks or queues of an application; none if only a directory was named."""
    reference = app or os.environ.get("TASKQ_APP") or None
    if reference is None or _is_directory(reference):
        return set()
    needs = load(reference).needs
    return set(needs) if field == "task" else {queue for queue, _ in needs.values()}


def _named(app: str | None) -> str | None:
    """APP, or what stands for it in TASKQ_APP, or in pyproject.toml unless TASKQ_URL names a directory."""
    app = app or os.environ.get("TASKQ_APP") or None
    if app is None and not os.environ.get("TASKQ_URL"):
        found = app_of(None)
        return None if found is None else found.text
    return app


def locate_place(app: str | None) -> Place:
    """`find_place` without a look at whose directory it is."""
    app = _named(app)
    if app is not None:
        if _is_directory(app):
            return Place(Directory(Path(app).absolute()))
        if os.sep in app and ":" not in app and not app.endswith(".py"):
            raise DirectoryError(f"there is no directory {Path(app).absolute()}")
        return load(app).place
    return default_place()


def _is_directory(app: str) -> bool:
    """Whether APP is a queue's directory, and not a package that happens to be here."""
    path = Path(app)
    return ":" not in app and os.path.isdir(path) and not os.path.exists(path / "__init__.py")


# -- text


def seconds_of(text: str, option: str) -> float:
    """The seconds in a duration such as ``90``, ``10m`` or ``7d``.

    Raises:
        ConfigError: it is not a duration.
    """
    seconds = seconds_in(text)
    if seconds is None:
        raise ConfigError(f"{option} {text!r}: use seconds, or a duration such as 90s, 10m, 2h or 7d")
    return seconds


def moment_of(text: str | None, option: str) -> datetime | None:
    """The moment that ``10m`` (ago), ``03:10`` (the last time that it was so late, here) or ``2026-05-09 03:10`` is.

    Raises:
        ConfigError: it is none of these.
    """
    if text is None:
        return None
    now = datetime.now().astimezone()
    if (seconds := seconds_in(text)) is not None:
        return now - timedelta(seconds=seconds)
    try:
        if text[:4].isdigit():
            return datetime.fromisoformat(text).astimezone()
        today = datetime.combine(now.date(), time_of_day.fromisoformat(text)).astimezone()
    except ValueError:
        raise ConfigError(
            f"{option} {text!r}: use a duration such as 10m, a time such as 03:10, or 2026-05-09T03:10 for both"
        ) from None
    return today if today <= now else today - timedelta(days=1)
