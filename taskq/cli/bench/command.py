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

#: Two are needed for anything to run at once. More only start more slowly.
_CONSUMERS = min(8, max(2, default_consumers()))


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
    $ taskq bench --svg figures.svg --json > figures.json
    """
    chosen = _chosen(parts or ())
    parent = directory or Path(tempfile.gettempdir())
    for path, option in ((parent, "--directory"), (svg.absolute().parent if svg else parent, "--svg")):
        if not path.is_dir():
            raise DirectoryError(f"{option}: there is no directory {path}")
    logging.getLogger("taskq").addHandler(logging.NullHandler())  # that no fleet runs is part of what is measured
    signal.signal(signal.SIGTERM, _end)
    report = _measure(chosen, parent.absolute(), is_quick, rounds, as_json)
    if svg:
        svg.write_text(svg_of(report), encoding="utf-8")
    if as_json:
        print(json.dumps(asdict(report)))


def _chosen(parts: Sequence[str]) -> list[str]:
    for part in parts:
        if part not in CASES:
            raise ConfigError(
                f"{part!r} is not a part of the benchmark{did_you_mean(part, CASES)}: use {', '.join(CASES)}"
            )
    return [part for part in CASES if not parts or part in parts]


def _measure(parts: Sequence[str], parent: Path, is_quick: bool, rounds: int | None, as_json: bool) -> Report:
    began, at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe(parent)
    console = console_of()
    if not as_json:
        console.print(Text("\n".join(machine_lines(machine, _CONSUMERS)), style="dim"), soft_wrap=True)
    figures = []
    progress = _Progress()
    with Stage(parent, _CONSUMERS, is_quick) as stage:
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
