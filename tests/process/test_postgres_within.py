"""`q.within(connection)`: jobs that exist if and only if the application's own transaction commits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import django
import psycopg
import pytest
import sqlalchemy
from django.conf import settings
from django.db.utils import ConnectionHandler
from postgres import Server, running_server
from sqlalchemy.orm import Session

from taskq import ConfigError, JobState, TaskQ, testing
from taskq.client.transport.api import QueueClient
from taskq.engines.postgres.migrate import migrate

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")


@pytest.fixture
def url(postgres: Server, database: str) -> str:
    """Of a database with the tables of the queue, and one of the application."""
    found = postgres.url(database)
    with psycopg.connect(found, autocommit=True) as connection:
        migrate(connection, "taskq_shop")
        connection.execute("CREATE TABLE orders (number int PRIMARY KEY)")
    return found


@pytest.fixture
def q(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskQ]:
    """The application."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    app = TaskQ("shop", url)
    app.task(name="send")(lambda number: number)
    yield app
    app.client.close()


def counts(url: str) -> tuple[int, int]:
    """How many orders there are, and how many jobs."""
    with psycopg.connect(url) as connection:
        sql = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM taskq_shop.queue)"
        row = connection.execute(sql).fetchone()
        assert row is not None
        return row


def test_a_restart_at_the_beginning_is_not_another_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is gone, which is what the application is told."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with running_server() as server:
        url = server.url(server.create_database())
        with psycopg.connect(url, autocommit=True) as connection:
            migrate(connection, "taskq_shop")
        app = TaskQ("shop", url)
        with closing(psycopg.connect(url)) as connection:
            block = app.within(connection)
            client_of = block._client

            def restarted() -> QueueClient:
                server.restart()
                return client_of()

            block._client = restarted
            with pytest.raises(psycopg.OperationalError), block:
                pass
        app.client.close()


def sqlalchemy_url(url: str, driver: str) -> str:
    """The same database for SQLAlchemy."""
    return url.replace("postgresql://", f"postgresql+{driver}://")


INSERT = "INSERT INTO orders VALUES (%s)"


def test_psycopg(q: TaskQ, url: str) -> None:
    """With commit, rollback and a savepoint that is rolled back; several jobs at once, and with constraints."""
    send = q.tasks["send"]
    with closing(psycopg.connect(url)) as connection:
        for ends, expected in ((connection.commit, (1, 3)), (connection.rollback, (1, 3))):
            with q.within(connection):
                connection.execute(INSERT, [expected[0] + (ends == connection.rollback)])
                job = send.enqueue(1)
                send.options(delay=60, meta={"a": "b"}).enqueue(2)
                send.enqueue_many([(3,)])
                assert job.state() == JobState.QUEUED, "it is read as it will be"
            assert counts(url)[1] in (0, 3), "the block commits nothing"
            ends()
            assert counts(url) == expected
        with connection.transaction(), q.within(connection):
            send.enqueue(4)
            with pytest.raises(ZeroDivisionError), connection.transaction():
                send.enqueue(5)
                raise ZeroDivisionError
        assert counts(url) == (1, 4)
    send.enqueue(6)
    assert counts(url) == (1, 5), "outside the block jobs come in by themselves"


def test_brokers_hear_of_it_with_the_commit(q: TaskQ, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as listener, psycopg.connect(url) as connection:
        listener.execute('LISTEN "taskq_shop"')
        with q.within(connection):
            q.enqueue("send", 1)
        assert list(listener.notifies(timeout=0)) == []
        connection.commit()
        assert [told.payload[0] for told in listener.notifies(timeout=30, stop_after=1)] == ["q"]


def test_sqlalchemy(q: TaskQ, url: str) -> None:
    engine = sqlalchemy.create_engine(sqlalchemy_url(url, "psycopg"))
    insert = sqlalchemy.text("INSERT INTO orders VALUES (:number)")
    with Session(engine) as session:
        with q.within(session):
            q.enqueue("send", 1)
            session.execute(insert, {"number": 1})
            with session.begin_nested() as savepoint:
                q.enqueue("send", 2)
                savepoint.rollback()
        assert counts(url) == (0, 0)
        session.commit()
        assert counts(url) == (1, 1)
        with q.within(session):
            q.enqueue("send", 3)
        session.rollback()
        assert counts(url) == (1, 1)
    with engine.connect() as connection:
        with q.within(connection):
            q.enqueue("send", 4)  # nothing else begins a transaction
        connection.commit()
        assert counts(url) == (1, 2)
    with engine.begin() as connection, q.within(connection):
        q.enqueue("send", 5)
    assert counts(url) == (1, 3)
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(ConfigError, match="commits each statement by itself"),
        q.within(connection),
    ):
        pass
    engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_sqlalchemy_with_asyncio(driver: str, q: TaskQ, url: str) -> None:
    pytest.importorskip("greenlet", reason="SQLAlchemy needs it for asyncio")
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    async def main() -> None:
        engine = create_async_engine(sqlalchemy_url(url, driver))
        insert = sqlalchemy.text("INSERT INTO orders VALUES (:number)")
        async with async_sessionmaker(engine)() as session:
            async with q.within(session):
                await q.aenqueue("send", 1)
                await session.execute(insert, {"number": 1})
                await q.tasks["send"].options(delay=5, meta={"a": "b"}).aenqueue(2)
            assert counts(url) == (0, 0)
            await session.commit()
            assert counts(url) == (1, 2)
            async with q.within(session):
                await q.aenqueue("send", 3)
            await session.rollback()
            assert counts(url) == (1, 2)
        async with engine.connect() as connection:
            async with q.within(connection):
                await q.aenqueue("send", 4)
            await connection.commit()
        assert counts(url) == (1, 3)
        await engine.dispose()

    asyncio.run(main())


