"""`taskq status`, as typer reads it: see `taskq.cli.status.quick`, which is tried first."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import queue_of
from taskq.cli.status.show import show


def status(
    app: FleetArgument = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", metavar="", help="Update it every second.")] = False,
) -> None:
    """Show what the fleet is doing.

    Of each queue: its jobs, for how long the oldest of them has been waiting,
    how many come and end a second, and when the backlog will be empty.

    $ taskq status app.py:q
    $ taskq status --json | jq .totals
    """
    client = queue_of(app).client

    def text() -> str:
        return json.dumps({**asdict(client.look()), "tasks": [each.as_dict() for each in client.counts()]})

    show(text if as_json else None, client.look, goes_on=watch)
