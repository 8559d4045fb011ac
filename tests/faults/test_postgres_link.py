"""The broker's connection to the database, on a real server that is killed, frozen, cut off and restarted: a turn never
waits, and what comes of each exchange is known, or known to be unknown."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from fleet import wait_until
from hosts import Network, need_namespaces
from postgres import Server, running_server

from taskq.engines.postgres.link.link import ANSWERS_WITHIN_S, Exchange, Link, LinkError
from taskq.protocol.postgres.plans import Plan, Query, Step

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

#: How many wait for the lock that a test has.
_AT_THE_LOCK = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


class Driven:
    """A link without a loop, with a clock that a test moves: real time passes only while the server has to answer."""

    def __init__(self, server: Server, conninfo: str = "") -> None:
        self.now = 1_000.0
        self.link = Link(conninfo or server.dsn(), "public", "taskq link of a test")

    def turn(self) -> None:
        self.link.turn(self.now)

    def let_pass(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def turn_until(self, condition: Callable[[], Any], what: str) -> None:
        """Turns, and waits for the server in between."""

        def is_true() -> Any:
            self.turn()
            descriptor = self.link.descriptor
            if not condition() and descriptor is not None:
                select.select([descriptor], [], [], 0.01)
            return condition()

        wait_until(is_true, what)

    def connect(self) -> Driven:
        self.turn_until(lambda: self.link.is_free, "a session")
        return self

    def begin(self, plan: Callable[[], Plan[Any]]) -> Exchange[Any]:
        """Asks for a plan, and sends what can be sent."""
        exchange = Exchange(plan)
        self.link.ask(exchange)
        self.turn()
        return exchange

    def end(self, exchange: Exchange[Any]) -> Any:
        """Waits for the end of a plan. Returns its value, or raises its error."""
        over: list[Exchange[Any]] = []
        self.turn_until(lambda: over.extend(self.link.take()) or exchange in over, "the end of a plan")
        if exchange.error is not None:
            raise exchange.error
        return exchange.value

    def run(self, *queries: Query) -> Any:
        return self.end(self.begin(lambda: alone(*queries)))


def alone(*queries: Query) -> Plan[Any]:
    rows = yield Step(*queries, commits=True)
    return rows


def insert(value: int) -> Query:
    return Query("INSERT INTO kept VALUES ($1)", (value,))


@pytest.fixture
def link(postgres: Server, database: str) -> Iterator[Driven]:
    """A link to a database with one table."""
    with postgres.connect(database) as connection:
        connection.execute("CREATE TABLE kept (value bigint UNIQUE)")
    driven = Driven(postgres, postgres.dsn(database)).connect()
    yield driven
    driven.link.close()


def kept(link: Driven) -> list[int]:
    [rows] = link.run(Query("SELECT value FROM kept ORDER BY value"))
    return [value for (value,) in rows]


def test_a_plan_is_one_transaction(link: Driven) -> None:
    def plan() -> Plan[int]:
        yield Step(insert(1))
        [[(count,)]] = yield Step(Query("SELECT count(*) FROM kept"))
        yield Step(insert(2), commits=True)
        return int(count)

    assert link.end(link.begin(plan)) == 1
    assert kept(link) == [1, 2]


def test_an_answer_that_came_while_something_was_sent_is_taken_at_once(link: Driven) -> None:
    """Nothing more will arrive then that could wake the loop."""
    exchange = link.begin(lambda: alone(insert(1)))
    link.turn_until(lambda: link.link.is_free, "the answer")
    assert link.link.next_at(link.now) <= link.now
    assert link.link.take() == [exchange]
    assert link.link.next_at(link.now) > link.now


def test_what_fails_is_told_and_undone_and_the_link_goes_on(link: Driven) -> None:
    def plan() -> Plan[None]:
        yield Step(insert(1))
        yield Step(insert(2), insert(2), commits=True)

    failing, after = link.begin(plan), link.begin(lambda: alone(insert(3)))
    link.end(after)
    assert failing.error is not None
    assert (failing.error.sqlstate, failing.error.is_unknown) == ("23505", False)
    assert after.error is None
    assert kept(link) == [3]


def test_words_of_others_arrive(link: Driven, postgres: Server, database: str) -> None:
    link.run(Query('LISTEN "shop"'))
    words: list[str] = []
    with postgres.connect(database) as connection:
        connection.execute("SELECT pg_notify('shop', 'q 1')")
    link.turn_until(lambda: words.extend(link.link.take_words()) or words == ["q 1"], "the word")


def test_a_deadlock_is_tried_again(link: Driven, postgres: Server, database: str) -> None:
    """Two links lock two rows in opposite order; the one that the server chooses begins again, and both succeed."""
    link.run(insert(1))
    link.run(insert(2))
    other = Driven(postgres, postgres.dsn(database)).connect()

    def plan(first: int, second: int) -> Plan[None]:
        yield Step(Query("UPDATE kept SET value = value WHERE value = $1", (first,)))
        yield Step(Query("SELECT pg_advisory_xact_lock_shared(7)"))
        yield Step(Query("UPDATE kept SET value = value WHERE value = $1", (second,)), commits=True)

    with postgres.connect(database) as connection:
        connection.execute("SELECT pg_advisory_lock(7)")  # until each has its first row
        ours, theirs = link.begin(lambda: plan(1, 2)), other.begin(lambda: plan(2, 1))

        def both_have_one() -> bool:
            other.turn()
            return connection.execute(_AT_THE_LOCK).fetchone() == (2,)

        link.turn_until(both_have_one, "a row for each")
    over: list[Exchange[Any]] = []

    def both() -> bool:
        other.turn()
        over.extend([*link.link.take(), *other.link.take()])
        return len(over) == 2

    link.turn_until(both, "both plans")
    other.link.close()
    assert (ours.error, theirs.error) == (None, None)
    assert sorted([ours.tries, theirs.tries]) == [1, 2]


def test_a_commit_whose_answer_is_lost_is_unknown_and_one_that_was_not_sent_is_not(
    link: Driven, postgres: Server, database: str
) -> None:
    """The backend is held by a lock that the test has, and killed there: it has not committed, and nobody knows."""

    def unfinished() -> Plan[None]:
        yield Step(insert(1), Query("SELECT pg_advisory_xact_lock(7)"))
        yield Step(insert(2), commits=True)

    for plan, is_unknown in (
        (unfinished, False),
        (lambda: alone(insert(3), Query("SELECT pg_advisory_xact_lock(7)")), True),
    ):
        with postgres.connect(database) as connection:
            connection.execute("SELECT pg_advisory_lock(7)")
            exchange = link.begin(plan)
            link.turn_until(partial(lambda held: held.execute(_AT_THE_LOCK).fetchone() == (1,), connection), "the lock")
            assert postgres.end_sessions("taskq link%") == 1
            with pytest.raises(LinkError) as raised:
                link.end(exchange)
        assert raised.value.is_unknown == is_unknown
        assert raised.value.sqlstate in ("", "57P01")
        link.let_pass(10.0)
        link.connect()
    assert kept(link) == []


def test_a_server_that_is_restarted_is_found_again(link: Driven, postgres: Server) -> None:
    link.run(insert(1))
    postgres.restart()
    exchange = link.begin(lambda: alone(insert(2)))
    link.turn_until(lambda: exchange in link.link.take() or not link.link.is_ready, "the end of the session")
    link.let_pass(10.0)
    link.connect()
    if exchange.error is not None:
        link.run(Query("INSERT INTO kept VALUES (2) ON CONFLICT DO NOTHING"))
    assert kept(link) == [1, 2]
    assert link.link.sessions == 2


def test_a_turn_does_not_wait_for_a_frozen_server(link: Driven, postgres: Server) -> None:
    """The link is given up after its time; the next session ends the old one before it does anything."""
    postgres.freeze()
    try:
        exchange = link.begin(lambda: alone(insert(1)))
        for _ in range(100):
            link.turn()
        assert exchange not in link.link.take()
        link.let_pass(ANSWERS_WITHIN_S)
        assert exchange in link.link.take()
        assert exchange.error is not None
        assert exchange.error.is_unknown
        for _ in range(3):
            link.let_pass(ANSWERS_WITHIN_S)  # nobody answers those who connect
        assert not link.link.is_ready
    finally:
        postgres.thaw()
    link.let_pass(ANSWERS_WITHIN_S)
    link.let_pass(10.0)
    link.connect()
    link.run(Query("INSERT INTO kept VALUES (1) ON CONFLICT DO NOTHING"))
    with postgres.connect() as connection:
        [count] = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'taskq link%'"
        ).fetchone() or [None]
    assert count == 1, "the session that did not answer is gone"
    assert kept(link) == [1]


def test_a_link_over_a_network_that_is_cut_in_one_way_is_given_up() -> None:
    need_namespaces()
    with Network() as network:
        theirs, ours = network.host(), network.host()
        options = {"settings": {"listen_addresses": theirs.address}, "prefix": theirs.prefix}
        with running_server(**options) as server:
            server.allow_network()
            with ours.inside():
                link = Driven(server, f"host={theirs.address} user=postgres dbname=postgres").connect()
            link.run(Query("CREATE TABLE kept (value bigint UNIQUE)"))
            for sender, receiver in ((theirs, ours), (ours, theirs)):
                network.lose(sender, receiver)
                exchange = link.begin(lambda: alone(Query("INSERT INTO kept VALUES (1) ON CONFLICT DO NOTHING")))
                link.turn()
                time.sleep(0.1)  # long enough for an answer, if one came
                link.turn()
                assert exchange not in link.link.take()
                link.let_pass(ANSWERS_WITHIN_S)
                assert exchange in link.link.take()
                network.lose_no_more(sender, receiver)
                with ours.inside():
                    link.let_pass(10.0)
                    link.connect()
                link.run(Query("INSERT INTO kept VALUES (1) ON CONFLICT DO NOTHING"))
                assert kept(link) == [1]
            link.link.close()
