"""Whether a fleet is well, for whoever asks every few seconds: the probe of a container, a watchdog, a load balancer.

Such a process is mostly the start of Python, so this imports no application, and neither typer nor the client.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from taskq.cli.config.places import default_place
from taskq.client.transport.quick import ask_quickly
from taskq.model.errors import BrokerUnavailable, ConfigError, DirectoryError, TaskQError
from taskq.model.exits import Exit
from taskq.model.info.readiness import why_not_ready
from taskq.system.directory import Directory, queue_directory

#: How long a probe waits, in seconds, unless it is told otherwise: Kubernetes' own default is one second.
PROBE_TIMEOUT_S = 1.0


class Health(NamedTuple):
    """What a probe found.

    Attributes:
        exit: the exit code of the command.
        reason: what is wrong; "" if nothing is.
    """

    exit: Exit
    reason: str = ""


def answer_quickly(words: Sequence[str]) -> None:
    """Ends the process with the answer if the words after `taskq health` are plain; otherwise typer reads them.

    Args:
        words: --live or --ready, and perhaps a directory or the name of a queue.
    """
    is_ready = "--ready" in words
    places = [word for word in words if word not in ("--live", "--ready")]
    if len(places) <= 1 and len(words) - len(places) <= 1 and not any(word.startswith("-") for word in places):
        finish(probe(places[0] if places else None, is_ready))


def finish(health: Health) -> None:
    """Ends the process, with a line for people if something is wrong."""
    if health.reason:
        print(f"taskq: {health.reason}", file=sys.stderr)
    sys.exit(health.exit)


def probe(place: str | None, is_ready: bool, timeout_s: float = PROBE_TIMEOUT_S) -> Health:
    """Asks a fleet how it is.

    Args:
        place: its directory, or the name of its queue; None for TASKQ_URL, or the only queue.
        is_ready: whether a consumer must be there for jobs; otherwise it is enough that the broker answers.
        timeout_s: seconds to wait for the broker.
    """
    try:
        directory = find_place(place)
        told = ask_quickly(directory, is_ready, timeout_s)
    except DirectoryError as error:
        return Health(Exit.DIRECTORY, str(error))
    except ConfigError as error:
        return Health(Exit.USAGE, str(error))
    except BrokerUnavailable as error:
        return Health(Exit.NO_FLEET, str(error))
    if not is_ready:
        return Health(Exit.OK)  # also if it refused us, as it has too many clients: it is well enough to say so
    reason = str(told) if isinstance(told, TaskQError) else why_not_ready(told)
    return Health(Exit.FAILED if reason else Exit.OK, reason)


def find_place(place: str | None) -> Directory:
    """The directory of a fleet, found without importing its application.

    Raises:
        ConfigError: it can only be found by importing an application, or not at all.
        DirectoryError: there is no such directory, or it belongs to another user.
    """
    if place is None:
        directory = default_place().directory
    elif ":" in place or place.endswith(".py"):
        raise ConfigError(f"{place}: a probe imports no application: name the queue or its directory, or set TASKQ_URL")
    elif os.sep in place:
        directory = Directory(Path(place).absolute())
    else:
        directory = Directory(queue_directory("taskq").parent / place)
    directory.check_owner()
    if not directory.path.is_dir():
        raise DirectoryError(f"there is no directory {directory.path}")
    return directory
