"""`taskq worker`, as it is called nearly always: read without typer, whose import takes as long as all else that a
guardian does until its fleet is ready.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from taskq.broker.guardian import Guardian
from taskq.cli.common import guard, reference_of, tell
from taskq.cli.config.options import FLEET_OPTIONS
from taskq.cli.config.project import SEPARATOR, find_project
from taskq.cli.config.sources import misspelt_variables, settings_of, values


def run_fleet(app: str | None, texts: Mapping[str, str]) -> int:
    """Runs a fleet. Returns the exit code.

    Args:
        app: the application, if the command line names it.
        texts: the options that the command line gives, by name.
    """
    reference = reference_of(app)
    for sentence in misspelt_variables():
        tell(sentence)
    return Guardian(reference, settings_of(values(texts, find_project()))).run()


def start_quickly(words: Sequence[str]) -> None:
    """Runs a fleet to its end, and ends the process; returns if the command line is one for typer.

    Args:
        words: what follows `taskq worker`.
    """
    read = read_words(words)
    if read is not None:
        guard(lambda: sys.exit(run_fleet(*read)))


def read_words(words: Sequence[str]) -> tuple[str | None, dict[str, str]] | None:
    """Reads the command line as typer does. Returns the application and the options, or None if typer has to say what
    is wrong, or to help."""
    app: str | None = None
    texts: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            if app is not None:
                return None
            app = word
            continue
        found = _option(word, rest)
        if found is None:
            return None
        name, text, is_repeated = found
        texts[name] = SEPARATOR.join((texts[name], text)) if is_repeated and name in texts else text
    return app, texts


def _option(word: str, rest: Iterator[str]) -> tuple[str, str, bool] | None:
    """Reads an option: its name, its text, and whether it may be given again."""
    given, equals, text = word.removeprefix("--").partition("=")
    for option in FLEET_OPTIONS:
        if option.is_flag and word in (f"--{option.name}", f"--no-{option.name}"):
            return option.name, str(word == f"--{option.name}").lower(), False
        if not option.is_flag and given == option.name and word.startswith("--"):
            text = text if equals else next(rest, "-")
            if text.startswith("-"):
                return None
            return option.name, text if option.is_repeated else text.strip(), option.is_repeated
    return None
