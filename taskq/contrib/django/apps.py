"""The application of Django: "taskq.contrib.django" in INSTALLED_APPS gives a project `manage.py taskq`."""

from __future__ import annotations

from django.apps import AppConfig


class TaskqConfig(AppConfig):
    """Its label is taskq."""

    name = "taskq.contrib.django"
    label = "taskq"
    verbose_name = "taskq"
