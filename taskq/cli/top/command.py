"""`taskq top`: a fleet on the whole screen."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from taskq.cli.arguments import FleetArgument
from taskq.cli.common import moment_of, named_application, queue_of
from taskq.cli.watch.web import missing
from taskq.model.errors import ConfigError


def top(
    app: FleetArgument = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Show the past: 03:10, 2026-05-09T03:10, or 10m ago.", show_default=False),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", metavar="", help="Only look: change nothing.")] = False,
    hide_args: Annotated[bool, typer.Option("--hide-args", metavar="", help="Do not show arguments of jobs.")] = False,
) -> None:
    """Show the fleet on the whole screen: queues, tasks, jobs, failures, consumers.

    Enter opens a row, `/` filters, `?` lists the keys. With --at it shows what the
    log and the counts that were kept say of a moment of the past.

    $ taskq top app.py:q
    $ taskq top --at 03:10
    """
    try:
        from taskq.cli.top.app import Top  # the extra [top] may be missing
    except ModuleNotFoundError as error:
        raise missing(error, "top", "the monitor needs Textual") from error
    from taskq.cli.top.live import LiveSource
    from taskq.cli.top.replay import ReplaySource
    from taskq.cli.top.snapshot import Source

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("taskq top needs a terminal: elsewhere use `taskq status`, with --json for programs")
    moment = moment_of(at, "--at")
    q = queue_of(app)
    owner = None if hide_args else named_application(app)
    q.redaction = None if owner is None else owner.redaction
    shows = owner is not None
    source: Source = LiveSource(q, shows_arguments=shows)
    if moment is not None:
        source = ReplaySource(q, moment.timestamp(), shows_arguments=shows)
    Top(q, source, read_only=read_only, hide_args=hide_args).run()
