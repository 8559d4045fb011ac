"""The table [tool.taskq] of the nearest pyproject.toml, and APP, which most commands look for there too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from taskq.model.errors import ConfigError

APP_VARIABLE, APP_KEY = "TASKQ_APP", "app"
#: Separates the values of an option that may be repeated when they are in one text.
SEPARATOR = ";"
_REPEATED = ("lane",)
_FILE = "pyproject.toml"


class Value(NamedTuple):
    """The text of an option, and where it comes from.

    Attributes:
        name: of the option, or "app".
        text: its value as a text.
        source: where it comes from.
        place: the option, the variable, or the key of a file; "" for a default.
    """

    name: str
    text: str
    source: Literal["command line", "environment", "file", "default"]
    place: str = ""


class Project(NamedTuple):
    """The nearest pyproject.toml.

    Attributes:
        path: its path; None if there is none with a table [tool.taskq].
        texts: the values in that table, by key.
    """

    path: Path | None
    texts: Mapping[str, str]

    def value(self, name: str) -> Value | None:
        """What it says about an option."""
        return Value(name, self.texts[name], "file", f"{name} in {self.path}") if name in self.texts else None


def app_of(given: str | None, project: Project | None = None) -> Value | None:
    """APP: the one that was given, or that of TASKQ_APP, or that of pyproject.toml; None if there is none."""
    if given:
        return Value(APP_KEY, given, "command line", "APP")
    return variable(APP_KEY, APP_VARIABLE) or (project or find_project()).value(APP_KEY)


def variable(name: str, variable: str) -> Value | None:
    """What a variable says about an option. An empty one says nothing."""
    text = os.environ.get(variable, "").strip()
    return Value(name, text, "environment", variable) if text else None


def find_project() -> Project:
    """The pyproject.toml of this folder, or of the nearest folder above it.

    Raises:
        ConfigError: the file cannot be understood, or belongs to another user.
    """
    folder = Path.cwd()
    path = next((path for each in (folder, *folder.parents) if (path := each / _FILE).is_file()), None)
    return Project(None, {}) if path is None else _read(path)


def _read(path: Path) -> Project:
    content = path.read_bytes()
    if b"taskq" not in content:
        return Project(None, {})  # reading TOML takes longer than all the rest here
    table = _table(path, content)
    if table is None:
        return Project(None, {})
    _check_owner(path)
    texts = {key: _text_of(value, SEPARATOR if key in _REPEATED else ",") for key, value in table.items()}
    if APP_KEY in texts:
        texts[APP_KEY] = _from_folder(texts[APP_KEY], path.parent)
    return Project(path, texts)


def _table(path: Path, content: bytes) -> Mapping[str, object] | None:
    """The table [tool.taskq]; None if there is none."""
    import tomllib  # takes 5 ms, only for those who have such a table

    try:
        tool = tomllib.loads(content.decode()).get("tool")
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    table = tool.get("taskq") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.taskq is not a table: write [tool.taskq], and keys such as consumers = 4")
    return table


def _check_owner(path: Path) -> None:
    """The file names code that is run: one that another user has put into a folder above must not count."""
    owner = path.stat().st_uid
    if owner not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path} belongs to user id {owner}, and you are {os.geteuid()}: its table [tool.taskq] names code to run, "
            "so it must be yours or root's; change its owner, or run taskq in another folder"
        )


def _text_of(value: object, separator: str) -> str:
    """A TOML value as it would be written on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return separator.join(_text_of(each, ",") for each in value)
    if isinstance(value, dict):
        return separator.join(f"{name}={_text_of(each, ',')}" for name, each in value.items())
    return str(value).strip()


def _from_folder(app: str, folder: Path) -> str:
    """The path of an application is relative to the folder of the file."""
    place, colon, attribute = app.partition(":")
    return f"{folder / place}{colon}{attribute}" if place.endswith(".py") or os.sep in place else app
