"""What `taskq bench` has found out: plain data, as `--json` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, Self

#: Of which kind a number is: a rate, a time, a size, a share, or a factor.
Unit = Literal["/s", "ms", "s", "MB", "%", "us", "x"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A number that was measured several times.

    Attributes:
        median: the middle one.
        low: the smallest.
        high: the largest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Returns the spread of at least one number."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A limit, measured in the same turns.

    Attributes:
        name: what was measured: "socket + sync", for example.
        value: its figure, in the same unit.
        ratio: the figure of taskq divided by this one, within each turn.
        goal: the ratio that taskq is to reach: ">= 0.70", for example. Empty if there is none.
        is_met: whether the median of the ratio reaches the goal; None if there is no goal.
    """

    name: str
    value: Spread
    ratio: Spread
    goal: str
    is_met: bool | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured.

    Attributes:
        part: the part of the benchmark, as the command line takes it.
        name: what was measured.
        unit: the unit of the values. "/s" and "%" are better when they are larger, the others when they are smaller.
        value: what was measured.
        turns: how many times it was measured.
        goal: the value that taskq is to reach; empty if there is none.
        is_met: whether the median of the value reaches the goal; None if there is no goal.
        limits: what else was measured in the same turns.
    """

    part: str
    name: str
    unit: Unit
    value: Spread
    turns: int
    goal: str
    is_met: bool | None
    limits: list[Comparison]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that was not measured.

    Attributes:
        part: the part of the benchmark.
        what: what is missing.
        reason: why it was left out.
    """

    part: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures were measured.

    Attributes:
        taskq: the version of this program.
        python: the version of Python.
        sqlite: the version of SQLite.
        kernel: the name and version of the operating system.
        processor: the name of the processor; empty if it is not known.
        cores: how many of its cores this process may use.
        file_system: the kind of file system that was written to; empty if it is not known.
        others_cores: how many cores other programs used on average while nothing was measured.
    """

    taskq: str
    python: str
    sqlite: str
    kernel: str
    processor: str
    cores: int
    file_system: str
    others_cores: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a run of the benchmark found out.

    Attributes:
        at: when it began: 2026-05-09T07:35:25+00:00.
        duration_s: how long it took, in seconds.
        is_quick: whether it was a short run, whose figures are less exact.
        consumers: how many consumers the fleet had, and how many processes each limit had.
        machine: where it ran.
        figures: what was measured.
        left_out: what was not.
    """

    at: str
    duration_s: float
    is_quick: bool
    consumers: int
    machine: Machine
    figures: list[Figure] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
