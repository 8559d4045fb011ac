"""Ids as people type them: whole, or a part of one, such as the end that the tables show."""

from __future__ import annotations

import re
from pathlib import Path

from taskq.client.app import TaskQ
from taskq.model.errors import ConfigError, JobNotFound

_WHOLE = re.compile(r"[0-9a-fA-F]{32}")
_PART = re.compile(r"[0-9a-fA-F]{6,31}")
#: A part of an id is looked for among this many of the newest jobs.
_NEWEST = 10_000


def is_id(word: str) -> bool:
    """Whether a word is an id or a part of one, and not the name of a folder or a module here."""
    if _WHOLE.fullmatch(word):
        return True
    return bool(_PART.fullmatch(word)) and not Path(word).exists() and not Path(f"{word}.py").exists()


def whole_id(app: TaskQ, given: str) -> str:
    """The whole id that a part belongs to.

    Raises:
        ConfigError: several jobs have such an id, or it is not a part of one.
        JobNotFound: none of the newest jobs has such an id.
    """
    if _WHOLE.fullmatch(given):
        return given
    if not _PART.fullmatch(given):
        raise ConfigError(f"{given!r} is not a job id: give its 32 hexadecimal digits, or at least 6 of them in a row")
    part = given.lower()
    ids = {info.id for info in app.jobs(limit=_NEWEST) if part in info.id}
    # tables show the ends, and ids begin with the time: a match in the middle counts only if there is no other
    found = {each for each in ids if each.startswith(part) or each.endswith(part)} or ids
    if not found:
        raise JobNotFound(f"{given} is not a part of the id of any of the newest {_NEWEST:,} jobs: give the whole id")
    if len(found) > 1:
        some = ", ".join(sorted(found)[:3])
        raise ConfigError(f"{given} is a part of the ids of {len(found)} jobs: give more of it ({some} ...)")
    return found.pop()
