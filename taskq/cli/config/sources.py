"""Where the options of a fleet come from.

From the command line, the environment, pyproject.toml, or the default: the first that sets an option counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from taskq.cli.config.options import FLEET_OPTIONS, FleetOption
from taskq.cli.config.project import APP_KEY, APP_VARIABLE, Project, Value, variable
from taskq.model.errors import ConfigError
from taskq.model.misfits import did_you_mean
from taskq.model.settings import Settings

#: A variable whose name is almost one of ours is probably misspelt. Others may belong to anybody, such as Kubernetes.
_NEAR = 0.8
#: Variables that something else than these options reads, or that a fleet sets for its own processes.
_OTHER_VARIABLES = (APP_VARIABLE, "TASKQ_URL", "TASKQ_REPLY_TIMEOUT")
_INNER_VARIABLES = ("TASKQ_IN_CONSUMER", "TASKQ_PRELOAD_READY", "TASKQ_PRELOAD_APP")


def values(given: Mapping[str, str], project: Project) -> list[Value]:
    """The text of each option that is set somewhere.

    Args:
        given: the options of the command line, by name.
        project: the nearest pyproject.toml.

    Raises:
        ConfigError: the file has an unknown key.
    """
    known = [APP_KEY, *(option.name for option in FLEET_OPTIONS)]
    for key in project.texts:
        if key not in known:
            raise ConfigError(f"{project.path}: [tool.taskq] has an unknown key {key!r}{did_you_mean(key, known)}")
    return [
        _given(option, given)
        or variable(option.name, option.variable)
        or project.value(option.name)
        or Value(option.name, option.default, "default")
        for option in FLEET_OPTIONS
    ]


def settings_of(found: Iterable[Value]) -> Settings:
    """The settings that these values mean.

    Raises:
        ConfigError: one of them is not valid, or several do not go together; the message says where they are set.
    """
    options = {option.name: option for option in FLEET_OPTIONS}
    said = [value for value in found if value.source != "default"]
    fields: dict[str, Any] = {}
    for value in said:
        fields |= _fields(options[value.name], value)
    return _checked(fields, ", ".join(value.place for value in said))


def _fields(option: FleetOption, value: Value) -> Mapping[str, Any]:
    try:
        fields = option.read(value.text)
    except ValueError as error:
        raise ConfigError(f"{value.place} {value.text!r}: {error}") from None
    _checked(fields, value.place)
    return fields


def _checked(fields: Mapping[str, Any], place: str) -> Settings:
    try:
        return Settings(**fields)
    except ConfigError as error:
        raise ConfigError(f"{error} (from {place})") from None


def _given(option: FleetOption, given: Mapping[str, str]) -> Value | None:
    if option.name not in given:
        return None
    text = given[option.name]
    place = f"--no-{option.name}" if option.is_flag and text == "false" else f"--{option.name}"
    return Value(option.name, text, "command line", place)


def misspelt_variables() -> list[str]:
    """A sentence for each variable in the environment whose name is almost that of an option."""
    known = [*(option.variable for option in FLEET_OPTIONS), *_OTHER_VARIABLES]
    endings = [name.removeprefix("TASKQ_") for name in known]
    told = []
    for name in sorted(os.environ):
        if name.startswith("TASKQ_") and name not in (*known, *_INNER_VARIABLES):
            near = get_close_matches(name.removeprefix("TASKQ_"), endings, 1, _NEAR)
            told += [f"the variable {name} means nothing; did you mean TASKQ_{near[0]}?"] if near else []
    return told
