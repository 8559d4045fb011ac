"""The command line; the top layer, which nothing else imports."""

import os
import sys


def main() -> None:
    """Runs the command line, and ends the process with one of the codes of `taskq.model.exits`.

    While a guardian imports what it needs, its broker starts, and a process looks at the application. If the command
    line turns out not to be valid, their sockets are closed and both end without having touched anything.
    """
    command, *rest = sys.argv[1:] or [""]
    if command == "worker" and not {"--help", "-h"} & set(rest):
        from taskq.system.launch import start_early

        has_app = rest and not rest[0].startswith("-")
        start_early(rest[0] if has_app else os.environ.get("TASKQ_APP") if not rest else None)
        from taskq.cli.worker.start import start_quickly

        start_quickly(rest)
    if command == "health":
        from taskq.cli.health.probe import answer_quickly

        answer_quickly(rest)
    if command == "status":
        from taskq.cli.status.quick import answer_quickly as show_quickly

        show_quickly(rest)
    from taskq.cli.program import run

    run()
