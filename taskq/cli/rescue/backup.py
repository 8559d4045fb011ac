"""`taskq backup`: a copy of a queue's directory, while its fleet runs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from taskq.broker.rescue import check_copy
from taskq.cli.common import find_place, tell
from taskq.cli.positions import looks_like_app
from taskq.client.transport.quick import back_up_quickly
from taskq.model.errors import BrokerUnavailable, ConfigError, DirectoryError, JournalError, TaskQError
from taskq.model.info.words import count_of
from taskq.system.directory import Directory, reply_timeout_s
from taskq.system.locks import ReaderLock
from taskq.system.platform import is_listening, sync_directory

_POLL_S = 0.02
#: A fleet drops a backup of which it has not heard for 5 s, so it is told of it while large files are copied.
_TELL_EVERY_S = 1.0
#: How long to wait for another backup: longer than a fleet remembers one of which it does not hear any more.
_WAIT_S = 8.0


def backup(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[APP] FOLDER", help="The application or its directory, and the folder to make."),
    ],
) -> None:
    """Copy a queue to a new folder, while its fleet runs or not.

    The journal as it was at one moment, jobs that wait in the spool, and the files
    of large arguments and results. The folder is a queue's directory: commands can
    look at it, and a fleet that is started on it goes on from there.

    $ taskq backup /backups/thumbs-monday
    $ taskq jobs /backups/thumbs-monday --state failed
    $ TASKQ_URL=/backups/thumbs-monday taskq worker app.py:q
    """
    if not 1 <= len(words) <= 2 or (len(words) == 2 and not (looks_like_app(words[0]) or os.path.isdir(words[0]))):
        raise ConfigError("which folder? write: taskq backup [APP] FOLDER")
    *app, folder = words
    place = find_place(app[0] if app else None)
    if place.database is not None:
        raise ConfigError(f"the queue is in {place.shown}: use pg_dump, or what your database's backups are made with")
    began_at = time.monotonic()
    directory, target = place.directory, Path(folder).absolute()
    with _new_folder(target) as copy:
        if not _copy_running(directory, copy):
            _copy_stopped(directory, copy)
        problem = check_copy(copy.journal)
        if problem:
            raise JournalError(f"the copy of {directory.journal} is damaged ({problem}), so perhaps is the journal")
        _sync(copy.path)
    files = sum(1 for _ in target.joinpath("payloads").iterdir())
    size = target.joinpath("journal.db").stat().st_size
    told = f"{target}: a journal of {size / 1_048_576:,.1f} MB, {count_of(files, 'file')} of large payloads"
    print(f"{told}, in {time.monotonic() - began_at:.1f} s")


@contextmanager
def _new_folder(target: Path) -> Iterator[Directory]:
    """Makes a folder under another name, which it loses when the copy is whole: one that is killed leaves it."""
    if target.exists():
        raise ConfigError(f"{target} is there already: name a folder that is to be made")
    part = target.with_name(f"{target.name}.{os.urandom(4).hex()}.part")
    try:
        part.mkdir(mode=0o700)
        yield Directory(part).create()
        part.rename(target)
        sync_directory(target.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, TaskQError):
            raise DirectoryError(f"cannot write {error.filename or part}: {error.strerror or error}") from error
        raise


def _copy_running(directory: Directory, copy: Directory) -> bool:
    """Has the fleet copy its journal. Returns False if none runs."""
    ask = partial(back_up_quickly, directory, str(copy.journal), timeout_s=reply_timeout_s())
    _copy_folder(directory.spool, copy.spool)  # before: a job that is taken in meanwhile is in the journal as well
    if not is_listening(directory.socket_path()):
        return False
    _, _, is_done = _begin(ask)
    try:
        while not is_done:
            time.sleep(_POLL_S)
            _, _, is_done = ask(is_end=False)
        told_at = time.monotonic()
        for _ in _copied_files(directory.payloads, copy.payloads):
            if time.monotonic() - told_at > _TELL_EVERY_S:
                ask(is_end=False)
                told_at = time.monotonic()
    except BaseException:
        with suppress(TaskQError):
            ask(is_end=True)
        raise
    _, _, was_whole = ask(is_end=True)
    if not was_whole:  # it has heard nothing of us for too long, or another broker runs now
        raise BrokerUnavailable("the fleet was started again meanwhile, or was silent for long: try again")
    _copy_marker(directory, copy)
    return True


def _begin(ask: Callable[..., tuple[int, int, bool]]) -> tuple[int, int, bool]:
    """Begins a backup. While another is being made it waits a little: whoever makes that may be gone."""
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            return ask(is_end=False)
        except ConfigError:
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_S)


def _copy_stopped(directory: Directory, copy: Directory) -> None:
    """Copies the files of a fleet that does not run. One that starts now ends this process, and leaves no copy."""
    if not directory.journal.exists():
        raise BrokerUnavailable(f"there is no journal in {directory.path}: no fleet has run there")
    tell(f"no fleet runs on {directory.path}: its files are copied")
    lock = ReaderLock(directory.lock, directory.socket_path())
    try:
        for name in ("journal.db", "journal.db-wal", "journal.high"):
            with suppress(FileNotFoundError):
                shutil.copyfile(directory.path / name, copy.path / name)
        _copy_folder(directory.spool, copy.spool)
        for _ in _copied_files(directory.payloads, copy.payloads):
            pass
        _copy_marker(directory, copy)
    finally:
        lock.release()


def _copy_marker(directory: Directory, copy: Directory) -> None:
    shutil.copyfile(directory.marker, copy.marker)
    for path in copy.path.iterdir():
        path.chmod(0o700 if path.is_dir() else 0o600)


def _copy_folder(source: Path, target: Path) -> None:
    for _ in _copied_files(source, target):
        pass


def _copied_files(source: Path, target: Path) -> Iterator[Path]:
    """Copies the files of a folder, and yields each."""
    target.mkdir(mode=0o700, exist_ok=True)
    if not source.exists():
        return
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        if entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):  # a file of the spool was taken in, or one that nobody needs is gone
                shutil.copyfile(entry.path, target / entry.name, follow_symlinks=False)
                (target / entry.name).chmod(0o600)
                yield target / entry.name


def _sync(folder: Path) -> None:
    """Makes all files of a folder survive a loss of power."""
    for path, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(path) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(path))
