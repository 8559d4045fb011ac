"""Schedules: what becomes of them when they fire, are declared, changed or removed. Pure rules for any engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from taskq.model.errors import ConfigError, ScheduleNotFound
from taskq.model.limits import MAX_SCHEDULES
from taskq.model.schedule import Due, Schedule, ScheduleRow, fired_id, next_fire
from taskq.model.stored import StoredState

#: How many names an error about a name tells.
_MOST_TOLD = 20


class Unfinished(NamedTuple):
    """The last job of a schedule, which has not ended."""

    id: bytes
    kept: StoredState


class Fire(NamedTuple):
    """What a schedule does whose time has come.

    Attributes:
        row: the schedule as it is afterwards.
        found: what was due.
        ids: the jobs that are made; none, if the fire is left out.
        after: the job for whose end they are kept back.
    """

    row: ScheduleRow
    found: Due
    ids: list[bytes]
    after: bytes | None


def fire(row: ScheduleRow, found: Due, before: Unfinished | None) -> Fire:
    """Decides what a schedule does whose time has come.

    Args:
        found: what is due.
        before: its last job, if that has not ended; of no matter if its jobs may overlap.
    """
    fires, after = _without_overlap(row.schedule, found.fires, before)
    ids = [fired_id(row.schedule.name, at) for at in fires]
    changed = row._replace(next_at=found.next_at)
    if fires:
        changed = changed._replace(last_at=fires[-1], last_id=after or ids[-1])
    return Fire(changed, found, ids, after)


def _without_overlap(
    schedule: Schedule, fires: list[float], before: Unfinished | None
) -> tuple[list[float], bytes | None]:
    """Returns the fires that become jobs, and the job for which these are kept back."""
    overlap = schedule.overlap
    if overlap == "allow" or before is None:
        return (fires if overlap == "allow" else fires[-1:]), None
    if overlap == "skip" or before.kept == StoredState.WAITING:
        return [], None
    return fires[-1:], before.id


def planned(known: ScheduleRow | None, schedule: Schedule, app: str | None, wall: float) -> ScheduleRow:
    """Returns the row of a new or changed schedule.

    Args:
        known: its row before; None if it is new.
        app: the application in whose code it stands, or None.
        wall: seconds since 1970.

    Raises:
        ConfigError: it never fires.
    """
    if known is not None:
        return known.redefined(schedule, app, wall)
    return ScheduleRow(schedule, next_fire(schedule, wall), app)


def declared(
    rows: Mapping[str, ScheduleRow], app: str, schedules: Sequence[Schedule], wall: float
) -> dict[str, ScheduleRow | None]:
    """Returns what changes by the schedules in the code of an application: rows by name; None for those to remove.

    Args:
        rows: the schedules that there are, by name: at least those of the application, and those of the same names.
        wall: seconds since 1970.
    """
    changes: dict[str, ScheduleRow | None] = {}
    for schedule in schedules:
        known = rows.get(schedule.name)
        if known is None or known.schedule != schedule or known.app != app:
            changes[schedule.name] = planned(known, schedule, app, wall)
    names = {schedule.name for schedule in schedules}
    changes.update((name, None) for name, row in rows.items() if row.app == app and name not in names)
    return changes


def check_put(known: ScheduleRow | None, schedule: Schedule, count: int) -> None:
    """Checks whether a schedule may be added or changed at run time.

    Args:
        known: the one of its name, or None.
        count: how many schedules there are.

    Raises:
        ConfigError: it is declared in an application's code, or there are too many.
    """
    if known is not None and known.app is not None:
        raise ConfigError(f"schedule {schedule.name} is declared in the code of {known.app}: choose another name")
    if known is None and count >= MAX_SCHEDULES:
        raise ConfigError(f"there are {MAX_SCHEDULES:,} schedules already: remove some first")


def check_remove(row: ScheduleRow, is_run: bool) -> None:
    """Checks whether a schedule may be removed.

    Args:
        is_run: whether consumers run the application in whose code it stands.

    Raises:
        ConfigError: it would come back.
    """
    if row.app is not None and is_run:
        name = row.schedule.name
        raise ConfigError(
            f"schedule {name} is declared in the code of {row.app}: remove it there and reload, or pause it"
        )


def unknown(name: str, names: Iterable[str]) -> ScheduleNotFound:
    """Returns the error for a name that no schedule has.

    Args:
        names: of the schedules that there are, in order.
    """
    known = ", ".join(list(names)[:_MOST_TOLD]) or "none at all"
    return ScheduleNotFound(f"there is no schedule {name!r:.80}; there are: {known}")
