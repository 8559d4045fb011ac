"""What time brings in a database takes the same work while somebody else's transaction is open for long, and old jobs go
by age and by number."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from math import inf
from typing import Any

import psycopg
import pytest
from machines import SCHEMA
from postgres import Server

from taskq.client.transport.postgres.sessions import ADAPTERS
from taskq.engines.postgres import schedules, statements
from taskq.engines.postgres.chores import EXPIRED, Prune, Pruned, Retention, Seen, Window
from taskq.engines.postgres.handover import Edges, HandedOver, HandOver
from taskq.engines.postgres.link.link import Link, conninfo_for
from taskq.engines.postgres.migrate import migrate
from taskq.engines.postgres.opening import drive
from taskq.model.job import new_job_ids
from taskq.protocol.postgres.arrays import bigints, ints
from taskq.system.clock import SYSTEM_CLOCK

GONE = 20_000


@pytest.fixture
def url(postgres: Server, database: str) -> str:
    """A database with the tables."""
    with postgres.connect(database) as connection:
        migrate(connection, SCHEMA)
    return postgres.url(database)


@pytest.fixture
def connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A session as those of brokers are."""
    conninfo = conninfo_for(url, "test")
    with psycopg.connect(conninfo, autocommit=True, context=ADAPTERS, cursor_factory=psycopg.RawCursor) as connection:
        yield connection


def in_schema(sql: str) -> bytes:
    return sql.replace("taskq.", f'"{SCHEMA}".').encode()


def pages(connection: psycopg.Connection[Any], sql: str, *parameters: Any) -> int:
    """How many pages a statement reads. What it changes is undone."""
    with connection.transaction(force_rollback=True):
        explained = connection.execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + in_schema(sql), parameters)
        [[told]] = explained.fetchall()
    plan = (json.loads(told) if isinstance(told, str) else told)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def live_and_die(connection: psycopg.Connection[Any], jobs: int) -> None:
    """Jobs are scheduled, come due, are leased and end; schedules fire, and what happens is counted."""
    for statement in (
        f"""INSERT INTO taskq.queue (id, partition, spec, state, due_at, expires_at)
            SELECT gen_random_uuid(), 1, 1, 1, now() - interval '1 minute', now() - interval '1 minute'
            FROM generate_series(1, {jobs})""",
        "UPDATE taskq.queue SET state = 0, due_at = NULL",
        "UPDATE taskq.queue SET lease = 1",
        "DELETE FROM taskq.queue",
        f"""INSERT INTO taskq.schedules (name, fields, next_at, is_paused, fires_at)
            SELECT n, '', 0, false, n FROM generate_series(1, {jobs}) AS n""",
        "DELETE FROM taskq.schedules",
        f"INSERT INTO taskq.tallies SELECT now() - interval '1 minute', 0, 1, n FROM generate_series(1, {jobs}) AS n",
        "DELETE FROM taskq.tallies",
    ):
        connection.execute(in_schema(statement))


def test_a_transaction_that_is_open_for_long_makes_no_search_longer(
    connection: psycopg.Connection[Any], url: str
) -> None:
    """It keeps alive all rows that were deleted since. Searches pass over these but for the rare whole looks."""
    with psycopg.connect(url) as other:
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT txid_current()")
        live_and_die(connection, GONE)
        live = in_schema(
            """INSERT INTO taskq.queue (id, partition, spec, state, due_at, expires_at)
            SELECT gen_random_uuid(), 1, 1, state, CASE WHEN state = 1 THEN now() END, now() - interval '1 second'
            FROM generate_series(1, 5), generate_series(0, 1) AS state RETURNING seq"""
        )
        low = min(seq for (seq,) in connection.execute(live))
        connection.execute(
            in_schema("INSERT INTO taskq.fleets (machine, host, pid) VALUES (gen_random_uuid(), 'x', 1)")
        )

        def lease(low: int) -> tuple[Any, ...]:
            return 1, ints([1]), bigints([low]), ints([1]), ints([5])

        recent = time.time() - 5.0
        searches: dict[str, tuple[str, tuple[Any, ...], tuple[Any, ...]]] = {
            "look": (statements.LOOK, (None, recent), (None, -inf)),
            "promote": (statements.PROMOTE, (100, recent), (100, -inf)),
            "expire": (statements.EXPIRE, (100, EXPIRED, recent), (100, EXPIRED, -inf)),
            "lease": (statements.LEASE, lease(low), lease(0)),
            "fire": (schedules._DUE, (None, 10, recent), (None, 10, -inf)),
            "tallies": (statements.TAKE_TALLIES, (recent, 100), (-inf, 100)),
            "cancels": (statements.CANCELS, (1, low), (1, 0)),
        }
        short, whole = (
            {name: pages(connection, search[0], *search[which]) for name, search in searches.items()}
            for which in (1, 2)
        )
    assert max(short.values()) < 150, short
    assert min(whole.values()) > GONE / 200, whole  # else this test shows nothing


