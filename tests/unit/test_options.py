"""The options of jobs: each is known to type checkers, has one place where it is read, and is checked there."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskq import ConfigError, JobOptions, TaskQ
from taskq.client.options.call_options import CallOptions
from taskq.client.options.options import _OF_CALL, _OF_SPEC, option_types
from taskq.model.spec import Spec

#: Options that only `TaskQ.task` has, beside JobOptions.
OF_TASKS = {"retry_on", "give_up_on"}


@pytest.fixture
def q() -> TaskQ:
    return TaskQ("options", url="/proc/nonexistent")


def test_each_option_is_read() -> None:
    """One without a row would be taken and forgotten."""
    assert set(_OF_SPEC) | set(_OF_CALL) == set(JobOptions.__annotations__) | OF_TASKS


def test_each_field_has_an_option() -> None:
    of_spec = {each.name for each in fields(Spec) if each.init} - {"task"}
    assert {field for field, _ in _OF_SPEC.values()} == of_spec
    assert {field for field, _ in _OF_CALL.values()} == {each.name for each in fields(CallOptions)}


def test_the_types_of_an_option() -> None:
    """By which the command line reads it: durations, a moment, texts, and the rest as JSON."""
    names = JobOptions.__annotations__
    durations = {name for name in names if float in option_types(name)}
    assert durations == {"delay", "expires", "timeout", "cpu_timeout"}
    assert {name for name in names if datetime in option_types(name)} - durations == {"at"}
    texts = {"queue", "unique", "limit_by", "ordered_by", "rate", "memory_limit", "crash_queue", "when_full"}
    assert {name for name in names if str in option_types(name)} == texts
    assert str not in option_types("colour")


@pytest.mark.parametrize("field", [each.name for each in fields(Spec) if "option" in each.metadata])
def test_each_field_of_a_spec_is_checked(field: str) -> None:
    class Nonsense:
        def __iter__(self) -> Any:
            return iter([self])

    with pytest.raises(ConfigError):
        Spec("t", **{field: Nonsense()})


def test_delay_and_at_replace_each_other(q: TaskQ) -> None:
    """Both say when a job may start: the one that was given last counts, and None takes it back."""
    task = q.task(name="t", delay=5)(lambda: None)
    moment = datetime(2040, 1, 1, tzinfo=UTC)
    assert task.call_options.due == 5
    assert task.options(at=moment).call_options.due == moment
    assert task.options(at=moment).options(delay=timedelta(minutes=1)).call_options.due == 60
    assert task.options(delay=None).call_options.due is None
    assert task.options(delay=0).call_options.is_plain
    assert task.options(delay=7, at=None).call_options.due == 7
    assert task.options(delay=None, at=moment).call_options.due == moment
    with pytest.raises(ConfigError, match="give one of them"):
        task.options(delay=7, at=moment)


def test_an_option_that_is_not_given_stays(q: TaskQ) -> None:
    task = q.task(name="t", queue="mail", retries=1, expires=60, backoff=[1, 2])(lambda: None)
    changed = task.options(priority=3)
    assert (changed.spec.queue, changed.spec.retries, changed.spec.backoff_s) == ("mail", 1, (1, 2))
    assert (changed.spec.priority, changed.call_options) == (3, task.call_options)
    assert task.options(backoff=None).spec.backoff_s is None


def test_a_backoff_function_stays_with_the_task(q: TaskQ) -> None:
    def wait(attempt: int, _error: BaseException) -> float:
        return attempt * 2.0

    task = q.task(name="t", backoff=wait, retry_on=OSError)(lambda: None)
    options = task.options(priority=1).call_options
    assert options.retry_delay_s(3, OSError()) == 6
    assert (options.gives_up(OSError()), options.gives_up(ValueError())) == (False, True)
    assert task.spec.backoff_s is None
    assert options.is_plain, "it is nothing that a job must carry"
