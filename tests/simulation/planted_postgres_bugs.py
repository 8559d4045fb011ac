"""Bugs in the PostgreSQL engine's statements and code, to be found by the simulation of several machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

from taskq.client.transport.postgres import changing, queue
from taskq.client.transport.postgres.verbs import Run
from taskq.engines.counting import JobCounting
from taskq.engines.postgres import demand, engine, exchanges, statements
from taskq.engines.postgres.demand import Demand
from taskq.engines.postgres.engine import PostgresEngine
from taskq.engines.postgres.exchanges import KeepCounts, WasKept
from taskq.engines.postgres.figures import PostgresFigures
from taskq.engines.postgres.leases import FleetLeases
from taskq.engines.postgres.limits.share import FleetLimits, Found
from taskq.engines.postgres.round import Outcomes, Round
from taskq.engines.postgres.rows import Specs
from taskq.model.effects import Effects
from taskq.model.stored import StoredState
from taskq.protocol.postgres import admitting, submitting, watching
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step

Change = tuple[object, str, object]


class Bug(NamedTuple):
    """A mistake.

    Attributes:
        changes: what stands where in place of what is right.
        breaks: the invariants by which it may be found.
        kind: of the lives that show it: see `postgres_simulation.KINDS`.
        seed: the first of them to look at.
    """

    changes: Sequence[Change]
    breaks: frozenset[str]
    kind: str = "parted"
    seed: int = 0

    @contextmanager
    def planted(self) -> Iterator[None]:
        """What is changed while a block runs."""
        with ExitStack() as stack:
            for where, name, what in self.changes:
                stack.enter_context(patch.object(where, name, what))
            yield


def other_sql(module: ModuleType, name: str, *changes: tuple[str, str]) -> list[Change]:
    """A statement with other words in it."""
    sql = getattr(module, name)
    for old, new in changes:
        assert old in sql, f"{name} has no {old!r} any more"
        sql = sql.replace(old, new)
    return [(module, name, sql)]


# -- mistakes in code


def _tells_in_its_transaction(plan: Callable[[Round], Plan[Any]]) -> Callable[[Round], Plan[Any]]:
    """Who waits is told with the last statements, and not behind the commit."""

    def other(self: Round) -> Plan[Any]:
        steps = plan(self)
        step = next(steps)
        try:
            answer = yield Step(*step.after, *step, commits=True)
            steps.send(answer[len(step.after) :])
        except StopIteration as end:
            return end.value

    return other


def _beats_by_its_own_clock() -> type[exchanges.Beat]:
    class OwnClock(exchanges.Beat):
        wall = 0.0

        def _plan(self) -> Plan[Any]:
            by_own = statements.BEAT.replace("taskq.now_()", f"to_timestamp({OwnClock.wall!r})")
            with patch.object(statements, "BEAT", by_own):
                return (yield from super()._plan())

    return OwnClock


def _chores_with_own_clock(beat: Any) -> Callable[[PostgresEngine, float], None]:
    chores = PostgresEngine._ask_control

    def other(self: PostgresEngine, now: float) -> None:
        beat.wall = self._clock.time()
        chores(self, now)

    return other


def _forgets_what_failed(self: Outcomes, _earlier: Outcomes, *, is_unknown: bool) -> None:
    pass


def _believes_all(effects: Effects, _lost: set[int]) -> Effects:
    return effects


def _charges_nobody(self: FleetLeases, orphans: Rows, _running: Any, now: float, *_: Any) -> None:
    for columns in orphans:
        row = self.specs.job(columns).row
        self.held.add([row], now)
        self._give_back(row.seq)


def _hears_no_cancel(self: FleetLeases, _wanted: Any) -> list[int]:
    return []


_release = FleetLeases.release


def _gives_back_what_has_ended(self: FleetLeases, now: float, paused: frozenset[str]) -> None:
    with patch.object(FleetLeases, "take_effects", lambda _self: None):
        _release(self, now, paused)


_keep_only = FleetLeases.keep_only


def _keeps_what_has_arrived(self: FleetLeases, seqs: Any) -> None:
    arrived = self._arrived
    _keep_only(self, seqs)
    self._arrived = arrived


_finish = PostgresEngine._finish


def _hears_old_beats(self: PostgresEngine, exchange: Any, now: float) -> None:
    if isinstance(exchange, exchanges.Beat):
        exchange.fleet = self.fleet
    _finish(self, exchange, now)


def _compares_nothing(self: FleetLeases, _rows: Rows) -> None:
    pass


def _keeps_what_it_lost(self: FleetLeases, _seqs: Any) -> None:
    pass


_learn = Demand.learn


def _learns_no_priorities(self: Demand, rows: Rows) -> None:
    _learn(self, [(number, its_queue, 0, limits) for number, its_queue, _, limits in rows])


_stored = admitting._Leases.stored


def _leased_has_ended(self: Any, job_id: bytes, spec: Any, state: int) -> Any:
    stored = _stored(self, job_id, spec, state)
    return stored._replace(kept=StoredState.SUCCEEDED) if self.is_running(job_id) else stored


def _alone(make: Any, within_s: float | None = -1.0, joins: bool = False) -> Run:
    return Run(make, within_s, False)


_job = Specs.job


def _by_the_clock_of_the_database(self: Specs, columns: Any) -> Any:
    """The time of the database, taken for that of the machine."""
    other = list(columns)
    if columns[8] is not None:
        other[8] = columns[8] - (self._clock.time() - 1_700_000_000.0 - self._clock.now)  # type: ignore[attr-defined]
    return _job(self, other)


_lock = Round._lock


def _reads_rates_by_its_own_clock(self: Round, keys: Any) -> Plan[Found]:
    found = yield from _lock(self, keys)
    return found._replace(at=self._wall)


_take_surplus = FleetLimits.take_surplus


def _gives_back_what_is_needed(self: FleetLimits, probe: Any) -> Any:
    with patch.object(self._held, "of_limit", {}):
        return _take_surplus(self, probe)


def _forgets_jobs_that_run(self: FleetLimits) -> None:
    for key in list(self._granted):
        self._keep(key, 0)


def _kills_nothing(self: PostgresEngine, _why: str) -> None:
    pass


def _makes_late_starts(self: FleetLimits, _now: float) -> None:
    pass


_count = PostgresFigures.count


def _counts_retries_as_new(self: PostgresFigures, effects: Effects, wall: float) -> None:
    _count(self, effects, wall)
    self.counting.enqueued([change.row for change in effects.rescheduled], wall)


def _adds_outside_the_transaction(plan: Callable[[KeepCounts], Plan[bool]]) -> Callable[[KeepCounts], Plan[bool]]:
    """Tallies go in one transaction, and what they say is stored a second later, with the next one."""

    def other(self: KeepCounts) -> Plan[bool]:
        steps = plan(self)
        step = next(steps)
        try:
            while not (step.commits and self.taken):
                step = steps.send((yield step))
        except StopIteration as end:
            return bool(end.value)
        self._counting.put_back(self.kept)
        yield Step(Query(statements.NOTHING), commits=True)
        return True

    return other


def _keeps_what_was_not_stored(self: KeepCounts) -> None:
    self._counting.put_back(self.kept)


def _believes_that_it_was_not_stored(self: PostgresFigures, exchange: Any, now: float) -> None:
    if isinstance(exchange, WasKept) and exchange.value is not None:
        exchange.value = False
    _finish_figures(self, exchange, now)


_finish_figures = PostgresFigures.finish
_count_all = JobCounting.__init__


def _counts_ends_when_told(self: JobCounting, kept: Any = (), *, counts_ends: bool = True) -> None:
    _count_all(self, kept)


_OwnClock = _beats_by_its_own_clock()
_HERS = " AND q.lease IS NOT DISTINCT FROM $1"
_NEVER_ENDS = frozenset({"no_acked_job_is_lost"})
_AT_ONCE = frozenset({"never_more_at_once_over_machines", "keys_run_in_order_over_machines"})
_TOO_FAST = frozenset({"no_more_starts_than_the_rate_over_machines"})
_COUNTS = frozenset({"counted_is_what_happened"})
_TWICE = frozenset({"exclusive_over_machines", "runs_again_only_for_a_reason", "told_is_true"})

BUGS: dict[str, Bug] = {
    "no fence in the settlement": Bug(
        other_sql(statements, "SETTLE", (_HERS, "")),
        frozenset({"fenced_machines_are_not_believed", "told_is_true"}),
        seed=12,
    ),
    "no fence in what is tried again": Bug(
        other_sql(statements, "RESCHEDULE", (_HERS, "")), frozenset({"exclusive_over_machines", "retries_are_bounded"})
    ),
    "no fence in what is given back": Bug(
        other_sql(statements, "RELEASE", (" AND lease IS NOT DISTINCT FROM $1", "")), _TWICE
    ),
    "leases that do not look at each other": Bug(
        other_sql(statements, "LEASE", (" FOR UPDATE SKIP LOCKED", ""), (" AND queue.lease IS NULL", "")),
        _TWICE,
        "calm",
    ),
    "leases of fleets that are known no more": Bug(
        other_sql(
            statements,
            "LEASE",
            ("SELECT fleet FROM taskq.fleets WHERE fleet = $1 AND", "SELECT $1 AS fleet WHERE"),
            (" FOR KEY SHARE", ""),
        ),
        _NEVER_ENDS,
    ),
    "a fleet that lives is taken for dead": Bug(
        other_sql(statements, "SILENT", ("$2::float8)", "$2::float8 / 20)")),
        _TWICE | {"fenced_machines_are_not_believed"},
        "calm",
    ),
    "beats by the clock of the machine": Bug(
        [(engine, "Beat", _OwnClock), (PostgresEngine, "_ask_control", _chores_with_own_clock(_OwnClock))],
        _TWICE | {"deaths_are_charged"},
        "calm",
    ),
    "expiry by the clock of the machine": Bug(
        [(Specs, "job", _by_the_clock_of_the_database)],
        frozenset({"nothing_expires_too_early", "times_are_those_of_the_database"}),
        "calm",
    ),
    "expired jobs are leased and begun": Bug(
        [
            *other_sql(
                statements, "LEASE", ("AND (expires_at IS NULL OR expires_at > taskq.now_() OR attempts > 0)", "")
            ),
            *other_sql(statements, "EXPIRE", ("WHERE expires_at <=", "WHERE false AND expires_at <=")),
            (FleetLeases, "expire", lambda _self, _wall: None),
            (Specs, "job", lambda self, columns: _job(self, [*columns[:8], None, *columns[9:]])),
        ],
        frozenset({"times_are_those_of_the_database"}),
        "lossy",
    ),
    "told before the commit": Bug(
        [(Round, "_plan", _tells_in_its_transaction(Round._plan))], frozenset({"ends_are_told_at_once"}), "calm"
    ),
    "a watch that is not stored": Bug(
        other_sql(watching, "_WATCH", (", $2 ON", ", $2 LIMIT 0 ON")), frozenset({"ends_are_told_at_once"}), "calm"
    ),
    "a submit that is sent again inserts again": Bug(
        other_sql(submitting, "_SUBMIT", ("FROM new n JOIN kept USING (id)", "FROM new n")),
        _TWICE | {"nothing_is_left_over", "the_end_is_the_end"},
        "lossy",
    ),
    "outcomes are forgotten with the link": Bug(
        [(Outcomes, "put_before", _forgets_what_failed)], _NEVER_ENDS | _TWICE, "lossy", 100
    ),
    "what was lost is told as done": Bug([(engine, "without", _believes_all)], frozenset({"told_is_true"})),
    "a lease whose answer was lost": Bug([(FleetLeases, "compare", _compares_nothing)], _NEVER_ENDS, "lossy"),
    "a fenced fleet keeps what it had": Bug(
        [(FleetLeases, "keep_only", _keeps_what_it_lost)], _TWICE, "busy parted", 8
    ),
    "what has ended is given back": Bug([(FleetLeases, "release", _gives_back_what_has_ended)], _NEVER_ENDS, seed=121),
    "a fenced fleet keeps what it was about to get": Bug(
        [(FleetLeases, "keep_only", _keeps_what_has_arrived)], _TWICE, "busy parted", 8
    ),
    "a fleet hears what was said to the one before": Bug(
        [(PostgresEngine, "_finish", _hears_old_beats)], frozenset({"runs_again_only_for_a_reason"})
    ),
    "a crash that is not charged": Bug(
        [(FleetLeases, "charge", _charges_nobody)], frozenset({"deaths_are_charged"}), "stormy"
    ),
    "a cancel of a leased job is ignored": Bug(
        [(FleetLeases, "cancel", _hears_no_cancel)], frozenset({"what_is_cancelled_ends_soon"}), "calm"
    ),
    "a scheduled job is never queued": Bug(
        other_sql(statements, "PROMOTE", ("SET state = 0, ready_at", "SET ready_at")), _NEVER_ENDS, "calm"
    ),
    "a scheduled job is queued too early": Bug(
        other_sql(statements, "PROMOTE", ("due_at <= taskq.now_()", "due_at <= taskq.now_() + interval '1 second'")),
        frozenset({"times_are_those_of_the_database"}),
        "calm",
    ),
    "edges are closed twice": Bug(
        other_sql(statements, "CLOSE_EDGES", (" AND e.is_open\n", "\n")), frozenset({"a_step_waits_its_turn"}), "lossy"
    ),
    "a unique key is free while its job runs": Bug(
        [(admitting._Leases, "stored", _leased_has_ended)], frozenset({"one_of_a_kind"}), "calm"
    ),
    "jobs come in beside the application's transaction": Bug(
        [(queue, "Run", _alone)], frozenset({"enqueued_if_and_only_if_committed"}), "calm"
    ),
    "the last come first": Bug(
        other_sql(statements, "LEASE", ("ORDER BY seq LIMIT", "ORDER BY seq DESC LIMIT")),
        frozenset({"urgent_jobs_first"}),
        "orderly",
    ),
    "priorities are forgotten": Bug(
        [(Demand, "learn", _learns_no_priorities)], frozenset({"urgent_jobs_first"}), "orderly"
    ),
    "a lost notification is not made up for": Bug(
        [(demand, "LOOK_LONGEST_S", inf), (demand, "_LOOK_FIRST_S", inf)], _NEVER_ENDS, "lossy"
    ),
    "a job that is cancelled is not taken from the queue": Bug(
        other_sql(
            changing,
            "_CANCEL",
            ("DELETE FROM taskq.queue WHERE seq = $1 RETURNING id", "SELECT id FROM taskq.queue WHERE seq = $1"),
        ),
        frozenset({"cancelled_is_cancelled", "the_end_is_the_end", "nothing_is_left_over"}),
        "calm",
    ),
    "a limit that ignores other machines": Bug(
        other_sql(statements, "CLAIMS", ("g.name, g.amount, CASE", "g.name, 0, CASE")),
        _AT_ONCE,
        "limits parted",
        3,
    ),
    "a limit without its lock": Bug(
        other_sql(statements, "LOCK_LIMITS", ("pg_try_advisory_xact_lock(number)", "number IS NOT NULL")),
        _AT_ONCE | _TOO_FAST,
        "limits",
    ),
    "a share that is given back while its jobs run": Bug(
        [(FleetLimits, "take_surplus", _gives_back_what_is_needed)], _AT_ONCE, "limits"
    ),
    "an order key that is given back too early": Bug(
        other_sql(statements, "AGAIN", ("q.attempts > 0", "q.attempts < 0")),
        frozenset({"keys_run_in_order_over_machines"}),
        "limits",
    ),
    "jobs that run do not count when a share is lost": Bug(
        [(FleetLimits, "lose_all", _forgets_jobs_that_run)], _AT_ONCE, "limits parted", 3
    ),
    "what must be alone runs on when its machine is cut off": Bug(
        [(PostgresEngine, "_lose_limits", _kills_nothing)], _AT_ONCE, "limits parted", 3
    ),
    "the share of a lost machine is lost": Bug(
        other_sql(statements, "INHERIT", ("SELECT kind, name, $1, sum", "SELECT kind, name, -1, sum")),
        _NEVER_ENDS,
        "limits parted",
    ),
    "a rate by the clock of the machine": Bug([(Round, "_lock", _reads_rates_by_its_own_clock)], _TOO_FAST, "limits"),
    "starts that come too late for their rate": Bug(
        [(FleetLimits, "expire_starts", _makes_late_starts)], _TOO_FAST, "limits parted"
    ),
    "a job that is tried again counts as enqueued again": Bug(
        [(PostgresFigures, "count", _counts_retries_as_new)], _COUNTS, "calm"
    ),
    "ends are counted by the broker, which may die": Bug(
        [
            (JobCounting, "__init__", _counts_ends_when_told),
            *other_sql(statements, "SETTLE", ("GROUP BY state, spec)", "WHERE false GROUP BY state, spec)")),
            *other_sql(statements, "SETTLE_AGAIN", ("GROUP BY state, spec)", "WHERE false GROUP BY state, spec)")),
        ],
        _COUNTS,
        "stormy",
    ),
    "tallies go before what they say is stored": Bug(
        [(KeepCounts, "_plan", _adds_outside_the_transaction(KeepCounts._plan))], _COUNTS, "stormy"
    ),
    "counts that were not stored count all the same": Bug(
        [(KeepCounts, "undo", _keeps_what_was_not_stored)], _COUNTS, "lossy"
    ),
    "counts whose commit was not answered are taken for lost": Bug(
        [(PostgresFigures, "finish", _believes_that_it_was_not_stored)], _COUNTS, "lossy"
    ),
    "what a client cancels is not counted": Bug(
        other_sql(
            changing,
            "_CANCEL",
            ("SELECT taskq.now_(), 1, spec, 1 FROM done", "SELECT taskq.now_(), 1, spec, 0 FROM done"),
        ),
        _COUNTS,
        "calm",
    ),
}
