"""The server that the tests with PostgreSQL stop, kill and freeze does what they count on."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from postgres import Server, running_server

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")


def put(server: Server, value: int) -> None:
    with server.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (value,))


def kept(server: Server) -> list[int]:
    with server.connect() as connection:
        return [value for (value,) in connection.execute("SELECT value FROM kept ORDER BY value")]


def test_what_is_committed_outlives_a_kill_of_the_server_and_what_is_not_does_not() -> None:
    with running_server(is_safe=True) as server:
        put(server, 1)
        open_connection = psycopg.connect(server.dsn())
        open_connection.execute("INSERT INTO kept VALUES (2)")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            open_connection.commit()
        server.start()
        assert kept(server) == [1]


def test_a_frozen_server_answers_nobody_and_then_goes_on(postgres: Server, database: str) -> None:
    with closing(postgres.connect(database)) as connection:
        postgres.freeze()
        connection.pgconn.send_query(b"SELECT 1")
        connection.pgconn.consume_input()
        assert connection.pgconn.is_busy()
        postgres.thaw()
        assert connection.pgconn.get_result() is not None


def test_the_sessions_of_one_application_are_ended_and_no_others(postgres: Server, database: str) -> None:
    with postgres.connect(database) as ours, postgres.connect(database) as other:
        ours.execute("SET application_name = 'one application'")
        assert postgres.end_sessions("one application") == 1
        with pytest.raises(psycopg.OperationalError):
            ours.execute("SELECT 1")
        other.execute("SELECT 1")