# -- when a look is a whole one


def seen(wall: float, *, is_through: bool = True) -> Seen:
    return Seen(None, None, None, True, 1, False, False, 0, [], frozenset(), wall, is_through)


def test_looks_are_whole_ones_while_these_are_fast() -> None:
    window = Window()
    for now in range(10):
        assert window.ask(float(now)) == -inf
        window.answered(seen(1e9 + now), now + 0.01)


def test_slow_whole_looks_are_rare_and_the_others_begin_where_the_last_one_ended() -> None:
    window = Window()
    assert window.ask(0.0) == -inf
    window.answered(seen(1e9), 0.5)  # it took half a second: the next one in 25 s
    for now in range(1, 25):
        assert window.ask(float(now)) == 1e9 + now - 6.0, "what is committed some seconds late is found"
        window.answered(seen(1e9 + now), now + 0.01)
    assert window.ask(26.0) == -inf


def test_a_look_that_left_something_is_followed_by_one_from_the_same_moment() -> None:
    window = Window()
    window.ask(0.0)
    window.answered(seen(1e9), 0.5)
    since = window.ask(1.0)
    window.answered(seen(1e9 + 1.0, is_through=False), 1.1)
    assert window.ask(2.0) == since


# -- searches for children that nobody was told of


def answered(edges: Edges, at: float, took_s: float, place: bytes | None = None) -> HandOver:
    """A step of a search is asked for at a moment, and answered."""
    step = edges.next_search(at)
    assert step is not None
    assert edges.next_search(at) is None, "one at a time"
    step.value = HandedOver(0, [], place)
    edges.finish(step, at + took_s)
    return step


def test_a_search_goes_on_where_its_last_step_ended() -> None:
    edges = Edges("s")
    assert answered(edges, 0.0, 0.01, b"1" * 16).place == bytes(16)
    assert answered(edges, 0.0, 0.01).place == b"1" * 16
    assert edges.next_search(4.9) is None
    assert answered(edges, 5.1, 0.01).place == bytes(16)


def test_slow_searches_are_rare_even_if_others_want_them() -> None:
    edges = Edges("s")
    answered(edges, 0.0, 0.001)
    edges.tell()
    answered(edges, 0.1, 1.0)  # it took a second: the next one in 20 s
    edges.tell()
    edges.search_soon()
    assert edges.next_search(20.9) is None
    assert edges.next_search(21.2) is not None


def test_a_broker_that_knew_of_no_jobs_after_others_searches_when_it_is_told_of_some() -> None:
    """What has ended meanwhile was not handed over."""
    edges = Edges("s")
    answered(edges, 0.0, 0.001)
    edges.look_begins()
    edges.looked(False)
    edges.ended([b"x" * 16])
    assert (edges.has_ended, edges.search_at(50.0)) == (False, inf)
    edges.tell([b"y" * 16])
    assert edges.has_ended
    assert edges.next_search(1.0) is not None


# -- old jobs


def test_old_jobs_go_by_their_number_too_and_failed_ones_stay(connection: psycopg.Connection[Any], url: str) -> None:
    ids = list(new_job_ids(50))
    for place, job_id in enumerate(ids):
        connection.execute(
            in_schema(
                "INSERT INTO taskq.jobs (id, seq, spec, state, finished_at)"
                " VALUES (encode($1, 'hex')::uuid, $2, 1, $3, now())"
            ),
            (job_id, place, 11 if place < 5 else 10),
        )
    link = Link(url, SCHEMA, "test")
    pruned: Pruned = drive(link, Prune(bytes(16), 3_600.0, 20, time.time()), SYSTEM_CLOCK)
    link.close()
    assert pruned == Pruned(None, 25, ids[29])
    left = connection.execute(in_schema("SELECT uuid_send(id) FROM taskq.jobs ORDER BY id")).fetchall()
    assert [bytes(job_id) for (job_id,) in left] == ids[:5] + ids[30:]


def test_a_pass_over_old_jobs_is_made_whole_and_a_long_one_is_rare() -> None:
    retention = Retention(60.0, 1_000)
    assert retention.chores(0.0)
    assert retention.next_exchange(0.0, 1e9) is None
    retention.claimed(0.0)
    for step in range(3):
        assert not retention.chores(10.0 * step)
        assert retention.next_exchange(10.0 * step, 1e9) is not None
        assert retention.next_exchange(10.0 * step, 1e9) is None, "one at a time"
        retention.finish(Pruned(None if step == 2 else b"x" * 16, 3_000, bytes(16)), 10.0 * step)
    assert not retention.chores(200.0)
    assert retention.chores(221.0)
