"""Arguments that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

#: APP of the commands that look at a fleet or control it.
FleetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="APP",
        help="The application, or its directory. Default: TASKQ_APP, then TASKQ_URL, then app in pyproject.toml, "
        "then the only queue that you have.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")]
