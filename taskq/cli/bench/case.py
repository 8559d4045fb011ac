"""How a case is described, and what its turns amount to. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from taskq.cli.bench.figures import Comparison, Figure, Spread, Unit

if TYPE_CHECKING:
    from taskq.cli.bench.stage import Stage

#: The side that the others are limits of.
TASKQ = "taskq"

#: What one side measured in one turn, by the keys of the rows.
Values = Mapping[str, float]
Side = Callable[["Stage"], Values]


class Goal(NamedTuple):
    """What a figure or a ratio is to reach."""

    is_least: bool
    bound: float
    text: str

    def is_met_by(self, value: float) -> bool:
        """Whether a value reaches it."""
        return value >= self.bound if self.is_least else value <= self.bound


def at_least(bound: float, unit: str = "") -> Goal:
    """The goal that something is so much or more."""
    return Goal(True, bound, f">= {_bound(bound)}{unit}")


def at_most(bound: float, unit: str = "") -> Goal:
    """The goal that something is so much or less."""
    return Goal(False, bound, f"<= {_bound(bound)}{unit}")


def _bound(number: float) -> str:
    return f"{number:.2f}" if number < 10 and number != int(number) else f"{number:g}"


class Limit(NamedTuple):
    """A side that a row is compared with, and the ratio to reach."""

    side: str
    goal: Goal | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a case.

    Attributes:
        key: its name in `Values`.
        name: what it tells, in a few words.
        unit: of its values.
        limits: what it is compared with.
        goal: what its own value is to reach.
    """

    key: str
    name: str
    unit: Unit
    limits: tuple[Limit, ...] = ()
    goal: Goal | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured together.

    Attributes:
        part: its name on the command line.
        title: what it is about, for people.
        rows: its figures.
        sides: by name, how each side is measured, in the order in which each turn measures them.
        turns: how often all sides are measured; `quick_turns` with `--quick`.
    """

    part: str
    title: str
    rows: tuple[Row, ...]
    sides: Mapping[str, Side]
    turns: int = 5
    quick_turns: int = 2


def figures_of(case: Case, turns: Sequence[Mapping[str, Values]]) -> list[Figure]:
    """Returns the figures of a case.

    Args:
        turns: for each turn, what each side measured, by the names of the sides.
    """
    return [
        _figure(case.part, row, turns) for row in case.rows if any(row.key in turn.get(TASKQ, ()) for turn in turns)
    ]


def _figure(part: str, row: Row, turns: Sequence[Mapping[str, Values]]) -> Figure:
    measured = [turn for turn in turns if row.key in turn.get(TASKQ, ())]
    value = Spread.of([turn[TASKQ][row.key] for turn in measured])
    limits = [found for limit in row.limits if (found := _comparison(row.key, limit, measured)) is not None]
    return Figure(part, row.name, row.unit, value, len(measured), *_verdict(row.goal, value), limits)


def _comparison(key: str, limit: Limit, turns: Sequence[Mapping[str, Values]]) -> Comparison | None:
    """None if that side was left out, or has no such figure."""
    pairs = [(turn[TASKQ][key], turn[limit.side][key]) for turn in turns if key in turn.get(limit.side, {})]
    if not pairs:
        return None
    ratio = Spread.of([ours / others for ours, others in pairs])
    return Comparison(limit.side, Spread.of([others for _, others in pairs]), ratio, *_verdict(limit.goal, ratio))


def _verdict(goal: Goal | None, value: Spread) -> tuple[str, bool | None]:
    return ("", None) if goal is None else (goal.text, goal.is_met_by(value.median))
