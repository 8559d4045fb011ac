"""`taskq migrate`: the tables of a queue in its database."""

from __future__ import annotations

from pathlib import Path

from postgres import Server
from terminal import refused, taskq

from taskq.engines.postgres.migrate import VERSION, check
from taskq.model.exits import Exit


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
