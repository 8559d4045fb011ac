"""Schedules of a database, as a broker sees them: it fires those that are due, and takes over what is declared in the
code of its application.

No fleet is special: whichever finds a schedule due locks its row, and the others pass over it. A declared schedule
fires while some fleet runs its application.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, Final, NamedTuple

import msgpack

from taskq.engines.fires import FireLog
from taskq.engines.postgres.link.link import Exchange
from taskq.model.errors import ConfigError, EnqueueError
from taskq.model.partition import partition_of
from taskq.model.rules import schedules as rules
from taskq.model.schedule import Schedule, due, next_fire
from taskq.protocol.postgres.admitting import CLOCK, Admission
from taskq.protocol.postgres.arrays import texts
from taskq.protocol.postgres.kinds import number_partitions, number_specs
from taskq.protocol.postgres.plans import Plan, Query, Step
from taskq.protocol.postgres.schedules import (
    COLUMNS,
    calls_of,
    fires_at,
    last_unfinished,
    put,
    read_row,
    read_rows,
    read_unfinished,
    remove,
    unfinished_of,
)
from taskq.protocol.postgres.submitting import DUE_WORD, NewJob, notify, words_of
from taskq.protocol.submissions import Call

#: How many schedules one transaction fires.
_AT_ONCE: Final = 50
#: When a declaration is sent again that the database has refused.
_AGAIN_S: Final = 1.0
#: When a schedule whose time zone is not on this machine is looked at again: another machine may have it.
_BROKEN_AGAIN_S: Final = 60.0

_DUE = f"""
SELECT {COLUMNS} FROM taskq.schedules
WHERE NOT is_paused AND fires_at <= extract(epoch FROM taskq.now_())::float8 AND (app IS NULL OR app = $1::text)
    AND fires_at >= $3::float8
ORDER BY fires_at LIMIT $2 FOR UPDATE SKIP LOCKED"""
_DECLARED = f"""
SELECT {COLUMNS} FROM taskq.schedules WHERE app = $1::text OR name = ANY ($2::text[]) ORDER BY name FOR UPDATE"""
_RUNS = "UPDATE taskq.fleets SET app = $2::text WHERE fleet = $1"
_PUT_OFF = "UPDATE taskq.schedules SET fires_at = $2::float8 WHERE name = $1::text"
#: Those whose next time is farther away than an interval, and its jitter, can be.
_FAR = f"""
SELECT {COLUMNS} FROM taskq.schedules
WHERE NOT is_paused AND fires_at > extract(epoch FROM taskq.now_())::float8
    AND fires_at > extract(epoch FROM taskq.now_())::float8 + 2.5 * every_s FOR UPDATE SKIP LOCKED"""


class Fired(NamedTuple):
    """What a look at due schedules has done.

    Attributes:
        fires: those that fired, each with the reason if its jobs were refused.
        broken: those that could not, and why.
    """

    fires: list[tuple[rules.Fire, str | None]]
    broken: list[tuple[str, str]]


class FireDue(Exchange[Fired]):
    """Fires the schedules that are due."""

    def __init__(self, app: str | None, schema: str, since: float) -> None:
        """
        Args:
            app: the application that the fleet runs.
            since: where to begin, as the look did that has found some.
        """
        super().__init__(self._plan)
        self._app, self._schema, self._since = app, schema, since

    def _plan(self) -> Plan[Fired]:
        found, [(wall,)] = yield Step(Query(_DUE, (self._app, _AT_ONCE, self._since)), Query(CLOCK))
        fired = Fired([], [])
        if not found:
            return fired
        [unfinished] = yield Step(unfinished_of(map(read_row, found)))
        before = read_unfinished(unfinished)
        queries, after = list[Query](), list[Query]()
        for columns in found:
            row, is_at = read_row(columns), columns[-1]
            try:
                is_ahead = row.fires_at > is_at  # the clock was set back: its turn has come, but not its time
                what = due(row.schedule, row.next_at, max(wall, row.fires_at) if is_ahead else wall)
                fire = rules.fire(row, what, last_unfinished(row, before))
                changed = put(fire.row, wall)
            except ConfigError as error:
                fired.broken.append((columns[0], str(error)))
                queries.append(Query(_PUT_OFF, (columns[0], float(wall + _BROKEN_AGAIN_S))))
                continue
            refusal = None
            if fire.ids:
                refusal = yield from self._submit(fire, wall, after)
            queries.append(changed)
            fired.fires.append((fire, refusal))
        yield Step(*queries, commits=True, after=after)
        return fired

    def _submit(self, fire: rules.Fire, wall: float, after: list[Query]) -> Plan[str | None]:
        """Takes in the jobs of a fire. Returns why they are refused, if they are."""
        schedule = fire.row.schedule
        calls = calls_of(schedule, fire.ids, wall, fire.after)
        jobs = yield from _numbered(schedule, calls)
        admission = Admission([(schedule.spec, jobs)], wall, words_of(jobs, wall), self._schema, is_accepted=True)
        try:
            admitted = yield from admission.decide()
        except EnqueueError as error:
            return str(error)
        if admitted.queries:
            yield Step(*admitted.queries)
        after += admitted.after
        return None


def _numbered(schedule: Schedule, calls: Sequence[Call]) -> Plan[list[NewJob]]:
    partition = partition_of(schedule.spec, calls[0].constraints)
    specs = yield from number_specs([schedule.spec], commits=False)
    partitions = yield from number_partitions([partition], commits=False)
    return [NewJob(*call, specs[schedule.spec], partitions[partition]) for call in calls]


class Declare(Exchange[list[str]]):
    """Takes over the schedules in the code of an application. Brings the names of those that this has changed."""

    def __init__(self, fleet: int, schema: str, app: str, schedules: Sequence[Schedule] | None) -> None:
        """
        Args:
            schedules: None: they are known, and only the fleet has another number.
        """
        super().__init__(self._plan)
        self._fleet, self._schema, self._app = fleet, schema, app
        self.schedules = schedules

    def _plan(self) -> Plan[list[str]]:
        runs = Query(_RUNS, (self._fleet, self._app))
        if self.schedules is None:
            yield Step(runs, commits=True)
            return []
        names = texts([schedule.name for schedule in self.schedules])
        _, found, [(wall,)] = yield Step(runs, Query(_DECLARED, (self._app, names)), Query(CLOCK))
        changes = rules.declared(read_rows(found), self._app, self.schedules, wall)
        gone = [name for name, row in changes.items() if row is None]
        queries = [put(row, wall) for row in changes.values() if row is not None]
        yield Step(*queries, remove(gone), commits=True, after=(notify(self._schema, [DUE_WORD]),))
        return sorted(changes)


class LookAhead(Exchange[None]):
    """Finds schedules that would be silent for long, since the database's clock was set back."""

    def __init__(self) -> None:
        super().__init__(self._plan)

    def _plan(self) -> Plan[None]:
        found, [(wall,)] = yield Step(Query(_FAR), Query(CLOCK))
        queries = []
        for columns in found:
            row = read_row(columns)
            try:
                at = fires_at(row, wall)
            except ConfigError:
                continue  # it is put off
            if at < columns[-1]:
                queries.append(Query(_PUT_OFF, (columns[0], at)))
        yield Step(*queries, commits=True)