def test_asyncpg_and_psycopg_with_asyncio(q: TaskQ, url: str) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(url)
        for number, is_kept in ((1, True), (2, False)):
            transaction = connection.transaction()
            await transaction.start()
            async with q.within(connection):
                await connection.execute("INSERT INTO orders VALUES ($1)", number)
                await q.tasks["send"].aenqueue_many([(1,), (2,)])
                await q.tasks["send"].options(delay=5, meta={"a": "b"}).aenqueue(2)
            await (transaction.commit() if is_kept else transaction.rollback())
            assert counts(url) == (1, 3)
        with pytest.raises(ConfigError, match="begin one first"):
            async with q.within(connection):
                pass
        await connection.close()
        async with await psycopg.AsyncConnection.connect(url) as other:
            async with q.within(other):
                await q.aenqueue("send", 3)
                with pytest.raises(ConfigError, match="aenqueue"):
                    q.enqueue("send", 4)
            await other.rollback()
            assert counts(url) == (1, 3)
            async with q.within(other):
                await q.aenqueue("send", 3)
        assert counts(url) == (1, 4)

    asyncio.run(main())


def test_django(q: TaskQ, url: str) -> None:
    from django.db import connections, transaction

    if not settings.configured:
        settings.configure()
        django.setup()
    parameters = psycopg.conninfo.conninfo_to_dict(url)
    handler = ConnectionHandler(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parameters["dbname"],
                "USER": parameters["user"],
                "HOST": parameters["host"],
            }
        }
    )
    connection = handler["default"]
    with pytest.raises(ConfigError, match=r"transaction.atomic\(\)"), q.within(connection):
        pass

    connections["default"] = connection
    atomic = transaction.atomic
    try:
        with atomic(), q.within(connection):
            with connection.cursor() as cursor:
                cursor.execute(INSERT, [1])
            q.enqueue("send", 1)
            with pytest.raises(ZeroDivisionError), atomic():
                q.enqueue("send", 2)
                raise ZeroDivisionError
            assert counts(url) == (0, 0)
        assert counts(url) == (1, 1)
        with pytest.raises(ZeroDivisionError), atomic(), q.within(connection):
            q.enqueue("send", 3)
            raise ZeroDivisionError
        assert counts(url) == (1, 1)
    finally:
        del connections["default"]  # other tests of this process have a site with a database of its own
        connection.close()


DIES = """
import os, signal, sys
import psycopg
from taskq import TaskQ
q = TaskQ("shop", sys.argv[1])
connection = psycopg.connect(sys.argv[1])
with q.within(connection):
    connection.execute("INSERT INTO orders VALUES (1)")
    q.enqueue("send", 1)
if sys.argv[2] == "after":
    connection.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("moment", "expected"), [("before", (0, 0)), ("after", (1, 1))])
def test_a_process_that_dies(moment: str, expected: tuple[int, int], url: str, tmp_path: Path) -> None:
    """Between the enqueue and the commit: neither is there. Behind the commit: both are."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    died = subprocess.run([sys.executable, "-c", DIES, url, moment], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    assert counts(url) == expected


def test_nobody_waits_for_the_own_commit(q: TaskQ, url: str) -> None:
    with psycopg.connect(url) as connection, q.within(connection):
        job = q.enqueue("send", 1)
        with pytest.raises(ConfigError, match="wait for it after the block"):
            job.result()


def test_connections_that_lead_elsewhere_are_refused(q: TaskQ, url: str, postgres: Server, tmp_path: Path) -> None:
    """The job would come into another queue, or none."""
    other = postgres.create_database()
    with (
        psycopg.connect(postgres.url(other)) as connection,
        pytest.raises(ConfigError, match=f"database '{other}'.*must be the same database"),
        q.within(connection),
    ):
        pass
    with pytest.raises(ConfigError, match="takes a connection of psycopg 3"), q.within(object()):
        pass
    with (
        psycopg.connect(url, autocommit=True) as connection,
        pytest.raises(ConfigError, match="begin one first"),
        q.within(connection),
    ):
        pass
    with pytest.raises(ConfigError, match="the queue is in /.*TASKQ_URL=postgresql"):
        TaskQ("shop", str(tmp_path)).within(object())
    postgres.drop_database(other)


def test_jobs_that_are_kept_in_memory_need_no_database(q: TaskQ) -> None:
    """In tests of an application."""
    with testing.queue(q) as jobs, q.within(object()):
        q.enqueue("send", 1)
        assert len(jobs.enqueued()) == 1
