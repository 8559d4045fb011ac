"""The tables of an application are made once, whoever wants to make them at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
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


def test_older_tables_and_the_rights_to_them_are_widened(postgres: Server, database: str) -> None:
    """Roles that could enqueue or work still can, and jobs that live count as enqueued."""
    scripts = files("taskq.engines.postgres").joinpath("schema")
    with postgres.connect(database) as connection:
        connection.execute("CREATE SCHEMA shop")
        for number in (1, 2, 3):
            connection.execute(scripts.joinpath(f"00{number}.sql").read_text().replace("taskq.", '"shop".').encode())
        connection.execute('DROP ROLE IF EXISTS app, "a worker"; CREATE ROLE app; CREATE ROLE "a worker"')
        connection.execute('GRANT SELECT, INSERT ON shop.jobs TO app; GRANT ALL ON shop.jobs TO "a worker"')
        connection.execute("INSERT INTO shop.queue (id, partition, spec, state) VALUES (gen_random_uuid(), 1, 7, 0)")
        assert migrate(connection, "shop") == (3, VERSION)
        rights = "SELECT {}".format(
            ", ".join(
                f"has_table_privilege('{role}', 'shop.tallies', '{right}')"
                for role in ("app", "a worker")
                for right in ("INSERT", "SELECT", "DELETE")
            )
        )
        assert connection.execute(rights.encode()).fetchone() == (True, False, False, True, True, True)
        asked = "SELECT has_column_privilege('app', 'shop.partitions', 'used_at', 'UPDATE')"
        assert connection.execute(asked).fetchone() == (True,)
        asked = "SELECT has_table_privilege('app', 'shop.hosts', 'SELECT'), has_table_privilege('a worker', 'shop.hosts', 'INSERT')"
        assert connection.execute(asked).fetchone() == (False, True)
        assert connection.execute("SELECT what, spec, jobs FROM shop.tallies").fetchall() == [(0, 7, 1)]
        connection.execute('DROP OWNED BY app, "a worker"; DROP ROLE app, "a worker"')
