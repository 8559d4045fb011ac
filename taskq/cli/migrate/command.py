"""The command, and what it refuses and tells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from taskq.broker.moving import move_to, stopped_queue
from taskq.broker.parts import Export, Moved, grant, make_tables
from taskq.cli.arguments import FleetArgument
from taskq.cli.common import locate_place, named_application
from taskq.client.options.call_options import PLAIN
from taskq.client.options.support import POSTGRES
from taskq.model.errors import ConfigError
from taskq.system.directory import Directory
from taskq.system.place import DatabaseUrl, has_password, place_of


def migrate(
    app: FleetArgument = None,
    directory: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIRECTORY", help="Move the jobs of the stopped fleet of this directory, too."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="The database, without a password.", show_default="TASKQ_URL"),
    ] = None,
    worker: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Let this role run workers and all commands.")
    ] = None,
    enqueuer: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Let this role enqueue jobs and wait for results, no more.")
    ] = None,
) -> None:
    """Make the tables of a queue in its database, or bring them up to date.

    The first worker does it too, if its role may create tables. Run it with a
    role that may, where that of the workers may not. Fleets of the version
    before go on meanwhile.

    With --from, the jobs of a directory move to the database: those that wait,
    with their retries, workflows and keys, and those that have ended, with
    their results. It is done as a whole or not at all: run it again if it was
    interrupted.

    --worker and --enqueuer print the GRANTs that they make.

    $ TASKQ_URL=postgresql://owner@host/database taskq migrate app.py:q
    $ taskq migrate app.py:q --to postgresql://owner@host/database --enqueuer web
    $ taskq migrate app.py:q --from ~/.local/state/taskq/shop --to postgresql://owner@host/database
    """
    database = _database(app, url)
    if directory is None:
        before, now = make_tables(database)
        told = "are up to date" if before == now else "were made" if not before else f"were of version {before}"
        print(f"{database.shown}: the tables in schema {database.schema!r} {told}; version {now}")
        for role, may_work in ((worker, True), (enqueuer, False)):
            if role is not None:
                print(grant(database, role, may_work=may_work), end="")
        return
    source = Directory(directory.absolute())
    with stopped_queue(source) as export:
        _refuse(export)
        moved = move_to(database, source, export)
    _tell(moved, source, database)


def _database(app: str | None, url: str | None) -> DatabaseUrl:
    if url is not None and has_password(url):
        raise ConfigError(
            "--to: every user of this machine can read the arguments of a command: leave the password out of the URL "
            "and set PGPASSWORD, or set TASKQ_URL instead of --to"
        )
    application = None
    if url is not None:
        os.environ["TASKQ_URL"] = url
        application = named_application(app)  # it may have a url= of its own, such as the directory
    database = (locate_place(app) if application is None else place_of(application.name, url)).database
    if database is None:
        raise ConfigError(
            "there is no database: set TASKQ_URL to postgresql://..., or name it with --to; the journal in a "
            "directory upgrades by itself"
        )
    return database


def _refuse(export: Export) -> None:
    """Refuses to move jobs with options that the engine of databases does not support. Raises ConfigError."""
    for spec, has_order in export.to_be_run():
        POSTGRES.check(spec, PLAIN)
        if has_order:
            POSTGRES.check_option(spec.task, "ordered_by")
    for schedule in export.schedules():
        POSTGRES.check_option(f"schedule {schedule.name}", "periodic")


def _tell(moved: Moved, source: Directory, database: DatabaseUrl) -> None:
    numbers = ", ".join(f"{number:,} {name}" for name, number in moved.tally.by_name().items() if number)
    how = "were moved before" if moved.was_before else "were moved"
    print(f"{moved.tally.jobs:,} jobs of {source.path} {how} to schema {database.schema!r} of {database.shown}")
    print(f"counted there and here, and equal: {numbers or 'nothing'}")
    print("set TASKQ_URL to the database for workers and clients; no fleet starts in the directory any more")
