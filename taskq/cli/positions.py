"""Which word of a command is APP: it may come before the others or after them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from taskq.cli.ids import is_id
from taskq.model.errors import ConfigError


def looks_like_app(word: str) -> bool:
    """Whether a word is written like an application or a directory, and not like the name of a queue."""
    return ":" in word or os.sep in word or word.endswith(".py") or word in (os.curdir, os.pardir)


def id_first(id: str, app: str | None) -> tuple[str, str | None]:
    """A job's id and APP, from two words in either order. If each could be either, the first is the id."""
    if app is None or is_id(id) > is_id(app):
        return id, app
    is_swapped = is_id(app) > is_id(id) or looks_like_app(id) > looks_like_app(app)
    return (app, id) if is_swapped else (id, app)


def name_first(name: str, app: str | None) -> tuple[str, str | None]:
    """A schedule's name and APP, from two words in either order. If each could be either, the first is the name."""
    return (app, name) if app is not None and looks_like_app(name) > looks_like_app(app) else (name, app)


def split(words: Sequence[str] | None, is_one: Callable[[str], object]) -> tuple[list[str], str | None]:
    """The ids or queues among the words, and APP, which does not look like one of them.

    Raises:
        ConfigError: several words do not look like an id or a queue.
    """
    named = [word for word in words or () if is_one(word)]
    others = [word for word in words or () if not is_one(word)]
    if len(others) > 1:
        raise ConfigError(f"{others[0]!r} and {others[1]!r}: at most one of them can be the application")
    return named, others[0] if others else None
