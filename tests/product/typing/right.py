"""What type checkers must accept, with exactly these types."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from datetime import timedelta
from typing import Any, assert_type

from taskq import (
    FleetStatus,
    GroupHandle,
    Job,
    JobState,
    LastJob,
    ScheduleInfo,
    Task,
    TaskQ,
    TaskQError,
    aas_completed,
    agather,
    as_completed,
    await_any,
    chain,
    chord,
    current_job,
    gather,
    group,
    wait_any,
)

q = TaskQ("typing")


@q.task
def add(a: int, b: int = 1) -> int:
    return a + b


@q.task(queue="images", retries=0, timeout=3, max_crashes=1, result=True)
def resize(path: str, *, size: int | None = None) -> str:
    return f"{path} {size}"


@q.task
async def fetch(url: str) -> bytes:
    return url.encode()


@q.task
def total(*numbers: float) -> float:
    return sum(numbers)


@q.task
def nothing() -> None:
    pass


@q.task
def five(a: int, b: str, c: float, d: bytes, e: bool) -> bool:
    return e


@q.task
def maybe(value: int | None) -> int:
    return value or 0


@q.periodic("@daily", name="nightly", timezone="Europe/Berlin", misfire="skip", args=(1,))
@q.periodic(every="30s", overlap="skip", jitter=0.5, kwargs={"number": 1})
@q.task
def tick(number: int) -> int:
    return number


def of_schedules() -> None:
    assert_type(tick.enqueue(1), Job[int])
    assert_type(q.schedules.add("a", tick, "0 3 * * *", args=(1,), kwargs=None), ScheduleInfo)
    assert_type(q.schedules.add("b", tick.options(queue="x"), every=timedelta(minutes=1), misfire="all"), ScheduleInfo)


def of_workflows() -> None:
    assert_type(add.step(1).enqueue(), LastJob[int])
    assert_type(add.step(1).enqueue().result(), int)
    assert_type(group(add.step(1), resize.step("a")).enqueue(), GroupHandle)
    assert_type(group(add.step(n) for n in range(3)).enqueue().results(), list[Any])
    assert_type(chain(add.step(1), group(add.step(), add.step()), total.step()).enqueue().result(timeout=3), float)
    assert_type(chain(add.step(1)).enqueue(), LastJob[int])
    assert_type(chain(chain(resize.step("a"), add.step()), group(add.step(), add.step())).enqueue(), GroupHandle)
    assert_type(chain(*[add.step(n) for n in range(3)]).enqueue(), LastJob[int])
    assert_type(chain(add.step(1), fetch.step()).enqueue(), LastJob[bytes])
    assert_type(chord([add.step(1)], total.step()).enqueue(), LastJob[float])
    assert_type(chord((add.step(n) for n in range(3)), group(total.step())).enqueue(), GroupHandle)
    chord([add.step(1)], total.step()).enqueue().cancel_all()
    assert_type(add.options(after=[add.enqueue(1)]).enqueue(2), Job[int])
    assert_type(add.options(after={add.enqueue(1): "continue"}, on_success=True).enqueue(2), Job[int])


def of_enqueue() -> None:
    assert_type(add(1, b=2), int)
    assert_type(add.enqueue(1), Job[int])
    assert_type(add.enqueue(a=1, b=2), Job[int])
    assert_type(resize.enqueue("a", size=None), Job[str])
    assert_type(resize.enqueue("a").result(timeout=3), str)
    assert_type(resize.options(retries=2).enqueue("a"), Job[str])
    assert_type(nothing.enqueue().result(), None)
    assert_type(total.enqueue(1, 2, 3.5).result(), float)
    assert_type(q.enqueue("add", 1, anything="goes"), Job[Any])
    assert_type(q.job("0" * 32).result(), Any)


def of_many(
    paths: Iterable[str], pairs: list[tuple[int, ...]], rows: list[list[int]], loose: list[tuple[Any, ...]]
) -> None:
    assert_type(add.enqueue_many([(1,), (2,)]), list[Job[int]])
    assert_type(add.enqueue_many((number, 2) for number in range(3)), list[Job[int]])
    assert_type(add.enqueue_many(zip([1], [2], strict=True)), list[Job[int]])
    assert_type(add.enqueue_many(pairs), list[Job[int]])
    assert_type(add.enqueue_many(rows), list[Job[int]])
    assert_type(add.options(retries=0).enqueue_many(loose), list[Job[int]])
    assert_type(nothing.enqueue_many([(), ()]), list[Job[None]])
    assert_type(five.enqueue_many([(1, "b", 2.0, b"d", True)]), list[Job[bool]])
    assert_type(resize.map(paths), Iterator[str])
    assert_type(resize.options(queue="x").map(paths, ordered=False, timeout=3, progress=True), Iterator[str])
    assert_type(maybe.map([1, None]), Iterator[int])
    assert_type(maybe.map(range(3)), Iterator[int])
    assert_type(total.map([1.5, 2]), Iterator[float])
    assert_type(add.map(range(3), progress=print), Iterator[int])
    assert_type(add.starmap([(1, 2)]), Iterator[int])
    assert_type(add.starmap([(1,)], ordered=False, progress=True), Iterator[int])
    assert_type(five.starmap([(1, "b", 2.0, b"d", True)]), Iterator[bool])


@q.task
def count(most: int) -> Generator[int, None, str]:
    yield from range(most)
    return "done"


def of_generators() -> None:
    assert_type(count.enqueue(3).result(), str)
    assert_type(count(3), Generator[int, None, str])


@q.task
def anything(value: int) -> Any:
    return value


def of_anything() -> None:
    assert_type(anything.enqueue(1), Job[Any])
    assert_type(anything(1), Any)
    assert_type(anything.map([1]), Iterator[Any])


def of_any_task(task: Task[..., Any]) -> None:
    task.enqueue(1, b="c")
    assert_type(task.enqueue_many([(1, "b")]), list[Job[Any]])
    assert_type(task.map([1, 2]), Iterator[Any])
    assert_type(task.starmap([(1, "b")]), Iterator[Any])


def of_waiting(numbers: list[Job[int]], text: Job[str]) -> None:
    assert_type(gather(numbers), list[int])
    assert_type(gather(iter(numbers), timeout=3, progress=True), list[int])
    assert_type(gather(numbers, errors="return"), list[int | TaskQError])
    assert_type(wait_any(numbers).result(), int)
    for job in as_completed(numbers, timeout=3):
        assert_type(job, Job[int])
    wider: Job[int | str] = numbers[0]
    both: list[Job[int | str]] = [wider, text, *numbers]
    assert_type(gather(both), list[int | str])


@q.on_enqueue
def trace(task: str, meta: dict[str, str]) -> None:
    meta["task"] = task


@q.redact
def hide(task: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    kwargs.pop("password", None)


@q.task(meta={"team": "billing"})
def bill(number: int) -> str:
    return current_job().meta["team"]


def what_is_told(job: Job[int]) -> None:
    assert_type(q.status(), FleetStatus)
    assert_type(q.status().totals.succeeded, int)
    assert_type(job.info(arguments=True).meta, dict[str, str])
    assert_type(bill.options(meta={"tenant": "acme"}).enqueue(1), Job[str])


async def of_asyncio(numbers: list[Job[int]]) -> None:
    assert_type(await chain(resize.step("a"), add.step()).aenqueue(), LastJob[int])
    assert_type(await group([add.step(1)]).aenqueue(), GroupHandle)
    job = await fetch.aenqueue("url")
    assert_type(job, Job[bytes])
    assert_type(await job, bytes)
    assert_type(await fetch("url"), bytes)
    assert_type(fetch.enqueue("url").result(), bytes)
    assert_type(fetch.map(["url"]), Iterator[bytes])
    assert_type(fetch.starmap([("url",)]), Iterator[bytes])
    assert_type(fetch.enqueue_many([("url",)]), list[Job[bytes]])
    assert_type(fetch.options(retries=1).enqueue("url"), Job[bytes])
    assert_type(await numbers[0], int)
    assert_type(await numbers[0].aresult(timeout=3), int)
    assert_type(await add.aenqueue(1), Job[int])
    assert_type(add.amap(range(3), progress=print), AsyncGenerator[int, None])
    assert_type(add.astarmap([(1, 2)], ordered=False), AsyncGenerator[int, None])
    assert_type(fetch.amap(["url"]), AsyncGenerator[bytes, None])
    assert_type(five.astarmap([(1, "b", 2.0, b"d", True)]), AsyncGenerator[bool, None])
    assert_type(await q.aenqueue("add", 1), Job[Any])
    assert_type(await numbers[0].astate(), JobState)
    assert_type(await q.astatus(), FleetStatus)
    assert_type(await numbers[0].await_(timeout=3), bool)
    assert_type(await (await group([add.step(1)]).aenqueue()).acounts(), dict[JobState, int])
    assert_type(await add.aenqueue_many([(1, 2)]), list[Job[int]])
    assert_type(await agather(numbers), list[int])
    assert_type(await agather(numbers, errors="return"), list[int | TaskQError])
    assert_type(await await_any(numbers), Job[int])
    async for ended in aas_completed(numbers):
        assert_type(ended, Job[int])
