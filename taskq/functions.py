"""What functions take, asked before they are called."""

from __future__ import annotations

import inspect
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
