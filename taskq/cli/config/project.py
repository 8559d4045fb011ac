"""What the nearest pyproject.toml says in its table [tool.taskq]; and APP, which most commands look for there, too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from taskq.model.errors import ConfigError

APP_VARIABLE, APP_KEY = "TASKQ_APP", "app"
#: Between the values of an option that may be repeated, where it stands in one text.
SEPARATOR = ";"
_REPEATED = ("lane",)
_FILE = "pyproject.toml"


class Value(NamedTuple):
    """What counts for an option.

    Attributes:
        name: of the option, or "app".
        text: its value as a text.
        source: where it comes from.
        place: where it stands there: an option, a variable, or a key of a file; "" for a default.
    """

    name: str
    text: str
    source: Literal["command line", "environment", "file", "default"]
    place: str = ""


class Project(NamedTuple):
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


def app_of(given: str | None, project: Project | None = None) -> Value | None:
    """APP: the one that was given, else that of TASKQ_APP, else that of pyproject.toml; None if none of them says."""
    if given:
        return Value(APP_KEY, given, "command line", "APP")
    return variable(APP_KEY, APP_VARIABLE) or (project or find_project()).value(APP_KEY)


def variable(name: str, variable: str) -> Value | None:
    """What a variable says of an option. An empty one says nothing."""
    text = os.environ.get(variable, "").strip()
    return Value(name, text, "environment", variable) if text else None


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
    texts = {key: _text_of(value, SEPARATOR if key in _REPEATED else ",") for key, value in table.items()}
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
