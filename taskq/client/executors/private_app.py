"""The application of the consumers of a `taskq.Executor`. Only they import this."""

from __future__ import annotations

from pathlib import Path

from taskq.client.app import TaskQ
from taskq.client.executors.pickled_calls import INITIALIZER, PRIVATE_NAME, load, register

q = TaskQ(PRIVATE_NAME)  # a consumer gives it the directory of its fleet
register(q)


@q.on_consumer_start
def run_initializer() -> None:
    """Calls what the executor was given as `initializer=`."""
    path = Path(q.directory.path, INITIALIZER)
    if path.exists():
        initializer, initargs = load(path.read_bytes())
        initializer(*initargs)