class Declared(NamedTuple):
    """What a fleet's application has declared."""

    app: str
    schedules: list[Schedule]


class FleetSchedules:
    """Used by the engine alone."""

    def __init__(self, schema: str, log: Any) -> None:
        self._schema, self._log = schema, log
        self._fire_log = FireLog(log)
        self._declared: Declared | None = None  # what was declared last, in this life of the broker
        self._to_tell: Sequence[Schedule] | None = None  # of these, what the database is still to learn
        self._is_known = True  # whether the database knows that the fleet runs this application
        self._declare_at = -inf
        self._due_since: float | None = None  # some are due
        self._looks_ahead = False

    @property
    def app(self) -> str | None:
        """The application that the fleet runs."""
        return None if self._declared is None else self._declared.app

    def declare(self, app: str, packed: Iterable[bytes]) -> None:
        """Takes the schedules in the code of a consumer's application. A consumer that starts with the same code as the
        one before changes nothing: a fleet with newer code may have declared others.

        Raises:
            ConfigError: one makes no sense.
        """
        schedules = [Schedule.from_wire(msgpack.unpackb(fields)) for fields in packed]
        for schedule in schedules:
            next_fire(schedule, 0.0)  # raises
        declared = Declared(app, schedules)
        if declared != self._declared:
            self._declared, self._to_tell, self._is_known = declared, schedules, False

    def forget_fleet(self) -> None:
        """The fleet has another number: the database is to learn again what it runs."""
        self._is_known = self._declared is None

    def look(self, fires_s: float | None, looks_ahead: bool, since: float) -> None:
        """Takes what a look has found.

        Args:
            fires_s: in how many seconds the next schedule fires.
            since: where the look began.
            looks_ahead: whether it is this fleet's turn to look for those that would be silent.
        """
        self._due_since = since if fires_s is not None and fires_s <= 0 else None
        self._looks_ahead |= looks_ahead

    def next_at(self, now: float) -> float:
        """When there is something to be asked of the database (monotonic)."""
        if self._due_since is not None or self._looks_ahead:
            return now
        return inf if self._is_known else self._declare_at

    def next_exchange(self, fleet: int, now: float) -> Exchange[Any] | None:
        """What is to be asked of the database now."""
        if not self._is_known and self._declared is not None and now >= self._declare_at:
            self._is_known = True
            told, self._to_tell = self._to_tell, None
            return Declare(fleet, self._schema, self._declared.app, told)
        if self._due_since is not None:
            since, self._due_since = self._due_since, None
            return FireDue(self.app, self._schema, since)
        if self._looks_ahead:
            self._looks_ahead = False
            return LookAhead()
        return None

    def finish_declare(self, exchange: Declare, now: float) -> None:
        """Takes what the database has made of a declaration."""
        if exchange.value is None:  # once more, unless there was a newer one
            self._to_tell = exchange.schedules if self._to_tell is None else self._to_tell
            self._is_known, self._declare_at = False, now + _AGAIN_S
        elif exchange.value:
            told = {"schedules": len(exchange.schedules or ()), "changed": exchange.value[:50]}
            self._log.info("schedule.declared", **told)

    def finish_fire(self, fired: Fired) -> None:
        """Tells of schedules that fired."""
        for fire, refusal in fired.fires:
            self._fire_log.tell(fire, refusal)
        for name, error in fired.broken:
            self._log.error("schedule.broken", schedule=name, error=error)
