"""Facts about functions, found without calling them: which arguments they take, and whether two are the same."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

#: How many kinds of calls that fit are remembered for a function: with `**kwargs` there may be any number of them.
_MOST_SHAPES = 64


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a function; None for a builtin without one, such as `max`."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def misfit(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why a function cannot be called with these arguments; None if it can, or has no signature."""
    try:
        return Takes(function).misfit(args, kwargs)
    except TypeError as error:
        return str(error)  # it is not a function


class Takes:
    """The arguments that a function takes, found out once. Most calls are checked by counting their arguments, because
    binding takes as long as the rest of an enqueue.

    A decorated function takes what its decorator takes: that may add arguments, or leave some out.

    Attributes:
        fewest, most: a call with this many positional arguments and no others fits; if no such call fits, `fewest` is
            the larger one.
        signature: None for a function that takes anything: it is not known here, or is a builtin without a signature.
    """

    __slots__ = ("_fitting", "fewest", "most", "signature")

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        """
        Args:
            function: None if it is not known here.

        Raises:
            TypeError: it is not a function.
        """
        self.signature = None if function is None else _called_signature_of(function)
        self._fitting: set[tuple[object, ...]] = set()
        self.fewest, self.most = 0, sys.maxsize
        if self.signature is None:
            return
        parameters = self.signature.parameters.values()
        by_position = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        if all(one.kind is not one.VAR_POSITIONAL for one in parameters):
            self.most = len(by_position)
        if any(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters):
            self.fewest, self.most = 1, 0
        else:
            self.fewest = sum(one.default is one.empty for one in by_position)

    def misfit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Why the function cannot be called with these arguments; None if it can."""
        if self.signature is None:
            return None
        shape = (len(args), *kwargs)  # only the number and the names matter
        if shape in self._fitting:
            return None
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            return str(error)
        if len(self._fitting) < _MOST_SHAPES:
            self._fitting.add(shape)
        return None


#: For a function that is not known here.
TAKES_ANYTHING = Takes()


def _called_signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function, follow_wrapped=False)
    except ValueError:
        return None


def is_same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are the same one: a module that is imported again defines its tasks again."""
    return _qualified_name(one) == _qualified_name(other) and _file_of(one) == _file_of(other)


def full_name(function: Callable[..., Any]) -> str:
    """The module and the name of a function; of a `functools.partial`, those of what it calls."""
    return f"{_inner(function).__module__}.{_qualified_name(function)}"


def _qualified_name(function: Callable[..., Any]) -> str:
    inner = _inner(function)
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    return _inner(function.func) if isinstance(function, partial) else function


def _file_of(function: Callable[..., Any]) -> str | None:
    function = _inner(function)
    code = getattr(function, "__code__", None)
    module = sys.modules.get(function.__module__)
    return code.co_filename if code is not None else getattr(module, "__file__", None)
