"""A script with its own tasks and its own fleet, in one file."""

from __future__ import annotations

import os

from taskq import TaskQ

q = TaskQ("script")


@q.task
def square(number: int) -> list[int]:
    return [number * number, os.getpid()]


if __name__ == "__main__":
    with q.fleet(consumers=2):
        squares = list(square.map(range(100)))
    assert [value for value, _ in squares] == [number * number for number in range(100)]
    assert os.getpid() not in {pid for _, pid in squares}
    print("done", len(squares))
