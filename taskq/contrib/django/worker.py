"""What the fleet of a Django project imports: `taskq worker taskq.contrib.django.worker:default`.

The attribute is the alias of a backend in TASKS. It needs DJANGO_SETTINGS_MODULE; `manage.py taskq worker` sets it.
"""

from __future__ import annotations

from importlib import import_module

import django
from django.core.exceptions import ImproperlyConfigured

from taskq.client.app import TaskQ

django.setup()

from django.utils.module_loading import autodiscover_modules  # noqa: E402 - after the settings

from taskq.contrib.django.backend import backend_of  # noqa: E402

autodiscover_modules("tasks")


def __getattr__(alias: str) -> TaskQ:
    if alias.startswith("__"):
        raise AttributeError(alias)
    try:
        backend = backend_of(alias)
    except ImproperlyConfigured as error:
        raise AttributeError(str(error)) from error
    for module in backend.modules:
        import_module(module)
    return backend.q
