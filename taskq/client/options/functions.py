"""Facts about functions, found without calling them: what they take, and whether two are the same."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

#: The kinds of calls that fit and are remembered for a function: with `**kwargs` there is no end of them.
_MOST_SHAPES = 64


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a function; None for a builtin that does not tell, such as `max`."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def misfit(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why a function cannot be called so; None if it can. A builtin that does not tell is taken to fit."""
    try:
        return Takes(function).misfit(args, kwargs)
    except TypeError as error:
        return str(error)  # it is not a function


class Takes:
    """What a function takes, found out once: most calls are judged by counting, since binding takes as long as all
    else that is done to enqueue one.

    A decorated function takes what its decorator takes: that may add arguments, or leave some out.

    Attributes:
        fewest, most: a call with so many positional arguments and no others fits; where none of these does, the first
            is larger.
        signature: None for a builtin that does not tell, which takes anything.
    """

    __slots__ = ("_fitting", "fewest", "most", "signature")

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        """
        Args:
            function: None for one that is not known here: it takes anything.

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
        """Why it cannot be called so; None if it can."""
        if self.signature is None:
            return None
        shape = (len(args), *kwargs)  # only the number and the names count
        if shape in self._fitting:
            return None
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            return str(error)
        if len(self._fitting) < _MOST_SHAPES:
            self._fitting.add(shape)
        return None


#: What a function takes that is not known here.
TAKES_ANYTHING = Takes()


def _called_signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function, follow_wrapped=False)
    except ValueError:
        return None


def is_same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are one: a module that is imported again defines its tasks anew."""
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
