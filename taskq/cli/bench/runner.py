"""Runs cases in turns. A turn measures each side once: a machine that becomes slower harms all of them alike."""

from __future__ import annotations

from collections.abc import Callable

from taskq.cli.bench.case import Case, Values, figures_of
from taskq.cli.bench.figures import Figure
from taskq.cli.bench.stage import NotHere, Stage

#: Is told what is measured now.
Tell = Callable[[str], None]


def run(case: Case, stage: Stage, turns: int | None, tell: Tell) -> list[Figure]:
    """Measures a case.

    Args:
        turns: how often; None for what the case says.
        tell: is called before each measurement.
    """
    stage.begin(case.part)
    count = turns or stage.amount(case.turns, case.quick_turns)
    measured: list[dict[str, Values]] = []
    for number in range(count):
        turn: dict[str, Values] = {}
        for name, side in case.sides.items():
            tell(f"{case.title}: {name}, turn {number + 1} of {count}")
            try:
                turn[name] = side(stage)
            except NotHere as reason:
                stage.leave_out(name, str(reason))
        measured.append(turn)
    return figures_of(case, measured)
