"""Whatever waits for a fleet or its spool comes in a pair: `x` blocks, and `ax` is for asyncio."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import taskq
from taskq.client.schedules import Schedules
from taskq.client.workflows import Workflow

CLASSES = (taskq.TaskQ, taskq.Task, taskq.Job, taskq.LastJob, taskq.GroupHandle, taskq.Step, Workflow, Schedules)
#: What does no I/O: it looks at what is here, registers something, or makes a handle.
STAYS_HERE = {
    "TaskQ": {"check_use", "async_client", "executor", "job", "middleware", "named", "on_consumer_start"}
    | {
        "on_consumer_stop",
        "on_enqueue",
        "periodic",
        "redact",
        "task",
        "use_client",
        "use_directory",
        "use_place",
        "within",
    },
    "Task": {"for_schedule", "options", "step"},
    "Job": set(),
    "LastJob": set(),
    "GroupHandle": set(),
    "Step": {"without_input"},
    "Workflow": set(),
    "Schedules": {"declare", "function_of"},
}
#: What runs processes of its own, and says so to those who write `async with`.
BLOCKS = {"TaskQ": {"fleet"}}
#: The pair of a name that would be a keyword.
OTHER_NAMES = {"wait": "await_"}


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class."""
    found = {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


def is_of_asyncio(method: Callable[..., Any]) -> bool:
    """Whether it is awaited, or iterated with `async for`."""
    returned = str(inspect.signature(method).return_annotation)
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method) or "AsyncGenerator" in returned


def pair_of(name: str) -> str:
    """The name for asyncio."""
    return OTHER_NAMES.get(name, f"a{name}")


@pytest.mark.parametrize("kind", CLASSES)
def test_each_method_that_waits_has_its_pair(kind: type) -> None:
    """With the same parameters, and nothing is for asyncio alone."""
    found = methods(kind)
    blocking = {name for name, method in found.items() if not is_of_asyncio(method)}
    waiting = blocking - STAYS_HERE[kind.__name__] - BLOCKS.get(kind.__name__, set())
    assert {pair_of(name) for name in waiting} == set(found) - blocking
    for name in waiting:
        mine = inspect.signature(found[name]).parameters
        pair = inspect.signature(found[pair_of(name)]).parameters
        assert list(map(str, mine.values())) == list(map(str, pair.values())), name


def test_each_function_that_waits_has_its_pair() -> None:
    functions = {name for name in taskq.__all__ if inspect.isfunction(getattr(taskq, name))}
    assert functions == {"chain", "chord", "current_job", "group"} | {
        name
        for pair in (("gather", "agather"), ("as_completed", "aas_completed"), ("wait_any", "await_any"))
        for name in pair
    }


def test_the_lists_of_this_test_have_no_more_than_there_is() -> None:
    for kind in CLASSES:
        assert STAYS_HERE[kind.__name__] <= set(methods(kind)), kind
