"""`taskq bench`: figures of this machine, each beside its limit.

Absolute figures say little on a shared machine. So each turn measures taskq and its limits one after the other, and a
ratio in the report is the median of those of the turns.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from taskq.cli.arguments import JsonOption
from taskq.cli.bench.catalogue import CASES
from taskq.cli.bench.figures import Report
from taskq.cli.bench.machine import describe
from taskq.cli.bench.plot import svg_of
from taskq.cli.bench.runner import run
from taskq.cli.bench.stage import Stage
from taskq.cli.bench.table import lines_of, machine_lines
from taskq.cli.pictures import console_of, styled
from taskq.cli.tables import width_of_terminal
from taskq.model.errors import ConfigError, DirectoryError
from taskq.model.misfits import did_you_mean
from taskq.model.settings import default_consumers
from taskq.system.place import DatabaseUrl, has_password, place_of

#: Two are needed for anything to run at once. More only start more slowly.
_CONSUMERS = min(8, max(2, default_consumers()))

#: The part that needs a database, and is measured alone.
_OF_DATABASE = "database"


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART]...", help=f"What to measure: {', '.join(CASES)}.", show_default="all"),
    ] = None,
    is_quick: Annotated[
        bool, typer.Option("--quick", metavar="", help="Half a minute instead of five; less exact.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Measure each figure N times, and show the median.", show_default="1-5"),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Work in a new folder below this one.", show_default="temporary files"),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Measure a queue in this PostgreSQL database, and nothing else."),
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the ratios, as an SVG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed and memory here, each figure beside its limit.

    The limits are measured in turns with taskq: a bare socket with one SQLite
    commit and its sync, a process pool, files, and, in a clone of the
    repository, the skeleton of a queue without features. It runs fleets of its
    own in a temporary directory, and leaves nothing behind.

    $ taskq bench --quick
    $ taskq bench single roundtrip --rounds 9
    $ taskq bench --url postgresql://me@host/database
    $ taskq bench --svg figures.svg --json > figures.json
    """
    database = None if url is None else _database(url)
    chosen = _chosen(parts or (), database is not None)
    parent = directory or Path(tempfile.gettempdir())
    for path, option in ((parent, "--directory"), (svg.absolute().parent if svg else parent, "--svg")):
        if not path.is_dir():
            raise DirectoryError(f"{option}: there is no directory {path}")
    logging.getLogger("taskq").addHandler(logging.NullHandler())  # that no fleet runs is part of what is measured
    signal.signal(signal.SIGTERM, _end)
    report = _measure(chosen, Stage(parent.absolute(), _CONSUMERS, is_quick, database), is_quick, rounds, as_json)
    if svg:
        svg.write_text(svg_of(report), encoding="utf-8")
    if as_json:
        print(json.dumps(asdict(report)))


def _database(url: str) -> DatabaseUrl:
    """The database of --url. Raises ConfigError: it makes no sense, or others could read its password."""
    if has_password(url):
        raise ConfigError(
            "--url: every user of this machine can read the arguments of a command: leave the password out of the URL "
            "and set PGPASSWORD"
        )
    database = place_of("bench", url).database
    if database is None:
        raise ConfigError(f"--url {url}: this is not the URL of a database: write postgresql://user@host/database")
    return database


def _chosen(parts: Sequence[str], has_database: bool) -> list[str]:
    if has_database and set(parts) - {_OF_DATABASE}:
        raise ConfigError(f"--url measures the part {_OF_DATABASE} alone: leave out the others")
    if has_database:
        return [_OF_DATABASE]
    if _OF_DATABASE in parts:
        raise ConfigError(f"{_OF_DATABASE}: which database? name it with --url postgresql://user@host/database")
    for part in parts:
        if part not in CASES:
            raise ConfigError(
                f"{part!r} is not a part of the benchmark{did_you_mean(part, CASES)}: use {', '.join(CASES)}"
            )
    return [part for part in CASES if part in parts or (not parts and part != _OF_DATABASE)]


def _measure(parts: Sequence[str], stage: Stage, is_quick: bool, rounds: int | None, as_json: bool) -> Report:
    began, at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe(stage.parent)
    console = console_of()
    if not as_json:
        console.print(Text("\n".join(machine_lines(machine, _CONSUMERS)), style="dim"), soft_wrap=True)
    figures = []
    progress = _Progress()
    with stage:
        for part in parts:
            found = run(CASES[part], stage, rounds, progress.tell)
            progress.tell("")
            figures += found
            if not as_json:
                console.print(Text(f"\n{CASES[part].title}", style="bold"), soft_wrap=True)
                for line in styled(lines_of(found, width_of_terminal())):
                    console.print(line, soft_wrap=True)
        left_out = stage.left_out
    report = Report(at, round(time.monotonic() - began, 1), is_quick, _CONSUMERS, machine, figures, left_out)
    if not as_json:
        for missing in left_out:
            console.print(Text(f"left out: {missing.part}, {missing.what}: {missing.reason}"), soft_wrap=True)
        console.print(Text(f"\n{report.duration_s:.0f} s", style="dim"))
    return report


class _Progress:
    """Says on the terminal what is measured now, in one line that is replaced; nothing if there is no terminal."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def tell(self, text: str) -> None:
        """Replaces the line; an empty text removes it."""
        if self._is_shown:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]}\x1b[K", end="", file=sys.stderr, flush=True)


def _end(_signal: int, _frame: object) -> None:
    """SIGTERM ends it as Ctrl-C does: fleets are stopped and files removed."""
    raise SystemExit(128 + signal.SIGTERM)
