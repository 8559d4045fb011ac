"""What `TaskQ.jobs` takes to search for jobs."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict

from taskq.model.errors import ConfigError
from taskq.model.info.search import JobSearch
from taskq.model.job import LAST_TIME


class SearchOptions(TypedDict, total=False):
    """Which jobs are meant; without any of these all.

    Attributes:
        since, until: enqueued in this span, its end excluded: a datetime with a timezone, or seconds since 1970.
        attempts: at least this many attempts have ended.
        text: a part of the error of the last attempt, of the job's meta or of its keys. Upper and lower case differ.
    """

    since: datetime | float | None
    until: datetime | float | None
    attempts: int
    text: str


def search_of(options: SearchOptions) -> JobSearch:
    """Checks the options.

    Raises:
        ConfigError: one makes no sense.
        TypeError: there is no such option.
    """
    unknown = options.keys() - SearchOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"jobs() has no option {sorted(unknown)[0]!r}: use {', '.join(SearchOptions.__annotations__)}")
    attempts, text = options.get("attempts", 0), options.get("text", "")
    if not isinstance(attempts, int) or isinstance(attempts, bool) or not 0 <= attempts < 1 << 62:
        raise ConfigError(f"attempts={attempts!r:.80}: use a number of attempts")
    if not isinstance(text, str):
        raise ConfigError(f"text={text!r:.80}: use a text that the error, the meta or a key of the job has in it")
    since, until = _moment("since", options.get("since")), _moment("until", options.get("until"))
    if since is not None and until is not None and since >= until:
        raise ConfigError("since= must be earlier than until=: no job was enqueued after the one and before the other")
    return JobSearch(since, until, attempts, _packable(text))


def _packable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"text={text!a:.80}: no job has a lone surrogate in a text: {error.reason}") from None
    return text


def _moment(name: str, value: datetime | float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigError(f"{name}={value!r}: use a datetime with a timezone, such as datetime.now(UTC)")
        value = value.timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < LAST_TIME:
        raise ConfigError(f"{name}={value!r:.80}: use a datetime with a timezone, or seconds since 1970")
    return float(value)
