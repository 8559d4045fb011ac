"""The command line; the top layer, which nothing else imports."""

from __future__ import annotations

import sys

from taskq.guardian import start_broker_early


def main() -> None:
    """Runs the command line, and ends the process with one of the codes of `taskq.exits`.

    typer takes 0.1 to 0.2 s to import. A fleet's broker starts meanwhile; should the command line turn out to make no
    sense, it hears the end of its socket, and ends without having touched a thing.
    """
    if sys.argv[1:2] == ["worker"] and not {"--help", "-h"} & set(sys.argv):
        start_broker_early()
    from taskq.cli.program import run

    run()
