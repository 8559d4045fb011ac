"""A connection of the broker to the database that never makes its loop wait.

    ask      an exchange, which is run in its turn: a plan, in one transaction
    turn     sends what can be sent, and reads what has arrived
    take     the exchanges that are over, with their values or errors, and the words that others have notified

One exchange is under way at a time: what comes up meanwhile waits, and goes together. A link that owes an answer for
too long, or is broken, is made anew. What it was doing then is over with an error: a commit may have happened or not.
"""

from __future__ import annotations

import select
import selectors
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from struct import Struct
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from psycopg import OperationalError, pq
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, PollingStatus

from taskq.engines.postgres.link.names import Lookup, names_in
from taskq.protocol.postgres.arrays import Array
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step

T = TypeVar("T")

#: A link that owes an answer for so long is made anew; and how long a statement may take, and wait for a lock.
ANSWERS_WITHIN_S: Final = 10.0
_SETTINGS: Final = (
    "plan_cache_mode=force_generic_plan",  # a plan must not change when statistics lie about an empty or a full table
    "enable_seqscan=off",
    "jit=off",
    "statement_timeout=9s",
    "lock_timeout=5s",
    "idle_in_transaction_session_timeout=15s",
    "client_min_messages=error",
)
#: Pauses before a new connection, doubling.
_PAUSE_FIRST_S: Final = 0.1
_PAUSE_LONGEST_S: Final = 5.0
#: How often to see whether the names of hosts have been looked up.
_LOOK_UP_EVERY_S: Final = 0.01
#: How often a plan is begun again after a deadlock or a lock that was not to be had.
_MOST_TRIES: Final = 5
_AGAIN: Final = frozenset({"40P01", "40001", "55P03"})
_BEGIN: Final = Query("BEGIN")
_COMMIT: Final = Query("COMMIT")
_ROLLBACK: Final = Query("ROLLBACK")
#: What is expected of the server: the rows of a statement, nothing that anybody reads, or the end of what was sent.
_ROWS: Final = 0
_NOTHING: Final = 1
_SYNC: Final = 2
_FLOAT: Final = Struct("!d")


