"""Exceptions as text. They are the job's code: whatever their `__str__` or `__class__` does, nothing here raises.

Attributes of a class are read through `type` itself, because a metaclass may answer for its classes.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from taskq.model.errors import CpuTimeout, JobTimeout
from taskq.model.job import JobError
from taskq.model.limits import MAX_CAUSES

_qualname: Any = type.__dict__["__qualname__"]
_module: Any = type.__dict__["__module__"]
_frames: Any = BaseException.__dict__["__traceback__"]
_cause: Any = BaseException.__dict__["__cause__"]
_context: Any = BaseException.__dict__["__context__"]
_hides_context: Any = BaseException.__dict__["__suppress_context__"]


def describe(raised: BaseException, own_modules: tuple[str, ...] = ()) -> JobError:
    """Describes an exception, as it is stored.

    Args:
        own_modules: modules whose frames at the top of the traceback are left out.
    """
    kind = type(raised)
    is_timeout = issubclass(kind, JobTimeout) and not issubclass(kind, CpuTimeout)
    message, traceback_text = text_of(raised), _traceback(raised, own_modules)
    if issubclass(kind, SystemExit):
        message = f"the job called sys.exit({message}); return or raise an exception instead"
    causes = [_line_of(cause) for cause in _causes(raised)]
    if is_timeout:
        return JobError("TimedOut", message, traceback_text, causes=causes)
    return JobError(class_name(raised), message, traceback_text, module=module_name(raised), causes=causes)


def class_name(value: object) -> str:
    """The name of a value's class."""
    return str.__str__(_qualname.__get__(type(value)))


def module_name(value: object) -> str:
    """The name of the module of a value's class; empty if it says none."""
    name = _module.__get__(type(value))
    return str.__str__(name) if isinstance(name, str) else ""


def _causes(raised: BaseException) -> Iterator[BaseException]:
    """What an exception came from, as its traceback tells it: the nearest first."""
    seen = {id(raised)}
    for _ in range(MAX_CAUSES):
        cause = _cause.__get__(raised)
        if cause is None and not _hides_context.__get__(raised):
            cause = _context.__get__(raised)
        if cause is None or id(cause) in seen:
            return
        yield cause
        seen.add(id(cause))
        raised = cause


def _line_of(raised: BaseException) -> str:
    module = module_name(raised)
    dotted = class_name(raised) if module in ("", "builtins") else f"{module}.{class_name(raised)}"
    return f"{dotted}: {text_of(raised)}"


def text_of(value: object) -> str:
    """The text of a value, as a plain `str`: a subclass may hide anything."""
    try:
        return str.__str__(str(value))
    except BaseException as error:
        return f"<its str() raised {class_name(error)}>"


def _traceback(raised: BaseException, own_modules: tuple[str, ...]) -> str:
    frames: TracebackType | None = _frames.__get__(raised)
    try:
        while frames is not None and frames.tb_frame.f_globals.get("__name__") in own_modules:
            frames = frames.tb_next  # the user's own frames only
        return str.__str__("".join(traceback.format_exception(type(raised), raised, frames, limit=-50)))
    except BaseException as error:
        where = "".join(traceback.format_tb(frames, limit=-50))
        return f"{where}<the rest of the traceback could not be made: {class_name(error)}>"
