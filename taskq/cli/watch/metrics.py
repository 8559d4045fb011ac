"""`taskq metrics`: what Prometheus is told."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from taskq.cli.arguments import FleetArgument
from taskq.cli.common import queue_of, seconds_of
from taskq.cli.watch.web import missing
from taskq.model.errors import ConfigError


def metrics(
    app: FleetArgument = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="[HOST]:PORT", help="Serve them at this address, at /metrics.", show_default=False),
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Serve them at a Unix socket for this user only.", show_default=False),
    ] = None,
    textfile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write them to a file, for node_exporter to collect.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --textfile: write it again and again.", show_default=False)
    ] = None,
) -> None:
    """Print what the fleet counts and measures for Prometheus, or serve it.

    Whoever reaches an address of --listen sees the names of queues, tasks and
    schedules; no arguments and no errors are among the metrics.

    $ taskq metrics app.py:q
    $ taskq metrics --listen :9737
    $ taskq metrics --textfile /var/lib/node_exporter/taskq.prom --every 15s
    """
    try:
        from taskq.web.metrics import server  # the extra [prometheus] may be missing
        from taskq.web.metrics.text import ask, text_of
    except ModuleNotFoundError as error:
        raise missing(error, "prometheus", "metrics need prometheus-client") from error

    if sum(place is not None for place in (listen, uds, textfile)) > 1:
        raise ConfigError("--listen, --uds or --textfile: one of them")
    if every is not None and textfile is None:
        raise ConfigError("--every goes with --textfile: others are told what is true when they ask")
    every_s = None if every is None else seconds_of(every, "--every")
    if every_s == 0:
        raise ConfigError("--every 0: use a second or more")
    client = queue_of(app).client
    if listen is not None or uds is not None or every is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if listen is not None:
        server.serve_at(client, listen)
    elif uds is not None:
        server.serve_unix(client, uds)
    elif textfile is not None and every_s is not None:
        server.keep_file(client, textfile, every_s)
    elif textfile is not None:
        server.write_file(client, textfile)
    else:
        sys.stdout.write(text_of(ask(client)).body.decode())
