"""What time brings: scheduled jobs come due, late ones expire, old ones are removed. No I/O.

Any fleet looks; what only one is to do, it claims. Somebody else's transaction may be open for an hour, and keep all
rows alive that have been deleted since: then a search from the first entry of an index passes all of these. So a look
begins where the one before has ended, but for some that take little of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskq.engines.postgres import statements
from taskq.engines.postgres.exchanges import KeepCounts, WasKept
from taskq.engines.postgres.figures import PostgresFigures
from taskq.engines.postgres.handover import Edges, HandOver
from taskq.engines.postgres.limits.unused import RemoveUnused, UnusedChore
from taskq.engines.postgres.link.link import Exchange
from taskq.engines.postgres.rows import told_row
from taskq.engines.postgres.schedules import Declare, FireDue, FleetSchedules
from taskq.model.attempt import pack_failure
from taskq.model.job import JobError, JobRow, first_id_at
from taskq.protocol.postgres.arrays import floats, texts
from taskq.protocol.postgres.plans import Plan, Query, Step
from taskq.protocol.postgres.watching import tell

_LOOK_EVERY_S: Final = 1.0
#: How often a fleet, of all, looks for schedules that would be silent, since the database's clock was set back.
_LOOK_AHEAD_EVERY_S: Final = 10.0
#: Jobs that one statement queues, ends or looks at.
_DUE_AT_ONCE: Final = 1_000
_EXPIRED_AT_ONCE: Final = 500
_PRUNED_AT_ONCE: Final = 3_000
#: The outcome of a job that was not started in time.
EXPIRED: Final = pack_failure(None, None, JobError("Expired", "it was not started in time (expires=)"))
#: What is committed later than this after its time is found by the next whole look.
_LATE_S: Final = 5.0
#: Whole looks, and passes over old jobs, take this part of the time at the most.
_WHOLE_PART: Final = 0.02
_PASS_PART: Final = 0.1
#: How often a fleet, of all, goes over the old jobs, and looks which are more than are to be kept.
_PASS_EVERY_S: Final = 5.0
_COUNT_EVERY_S: Final = 60.0
_FIRST: Final = bytes(16)


class Seen(NamedTuple):
    """What a look has found.

    Attributes:
        due_s, expires_s: in how many seconds the next scheduled job is due, and the next one expires; None: none.
        fires_s: in how many seconds the next schedule fires.
        is_empty: whether there is no job that has not ended; None if it did not look.
        last_partition: the highest number of a partition.
        has_edges: whether jobs come after others; None if it did not look.
        has_tallies: whether others have noted what happened to jobs.
        queued: how many scheduled jobs became queued.
        expired: jobs that have ended since they were not started in time.
        chores: what is to be done now, by this fleet.
        wall: seconds since 1970, by the database's clock; all that was due until then is done, if `is_through`.
    """

    due_s: float | None
    expires_s: float | None
    fires_s: float | None
    is_empty: bool | None
    last_partition: int
    has_edges: bool | None
    has_tallies: bool
    queued: int
    expired: list[JobRow]
    chores: frozenset[str]
    wall: float
    is_through: bool


class Window:
    """Where the next look begins. Pure."""

    def __init__(self) -> None:
        self.since = -inf  # seconds since 1970, by the database's clock; -inf: at the very first
        self._through = -inf
        self._whole_at = -inf
        self._asked_at = -inf

    def ask(self, now: float) -> float:
        """A look is asked for. Returns `since`."""
        self._asked_at = now
        self.since = -inf if now >= self._whole_at else self._through
        return self.since

    def answered(self, seen: Seen, now: float) -> None:
        """Takes the answer to the last look."""
        if self.since == -inf:
            self._whole_at = now + (now - self._asked_at) / _WHOLE_PART
        if seen.is_through:
            self._through = seen.wall - _LATE_S


class Look(Exchange[Seen]):
    """Looks what the clock brings, and does what is due."""

    def __init__(self, schema: str, app: str | None, chores: Mapping[str, float], since: float) -> None:
        """
        Args:
            app: the application that the fleet runs.
            chores: what may be due, by name, each with the seconds until the next time.
            since: where to begin: see `Window`.
        """
        super().__init__(self._plan)
        self._schema, self._app, self._chores, self._since = schema, app, chores, since

    def _plan(self) -> Plan[Seen]:
        look = Query(statements.LOOK, (self._app, self._since))
        if self._chores:
            claim = Query(statements.CLAIM_CHORES, (texts(list(self._chores)), floats(list(self._chores.values()))))
            [(due_s, expires_s, *_)], claimed = yield Step(look, claim)
        else:
            [[(due_s, expires_s, *_)]], claimed = (yield Step(look)), []
        queued, expired, after = 0, list[JobRow](), list[Query]()
        if due_s is not None and due_s <= 0:
            [rows] = yield Step(Query(statements.PROMOTE, (_DUE_AT_ONCE, self._since)))
            queued = sum(count for _, count in rows)
            after = [Query(statements.NOTIFY, (self._schema, f"r {partition}")) for partition, _ in rows]
        if expires_s is not None and expires_s <= 0:
            [rows] = yield Step(Query(statements.EXPIRE, (_EXPIRED_AT_ONCE, EXPIRED, self._since)))
            expired = [told_row(*columns) for columns in rows]
            if expired:
                after.append(tell([row.id for row in expired], self._schema))
        [[columns]] = yield Step(look, commits=True, after=after)
        due_s, expires_s, fires_s, has_some, last_partition, has_edges, has_tallies, wall = columns
        chores = frozenset(name for (name,) in claimed)
        is_empty = None if has_some is None else not has_some
        is_through = queued < _DUE_AT_ONCE and len(expired) < _EXPIRED_AT_ONCE and (fires_s is None or fires_s > 0)
        found = due_s, expires_s, fires_s, is_empty, last_partition or 0, has_edges, has_tallies
        return Seen(*found, queued, expired, chores, wall, is_through)


class Pruned(NamedTuple):
    """How a step over the old jobs went.

    Attributes:
        place: how far it has come; None when it has seen all.
        removed: how many jobs it has removed.
        more_than_kept: the newest job of which there are more than are to be kept.
    """

    place: bytes | None
    removed: int
    more_than_kept: bytes


class Prune(Exchange[Pruned]):
    """Removes ended jobs that are no longer kept, some at a time."""

    def __init__(self, place: bytes, keep_s: float, more_than_kept: bytes | int, wall: float) -> None:
        """
        Args:
            place: where to go on: the id of the last job that was looked at.
            keep_s: how many seconds an ended job is kept.
            more_than_kept: the newest job of which there are more than are to be kept; or how many are to be kept, if
                it is to be looked up.
            wall: seconds since 1970.
        """
        super().__init__(self._plan)
        self._place, self._keep_s, self._more_than_kept = place, keep_s, more_than_kept
        self._before = first_id_at(wall - keep_s)

    def _plan(self) -> Plan[Pruned]:
        more = self._more_than_kept
        if isinstance(more, int):
            [found] = yield Step(Query(statements.MORE_THAN_KEPT, (more,)))
            more = found[0][0] if found else _FIRST
        before = max(self._before, more)
        params = UUID(bytes=self._place), float(self._keep_s), UUID(bytes=before), _PRUNED_AT_ONCE, UUID(bytes=more)
        [[(seen, last, removed)]] = yield Step(Query(statements.PRUNE, params), commits=True)
        return Pruned(last if seen == _PRUNED_AT_ONCE else None, removed, more)


class Retention:
    """When to remove old jobs, and which. A fleet that has claimed a pass makes it whole. Pure."""

    def __init__(self, keep_s: float, keep: int) -> None:
        """
        Args:
            keep_s: how many seconds an ended job is kept.
            keep: how many ended jobs are kept, about.
        """
        self._keep_s, self._keep = keep_s, keep
        self._place: bytes | None = None  # of the pass under way
        self._is_asked = False
        self._began_at = -inf
        self._pass_at = -inf  # when to claim the next one
        self._count_at = -inf
        self._more_than_kept = _FIRST

    def chores(self, now: float) -> dict[str, float]:
        """What to claim: see `Look`."""
        return {"prune": _PASS_EVERY_S} if self._place is None and now >= self._pass_at else {}

    def claimed(self, now: float) -> None:
        """A pass is ours."""
        self._place, self._is_asked, self._began_at = _FIRST, False, now

    @property
    def has_some(self) -> bool:
        """Whether there is something to be asked of the database."""
        return self._place is not None and not self._is_asked

    def next_exchange(self, now: float, wall: float) -> Prune | None:
        """The next step of the pass, if there is one.

        Args:
            wall: seconds since 1970.
        """
        if self._place is None or self._is_asked:
            return None
        self._is_asked = True
        more: bytes | int = self._more_than_kept
        if self._place == _FIRST and now >= self._count_at:
            self._count_at, more = now + _COUNT_EVERY_S, self._keep
        return Prune(self._place, self._keep_s, more, wall)

    def finish(self, pruned: Pruned | None, now: float) -> None:
        """Takes what a step has brought; None: it failed, and the pass is given up."""
        self._is_asked = False
        self._place = None if pruned is None else pruned.place
        if pruned is not None:
            self._more_than_kept = pruned.more_than_kept
        if self._place is None:
            self._pass_at = now + max(_PASS_EVERY_S, (now - self._began_at) / _PASS_PART)


class Chores:
    """What a broker asks on its control link, besides beats, when nobody has told it to: each in its turn. Pure."""

    def __init__(self, schema: str, schedules: FleetSchedules, edges: Edges, retention: Retention) -> None:
        self._schema = schema
        self._schedules, self._edges, self._retention = schedules, edges, retention
        self._window = Window()
        self._unused = UnusedChore(self._schema)
        self._look_at = self._look_ahead_at = -inf

    def look_soon(self, at: float = -inf) -> None:
        """Something is due at a moment (monotonic), or by now."""
        self._look_at = min(self._look_at, at)

    def next_exchange(self, fleet: int, figures: PostgresFigures, now: float, wall: float) -> Exchange[Any] | None:
        """What is to be asked now; None: nothing.

        Args:
            fleet: its number.
            wall: seconds since 1970.
        """
        if now >= self._look_at:
            return self._look(now)
        for exchange in (self._schedules.next_exchange(fleet, now), self._edges.next_search(now)):
            if exchange is not None:
                return exchange
        return (
            figures.next_exchange(fleet, now)
            or self._unused.next_exchange(now)
            or self._retention.next_exchange(now, wall)
        )

    def _look(self, now: float) -> Look:
        self._look_at = now + _LOOK_EVERY_S
        self._edges.look_begins()
        chores = self._retention.chores(now) | self._unused.chores(now)
        if now >= self._look_ahead_at:
            chores["schedules"] = _LOOK_AHEAD_EVERY_S
            self._look_ahead_at = now + _LOOK_AHEAD_EVERY_S
        return Look(self._schema, self._schedules.app, chores, self._window.ask(now))

    def next_at(self, figures: PostgresFigures, now: float) -> float:
        """When there is something to be asked (monotonic)."""
        if self._retention.has_some or self._unused.is_due:
            return now
        return min(self._look_at, self._schedules.next_at(now), self._edges.search_at(now), figures.keep_at)

    def looked(self, seen: Seen, figures: PostgresFigures, now: float) -> None:
        """Takes what a look has found."""
        self._window.answered(seen, now)
        if "prune" in seen.chores:
            self._retention.claimed(now)
        self._unused.is_due |= "unused" in seen.chores
        self._schedules.look(seen.fires_s, "schedules" in seen.chores, self._window.since)
        figures.look(seen.has_tallies, self._window.since)
        self._edges.looked(seen.has_edges)
        self._edges.ended([row.id for row in seen.expired])
        if seen.fires_s is not None and seen.fires_s > 0:
            self.look_soon(now + seen.fires_s)
        for in_s in (seen.due_s, seen.expires_s):
            if in_s is not None:
                self.look_soon(now + max(0.0, in_s))

    def finish(self, exchange: Exchange[Any], figures: PostgresFigures, now: float) -> None:
        """Takes how another exchange of these went."""
        match exchange:
            case HandOver():
                self._edges.finish(exchange, now)
            case Declare():
                self._schedules.finish_declare(exchange, now)
            case FireDue() if exchange.value is not None:
                self._schedules.finish_fire(exchange.value)
                self.look_soon()
            case KeepCounts() | WasKept():
                figures.finish(exchange, now)
            case RemoveUnused():
                self._unused.finish(now)
            case Prune():
                self._retention.finish(exchange.value, now)
