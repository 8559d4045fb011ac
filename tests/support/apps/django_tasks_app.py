"""Tasks of Django, as a project has them; the tests configure Django before they import this."""

from __future__ import annotations

from typing import Any

from django_tasks import task


@task(unique=["user"], retries=1, backoff=[0.01])
def greet(user: str, times: int = 1) -> list[str]:
    return [f"hello {user}"] * times


@task
async def add(a: int, b: int) -> int:
    return a + b


@task(takes_context=True)
def tell(context: Any, what: str) -> list[Any]:
    return [context.attempt, context.task_result.id, what]


@task(retries=1, backoff=[0.01])
def fail(what: str) -> None:
    raise KeyError(what)


@task
def make_set() -> Any:
    return {1, 2}
