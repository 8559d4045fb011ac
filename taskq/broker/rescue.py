"""Copies of a journal, and what can be saved of a damaged one, for the command line: where there is no fleet.

A journal is replaced in steps, each of which may be the last one of a process that is killed. Whoever begins again
finds the finished file, and does not read the damaged one twice:

    read a copy -> journal.recovered.part -> synced, renamed journal.recovered -> the old files linked to damaged-TIME
    -> the old ones unlinked (no fleet starts: `queue.id` says that there must be a journal) -> renamed journal.db
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from taskq.engines.embedded.rescue import backup
from taskq.engines.embedded.rescue.salvage import Salvaged, salvage
from taskq.model.errors import JournalError
from taskq.system.clock import SYSTEM_CLOCK
from taskq.system.directory import Directory
from taskq.system.locks import ReaderLock
from taskq.system.platform import sync_directory

__all__ = ["Salvaged", "check_copy", "recover"]
_OLD = ("journal.db", "journal.db-wal", "journal.high")


def check_copy(path: Path) -> str:
    """Reads a copy of a journal as a whole. Returns what is wrong with it; "" if nothing is."""
    return backup.check_copy(path)


def recover(directory: Directory) -> tuple[Salvaged | None, Path | None]:
    """Saves what can be saved of a journal into a new one, which takes its place.

    Returns:
        What was saved, or None if an earlier call was killed when it had saved it; and the folder to which the old
        files went, or None if nothing is wrong with the journal: then it stays as it is.

    Raises:
        AlreadyRunning: a fleet runs there.
        JournalError: there is no journal, or nothing can be saved.
    """
    lock = ReaderLock(directory.lock, directory.socket_path())
    try:
        done = directory.path / "journal.recovered"
        found = None
        if not done.exists():
            if not directory.journal.exists():
                raise JournalError(f"there is no journal in {directory.path}: restore it from a backup")
            found = _save(directory, done)
            if found.is_whole:
                done.unlink()
                return found, None
        return found, _replace(directory, done)
    finally:
        lock.release()


def _save(directory: Directory, done: Path) -> Salvaged:
    part = done.with_suffix(".part")
    for left in directory.path.glob(f"{part.name}*"):
        left.unlink()
    with TemporaryDirectory(prefix="recover-", dir=directory.path) as folder:
        copy = Path(folder) / "journal.db"
        shutil.copyfile(directory.journal, copy)
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{directory.journal}-wal", f"{copy}-wal")
        said = directory.journal.with_suffix(".high")
        changes = int.from_bytes(said.read_bytes()[:8], "big") if said.exists() else 0
        found = salvage(copy, part, changes)
    part.chmod(0o600)
    _sync(part)
    part.rename(done)
    sync_directory(directory.path)
    return found


def _replace(directory: Directory, done: Path) -> Path:
    kept = sorted(directory.path.glob("damaged-*"))
    is_begun = bool(kept) and not directory.journal.exists()
    folder = (
        kept[-1]
        if is_begun
        else directory.path / f"damaged-{datetime.fromtimestamp(SYSTEM_CLOCK.time(), UTC):%Y%m%dT%H%M%SZ}"
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in _OLD:
        with suppress(FileNotFoundError, FileExistsError):
            os.link(directory.path / name, folder / name)
    sync_directory(folder)
    sync_directory(directory.path)
    for name in _OLD:
        (directory.path / name).unlink(missing_ok=True)
    sync_directory(directory.path)
    done.rename(directory.journal)
    sync_directory(directory.path)
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
