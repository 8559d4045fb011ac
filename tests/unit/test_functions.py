"""Whether a function can be called with some arguments, asked before it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taskq.client.options.functions import misfit, signature_of


def work(a: int, /, b: int = 1, *, c: int = 2) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "told"),
    [
        (work, (1,), {}, None),
        (work, [1, 2], {"c": 3}, None),
        (work, (), {}, "missing a required argument: 'a'"),
        (work, (1, 2, 3), {}, "too many positional arguments"),
        (work, (1,), {"d": 3}, "got an unexpected keyword argument 'd'"),
        (max, (), {"any": "thing"}, None),
        (5, (), {}, "5 is not a callable object"),
    ],
)
def test_misfit(function: Callable[..., Any], args: Any, kwargs: dict[str, Any], told: str | None) -> None:
    assert misfit(function, args, kwargs) == told


def test_a_builtin_does_not_tell_its_signature() -> None:
    assert signature_of(max) is None
    assert str(signature_of(len)) == "(obj, /)"
