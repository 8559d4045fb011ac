"""The programs of the multiprocessing tutorials, written with taskq.

    python examples/from_multiprocessing.py

Each step is shown twice: as a comment in its multiprocessing form, then in taskq, which is the code that runs.
It takes about five seconds, four of them in step 5, where four tasks of two seconds share two workers. What
changes for you: the work outlives this program and its crashes, and no step needs a lock, a sentinel, or a
join in the right place.
"""

import multiprocessing
import os
import time

from taskq import TaskQ

q = TaskQ("from_multiprocessing")


@q.task
def greet(name: str) -> str:
    """Says hello, and from which consumer process."""
    return f"Hello {name}, from process {os.getpid()}"


@q.task
def eat(fruit: str) -> str:
    """Prints a line for the fleet's log, and returns a value for whoever asks for the result."""
    print("eating:", fruit)
    return fruit.upper()


@q.task
def square(number: int) -> int:
    """The classic."""
    return number * number


@q.task
def work(name: str, seconds: float) -> tuple[str, float, float]:
    """Takes some time, and returns when it began and ended."""
    began = time.time()
    time.sleep(seconds)
    return name, began, time.time()


def main() -> None:
    """Runs the steps, in the order of the tutorials."""
    # with Pool(2) as pool:
    with q.fleet(consumers=2):
        before = q.status().totals.succeeded  # of earlier runs: the totals are kept as long as the directory

        # process = Process(target=greet, args=("Ada",)); process.start(); process.join(); process.exitcode
        job = greet.enqueue("Ada")
        print("1. A process with arguments:", job.result(timeout=10), "->", job.state())

        # queue = Queue(); queue.put("Apple"); ...; queue.put(None)
        # and in the other process: while (fruit := queue.get()) is not None: ...
        jobs = eat.enqueue_many([("Apple",), ("Orange",), ("Banana",)])
        print("2. A queue:", ", ".join(job.result(timeout=10) for job in jobs))

        # lock = Lock(); Process(target=eat, args=(lock, fruit)) ...; with lock: print(fruit)
        print("3. A lock around the output is not needed. Results come back to one place, as above, and what")
        print("   jobs print goes to the log line by line, each with its job's id: `taskq logs`")

        # pool.map(square, [1, 2, 3, 4])
        print("4. Pool.map:", list(square.map([1, 2, 3, 4])))

        # for name in "ABCD": pool.apply_async(work, (name, 2.0))
        print("5. Four tasks of two seconds on two workers ...")
        timeline(list(work.starmap([(name, 2.0) for name in "ABCD"], ordered=False)))

        # multiprocessing.cpu_count()
        print(f"6. cpu_count() is {multiprocessing.cpu_count()}.", end=" ")
        print("q.fleet() without a number starts one consumer for each CPU that this process may use")

        # counter = Value("i", 0); ...; with counter.get_lock(): counter.value += 1
        status = q.status()
        count = status.totals.succeeded - before
        counts = [f"consumer {each.number} did {each.jobs_done}" for each in status.consumers]
        print(f"7. A shared counter: {count} jobs succeeded; {', '.join(counts)}")


def timeline(spans: list[tuple[str, float, float]]) -> None:
    """Draws when each task worked; one column is a tenth of a second."""
    start = min(began for _, began, _ in spans)
    for name, began, ended in sorted(spans):
        bar = " " * round((began - start) * 10) + "#" * round((ended - began) * 10)
        print(f"   {name} |{bar:<42}| {began - start:3.1f} to {ended - start:3.1f} s")
    print(f"   {max(ended for _, _, ended in spans) - start:.1f} s in all, two at a time")


if __name__ == "__main__":
    main()
