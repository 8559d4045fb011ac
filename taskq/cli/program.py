"""The program: one module per group of commands.

Only the module of the command that is called is imported: `taskq worker` starts a fleet in a fraction of a second, and
needs neither rich nor the log reader.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from taskq.cli.common import guard, version

_RUN, _JOBS, _LOOK, _MORE = "Run a fleet", "Jobs", "Watch", "More"

#: The commands as `taskq --help` lists them. By name, which is also that of the function: the module, the heading, and
#: the first sentences of the docstring, so that the list takes none of the modules.
COMMANDS = {
    "worker": ("worker.command", _RUN, "Run a fleet: a broker, and consumers that run the jobs of APP."),
    "stop": ("control", _RUN, "Stop the fleet, and wait until it has stopped."),
    "reload": ("control", _RUN, "Load new code: replace the consumers one by one."),
    "migrate": ("migrate.command", _RUN, "Make the tables of a queue in its database, or bring them up to date."),
    "config": ("config.command", _RUN, "Show the options of a fleet started here, and where each comes from."),
    "enqueue": ("jobs", _JOBS, "Enqueue a job, and print its id. Without a fleet, it goes to the spool."),
    "job": ("watch.job", _JOBS, "Show everything that is known about a job."),
    "cancel": ("jobs", _JOBS, "Cancel a job. A running job is told to stop, and killed 2 s later."),
    "jobs": ("manage", _JOBS, "List jobs, the newest first."),
    "retry": ("manage", _JOBS, "Queue failed jobs again, with all their retries."),
    "purge": ("manage", _JOBS, "Remove jobs for good, in any state but running."),
    "pause": ("manage", _JOBS, "Pause queues: running jobs may finish, and no other job starts."),
    "resume": ("manage", _JOBS, "Let the jobs of paused queues run again."),
    "schedule": ("schedule", _JOBS, "List the schedules; pause or resume one, run it now, or remove it."),
    "status": ("status.command", _LOOK, "Show what the fleet is doing."),
    "why": ("watch.why", _LOOK, "Say why a job does not run, and what lets it run."),
    "errors": ("watch.errors", _LOOK, "Show which tasks fail, how often, since when, and of what."),
    "tasks": ("watch.tasks", _LOOK, "Show how long the jobs of each task wait and run, and how they end."),
    "top": (
        "top.command",
        _LOOK,
        "Show the fleet on the whole screen: queues, tasks, jobs, failures, consumers.",
    ),
    "web": ("watch.web", _LOOK, "Show the fleet in a browser. The link that it prints lets you in once."),
    "metrics": (
        "watch.metrics",
        _LOOK,
        "Print what the fleet counts and measures for Prometheus, or serve it.",
    ),
    "health": ("health.command", _LOOK, "Say by the exit code whether the fleet is well: a probe, which is quick."),
    "doctor": ("doctor.command", _LOOK, "Look for what is wrong with the place of a queue, and say what to do."),
    "backup": ("rescue.backup", _MORE, "Copy a queue to a new folder, while its fleet runs or not."),
    "recover": ("rescue.recover", _MORE, "Save what can be saved of a damaged journal, and say what is lost."),
    "stack": ("stack.command", _LOOK, "Show where consumers are in their code, while their jobs go on."),
    "logs": ("monitor", _LOOK, "Show the log, even of a fleet that no longer runs."),
    "demo": ("demo.command", _MORE, "See it work: index Python's library in parallel, and kill a consumer."),
    "bench": ("bench.command", _MORE, "Measure speed and memory here, each figure beside its limit."),
    "schema": ("schema", _MORE, "Print the JSON Schema of what a command prints with --json."),
    "version": ("common", _MORE, "Show the version."),
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


def _only_listed() -> None:
    """In place of a command that is not called."""


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
    """The program with only the command that `argv` calls; or with a list of all commands if it calls none."""
    called = next((word for word in argv if word != "--"), "")
    program = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=called not in COMMANDS or _COMPLETION in os.environ,
        context_settings=_HELP_OPTIONS,
    )
    program.callback()(_root)
    for name, (module, panel, summary) in COMMANDS.items():
        if called not in COMMANDS:
            program.command(name, rich_help_panel=panel, help=summary)(_only_listed)
        elif name == called:
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
    if os.environ.get("NO_COLOR"):
        _leave_out_styles()
    guard(lambda: build(_words())(prog_name="taskq"))
