"""The fleet of a Celery application, which takes the place of its message broker."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from celery import Celery

from taskq.client.app import TaskQ
from taskq.contrib.celery.store import Store
from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_TASK_NAME_CHARS

_OLDEST = (5, 4)
#: Under this name, each job has the id of its task in its meta.
TASK_ID = "celery_id"
#: Result backends that are a message broker: results are kept beside the queue in place of them.
_BROKERS = ("", "disabled", "redis", "rediss", "sentinel", "rpc", "amqp", "taskq")


class Fleet:
    """What a Celery application has on taskq: `fleet_of` makes it, once for each application.

    Attributes:
        q: the queue, which has the name of the application.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.q = TaskQ(_plain(app.main or "celery", 64) or "celery")
        if self.q.place.database is not None:
            raise ConfigError(
                f"the Celery application {app.main!r} cannot use {self.q.place.shown}: Celery's results and chords are "
                "kept in the directory of a queue on one machine; set TASKQ_URL to a directory, or leave it out"
            )
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """What Celery keeps beside its messages, in the directory of the queue."""
        path = Path(self.q.directory.path) / "celery.db"
        if self._store is None or self._store.path != path:  # consumers are told of the directory after the import
            self._store = Store(path, _seconds(self.app.conf.result_expires))
        return self._store


def fleet_of(app: Celery) -> Fleet:
    """Returns the fleet of an application. The first call makes the application use it.

    Raises:
        ConfigError: Celery is too old, or TASKQ_URL names a database.
    """
    known: Fleet | None = app.__dict__.get("taskq")
    if known is None:
        if tuple(map(int, version("celery").split(".")[:2])) < _OLDEST:
            raise ConfigError(f"Celery {version('celery')} is too old: pip install 'taskq-fleet[celery]'")
        app.__dict__["taskq"] = known = Fleet(app)
        app.amqp_cls = "taskq.contrib.celery.messages:FleetAMQP"
        app.control_cls = "taskq.contrib.celery.control:FleetControl"
        app.backend_cls = "taskq.contrib.celery.backend:backend_of"
        for made_before in ("amqp", "control"):
            app.__dict__.pop(made_before, None)
    return known


def needs_results(app: Celery) -> bool:
    """Whether the results of an application are to be kept beside the queue: it names no other place for them, or a
    message broker. A database or files of its own stay in use."""
    named = str(app.conf.result_backend or "")
    return re.split(r"[:+]", named, maxsplit=1)[0] in _BROKERS


def job_task(name: str) -> str:
    """The name that a task of Celery has in taskq: the same, without characters that are not allowed there."""
    return _plain(name, MAX_TASK_NAME_CHARS)


def _plain(text: str, most_chars: int) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:most_chars]


def _seconds(value: object) -> float | None:
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else value
    return float(seconds) if isinstance(seconds, (int, float)) and seconds else None
