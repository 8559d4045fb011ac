"""`taskq health`, as typer reads it: see `taskq.cli.health.probe`."""

from __future__ import annotations

from typing import Annotated

import typer

from taskq.cli.common import seconds_of
from taskq.cli.health.probe import PROBE_TIMEOUT_S, finish, probe
from taskq.model.errors import ConfigError


def health(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="QUEUE",
            help="The name of the queue, or its directory. Default: TASKQ_URL, then the only queue that you have.",
            show_default=False,
        ),
    ] = None,
    live: Annotated[bool, typer.Option("--live", metavar="", help="The broker answers (the default).")] = False,
    ready: Annotated[bool, typer.Option("--ready", metavar="", help="And a consumer is there for jobs.")] = False,
    timeout: Annotated[
        str, typer.Option(metavar="SECONDS", help="How long to wait for the broker.")
    ] = f"{PROBE_TIMEOUT_S:g}",
) -> None:
    """Say by the exit code whether the fleet is well: a probe, which is quick.

    0: it is. 4: no broker answers in time. 1: no consumer is there for jobs, or the fleet is stopping (--ready).
    The application is not imported. What is wrong is printed to stderr.

    $ taskq health --ready || systemctl restart thumbs
    $ taskq health --live /var/lib/thumbs/queue
    """
    if live and ready:
        raise ConfigError("--live or --ready: a fleet that is ready is live, too")
    finish(probe(place, ready, seconds_of(timeout, "--timeout")))
