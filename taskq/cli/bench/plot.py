"""The figures as a picture: how near each comes to its limits, on a scale where right is better."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from taskq.cli.bench.catalogue import CASES
from taskq.cli.bench.figures import Comparison, Figure, Report, Spread, Unit
from taskq.cli.bench.table import machine_lines, number_text

_WIDTH, _MARGIN, _ROW, _HEADING = 1000, 24, 20, 34
_LEFT, _RIGHT = 300, 640
_TOP = 134
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_REACHED, _MISSED, _PLAIN = "#0b6fb8", "#c8501e", "#6b7280"
_COLOURS = {True: _REACHED, False: _MISSED, None: _PLAIN}
_INK, _DIM, _LINE = "#1f2328", "#59636e", "#d8dee4"
_BETTER_LARGER: tuple[Unit, ...] = ("/s", "%")


class _Scale(NamedTuple):
    """A logarithmic scale."""

    low: float
    high: float

    def x(self, value: float) -> float:
        bounded = min(max(value, self.low), self.high)
        share = math.log(bounded / self.low) / math.log(self.high / self.low)
        return _LEFT + share * (_RIGHT - _LEFT)

    def ticks(self) -> list[float]:
        return [tick for tick in _TICKS if self.low <= tick <= self.high]


def svg_of(report: Report) -> str:
    """Returns the picture as the text of an SVG file."""
    scale = _scale(report)
    rows: list[str] = []
    y = float(_TOP)
    tops: list[tuple[float, float]] = []
    for part in dict.fromkeys(figure.part for figure in report.figures):
        y += _HEADING
        rows.append(_text(_MARGIN, y - 12, CASES[part].title, size=13, weight=600))
        top = y - 6
        for figure in report.figures:
            if figure.part == part:
                for row in _rows_of(figure, scale, y):
                    rows.append(row)
                    y += _ROW
        tops.append((top, y - 6))
    height = round(y + 28)
    return "\n".join([*_head(report, height), *_grid(scale, tops), *rows, "</svg>", ""])


def _nearness(ratio: Spread, unit: Unit) -> Spread:
    """A ratio so that more is better."""
    if unit in _BETTER_LARGER:
        return ratio
    return Spread(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)


def _scale(report: Report) -> _Scale:
    """Wide enough for all ratios, and for 20 % to 200 %."""
    spreads = [_nearness(limit.ratio, figure.unit) for figure in report.figures for limit in figure.limits]
    low = min([0.2, *(spread.low for spread in spreads)])
    high = max([2.0, *(spread.high for spread in spreads)])
    below = max([tick for tick in _TICKS if tick <= low], default=_TICKS[0])
    above = min([tick for tick in _TICKS if tick >= high], default=_TICKS[-1])
    return _Scale(below, above)


def _rows_of(figure: Figure, scale: _Scale, y: float) -> Iterator[str]:
    """A row for each limit, from `y` on; one without a mark if there is none."""
    own = number_text(figure.value.median, figure.unit)
    own_goal = f", goal {figure.goal}" if figure.goal else ""
    name = _text(_LEFT - 12, y + 10, figure.name, anchor="end")
    if not figure.limits:
        yield name + _text(_RIGHT + 16, y + 10, own + own_goal, colour=_COLOURS[figure.is_met])
        return
    colour = _COLOURS[figure.is_met] if figure.goal else _INK
    for number, limit in enumerate(figure.limits):
        told = f"{own}{own_goal}; {number_text(limit.value.median, figure.unit)} {limit.name}"
        mark = _mark(limit, figure.unit, scale, y + number * _ROW + 6)
        yield (name if not number else "") + mark + _text(_RIGHT + 16, y + number * _ROW + 10, told, colour=colour)


def _mark(limit: Comparison, unit: Unit, scale: _Scale, y: float) -> str:
    """A dot for the median, a line from the worst to the best turn, and a stroke at the goal."""
    found, colour = _nearness(limit.ratio, unit), _COLOURS[limit.is_met]
    low, high, middle = scale.x(found.low), scale.x(found.high), scale.x(found.median)
    marks = f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="{colour}" stroke-width="2"/>'
    marks += f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
    if limit.goal:
        bound = float(limit.goal.split()[1])
        at = scale.x(bound if unit in _BETTER_LARGER else 1 / bound)
        marks += f'<path d="M{at:.1f} {y - 7:.1f}V{y + 7:.1f}" stroke="{_INK}" stroke-width="2"/>'
    return marks


def _head(report: Report, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, sans-serif">'
    )
    yield "<title>taskq beside its limits</title>"
    yield f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>'
    yield _text(_MARGIN, 34, "taskq beside its limits", size=20, weight=600)
    for number, line in enumerate([*machine_lines(report.machine, report.consumers)[:2], report.at]):
        yield _text(_MARGIN, 54 + 16 * number, line, colour=_DIM)
    x = float(_MARGIN)
    for colour, words in ((_REACHED, "reaches its goal"), (_MISSED, "misses it"), (_PLAIN, "has no goal")):
        yield f'<circle cx="{x + 5:.0f}" cy="106" r="4.5" fill="{colour}"/>' + _text(x + 14, 110, words)
        x += 30 + 6.2 * len(words)
    yield f'<path d="M{x + 4:.0f} 99V113" stroke="{_INK}" stroke-width="2"/>' + _text(x + 12, 110, "goal")
    yield _text(x + 56, 110, "line: worst to best turn")


def _grid(scale: _Scale, tops: list[tuple[float, float]]) -> Iterator[str]:
    """The scale above the first part, and a line through each part for each of its values."""
    for tick in scale.ticks():
        x, is_limit = scale.x(tick), tick == 1.0
        words = "limit" if is_limit else f"{tick:g}x" if tick > 1 else f"{tick:.0%}"
        yield _text(
            x, _TOP + 4, words, anchor="middle", colour=_INK if is_limit else _DIM, weight=600 if is_limit else 400
        )
        for top, bottom in tops:
            colour = _DIM if is_limit else _LINE
            yield f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}" stroke-width="1"/>'


def _text(
    x: float, y: float, words: str, *, size: int = 12, weight: int = 400, colour: str = _INK, anchor: str = "start"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
