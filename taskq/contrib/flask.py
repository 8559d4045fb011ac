"""Flask: jobs run inside an application context, and `flask taskq worker` runs a fleet."""

from __future__ import annotations

from collections.abc import Iterator

import click
from flask import Flask, current_app
from flask.cli import with_appcontext

from taskq.client.app import TaskQ
from taskq.client.context import CurrentJob
from taskq.contrib.commands import become_taskq

_EXTENSION = "taskq"


class TaskQFlask:
    """The extension::

        q = TaskQ("shop")
        jobs = TaskQFlask(q)

        def create_app() -> Flask:
            app = Flask(__name__)
            jobs.init_app(app)
            return app

    In the consumers, each job runs inside the application context of `app`: `current_app`, `g` and extensions such as
    Flask-SQLAlchemy work, and their teardown functions run after the job. So the module that the fleet imports must
    create the application. `app.extensions["taskq"]` is `q`.
    """

    def __init__(self, q: TaskQ, app: Flask | None = None) -> None:
        """
        Args:
            app: an application for `init_app`, if there is one already.
        """
        self.q = q
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Gives an application the queue, the command `flask taskq`, and to jobs its context. Of several applications
        in one process, jobs run in the context of the last.

        The setting `TASKQ_APP` of the application names what the fleet imports, as on the command line of taskq; by
        default the module in which `q` is a global.
        """
        app.config.setdefault("TASKQ_APP", None)
        app.extensions[_EXTENSION] = self.q

        @self.q.middleware
        def in_application_context(_job: CurrentJob) -> Iterator[None]:
            with app.app_context():
                yield

        app.cli.add_command(_taskq)


@click.command(
    "taskq",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    help="Run a command of taskq, such as worker, status or logs; `flask taskq --help` lists them.",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@with_appcontext
def _taskq(words: tuple[str, ...]) -> None:
    become_taskq(current_app.extensions[_EXTENSION], words, current_app.config["TASKQ_APP"])
