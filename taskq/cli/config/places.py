"""Where the fleet of a command is if no application names it."""

from __future__ import annotations

import os

from taskq.model.errors import ConfigError
from taskq.system.directory import Directory, queue_directory


def default_directory() -> Directory:
    """The directory that TASKQ_URL names, or that of the only queue of this user.

    Raises:
        ConfigError: there is no queue, or there are several.
    """
    if os.environ.get("TASKQ_URL"):
        return Directory(queue_directory("taskq"))
    home = queue_directory("taskq").parent
    found = sorted(marker.parent for marker in home.glob("*/lock"))
    if len(found) == 1:
        return Directory(found[0])
    if found:
        choices = "  ".join(map(str, found))
        raise ConfigError(f"which queue? name one of these, or its application, or set TASKQ_URL: {choices}")
    raise ConfigError(f"there is no queue in {home}: name an application or a directory, or set TASKQ_APP or TASKQ_URL")
