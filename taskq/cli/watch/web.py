"""`taskq web`: the dashboard in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskq.cli.arguments import FleetArgument
from taskq.cli.common import named_application, queue_of
from taskq.model.errors import ConfigError

#: Not one that other programs are known for.
DEFAULT_PORT = 8737


def web(
    app: FleetArgument = None,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 for any that is free.")] = (
        DEFAULT_PORT
    ),
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address. One that others can reach takes --auth.")
    ] = "127.0.0.1",
    uds: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A Unix socket for this user only, not a port.", show_default=False),
    ] = None,
    auth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask for a name and a password. The file has a line NAME:RIGHTS:PASSWORD for each visitor.",
            show_default="a link that works once",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also answer to this name, such as that of a proxy. Can be repeated."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", metavar="", help="Only look: change nothing.")] = False,
    hide_args: Annotated[
        bool, typer.Option("--hide-args", metavar="", help="Do not show arguments and results of jobs.")
    ] = False,
) -> None:
    """Show the fleet in a browser. The link that it prints lets you in once.

    The link becomes a cookie of your browser; when it was used, another is
    printed. With an application, jobs can be enqueued again with other arguments.

    $ taskq web app.py:q
    $ taskq web --port 8080 --read-only
    """
    try:
        from taskq.web.server import Place, serve  # the extra [web] may be missing
    except ModuleNotFoundError as error:
        raise missing(error, "web", "the dashboard needs Starlette, Jinja and uvicorn") from error

    anonymous = queue_of(app)
    q = named_application(app) or anonymous
    place = Place(host, port, uds, auth, allow_host or ())
    serve(q, place, read_only=read_only, hide_args=hide_args)


def missing(error: ModuleNotFoundError, extra: str, needs: str) -> Exception:
    """What to say of a module that is not there: that an extra has to be installed, unless the module is ours."""
    if error.name is not None and error.name.partition(".")[0] == "taskq":
        return error
    return ConfigError(f"{needs}: pip install 'taskq-fleet[{extra}]'")
