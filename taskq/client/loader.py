"""From the name of an application to its TaskQ: ``module:attribute`` or ``path/to/file.py:attribute``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from taskq.client.app import TaskQ
from taskq.client.transport.submitting import importing
from taskq.model.errors import AppError

#: Applications of other libraries: the package of their class, and what makes a TaskQ of them. It is imported by name,
#: and only for such an application.
ADAPTERS = {"celery": ("taskq.contrib.celery.application", "application_of")}


def load_app(reference: str) -> TaskQ:
    """Imports an application.

    Args:
        reference: ``module:attribute`` (found from the current folder first), or ``path/to/file.py:attribute``. The
            attribute may be left out where the module has exactly one TaskQ. It may also be an application of Celery.

    Raises:
        AppError: there is no such module or attribute, it is not a TaskQ, or the import failed; the message says which.
        ConfigError: an application of Celery uses something that taskq does not have.
    """
    place, _, attribute = reference.partition(":")
    if not place:
        raise AppError(f"{reference!r} does not name an application: use module:attribute or path/to/file.py:attribute")
    with importing(reference):
        module = _import_file(Path(place)) if place.endswith(".py") or os.sep in place else _import_module(place)
    if not attribute:
        return _only_app(module, place)
    app: object = module
    for name in attribute.split("."):
        if not hasattr(app, name):
            raise AppError(f"{place} has no attribute {attribute!r}{_hint(module)}")
        app = getattr(app, name)
    app = _adapted(app)
    if not isinstance(app, TaskQ):
        raise AppError(f"{reference} is a {type(app).__name__}, not a TaskQ{_hint(module)}")
    return app


def _adapted(app: object) -> object:
    """An application of another library as a TaskQ; anything else as it is."""
    for kind in type(app).__mro__:
        adapter = ADAPTERS.get(kind.__module__.partition(".")[0])
        if adapter is not None:
            module, function = adapter
            return getattr(importlib.import_module(module), function)(app)
    return app


def _import_module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise AppError(
                f"there is no module {missing!r}: taskq looked for it in {os.getcwd()} and on Python's path"
            ) from error
        extra = f": pip install 'taskq-fleet[{missing}]'" if missing in ADAPTERS else ""
        raise AppError(f"{name} imports {missing!r}, which is not installed here{extra}") from error


def _import_file(path: Path) -> ModuleType:
    """Imports a script as a module, so that the code under `if __name__ == "__main__"` does not run."""
    path = path.absolute()
    if not path.is_file():
        raise AppError(f"there is no file {path}")
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None:
        name = f"taskq_app_{name}"  # a script may have the name of a module that is in use: leave that alone
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AppError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _only_app(module: ModuleType, place: str) -> TaskQ:
    apps = _apps(module)
    if len(set(map(id, apps.values()))) != 1:
        raise AppError(f"{place} has {len(apps)} TaskQ objects: name one, as {place}:attribute")
    return next(iter(apps.values()))


def _apps(module: ModuleType) -> dict[str, TaskQ]:
    return {name: value for name, value in vars(module).items() if isinstance(value, TaskQ)}


def _hint(module: ModuleType) -> str:
    names = sorted(_apps(module))
    return f"; did you mean {' or '.join(names)}?" if names else "; it has no TaskQ at all"
