"""Another engine under the end-to-end tests: `pytest --engine=postgres` gives each directory of a queue a database.

chosen        the tests that are run then, and why the others are not
Databases     makes the databases, on a server that starts with the first
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest
from machines import SCHEMA, place_in
from postgres import Server, running_server

from taskq.engines.postgres.migrate import migrate
from taskq.system.place import Place

#: Where the end-to-end tests are. Those of other places choose their engines themselves.
_PLACES = ("tests/process/", "tests/faults/")


def chosen(items: Iterable[pytest.Item]) -> tuple[list[pytest.Item], Counter[str]]:
    """The end-to-end tests without the mark `not_on_postgres`, and how many are left out for each reason."""
    kept, left_out = [], Counter[str]()
    for item in items:
        mark = item.get_closest_marker("not_on_postgres")
        if not item.nodeid.startswith(_PLACES):
            left_out["not an end-to-end test"] += 1
        elif mark is not None:
            left_out[mark.args[0]] += 1
        else:
            kept.append(item)
    return kept, left_out


class Databases:
    """A database for each directory that a test would keep a queue in."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._server: Server | None = None
        self._places: dict[Path, Place] = {}

    def place(self, home: Path) -> Place:
        """Where the queue is that a test has in a directory. The lock, log and socket of its fleet are beside that."""
        if self._server is None:
            self._server = self._stack.enter_context(running_server())
        if home not in self._places:
            name = self._server.create_database()
            with self._server.connect(name) as connection:
                migrate(connection, SCHEMA)
            place = place_in(home.parent / f"{home.name}.state", f"{self._server.url(name)}&schema={SCHEMA}")
            self._places[home] = self._places[place.directory.path] = place
        return self._places[home]

    def close(self) -> None:
        """Ends the server."""
        self._stack.close()
