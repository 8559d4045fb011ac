"""Fleets of several machines that share a PostgreSQL database: on this one, each with a directory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet import JOBS, Fleet

from taskq import TaskQ
from taskq.system.directory import Directory
from taskq.system.place import DatabaseUrl, Place

#: The name of the application in `apps.jobs`, and the schema that is called after it.
NAME = "tests"
SCHEMA = f"taskq_{NAME}"


def place_in(state_home: Path, url: str, name: str = NAME) -> Place:
    """The place of an application on the machine whose users keep their state there."""
    database = DatabaseUrl(url, f"taskq_{name}")
    return Place(Directory(state_home / "taskq" / f"{database.schema}@{database.digest}"), database)


class MachineFleet(Fleet):
    """The fleet of one of several machines."""

    def __init__(
        self, state_home: Path, url: str, app: str = JOBS, *, prefix: Sequence[str] = (), **settings: Any
    ) -> None:
        """
        Args:
            state_home: of the machine: where it keeps its log, lock and socket.
            url: of the database.
            prefix: what stands before the command, as a `hosts.Host` has it.
        """
        self.place = place_in(state_home, url)
        environment = {"TASKQ_URL": url, "XDG_STATE_HOME": str(state_home)}
        state_home.mkdir(exist_ok=True)
        self.place.directory.create()
        super().__init__(self.place.directory.path, app, environment=environment, prefix=prefix, **settings)


def use_database(app: TaskQ, state_home: Path, url: str) -> Place:
    """Makes the tasks of an imported application enqueue in a database. Returns the place of their queue."""
    place = place_in(state_home, url)
    app.use_place(place)
    return place
