"""What is asked of functions without calling them: what they take, and which of them are one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a function; None for a builtin that does not tell, such as `max`."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def misfit(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why a function cannot be called so; None if it can. A builtin that does not tell is taken to fit."""
    try:
        signature = signature_of(function)
        if signature is not None:
            signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def is_same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are one: a module that is imported again defines its tasks anew."""
    return one.__qualname__ == other.__qualname__ and _file_of(one) == _file_of(other)


def _file_of(function: Callable[..., Any]) -> str | None:
    code = getattr(function, "__code__", None)
    module = sys.modules.get(function.__module__)
    return code.co_filename if code is not None else getattr(module, "__file__", None)
