"""The tables of an application are made once, whoever wants to make them at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from postgres import Server

from taskq.engines.postgres.migrate import VERSION, check, migrate, versions
from taskq.model.errors import JournalError


def test_many_machines_may_make_the_tables_at_the_same_time(postgres: Server, database: str) -> None:
    together = Barrier(4)

    def make(_number: int) -> tuple[int, int]:
        with postgres.connect(database) as connection:
            assert versions(connection, "shop").tables == 0
            together.wait()
            return migrate(connection, "shop")

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, range(4)))
    assert {now for _, now in made} == {VERSION}
    with postgres.connect(database) as connection:
        assert check(connection, "shop").tables == VERSION
        assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


def test_tables_that_are_too_new_are_refused(postgres: Server, database: str) -> None:
    with postgres.connect(database) as connection:
        migrate(connection, "shop")
        connection.execute("UPDATE shop.meta SET version = 1000, oldest_code = 1000")
        with pytest.raises(JournalError, match="upgrade taskq on this machine"):
            migrate(connection, "shop")
