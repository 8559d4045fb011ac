"""Ids as people give them: whole, or the end or the beginning of one, as the tables show them."""

from __future__ import annotations

import re
from pathlib import Path

from taskq.client.app import TaskQ
from taskq.model.errors import ConfigError, JobNotFound

_WHOLE = re.compile(r"[0-9a-fA-F]{32}")
_PART = re.compile(r"[0-9a-fA-F]{6,31}")
#: A part of an id is looked for among so many of the newest jobs.
_NEWEST = 10_000


def is_id(word: str) -> bool:
    """Whether a word is an id or a part of one, and not the name of a folder."""
    return bool(_WHOLE.fullmatch(word) or (_PART.fullmatch(word) and not Path(word).exists()))


def whole_id(app: TaskQ, given: str) -> str:
    """The id that is meant.

    Raises:
        ConfigError: it could be that of several jobs.
        JobNotFound: there is none among the newest jobs.
    """
    if not _PART.fullmatch(given):
        return given  # what is wrong with it is told where it is used
    part = given.lower()
    found = {info.id for info in app.jobs(limit=_NEWEST) if info.id.startswith(part) or info.id.endswith(part)}
    if not found:
        raise JobNotFound(
            f"none of the newest {_NEWEST:,} jobs has an id that begins or ends with {given}: give all of it"
        )
    if len(found) > 1:
        some = ", ".join(sorted(found)[:3])
        raise ConfigError(f"the ids of {len(found)} jobs begin or end with {given}: give more of it ({some} ...)")
    return found.pop()
