"""`taskq config`: what counts for each option of a fleet, and where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer

from taskq.cli.arguments import JsonOption
from taskq.cli.common import tell
from taskq.cli.config.options import FLEET_OPTIONS, NONE
from taskq.cli.config.project import APP_KEY, Value, app_of, find_project
from taskq.cli.config.sources import misspelt_variables, settings_of, values
from taskq.cli.tables import Column, plain, table, width_of_terminal
from taskq.model.settings import Settings

_OPTIONS = {option.name: option for option in FLEET_OPTIONS}


@dataclass(frozen=True, slots=True)
class OptionValue:
    """The value of an option of a fleet.

    Attributes:
        value: the value, or None.
        source: where it comes from.
        place: the option, the variable or the key of a file that says it; None for a default.
    """

    value: bool | int | str | list[str] | None
    source: Literal["command line", "environment", "file", "default"]
    place: str | None


def config(
    app: Annotated[
        str | None, typer.Argument(metavar="APP", help="The application, as for worker.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the options of a fleet started here, and where each comes from.

    The command line takes precedence, then TASKQ_... in the environment, then
    \\[tool.taskq] in the nearest pyproject.toml, then the default:

    \\[tool.taskq]
    app = "shop.tasks:q"
    consumers = 4
    queues = "high=3,default"
    lane = ["gpu:1", "default,mail:4"]
    stop-timeout = "1m"

    $ taskq config
    $ TASKQ_CONSUMERS=2 taskq config --json | jq .consumers
    """
    for sentence in misspelt_variables():
        tell(sentence)
    project = find_project()
    found = [app_of(app, project) or Value(APP_KEY, "", "default"), *values({}, project)]
    settings = settings_of(found[1:])
    print(_json(found, settings) if as_json else _table(found, settings))


def _json(found: list[Value], settings: Settings) -> str:
    told = {value.name: asdict(_told(value, settings)) for value in found}
    return json.dumps(told)


def _told(value: Value, settings: Settings) -> OptionValue:
    plain_value = _OPTIONS[value.name].plain(value.text) if value.name in _OPTIONS else value.text or None
    if value.name == "consumers":
        plain_value = settings.consumers  # the number that "one per CPU" or the lanes mean
    return OptionValue(plain_value, value.source, value.place or None)


def _table(found: list[Value], settings: Settings) -> str:
    columns = (Column("option"), Column("value", is_name=True), Column("from", is_story=True))
    rows = [(value.name, _said(value, settings), value.place or value.source) for value in found]
    return plain(table(columns, rows, width_of_terminal()))


def _said(value: Value, settings: Settings) -> str:
    """The value in words."""
    if value.name == "consumers":
        how = "as the lanes say" if settings.lanes else "one per CPU" if value.text == "0" else ""
        return f"{settings.consumers} ({how})" if how else str(settings.consumers)
    in_words = _OPTIONS[value.name].in_words if value.name in _OPTIONS else ""
    return value.text or in_words or NONE
