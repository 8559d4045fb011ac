"""The program: one module per group of commands.

Only the module of the command that is called is imported: `taskq worker` starts a fleet in a fraction of a second, and
needs neither rich nor the log reader.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from taskq.cli.common import closed_pipe, fail, version
from taskq.model.errors import TaskQError

_RUN, _JOBS, _LOOK, _MORE = "Run a fleet", "Jobs", "Watch", "More"

#: The commands as `taskq --help` lists them. By name, which is also that of the function: the module and the heading.
COMMANDS = {
    "worker": ("worker", _RUN),
    "stop": ("control", _RUN),
    "reload": ("control", _RUN),
    "config": ("config.command", _RUN),
    "enqueue": ("jobs", _JOBS),
    "job": ("jobs", _JOBS),
    "cancel": ("jobs", _JOBS),
    "jobs": ("manage", _JOBS),
    "retry": ("manage", _JOBS),
    "purge": ("manage", _JOBS),
    "pause": ("manage", _JOBS),
    "resume": ("manage", _JOBS),
    "schedule": ("schedule", _JOBS),
    "status": ("monitor", _LOOK),
    "logs": ("monitor", _LOOK),
    "demo": ("demo.command", _MORE),
    "bench": ("bench.command", _MORE),
    "schema": ("schema", _MORE),
    "version": ("common", _MORE),
}

#: Set by the completion script of the shell.
_COMPLETION = "_TASKQ_COMPLETE"
_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

_HELP = """A durable task queue with no server to install.

$ taskq demo                         see it work, in a few seconds
$ taskq worker app.py:q              run a fleet for the TaskQ q in app.py
$ taskq enqueue app.py:q add 1 2     have the fleet run add(1, 2)

APP is module:attribute or path/file.py:attribute.
You can leave it out if TASKQ_APP, or app in \\[tool.taskq] of pyproject.toml, names it."""


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


_VersionOption = Annotated[
    bool,
    typer.Option("--version", metavar="", callback=_show_version, is_eager=True, help="Show the version and exit."),
]


def _root(_version: _VersionOption = False) -> None:
    pass


def _words() -> list[str]:
    """The words of the command line; when a shell completes one, the words that are complete.

    Typer's scripts run the program at each Tab, and pass the line in variables.
    """
    if _COMPLETION not in os.environ:
        return sys.argv[1:]
    if "COMP_CWORD" in os.environ:  # bash
        return os.environ.get("COMP_WORDS", "").split()[1 : int(os.environ["COMP_CWORD"])]
    line = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return line.split()[1:] if line.endswith(" ") else line.split()[1:-1]


def build(argv: list[str]) -> typer.Typer:
    """The program with only the command that `argv` calls, or with all commands if it calls none."""
    called = argv[0] if argv else ""
    program = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=called not in COMMANDS or _COMPLETION in os.environ,
        context_settings=_HELP_OPTIONS,
    )
    program.callback()(_root)
    for name, (module, panel) in COMMANDS.items():
        if name == called or called not in COMMANDS:
            function = getattr(import_module(f"taskq.cli.{module}"), name)
            # -1 is an argument of a task, not an option
            settings = {"ignore_unknown_options": True} if name == "enqueue" else {}
            program.command(name, rich_help_panel=panel, context_settings={**_HELP_OPTIONS, **settings})(function)
    return program


def _leave_out_styles() -> None:
    """Removes bold and dim with NO_COLOR: typer, which draws help and usage errors, would leave them."""
    from typer import rich_utils  # takes 60 ms, only where it is needed

    rich_utils.COLOR_SYSTEM = None


def run() -> None:
    """Runs the command line, and ends the process with one of the codes of `taskq.model.exits`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not an error where a terminal cannot show a letter
    if os.environ.get("NO_COLOR"):
        _leave_out_styles()
    try:
        try:
            build(_words())(prog_name="taskq")
        finally:
            sys.stdout.flush()  # a closed pipe must raise here, not when the interpreter flushes at its end
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # click would take it for an error
            closed_pipe()
        raise
    except TaskQError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        closed_pipe()
    except OSError as error:
        if not isinstance(error, TaskQError) and error.filename is None:
            raise
        print(f"taskq: {os.fspath(error.filename)}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
