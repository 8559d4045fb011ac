"""For consumers: `taskq worker proj.celery:app` runs what this makes of a Celery application."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery import Celery, signals

from taskq.client.app import TaskQ
from taskq.contrib.celery.beat import declare_schedules
from taskq.contrib.celery.fleet import fleet_of, job_task
from taskq.contrib.celery.options import task_options
from taskq.contrib.celery.running import HOSTNAME, Runner, watch


def application_of(app: Celery) -> TaskQ:
    """Returns the application of taskq that runs the tasks of a Celery application, with its beat schedule.

    Raises:
        ConfigError: the application uses something that taskq does not have.
    """
    fleet = fleet_of(app)
    if fleet.q.tasks:
        return fleet.q
    app.loader.import_default_modules()
    app.finalize()
    runner = Runner(app)
    for name in sorted(app.tasks):
        _register(app, fleet.q, name, runner)
    declare_schedules(app)
    fleet.q.on_consumer_start(lambda: _begin(app))
    fleet.q.on_consumer_stop(_end)
    return fleet.q


def _register(app: Celery, q: TaskQ, name: str, runner: Runner) -> None:
    def run(envelope: str, data: Any, content_type: str, encoding: str) -> None:
        runner.run(envelope, data, content_type, encoding)

    task = app.tasks[name]
    watch(task)
    q.task(name=job_task(name), give_up_on=BaseException, **task_options(app, name))(run)


def _begin(app: Celery) -> None:
    """A consumer starts. Celery tells some of this once for all its processes: here, each is a worker of its own."""
    app.set_current()
    app.set_default()
    worker = SimpleNamespace(app=app, hostname=HOSTNAME, pool_cls="celery.concurrency.prefork")
    if signals.setup_logging.receivers:
        signals.setup_logging.send(sender=None, loglevel=None, logfile=None, format=None, colorize=False)
    app.loader.on_worker_init()
    signals.celeryd_init.send(sender=HOSTNAME, instance=worker, conf=app.conf, options={})
    signals.worker_init.send(sender=worker)
    app.loader.init_worker_process()
    signals.worker_process_init.send(sender=None)
    signals.worker_ready.send(sender=worker)


def _end() -> None:
    """A consumer ends."""
    signals.worker_shutting_down.send(sender=HOSTNAME, sig=None, how="Warm", exitcode=0)
    signals.worker_process_shutdown.send(sender=None, pid=None, exitcode=0)
    signals.worker_shutdown.send(sender=None)
