"""The function of an application that takes secrets out of the log, before a line is written anywhere.

It is the only code of an application that the broker runs: all that is logged passes there, also what C code and dying
processes write.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from taskq.telemetry.record import FIELDS, Event, plain_fields

#: It changes the fields of an event in place, and returns None.
Redaction = Callable[[Event], object]

#: What every line keeps as it is: readers find and order lines by it.
_HEAD = ("timestamp", "level", "event")
#: What is left of a line if the function fails: names and numbers, but no text that jobs write.
_SAFE = (*_HEAD, *(name for name in FIELDS if name != "error"))


class RedactionError(Exception):
    """The function cannot be had; the message says why."""


def redacted(event: Event, redaction: Redaction) -> Event:
    """Returns what is written of an event.

    If the function raises, or returns something, it may have hidden nothing: then the line has only names and numbers,
    and ``redaction_failed`` says why.

    Args:
        event: as `compose` makes it; it may be changed.
        redaction: the application's function.
    """
    head = {name: event[name] for name in _HEAD}
    safe = {name: event[name] for name in _SAFE if name in event}
    try:
        returned = redaction(event)
    except BaseException as error:  # not its text, which may have the secret
        return {**safe, "redaction_failed": f"the function raised {type(error).__name__}"}
    if returned is not None:
        kind = type(returned).__name__
        return {**safe, "redaction_failed": f"the function returned a {kind}, not None: it must change it in place"}
    return {**head, **plain_fields({name: value for name, value in event.items() if name not in _HEAD})}


def load_redaction(reference: str) -> Redaction:
    """Imports the function.

    Args:
        reference: ``module:function``, found from the current folder first, or ``path/to/file.py:function``.

    Raises:
        RedactionError: there is no such module or function, its import failed, or it does not take one argument.
    """
    import inspect  # a broker without a redaction starts without it

    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise RedactionError(f"log-redact={reference!r}: use module:function or path/to/file.py:function")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_path(place)
        function: object = getattr(module, name)
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise TypeError(f"{name} is not an ordinary function")
        inspect.signature(function).bind({})
    except Exception as error:
        raise RedactionError(f"log-redact={reference!r}: {type(error).__name__}: {error}") from error
    return function


def _from_path(name: str) -> ModuleType:
    """Imports a module. The current folder is on the path for as long as that takes: what the broker itself imports
    later must not come from there."""
    import importlib

    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(os.getcwd())


def _from_file(path: Path) -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"taskq_redaction_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
