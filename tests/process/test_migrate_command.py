"""`taskq migrate`: the tables of a queue in its database."""

from __future__ import annotations

from pathlib import Path

import pytest
from apps import jobs
from fleet import JOBS, running, use
from machines import SCHEMA, MachineFleet, use_database
from postgres import Server
from terminal import refused, taskq

from taskq.engines.postgres.migrate import VERSION, check
from taskq.model.exits import Exit

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")


def test_the_command(postgres: Server, database: str, tmp_path: Path) -> None:
    """It makes the tables, says when there is nothing to do, and what is wrong."""
    where = {"TASKQ_URL": f"{postgres.url(database)}&schema=shop", "XDG_STATE_HOME": str(tmp_path)}
    made = taskq(None, "migrate", **where)
    assert (made.returncode, made.stderr) == (0, "")
    assert "the tables in schema 'shop' were made" in made.stdout
    with postgres.connect(database) as connection:
        assert check(connection, "shop").tables == VERSION
    assert "are up to date" in taskq(None, "migrate", **where).stdout
    elsewhere = {**where, "TASKQ_URL": where["TASKQ_URL"].replace(database, "nowhere")}
    refused(taskq(None, "migrate", **elsewhere), Exit.NO_FLEET, 'database "nowhere" does not exist')
    refused(taskq(None, "migrate", str(tmp_path), **where), Exit.USAGE, "there is no database")


def test_a_newer_taskq_widens_the_tables_under_a_fleet(
    postgres: Server, database: str, tmp_path: Path, home: Path
) -> None:
    """Machines are upgraded one by one: the older fleet goes on, and another of its version may still start; a version
    that is too old for the tables does not, and says so."""
    url = postgres.url(database)
    newer = f"""
        BEGIN;
        ALTER TABLE {SCHEMA}.jobs ADD COLUMN of_tomorrow int;
        ALTER TABLE {SCHEMA}.queue ADD COLUMN of_tomorrow int DEFAULT 1;
        UPDATE {SCHEMA}.meta SET version = {VERSION + 1};
        COMMIT"""
    use_database(jobs.q, tmp_path / "a", url)
    with running(MachineFleet(tmp_path / "a", url)) as first, postgres.connect(database) as connection:
        before = jobs.add.enqueue_many((number,) for number in range(2_000))
        connection.execute(newer.encode())
        after = jobs.add.enqueue_many((number,) for number in range(2_000))
        assert [job.result(20) for job in [*before, *after]] == 2 * list(range(1, 2_001))
        with running(MachineFleet(tmp_path / "b", url)):
            first.stop()
            assert jobs.add.enqueue(1).result(20) == 2
        connection.execute(f"UPDATE {SCHEMA}.meta SET oldest_code = {VERSION + 1}".encode())
        done = taskq(None, "worker", JOBS, TASKQ_URL=url, XDG_STATE_HOME=str(tmp_path / "b"))
        assert done.returncode == Exit.JOURNAL
        assert f"are of version {VERSION + 1}, which this taskq is too old for: upgrade taskq" in done.stderr
    jobs.q.client.close()
    use(jobs.q, home)
