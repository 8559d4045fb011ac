"""`taskq worker`, as typer reads it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from taskq.cli.config.options import FLEET_OPTIONS, FleetOption
from taskq.cli.config.project import SEPARATOR
from taskq.cli.worker.reload import reload_on_changes
from taskq.cli.worker.start import run_fleet


def _with_fleet_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command all options of a fleet in place of its `**given`."""
    own = inspect.signature(command, eval_str=True)
    first = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    parameters = [*first, *map(_parameter, FLEET_OPTIONS)]
    described: Any = command
    described.__signature__ = own.replace(parameters=parameters)
    described.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _parameter(option: FleetOption) -> Parameter:
    """The option as a parameter that is None if it is not given."""
    default = "" if option.is_flag else option.in_words or option.default
    names = [f"--{option.name}/--no-{option.name}" if option.is_flag else f"--{option.name}"]
    described = Option(
        *names,
        metavar=option.metavar,
        help=option.help + (f" [dim]\\[default: {default}][/dim]" if default else ""),
        rich_help_panel=option.panel,
        show_default=False,
        autocompletion=(lambda: option.choices) if option.choices else None,
    )
    kind: Any = bool if option.is_flag else list[str] if option.is_repeated else str
    return Parameter(
        option.parameter, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, described]
    )


@_with_fleet_options
def worker(
    app: Annotated[
        str | None,
        Argument(
            metavar="APP",
            help="module:attribute or path/file.py:attribute.",
            show_default="TASKQ_APP, pyproject.toml",
        ),
    ] = None,
    reload: Annotated[
        bool,
        Option(
            "--reload",
            help="For development: load new code when a Python file below this folder changes. Needs watchfiles.",
            rich_help_panel="Development",
        ),
    ] = False,
    **given: bool | str | list[str] | None,
) -> None:
    """Run a fleet: a broker, and consumers that run the jobs of APP.

    Ctrl-C, SIGTERM or closing the terminal stops it: running jobs may finish,
    the others stay for the next fleet. A second signal ends running jobs at once
    (two SIGTERMs within a second count as one). kill -HUP loads new code.

    Each option can also be set by a variable, such as TASKQ_STOP_TIMEOUT, and by
    a key in \\[tool.taskq] of pyproject.toml, such as stop-timeout: see taskq config.

    $ taskq worker app.py:q
    $ taskq worker shop.tasks:q --consumers 8 --queues mail,images
    """
    if reload:
        reload_on_changes(Path.cwd())
    raise typer.Exit(run_fleet(app, _texts(given)))


def _texts(given: dict[str, bool | str | list[str] | None]) -> dict[str, str]:
    """The options that were given: their texts by name."""
    return {
        option.name: _text(value) for option in FLEET_OPTIONS if (value := given[option.parameter]) not in (None, [])
    }


def _text(value: bool | str | list[str] | None) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return SEPARATOR.join(value) if isinstance(value, list) else (value or "").strip()
