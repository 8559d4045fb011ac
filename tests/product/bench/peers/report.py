"""The table of all rounds, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from statistics import median
from typing import Any

from catalogue import PEERS

#: By key: the heading, and how a number is written.
_COLUMNS = {
    "enqueue": ("enqueue, jobs held", "{:,.0f}/s"),
    "single": ("one by one, end to end", "{:,.0f}/s"),
    "cpu_us": ("CPU a job", "{:,.0f} us"),
    "bulk": ("in bulk, end to end", "{:,.0f}/s"),
    "round_trip_p50": ("round trip, median", "{:.2f} ms"),
    "round_trip_p99": ("99th percentile", "{:.2f} ms"),
    "start_s": ("first job", "{:.2f} s"),
    "memory_mb": ("memory, idle", "{:.0f} MB"),
}


def text_of(results: Sequence[dict[str, Any]], machine: str) -> str:
    """The table, and below it what each peer ran with.

    Args:
        results: what was measured, one for each peer and round.
    """
    headings = ["", "rounds", "a job, when enqueue returns, is", *(title for title, _ in _COLUMNS.values())]
    lines = [_row(headings), _row(["---"] * len(headings))]
    notes = []
    for name, entry in PEERS.items():
        all_rounds = [result for result in results if result["peer"] == name]
        good = [result for result in all_rounds if "failed" not in result]
        notes += [f"{name} failed: {result['failed']}" for result in all_rounds if "failed" in result]
        if not good:
            continue
        cells = [
            _spread([result[key] for result in good if key in result], form) for key, (_, form) in _COLUMNS.items()
        ]
        lines.append(_row([name, str(len(good)), entry.promise, *cells]))
        versions = ", ".join(f"{package} {found}" for package, found in good[-1]["versions"].items())
        notes.append(f"{name}: {versions or 'the standard library'}; {entry.settings}")
    return "\n".join([f"{date.today()}, {machine}", "", *lines, "", *(f"- {note}" for note in notes)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float], form: str) -> str:
    """The median, with the smallest and the largest value."""
    if not values:
        return "-"
    middle = form.format(median(values))
    if len(values) == 1:
        return middle
    number = form.split("}")[0] + "}"
    return f"{middle} ({number.format(min(values))}-{number.format(max(values))})"
