"""Exceptions as text. They are code of a job: whatever their `__str__` or `__class__` does, nothing here raises.

What is asked of a class is asked of `type` itself, since a metaclass may answer for its classes as well.
"""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from taskq.model.errors import CpuTimeout, JobTimeout
from taskq.model.job import JobError

_qualname: Any = type.__dict__["__qualname__"]
_frames: Any = BaseException.__dict__["__traceback__"]


def describe(raised: BaseException, own_modules: tuple[str, ...] = ()) -> JobError:
    """An exception as what is kept of it.

    Args:
        own_modules: the frames of these at the top of the traceback are left out.
    """
    kind = type(raised)
    is_timeout = issubclass(kind, JobTimeout) and not issubclass(kind, CpuTimeout)
    message = text_of(raised)
    if issubclass(kind, SystemExit):
        message = f"the job called sys.exit({message}); return or raise an exception instead"
    return JobError("TimedOut" if is_timeout else class_name(raised), message, _traceback(raised, own_modules))


def class_name(value: object) -> str:
    """The name of a value's class."""
    return str.__str__(_qualname.__get__(type(value)))


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
