"""A real PostgreSQL server in a world made of chance: its time, its notifications, and the connections to it.

Wire          the server as the world sees it: moves its clock, hears all words, knows which sessions wait for a lock
SimLink       a broker's link, or a client's, that chance delays, breaks before a statement or behind a commit, and holds
              up between the last statement and the commit

The order of all statements is decided by the world alone: whoever has sent something is waited for, in real time, until
the server has answered or the session waits for a lock that another one has.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from postgres import Server
from psycopg import OperationalError
from scripted_database import SCHEMA

from taskq.engines.postgres.link.link import _COMMIT, _NOTHING, _ROWS, ANSWERS_WITHIN_S, Link
from taskq.protocol.postgres.plans import Query, Step

_WAITS = b"EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted)"
#: Whether sessions run that nobody has to let go on.
_BUSY = (
    b"SELECT EXISTS (SELECT FROM pg_stat_activity AS a WHERE datname = current_database()"
    b" AND pid <> pg_backend_pid() AND state = 'active' AND NOT " + _WAITS % b"a.pid" + b")"
)
_WAITS_FOR_LOCK = b"SELECT " + _WAITS
_LIVES = b"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %d) AND NOT "


class Owner(Protocol):
    """Whoever has a link."""

    cut_until: float  #: The time until which nothing goes between it and the server.


class Wire:
    """The server of one life, with a database of its own."""

    def __init__(self, server: Server, database: str, hear: Callable[[str, str], None]) -> None:
        """
        Args:
            hear: is told what is notified: the channel, and the words.
        """
        self._session = server.connect(database)
        self._pg = self._session.pgconn
        self._hear = hear
        self._wall = -1.0
        self._blocked: set[SimLink] = set()
        self.is_used = False  # something was sent since words were collected
        self.listen(SCHEMA)

    def listen(self, channel: str) -> None:
        self._session.execute(f'LISTEN "{channel}"'.encode())

    def set_clock(self, wall: float) -> None:
        """The database's time, in seconds since 1970."""
        if wall != self._wall:
            self._wall = wall
            self._pg.exec_(f'UPDATE "{SCHEMA}".scripted_clock SET at = to_timestamp({wall!r})'.encode())

    def settle(self, link: SimLink) -> bool:
        """Waits until the server has answered to a link. Returns False if its session waits for a lock."""
        self.is_used = True
        descriptor = link.descriptor
        assert descriptor is not None
        pid = b"%d" % link.pid
        answered = bool(select.select([descriptor], [], [], 0.002)[0])
        idle = 0  # how often nobody was at work: a session may not have begun yet
        while not answered and idle < 50:
            is_busy = self._is_busy()
            idle += not is_busy
            waits = not is_busy and self._is(_WAITS_FOR_LOCK % pid)
            answered = bool(select.select([descriptor], [], [], 0 if waits else 0.001)[0])
            if waits:
                break
        self._blocked.discard(link)
        if not answered:
            self._blocked.add(link)
        elif self._blocked:  # who waited for this one may go on
            while self._is_busy():
                pass
        return answered

    def _is_busy(self) -> bool:
        return self._is(_BUSY)

    def _is(self, sql: bytes) -> bool:
        return self._pg.exec_(sql).get_value(0, 0) == b"t"

    def wait_for_end(self, pid: int) -> None:
        """Waits for the end of a session whose client has left: it may wait for a lock, and end later."""
        while self._is(_LIVES % pid + _WAITS % (b"%d" % pid)):
            pass

    def forget(self, link: SimLink) -> None:
        self._blocked.discard(link)

    def collect_words(self) -> None:
        """What was notified by all that has happened is heard now."""
        if self.is_used:
            self.is_used = False
            self._pg.exec_(b"SELECT 1")
            while (word := self._pg.notifies()) is not None:
                self._hear(word.relname.decode(), word.extra.decode())

    def rows(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Asks the database for the world, which sees all."""
        cursor = self._session.execute(sql.replace("taskq.", f'"{SCHEMA}".').encode(), params)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self._session.close()


class SimLink(Link):
    """A link in a world: a `World` decides by chance what becomes of each step."""

    def __init__(self, world: Any, owner: Owner, name: str, *, reads_all: bool = False) -> None:
        """
        Args:
            reads_all: whether plans are given the rows of what comes behind the commit, too, as those of clients are.
        """
        self.world, self.owner = world, owner
        self._of_after = _ROWS if reads_all else _NOTHING
        self.is_instant = False  # nothing happens to it: its broker starts, and waits for it
        super().__init__(world.conninfo, SCHEMA, f"taskq {SCHEMA} {name}")
        world.links.append(self)

    def _forget_session(self) -> None:
        super()._forget_session()
        self._reads_at = 0.0  # when what was answered arrives
        self._loses_answer = False
        self._held: Step | None = None  # sent but for its commit
        self._commit_at: float | None = None  # when that is sent, once the rest is answered
        self._has_sent = False

    # -- turns

    def turn(self, now: float) -> None:
        super().turn(now)
        if self._has_sent:
            self._has_sent = False
            if self._pg is not None and self._expected:  # else the answer is here already
                self.world.wire.settle(self)

    def _turn(self, now: float) -> None:
        if now < self.owner.cut_until:
            if self._pg is None and now >= self._connect_at:
                raise OperationalError("cut off: nobody answers")
            if self._pg is not None and now >= self._deadline:
                raise OperationalError(f"cut off: no answer within {ANSWERS_WITHIN_S:g} s")
            return
        if self._pg is not None and now < self._deadline:
            if self._commit_at is not None and now >= self._commit_at:
                self._send_commit(now)
            if self._expected and now < self._reads_at:
                return
        super()._turn(now)

    def next_at(self, now: float) -> float:
        if self._over:
            return now
        if now < self.owner.cut_until:
            return self._connect_at if self._pg is None else min(self._deadline, self.owner.cut_until)
        if self._pg is not None and self._commit_at is not None:
            return max(now, self._commit_at)
        if self._pg is not None and self._expected:
            return max(now, min(self._reads_at, self._deadline))
        return super().next_at(now)

    def _go_on_connecting(self, now: float) -> bool:
        while not super()._go_on_connecting(now):
            self.wait(0.05)
        return True

    # -- what is sent, and what comes of it

    def _is_whole(self, step: Step) -> bool:
        return len(step) == 1 and super()._is_whole(step)  # between several statements and their commit, others come

    def _send_step(self, step: Step, now: float, *, is_whole: bool = False) -> None:
        fate = "" if self.is_instant or self._exchange is self._setup else self.world.fate_of_step()
        if fate == "not sent":
            raise OperationalError("chance: the connection broke before this was sent")
        self._answer = []
        self._send(step, _ROWS)
        if fate == "held" and step.commits and not is_whole:
            self._held = step
        else:
            if step.commits and not is_whole:
                self._send([_COMMIT], _NOTHING)
            self._send(step.after, self._of_after)
        self._sync(now)
        self._loses_answer = fate == "no answer"

    def _send(self, queries: Sequence[Query], expected: int) -> None:
        self.world.tell_time()
        super()._send(queries, expected)

    def _send_commit(self, now: float) -> None:
        step, self._held, self._commit_at = self._held, None, None
        assert step is not None
        self._send([_COMMIT], _NOTHING)
        self._send(step.after, self._of_after)
        self._sync(now)

    def _sync(self, now: float) -> None:
        super()._sync(now)
        self._has_sent = True
        self._reads_at = now if self.is_instant else now + self.world.delay()

    def _read(self, now: float) -> None:
        if now < self._reads_at:
            if self._expected:
                self._flush()
            return
        if self._loses_answer and self._expected:
            raise OperationalError("chance: the connection broke before the answer")
        super()._read(now)
        while self._expected and now >= self._reads_at and not self._has_sent:
            if not self.world.wire.settle(self):
                self._reads_at = now + 0.01  # it waits for a lock
                return
            assert self._pg is not None
            self._pg.consume_input()
            super()._read(now)

    def _answered(self, now: float) -> None:
        if self._held is not None and self._failure is None:
            self._commit_at = now + self.world.holds_for()
            self.world.commit_is_held(self._exchange)
            return
        self._held = None
        super()._answered(now)

    def break_off(self, now: float, reason: str) -> None:
        """The connection breaks, if there is one."""
        if self._pg is not None:
            self._break(now, reason)

    def give_way(self, now: float) -> None:
        """Breaks, if it has a transaction that others may have to wait for."""
        if self._exchange is not None:
            self.break_off(now, "the world ended the session")

    @property
    def pid(self) -> int:
        """Of its session; 0 if there is none."""
        return 0 if self._pg is None else self._pg.backend_pid

    def close(self) -> None:
        pid = self.pid
        super().close()
        self.world.wire.forget(self)
        if pid:
            self.world.wire.is_used = True
            self.world.wire.wait_for_end(pid)

    def remove(self) -> None:
        """Its process is gone."""
        self.close()
        self.world.links.remove(self)


class Words:
    """What is notified to a broker, with the time at which it arrives. Its link hears no others."""

    def __init__(self) -> None:
        self._words: list[tuple[float, str]] = []

    def add(self, at: float, word: str) -> None:
        self._words.append((at, word))

    def take(self, now: float) -> list[str]:
        due = [word for at, word in self._words if at <= now]
        self._words = [each for each in self._words if each[0] > now]
        return due


def joined(make: Callable[[], Any], order: Any, is_kept: bool) -> Any:
    """A plan inside the transaction of an application, which writes a row of its own first and then commits, or not."""
    yield Step(Query("INSERT INTO public.orders VALUES ($1)", (order,)))
    plan = make()
    try:
        step = next(plan)
        while True:
            step = plan.send((yield Step(*step, *step.after)))
    except StopIteration as end:
        if not is_kept:
            yield Step(Query("SELECT 1/0"))  # the transaction fails
        return end.value
