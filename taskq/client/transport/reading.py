"""Reads the journal of a directory without a fleet: a process is started that opens it under the broker's lock.

It is a process of its own because whatever opens the journal must own the lock alone: a lock taken here would be
inherited by whatever this program forks meanwhile, and would keep the next fleet out. That process runs
`taskq.broker.stopped`.
"""

from __future__ import annotations

from subprocess import TimeoutExpired

from taskq.system.directory import Directory
from taskq.system.launch import Child, spawn_reader

#: A journal is opened in milliseconds, but read as a whole after a crash of the system.
ANSWER_TIMEOUT_S = 60.0
#: A reader ends in milliseconds when its client is gone.
END_TIMEOUT_S = 10.0


def start_reader(directory: Directory, patience_s: float) -> Child:
    """Starts a reader, which waits no longer for a fleet that ends or starts than its client waits for a reply."""
    return spawn_reader(str(directory.path), patience_s)


def end_reader(child: Child, within_s: float = END_TIMEOUT_S) -> None:
    """Lets a reader go, and waits until it has closed the journal."""
    child.socket.close()
    try:
        child.process.wait(within_s)
    except TimeoutExpired:  # it is stopped, or hangs; a kill leaves nothing broken
        child.process.kill()
        child.process.wait()
