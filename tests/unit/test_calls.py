"""Calls that do not fit their task are refused where they are made."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from taskq import BadArguments, ConfigError, EnqueueError, TaskQ, chain, testing
from taskq.client.options.functions import Takes


def plain(a: int, b: int = 2) -> int:
    return a + b


def named(a: int, /, *, b: int, c: int = 3) -> int:
    return a + b + c


def anything(*args: int, **kwargs: int) -> int:
    return sum(args) + sum(kwargs.values())


def given_a_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds an argument, as those do that open a connection."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function("connection", *args, **kwargs)

    return call


@given_a_connection
def stored(connection: str, row: int) -> str:
    return f"{connection} {row}"


q = TaskQ("calls", url="/proc/nonexistent")
for _function in (plain, named, anything, stored):
    q.task(_function)
q.task(name="largest")(max)

FITTING = [
    ("plain", (1,), {}),
    ("plain", (1, 2), {}),
    ("plain", (), {"a": 1}),
    ("named", (1,), {"b": 2}),
    ("anything", (1, 2, 3), {"x": 4}),
    ("stored", (1,), {}),
    ("largest", (1, 2), {}),
    ("largest", (), {"any": "thing"}),
]
UNFIT = [
    ("plain", (), {}, r"^plain\(a.*, b.* = 2\).* does not take these arguments: missing a required argument: 'a'$"),
    ("plain", (1, 2, 3), {}, "too many positional arguments"),
    ("plain", (1,), {"a": 1}, "multiple values for argument 'a'"),
    ("plain", (1,), {"c": 1}, "got an unexpected keyword argument 'c'"),
    ("named", (1,), {}, "missing a required (keyword-only )?argument: 'b'"),
    ("named", (), {"a": 1, "b": 2}, "'a'"),
]


@pytest.mark.parametrize(("task", "args", "kwargs"), FITTING)
def test_what_fits_is_taken(task: str, args: Any, kwargs: Any) -> None:
    with testing.queue(q) as jobs:
        q.enqueue(task, *args, **kwargs)
        q.tasks[task].step(*args, **kwargs).enqueue()
        assert len(jobs.enqueued(task)) == 2
        if not kwargs:
            q.tasks[task].enqueue_many([args, list(args)])
            assert len(jobs.enqueued(task)) == 4


@pytest.mark.parametrize(("task", "args", "kwargs", "told"), UNFIT)
def test_what_does_not_fit_is_refused_where_it_is_made(task: str, args: Any, kwargs: Any, told: str) -> None:
    unfit = q.tasks[task]
    makers: list[Callable[[], Any]] = [
        lambda: unfit.enqueue(*args, **kwargs),
        lambda: unfit.options(delay=5, unique=True).enqueue(*args, **kwargs),
        lambda: q.enqueue(task, *args, **kwargs),
        lambda: asyncio.run(unfit.aenqueue(*args, **kwargs)),
        lambda: unfit.step(*args, **kwargs).enqueue(),
        lambda: unfit.options(limit_by=["a"], concurrency=1).step(*args, **kwargs).enqueue(),
    ]
    if not kwargs:
        makers += [
            lambda: unfit.enqueue_many([args]),
            lambda: unfit.enqueue_many([list(args)]),
            lambda: list(unfit.starmap([args])),
            lambda: asyncio.run(unfit.aenqueue_many([args])),
        ]
    with testing.queue(q) as jobs:
        for make in makers:
            with pytest.raises(BadArguments, match=told) as caught:
                make()
            assert isinstance(caught.value, EnqueueError)
            assert isinstance(caught.value, TypeError)
        assert jobs.enqueued() == []


def test_a_step_is_judged_with_what_the_one_before_gives_it() -> None:
    task = q.tasks["plain"]
    with testing.inline(q):
        assert chain(task.step(1), task.step(), task.step(5)).enqueue().result() == 10
        with pytest.raises(BadArguments, match="too many"):
            chain(task.step(1), task.step(5, 6)).enqueue()
        with pytest.raises(BadArguments, match="missing"):
            chain(task.step(1), task.step().without_input()).enqueue()


def test_a_task_that_is_not_known_here_takes_anything() -> None:
    with testing.queue(q) as jobs:
        q.enqueue("elsewhere", 1, 2, x=3)
        assert len(jobs.enqueued("elsewhere")) == 1


@pytest.mark.parametrize("name", [5, None, "no name", ""])
def test_what_cannot_be_the_name_of_a_task_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="task name"):
        q.enqueue(name)


@pytest.mark.parametrize("how", [lambda name: q.enqueue(name, 1), lambda name: q.named(name).enqueue(1)])
def test_a_misspelt_task_gives_a_warning_where_it_is_named(how: Callable[[str], Any]) -> None:
    """And is accepted, once with a warning: it may be a task of a module that is not imported here."""
    q._names_elsewhere.clear()
    with testing.queue(q) as jobs:
        with pytest.warns(
            UserWarning, match=r"task 'pain' is not registered here, but 'plain' is: is the name"
        ) as told:
            how("pain")
        assert told[0].filename == __file__
        with warnings.catch_warnings(action="error"):
            how("pain")
            how("elsewhere")
        assert len(jobs.enqueued("pain")) == 2


@pytest.mark.parametrize("function", [plain, named, anything, stored, max, partial(plain, 1), Path])
def test_counting_and_binding_agree(function: Callable[..., Any]) -> None:
    """What is taken by its number is what a call would take."""
    takes = Takes(function)
    for count in range(5):
        args = tuple(range(count))
        assert (takes.fewest <= count <= takes.most) == (takes.misfit(args, {}) is None)


@pytest.mark.parametrize("function", [lambda: None, partial(plain, 1)])
def test_a_function_without_a_name_needs_one(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"has no name of its own: give it one, as in q\.task\(name="):
        q.task(function)
    TaskQ("names").task(name="with_a_name")(function)


def test_partials_of_two_functions_do_not_share_a_name() -> None:
    app = TaskQ("names")
    app.task(name="one")(partial(plain, 1))
    app.task(name="one")(partial(plain, 1))  # as by a module that is imported again
    with pytest.raises(ConfigError, match=r"'one' is taken by test_calls\.plain"):
        app.task(name="one")(partial(named, 1))


def test_many_kinds_of_calls_are_judged_one_by_one() -> None:
    takes = Takes(named)
    for _ in range(2):
        assert takes.misfit((1,), {"b": 1}) is None
        assert takes.misfit((1,), {"c": 1}) is not None
    wide = Takes(anything)
    assert all(wide.misfit((), {f"x{number}": 1}) is None for number in range(200))


def test_async_with_is_told_what_to_write() -> None:
    async def run() -> None:
        async with q.fleet():  # type: ignore[attr-defined]
            pass

    with pytest.raises(TypeError, match=r"write `with q\.fleet\(\):`, also in async code"):
        asyncio.run(run())