class LinkError(Exception):
    """An exchange that failed.

    Attributes:
        sqlstate: PostgreSQL's code for the reason; "" if the link broke.
        is_unknown: its commit was sent, and may have happened.
    """

    def __init__(self, message: str, sqlstate: str = "", *, is_unknown: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.is_unknown = is_unknown


class Exchange(Generic[T]):
    """A plan that a link runs."""

    def __init__(self, plan: Callable[[], Plan[T]]) -> None:
        """
        Args:
            plan: makes the plan; called again if it has to begin again.
        """
        self._make = plan
        self.value: T | None = None
        self.error: LinkError | None = None
        self.tries = 0
        self.commits = False  # its last step was sent
        self.is_over = False

    def begin(self) -> Step | None:
        """Begins, again if need be. Returns the first step; None: there is nothing to do."""
        self.tries += 1
        self.commits = False
        self._under_way = self._make()
        return self._go_on(lambda: next(self._under_way))

    def go_on(self, rows: list[Rows]) -> Step | None:
        """Goes on with the answer to a step. Returns the next one; None: the plan is over."""
        return self._go_on(lambda: self._under_way.send(rows))

    def _go_on(self, move: Callable[[], Step]) -> Step | None:
        try:
            step = move()
        except StopIteration as end:
            self.value = end.value
            return None
        assert not self.commits, "a plan goes on behind its last step"
        self.commits = step.commits
        return step


class Link:
    """Used by the broker's loop alone."""

    def __init__(
        self,
        conninfo: str,
        schema: str,
        name: str,
        first: Sequence[Query] = (),
    ) -> None:
        """
        Args:
            conninfo: of the database, for libpq.
            schema: where the tables are.
            name: what the server calls its sessions.
            first: what each session does first.
        """
        self._conninfo = conninfo_for(conninfo, name)
        self._hosts = names_in(self._conninfo)  # that have to be looked up
        self._lookup: Lookup | None = None
        self._lookup_until = inf
        self._prefix = f'"{schema}".'
        self._selector: selectors.BaseSelector | None = None
        self._first = tuple(first)
        self._waiting: deque[Exchange[Any]] = deque()
        self._over: list[Exchange[Any]] = []
        self._words: list[str] = []
        self._pause_s = 0.0
        self._connect_at = -inf
        self._old_pid = 0  # of the last session: the next one must not begin before it has ended
        self.sessions = 0  # how many have begun
        self.error = ""  # why there is no session
        self._pg: pq.abc.PGconn | None = None
        self._forget_session()

    def _forget_session(self) -> None:
        self._is_ready = False
        self._wants: int = PollingStatus.WRITING  # while it connects
        self._registered: tuple[int, int] | None = None
        self._has_input = False
        self._exchange: Exchange[Any] | None = None  # what is under way
        self._setup: Exchange[Any] | None = None  # what the session does first
        self._deadline = inf
        self._expected: deque[int] = deque()
        self._answer: list[Rows] = []
        self._failure: LinkError | None = None
        self._prepared: dict[str, tuple[bytes, int]] = {}  # by text: the name of the statement
        self._unsure: list[str] = []  # prepared since the last sync
        self._names = 0
        self._is_flushed = True
        self._transformer = Transformer()

    def select_with(self, selector: selectors.BaseSelector | None) -> None:
        """Has a loop wait for it.

        Args:
            selector: with callables as data; None if there is no loop that selects.
        """
        if selector is None:
            self._unwatch()
        self._selector = selector
        if self._pg is not None and self._is_ready:
            self._watch(selectors.EVENT_READ | (0 if self._is_flushed else selectors.EVENT_WRITE))

    # -- what is asked

    def ask(self, exchange: Exchange[Any]) -> None:
        """Runs an exchange as soon as those asked before are over."""
        self._waiting.append(exchange)

    @property
    def is_free(self) -> bool:
        """Whether there is a session, and nothing under way or waiting."""
        return self._is_ready and self._exchange is None and not self._waiting

    @property
    def is_ready(self) -> bool:
        """Whether there is a session."""
        return self._is_ready

    @property
    def owes(self) -> bool:
        """Whether an answer is due, or something waits to be sent."""
        return self._exchange is not None or bool(self._waiting) or self._pg is None or not self._is_ready

    @property
    def descriptor(self) -> int | None:
        """The descriptor of its socket."""
        return None if self._pg is None or self._pg.status == ConnStatus.BAD else self._pg.socket

    def take(self) -> list[Exchange[Any]]:
        """Returns the exchanges that are over since the last call, in order."""
        over, self._over = self._over, []
        return over

    def take_words(self) -> list[str]:
        """Returns what was notified since the last call."""
        words, self._words = self._words, []
        return words

    # -- turns

    def turn(self, now: float) -> None:
        """Sends, reads, connects: whatever can be done without waiting."""
        if self._rests and now < self._deadline:
            return
        try:
            self._turn(now)
        except (OperationalError, OSError) as error:
            self._break(now, str(error).strip())

    @property
    def _rests(self) -> bool:
        """Whether nothing has come since the last turn, and nothing is to be sent: most turns of a loop are about
        something else."""
        is_quiet = self._is_ready and self._is_flushed and self._selector is not None
        return is_quiet and not self._has_input and not self._waiting

    def _turn(self, now: float) -> None:
        if self._pg is None:
            if now < self._connect_at or not self._knows_addresses(now):
                return
            self._connect(now)
        elif now >= self._deadline:
            what = "did not answer" if self._is_ready else "could not be reached"
            raise OperationalError(f"the database {what} within {ANSWERS_WITHIN_S:g} s")
        if not self._is_ready and not self._go_on_connecting(now):
            return
        pg = self._pg
        assert pg is not None
        if self._has_input or self._selector is None:
            self._has_input = False
            pg.consume_input()
            while (word := pg.notifies()) is not None:
                self._words.append(word.extra.decode())
        self._read(now)
        while self._exchange is None and self._waiting:
            self._begin(self._waiting.popleft(), now)
            self._read(now)
        self._flush()

    def next_at(self, now: float) -> float:
        """When `turn` must be called (monotonic), if nothing arrives before."""
        if self._over or self._words:
            return now  # what came while it was asked for something is still to be taken
        if self._pg is None:
            return self._connect_at
        if self._is_ready and self._exchange is None and self._waiting:
            return now
        return self._deadline

    def wait(self, timeout_s: float) -> None:
        """Waits until something arrives, or there is something to do; for those who have no loop."""
        descriptor = self.descriptor
        reads = self._is_ready or self._wants == PollingStatus.READING
        writes = not (self._is_flushed if self._is_ready else reads)
        if descriptor is None:
            select.select([], [], [], timeout_s)
        else:
            select.select([descriptor] if reads else [], [descriptor] if writes else [], [], timeout_s)

    # -- a session begins and ends

    def _knows_addresses(self, now: float) -> bool:
        """Looks up the names of hosts, again for each session. Returns whether their addresses are known."""
        if not self._hosts:
            return True
        if self._lookup is None:
            self._lookup = Lookup(self._conninfo, self._hosts)
            self._lookup_until = now + ANSWERS_WITHIN_S
        self._connect_at = now + _LOOK_UP_EVERY_S
        if self._lookup.error or now >= self._lookup_until:
            error = self._lookup.error or f"no name server has answered within {ANSWERS_WITHIN_S:g} s"
            self._lookup = None
            raise OperationalError(error)
        return self._lookup.conninfo is not None

    def _connect(self, now: float) -> None:
        self._forget_session()
        self._deadline = now + ANSWERS_WITHIN_S
        conninfo = self._conninfo if self._lookup is None else self._lookup.conninfo
        self._lookup = None
        pg = self._pg = pq.PGconn.connect_start((conninfo or self._conninfo).encode())
        if pg.status == ConnStatus.BAD:
            raise OperationalError(pg.get_error_message())
        self._wants = PollingStatus.WRITING
        self._watch(selectors.EVENT_WRITE)

    def _go_on_connecting(self, now: float) -> bool:
        """Goes on to connect. Returns whether there is a session now."""
        pg = self._pg
        assert pg is not None
        while _is_ready(pg.socket, self._wants):
            self._wants = pg.connect_poll()
            if self._wants == PollingStatus.FAILED:
                raise OperationalError(pg.get_error_message())
            if self._wants == PollingStatus.OK:
                self._begin_session(pg, now)
                return True
            reads = self._wants == PollingStatus.READING
            self._watch(selectors.EVENT_READ if reads else selectors.EVENT_WRITE)
        return False

    def _begin_session(self, pg: pq.abc.PGconn, now: float) -> None:
        pg.nonblocking = 1
        pg.enter_pipeline_mode()
        self._is_ready = True
        self._deadline = inf
        self._pause_s, self.error = 0.0, ""
        self.sessions += 1
        self._watch(selectors.EVENT_READ)
        old, self._old_pid = self._old_pid, pg.backend_pid
        ends_old = Query(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE pid = $1::int AND application_name = current_setting('application_name')",
            (Int(old),),
        )
        self._setup = Exchange(lambda: _last_step([ends_old, *self._first]))
        self._begin(self._setup, now)

    def _break(self, now: float, reason: str) -> None:
        """Ends the session, and plans the next one."""
        self.error = reason
        exchange = None if self._exchange is self._setup else self._exchange
        self.close()
        self._pause_s = min(max(2 * self._pause_s, _PAUSE_FIRST_S), _PAUSE_LONGEST_S)
        self._connect_at = now + self._pause_s
        if exchange is not None:
            if isinstance(exchange, _Ending):
                exchange = exchange.ended()
            exchange.error = LinkError(reason, is_unknown=exchange.commits)
            exchange.is_over = True
            self._over.append(exchange)

    def close(self) -> None:
        """Ends the session, if there is one."""
        if self._pg is not None:
            self._unwatch()
            self._pg.finish()
            self._pg = None
        self._forget_session()

    # -- exchanges

    def _begin(self, exchange: Exchange[Any], now: float) -> None:
        self._exchange = exchange
        step = exchange.begin()
        if step is None:
            self._end()
            return
        is_whole = self._is_whole(step)
        if not is_whole:
            self._send([_BEGIN], _NOTHING)
        self._send_step(step, now, is_whole=is_whole)

    def _is_whole(self, step: Step) -> bool:
        """Whether a first step is a transaction by itself, as all is that is sent up to a sync."""
        return step.commits and not step.after

    def _send_step(self, step: Step, now: float, *, is_whole: bool = False) -> None:
        self._answer = []
        self._send(step, _ROWS)
        if step.commits and not is_whole:
            self._send([_COMMIT], _NOTHING)
        self._send(step.after, _NOTHING)
        self._sync(now)

    def _sync(self, now: float) -> None:
        assert self._pg is not None
        self._pg.pipeline_sync()
        self._expected.append(_SYNC)
        self._deadline = now + ANSWERS_WITHIN_S

    def _send(self, queries: Sequence[Query], expected: int) -> None:
        pg = self._pg
        assert pg is not None
        for sql, params in queries:
            encoded = [_encoded(param) for param in params]
            known = self._prepared.get(sql)
            if known is None:
                self._names += 1
                known = self._prepared[sql] = b"t%d" % self._names, len(params)
                self._unsure.append(sql)
                text = sql.replace("taskq.", self._prefix).encode()
                pg.send_prepare(known[0], text, [oid for oid, _ in encoded])
                self._expected.append(_NOTHING)
            pg.send_query_prepared(known[0], [data for _, data in encoded], [1] * len(encoded), 1)
            self._expected.append(expected)
        self._is_flushed = False

    def _flush(self) -> None:
        assert self._pg is not None
        if not self._is_flushed:
            self._is_flushed = self._pg.flush() == 0
            self._watch(selectors.EVENT_READ | (0 if self._is_flushed else selectors.EVENT_WRITE))

    def _read(self, now: float) -> None:
        """Reads the results that have arrived, and goes on with the plan when a step has its answer."""
        pg = self._pg
        assert pg is not None
        if self._expected:
            self._flush()
        while self._expected and not pg.is_busy():
            result = pg.get_result()
            if result is None:
                continue  # it separates the results of statements
            expected = self._expected.popleft()
            status = result.status
            if status == ExecStatus.PIPELINE_SYNC:
                assert expected == _SYNC
                if not self._expected:
                    self._answered(now)
            elif status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
                if expected == _ROWS:
                    self._answer.append(self._rows(result))
            elif status != ExecStatus.PIPELINE_ABORTED and self._failure is None:
                sqlstate = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
                self._failure = LinkError(result.get_error_message().strip(), sqlstate)
        if pg.status == ConnStatus.BAD:
            raise OperationalError(pg.get_error_message())

    def _rows(self, result: pq.abc.PGresult) -> Rows:
        if not result.ntuples:
            return []
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _answered(self, now: float) -> None:
        """A step has its answer, or has failed."""
        exchange, failure = self._exchange, self._failure
        if exchange is None:
            return
        if failure is not None:
            for sql in self._unsure:
                self._prepared.pop(sql, None)
            self._unsure.clear()
            if exchange.error is None:  # else that was the rollback
                exchange.error, self._failure = failure, None
                self._send([_ROLLBACK], _NOTHING)
                self._sync(now)
                return
        self._unsure.clear()
        self._failure = None
        if exchange.error is not None:
            if exchange.error.sqlstate in _AGAIN and exchange.tries < _MOST_TRIES:
                exchange.error = None
                self._begin(exchange, now)
            else:
                self._end()
            return
        committed = exchange.commits
        step = exchange.go_on(self._answer)
        if step is not None:
            self._send_step(step, now)
        elif committed:
            self._end()
        else:
            exchange.commits = True
            self._exchange = _Ending(exchange)
            self._send([_COMMIT], _NOTHING)
            self._sync(now)

    def _end(self) -> None:
        exchange, self._exchange = self._exchange, None
        self._deadline = inf
        assert exchange is not None
        if isinstance(exchange, _Ending):
            exchange = exchange.ended()
        exchange.is_over = True
        if exchange is not self._setup:
            self._over.append(exchange)
        elif exchange.error is not None:
            raise OperationalError(str(exchange.error))

    # -- the selector

    def _watch(self, events: int) -> None:
        if self._selector is None or self._pg is None:
            return
        wanted = self._pg.socket, events
        if self._registered == wanted:
            return
        if self._registered is not None and self._registered[0] == wanted[0]:
            self._selector.modify(wanted[0], events, self._on_event)
        else:
            self._unwatch()
            self._selector.register(wanted[0], events, self._on_event)
        self._registered = wanted

    def _unwatch(self) -> None:
        if self._selector is not None and self._registered is not None:
            try:
                self._selector.unregister(self._registered[0])
            except (KeyError, ValueError, OSError):
                pass  # libpq has closed it, and tries another address
        self._registered = None

    def _on_event(self, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            self._has_input = True


class _Ending(Exchange[Any]):
    """The commit of an exchange whose plan is over."""

    def __init__(self, exchange: Exchange[Any]) -> None:
        super().__init__(lambda: _last_step(()))
        self._of = exchange
        self.commits = True
        self.tries = _MOST_TRIES

    def go_on(self, _rows: list[Rows]) -> Step | None:
        return None

    def ended(self) -> Exchange[Any]:
        """The exchange itself, which is over."""
        self._of.error = self.error
        return self._of


class Int(int):
    """A parameter of type int: other numbers are bigint."""


def _encoded(value: Any) -> tuple[int, bytes | None]:
    """A parameter: its type, and its bytes."""
    match value:
        case None:
            return 0, None
        case Array(oid, data):
            return oid, data
        case bool():
            return 16, b"\1" if value else b"\0"
        case Int():
            return 23, value.to_bytes(4, "big", signed=True)
        case int():
            return 20, value.to_bytes(8, "big", signed=True)
        case float():
            return 701, _FLOAT.pack(value)
        case str():
            return 25, value.encode()
        case bytes():
            return 17, value
        case UUID():
            return 2950, value.bytes
    raise TypeError(f"{type(value).__name__} is not a type of a parameter")


def _last_step(queries: Sequence[Query]) -> Plan[None]:
    yield Step(*queries, commits=True)


def conninfo_for(conninfo: str, name: str) -> str:
    """The connection string of a broker's session: with our settings and a name."""
    given = conninfo_to_dict(conninfo)
    options = " ".join(f"-c {setting}" for setting in _SETTINGS)
    own = {
        "application_name": name,
        "options": f"{given.get('options') or ''} {options}".strip(),
        "connect_timeout": "10",
        "tcp_user_timeout": "10000",
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "client_encoding": "utf8",
    }
    return make_conninfo(conninfo, **own)


def _is_ready(descriptor: int, wanted: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN if wanted == PollingStatus.READING else select.POLLOUT)
    return bool(poll.poll(0))
