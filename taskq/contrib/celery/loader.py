"""For programs that enqueue: with CELERY_LOADER=taskq.contrib.celery.loader:Loader in the environment, each Celery
application of the program hands its tasks to the fleet. No line of the application changes."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader

from taskq.contrib.celery.fleet import fleet_of


class Loader(AppLoader):
    """Celery's usual loader, which also makes the application use its fleet."""

    def __init__(self, app: Celery, **options: Any) -> None:
        super().__init__(app, **options)
        fleet_of(app)
