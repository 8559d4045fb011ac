"""Another engine under the end-to-end tests: `pytest --engine=postgres` gives each directory of a queue a database.

ON_POSTGRES   the files whose tests are run then, and which of these are left out, with the reason
Databases     makes the databases, on a server that starts with the first
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from machines import SCHEMA, place_in
from postgres import Server, running_server

from taskq.engines.postgres.migrate import migrate
from taskq.system.place import Place

_DIRECTORY = "it asks a directory for the queue"
_BEATS = "which jobs run, and how far they are, is told with the beats"

ON_POSTGRES: dict[str, dict[str, str]] = {
    "test_arguments": {"test_on_the_command_line": _DIRECTORY},
    "test_cancel": {},
    "test_concurrent_jobs": {},
    "test_hooks": {},
    "test_interrupted": {},
    "test_items": {
        "test_ends_that_are_no_success": _DIRECTORY,
        "test_items_come_while_the_job_runs": _BEATS,
    },
    "test_limits_of_a_job": {},
    "test_meta": {
        "test_from_the_command_line": _DIRECTORY,
        "test_the_log_tells_it": _DIRECTORY,
    },
    "test_outcomes": {},
    "test_retries": {
        "test_it_stays_there_though_the_fleet_dies": "open: it counts what was found at the start",
        "test_progress": _BEATS,
        "test_progress_is_that_of_the_attempt": _BEATS,
        "test_snooze": "counts are a moment behind",
    },
    "test_threads": {},
    "test_waiting": {
        "test_a_handle_brings_its_result_along": "the outcome of a failed job is there at once, too",
        "test_a_bar_on_a_terminal": _DIRECTORY,
        "test_no_bar_elsewhere": _DIRECTORY,
    },
    "test_workflows": {},
}


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
