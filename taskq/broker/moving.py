"""Moves the queue of a stopped fleet from its directory to a database.

    lock        no fleet starts there meanwhile, and nobody else reads there
    spool       what clients have spooled becomes part of the journal, which is brought up to date
    move        one transaction of the database; it also notes that this journal was moved
    mark        a file in the directory, which says where the jobs are now: no fleet runs them there again

Killed at any place, it can be run again: until the transaction has committed, nothing has happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from taskq.broker.parts import Export, Moved, export_of, mark_moved, move, moved_to
from taskq.broker.stopped import bring_up_to_date
from taskq.model.errors import AlreadyRunning, JournalError
from taskq.protocol import spool
from taskq.system.directory import Directory
from taskq.system.locks import ReaderLock
from taskq.system.place import DatabaseUrl


@contextmanager
def stopped_queue(directory: Directory) -> Iterator[Export]:
    """Opens the journal of a stopped fleet for a move, and keeps fleets away while the block runs.

    Raises:
        AlreadyRunning: a fleet runs there.
        DirectoryError: there is no such directory, or it belongs to another user.
        JournalError: there is no journal, or it cannot be read.
    """
    directory.check()
    if not directory.journal.exists() and not any(spool.files(directory.spool)):
        raise JournalError(f"there are no jobs in {directory.path}: name the directory of a queue")
    try:
        lock = ReaderLock(directory.lock, directory.socket_path())
    except AlreadyRunning:
        raise AlreadyRunning(f"a fleet runs on {directory.path}: stop it first, with `taskq stop`") from None
    try:
        if moved_to(directory) is None:
            bring_up_to_date(directory)
        elif any(spool.files(directory.spool)):
            raise JournalError(
                f"{directory.path} was moved before, and clients have spooled jobs there since. To move these too, "
                "remove moved.to, journal.db, journal.high and queue.id there, and run this again"
            )
        with export_of(directory) as export:
            yield export
    finally:
        lock.release()


def move_to(database: DatabaseUrl, directory: Directory, export: Export) -> Moved:
    """Moves a queue, and marks its directory. See `taskq.engines.moving.intake.move`."""
    moved = move(export, database)
    mark_moved(directory, f"{database.shown}, schema {database.schema}")
    return moved
