"""What type checkers must refuse: the lines marked so, and no other."""

from __future__ import annotations

from right import add, anything, fetch, five, nothing, q, resize, total

from taskq import Job, agather, as_completed, chain, chord, gather, wait_any

add.enqueue()  # wrong: an argument is missing
add.enqueue("1")  # wrong: its type
add.enqueue(1, 2, 3)  # wrong: one too many
add.enqueue(1, c=2)  # wrong: no such name
add("1")  # wrong: called here
resize.enqueue("a", 3)  # wrong: by name only
resize.enqueue("a", size="3")  # wrong: its type
nothing.enqueue(1)  # wrong: it takes none
total.enqueue("1")  # wrong: each of *numbers
add.options(retries="2")  # wrong: an option's type
add.options(colour="red")  # wrong: no such option
add.options(retries=2).enqueue("1")  # wrong: options keep the arguments
add.options(result=1)  # wrong: an option's type
add.options(meta={"tenant": 7})  # wrong: texts only
text: str = add.enqueue(1).result()  # wrong: the result is an int
number: Job[int] = resize.enqueue("a")  # wrong: a job of another type
anything.enqueue("1")  # wrong: its type, though it returns anything
fetch.enqueue(1)  # wrong: its type

q.schedules.add("a", add, evry=5)  # wrong: no such option
q.schedules.add("a", add, every=[5])  # wrong: an option's type
q.schedules.add("a", add, every=5, misfire="never")  # wrong: no such choice
q.periodic(5)  # wrong: no cron expression
q.periodic(every=5, overlap="yes")  # wrong: no such choice
q.periodic(every=5, colour="red")  # wrong: no such option

add.map(["a"])  # wrong: the items are no numbers
add.map(3)  # wrong: nothing to iterate
nothing.map([1])  # wrong: it takes no argument
add.map([1], order=True)  # wrong: no such option
add.map([1], progress=3)  # wrong: neither a bool nor a function
add.starmap([("a", 1)])  # wrong: the first of each
add.starmap([(1, "a")])  # wrong: the second of each
add.starmap([1, 2])  # wrong: no tuples
add.starmap([(1, 2)], order=True)  # wrong: no such option
add.enqueue_many([("a",)])  # wrong: the first of each
add.enqueue_many(["ab"])  # wrong: a text is not a tuple
five.enqueue_many([(1, 2, 3.0, b"d", True)])  # wrong: the second of each
texts: list[str] = list(add.map([1]))  # wrong: the results are numbers

texts = gather([add.enqueue(1)])  # wrong: the results are numbers
text = chain(add.step(1), add.step()).enqueue().result()  # wrong: the result is an int
text = chord([add.step(1)], add.step()).enqueue().result()  # wrong: the result is an int
numbers: list[int] = gather([add.enqueue(1)], errors="return")  # wrong: errors are among them
gather([add])  # wrong: a task is not a job
gather([add.enqueue(1)], errors="ignore")  # wrong: no such choice
for job in as_completed([add.enqueue(1)]):
    text = job.result()  # wrong: the result is an int
text = wait_any([add.enqueue(1)]).result()  # wrong: the result is an int


async def main() -> None:
    await add.aenqueue("1")  # wrong: its type
    await add.aenqueue_many([("a",)])  # wrong: the first of each
    await q.schedules.aadd("a", add, timezone=1)  # wrong: an option's type
    texts: list[str] = await agather([add.enqueue(1)])  # wrong: the results are numbers
    print(await q.job("0" * 32).aresult(), texts)
    add.amap(["a"])  # wrong: the items are no numbers
    add.astarmap([(1, "a")])  # wrong: the second of each
    add.amap([1], order=True)  # wrong: no such option


@q.task(retries="3")  # wrong: an option's type
def f() -> None:
    pass
