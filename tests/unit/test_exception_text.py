"""An exception as text: its type and module, and the chain of what it came from."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from apps import misbehaved

from taskq.consumer.exception_text import describe
from taskq.model.errors import JobTimeout
from taskq.model.limits import MAX_CAUSES


class Declined(Exception):
    """An error of an application."""


def raised_by(code: Any) -> BaseException:
    """What a function raises."""
    try:
        code()
    except BaseException as error:
        return error
    raise AssertionError("it has raised nothing")


def chained() -> None:
    """Raises from an error that came up while another was handled."""
    try:
        try:
            {}["card"]
        except KeyError:
            raise Declined("no card")  # noqa: B904
    except Declined as error:
        raise RuntimeError("not paid") from error


def test_the_chain_of_causes() -> None:
    """The nearest first: what it was raised from, then what was being handled."""
    told = describe(raised_by(chained))
    assert (told.type, told.module, told.message) == ("RuntimeError", "builtins", "not paid")
    assert told.causes == [f"{__name__}.Declined: no card", "KeyError: 'card'"]
    assert told.dotted_type == "RuntimeError"


def test_an_error_of_an_application() -> None:
    """Its module is told, and a class in a function by its whole name."""

    class Local(Declined):
        pass

    told = describe(Local("no"))
    assert (told.module, told.causes) == (__name__, [])
    assert told.dotted_type == f"{__name__}.test_an_error_of_an_application.<locals>.Local"


def test_a_context_that_is_hidden() -> None:
    """`raise ... from None` says that it does not matter."""
    error = Declined("no")
    error.__context__ = KeyError("card")
    assert describe(error).causes == ["KeyError: 'card'"]
    error.__suppress_context__ = True
    assert describe(error).causes == []


def test_a_chain_without_an_end() -> None:
    """A long one is cut, one that bites its tail ends there."""
    first, second = Declined("first"), Declined("second")
    first.__cause__, second.__cause__ = second, first
    assert describe(first).causes == [f"{__name__}.Declined: second"]
    errors = [Declined(str(number)) for number in range(1_000)]
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    assert len(describe(errors[0]).causes) == MAX_CAUSES


def test_a_timeout_is_told_as_ours() -> None:
    """It has a name of taskq's own, so no module; what was going on is its cause."""
    error = JobTimeout("late")
    error.__context__ = KeyError("card")
    told = describe(error)
    assert (told.type, told.module, told.causes) == ("TimedOut", "", ["KeyError: 'card'"])


@pytest.mark.parametrize("name", ["Dumb", "Liar", "Stranger"])
def test_whatever_its_code_does(name: str) -> None:
    """Classes that lie about themselves are told all the same, also as causes."""
    error = vars(misbehaved)[name]("x")
    told = describe(error)
    assert told.module == "apps.misbehaved"
    outer = ValueError("outer")
    outer.__cause__ = error
    [cause] = describe(outer).causes
    assert cause.startswith(f"apps.misbehaved.{told.type}: ")
