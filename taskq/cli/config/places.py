"""Where the fleet of a command is if no application names it."""

from __future__ import annotations

import os

from taskq.model.errors import ConfigError
from taskq.system.directory import Directory, queue_directory
from taskq.system.place import DatabaseUrl, Place, place_in, place_of


def default_place() -> Place:
    """The place that TASKQ_URL names, or that of the only queue of this user.

    Raises:
        ConfigError: there is no queue, or there are several.
    """
    if os.environ.get("TASKQ_URL"):
        place = place_of("taskq")
        return place if place.database is None or place.database.names_schema else _with_schema(place.database)
    home = queue_directory("taskq").parent
    found = sorted(marker.parent for marker in home.glob("*/lock") if "@" not in marker.parent.name)
    if len(found) == 1:
        return Place(Directory(found[0]))
    if found:
        choices = "  ".join(map(str, found))
        raise ConfigError(f"which queue? name one of these, or its application, or set TASKQ_URL: {choices}")
    raise ConfigError(f"there is no queue in {home}: name an application or a directory, or set TASKQ_APP or TASKQ_URL")


def _with_schema(database: DatabaseUrl) -> Place:
    """The place of the only queue in a database.

    Raises:
        ConfigError: there is none, or there are several.
        BrokerUnavailable: the database does not answer.
    """
    from taskq.client.transport.postgres.fleets import find_schemas

    found = find_schemas(database)
    if len(found) == 1:
        return place_in(DatabaseUrl(database.text, found[0]))
    if found:
        choices = ", ".join(found)
        raise ConfigError(
            f"which queue? name its application, or one of these schemas with ?schema= in TASKQ_URL: {choices}"
        )
    raise ConfigError(f"there are no tables of taskq in {database.shown}: start a fleet, or run `taskq migrate APP`")
