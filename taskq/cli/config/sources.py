"""Where the options of a fleet come from.

From the command line, the environment, pyproject.toml, or the default: the first that says anything counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from taskq.cli.config.options import FLEET_OPTIONS, SEPARATOR, FleetOption
from taskq.model.errors import ConfigError
from taskq.model.misfits import did_you_mean
from taskq.model.settings import Settings

APP_VARIABLE, APP_KEY = "TASKQ_APP", "app"
_FILE = "pyproject.toml"
#: A variable that is nearly as one of ours is probably meant to be it. Others may be anybody's, such as Kubernetes'.
_NEAR = 0.8
#: What others than these options know.
_OTHER_VARIABLES = (APP_VARIABLE, "TASKQ_URL", "TASKQ_REPLY_TIMEOUT")


@dataclass(frozen=True, slots=True)
class Value:
    """What counts for an option.

    Attributes:
        name: of the option, or "app".
        text: its value as a text; the default in words where nobody says anything.
        source: "command line", "environment", "file" or "default".
        place: where it stands there: an option, a variable, or a key of a file; "" for a default.
    """

    name: str
    text: str
    source: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Project:
    """The nearest pyproject.toml.

    Attributes:
        path: where it is; None if there is none with a table [tool.taskq].
        texts: what that table says, by key.
    """

    path: Path | None
    texts: Mapping[str, str]

    def value(self, name: str) -> Value | None:
        """What it says of an option."""
        return Value(name, self.texts[name], "file", f"{name} in {self.path}") if name in self.texts else None


# -- the options


def values(given: Mapping[str, str], project: Project) -> list[Value]:
    """What counts for each option, not yet read.

    Args:
        given: the options of the command line, by name.
        project: the nearest pyproject.toml.
    """
    return [
        _given(option, given)
        or _variable(option.name, option.variable)
        or project.value(option.name)
        or Value(option.name, option.default, "default")
        for option in FLEET_OPTIONS
    ]


def settings_of(found: Iterable[Value]) -> Settings:
    """The settings that values make.

    Raises:
        ConfigError: one of them makes no sense, or several do not go together; the message says where they stand.
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


def _variable(name: str, variable: str) -> Value | None:
    """An empty variable says nothing."""
    text = os.environ.get(variable)
    return Value(name, text.strip(), "environment", variable) if text and text.strip() else None


def misspelt_variables() -> list[str]:
    """A sentence for each variable in the environment that is nearly the one of an option."""
    known = [*(option.variable for option in FLEET_OPTIONS), *_OTHER_VARIABLES]
    endings = [name.removeprefix("TASKQ_") for name in known]
    told = []
    for name in sorted(os.environ):
        if name.startswith("TASKQ_") and name not in known:
            near = get_close_matches(name.removeprefix("TASKQ_"), endings, 1, _NEAR)
            told += [f"the variable {name} means nothing; did you mean TASKQ_{near[0]}?"] if near else []
    return told


# -- the application


def app_of(given: str | None, project: Project | None = None) -> Value | None:
    """APP: the one that was given, else that of TASKQ_APP, else that of pyproject.toml; None if none of them says."""
    if given:
        return Value(APP_KEY, given, "command line", "APP")
    return _variable(APP_KEY, APP_VARIABLE) or (project or find_project()).value(APP_KEY)


# -- pyproject.toml


def find_project() -> Project:
    """The pyproject.toml of this folder, or of the nearest above it.

    Raises:
        ConfigError: it cannot be understood, or is another user's.
    """
    folder = Path.cwd()
    path = next((path for each in (folder, *folder.parents) if (path := each / _FILE).is_file()), None)
    return Project(None, {}) if path is None else _read(path)


def _read(path: Path) -> Project:
    content = path.read_bytes()
    if b"taskq" not in content:
        return Project(None, {})  # reading TOML takes longer than all the rest of this
    table = _table(path, content)
    if table is None:
        return Project(None, {})
    _check_owner(path)
    known = [APP_KEY, *(option.name for option in FLEET_OPTIONS)]
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: [tool.taskq] has an unknown key {key!r}{did_you_mean(key, known)}")
    texts = {key: _text_of(value, SEPARATOR if key == "lane" else ",") for key, value in table.items()}
    if APP_KEY in texts:
        texts[APP_KEY] = _from_folder(texts[APP_KEY], path.parent)
    return Project(path, texts)


def _table(path: Path, content: bytes) -> Mapping[str, object] | None:
    """The table [tool.taskq]; None if there is none."""
    import tomllib  # 5 ms, for those who have such a table

    try:
        tool = tomllib.loads(content.decode()).get("tool")
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    table = tool.get("taskq") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.taskq is not a table: write [tool.taskq], and keys such as consumers = 4")
    return table


def _check_owner(path: Path) -> None:
    """It names code that is run: one that another user has left in a folder above must not count."""
    owner = path.stat().st_uid
    if owner not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path} belongs to user id {owner}, and you are {os.geteuid()}: its table [tool.taskq] names code to run, "
            "so it must be yours or root's; change its owner, or run taskq in another folder"
        )


def _text_of(value: object, separator: str) -> str:
    """A value of TOML in the form that it has on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return separator.join(_text_of(each, ",") for each in value)
    if isinstance(value, dict):
        return separator.join(f"{name}={_text_of(each, ',')}" for name, each in value.items())
    return str(value).strip()


def _from_folder(app: str, folder: Path) -> str:
    """A path to an application is meant from where the file is."""
    place, colon, attribute = app.partition(":")
    return f"{folder / place}{colon}{attribute}" if place.endswith(".py") or os.sep in place else app
