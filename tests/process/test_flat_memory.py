"""A fleet that has new keys all the time takes no more memory, and no more disk, after an hour than after a quarter.

pytest -m soak tests/process/test_flat_memory.py
TASKQ_SOAK_S=600 TASKQ_SOAK_RATE=1000 pytest -s -m soak tests/process/test_flat_memory.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import mean

import psutil
import pytest
from apps import keyed
from fleet import APPS, Fleet, use, wait_until

SECONDS = float(os.environ.get("TASKQ_SOAK_S", "3600"))
JOBS_PER_S = float(os.environ.get("TASKQ_SOAK_RATE", "500"))
SAMPLE_EVERY_S = 2.0
#: What the last quarter may have more than the second one, of the memory of a process and of the journal's file. The
#: noise of the allocator; 480 bytes for each key were 108 MB in ten minutes.
MAX_MORE_MB = 1.5

Sample = dict[str, float]


def sample(fleet: Fleet, pids: dict[str, int]) -> Sample:
    """What everything takes now, in MB."""
    sizes = {name: psutil.Process(pid).memory_info().rss / 1e6 for name, pid in pids.items()}
    return {**sizes, "journal": (fleet.home / "journal.db").stat().st_size / 1e6}


def enqueue_until(end_at: float, take_sample: Callable[[], None]) -> int:
    """Enqueues jobs with new keys, a tenth of a second's at a time. Returns how many."""
    keys = count()
    tasks = keyed.limited, keyed.ordered, keyed.rated
    each = max(1, round(JOBS_PER_S / 10))
    begin = due = time.monotonic()
    sample_at = begin
    for turn in count():
        now = time.monotonic()
        if now >= end_at:
            return next(keys)
        if now >= sample_at:
            sample_at += SAMPLE_EVERY_S
            take_sample()
        tasks[turn % len(tasks)].enqueue_many((f"key {next(keys)}",) for _ in range(each))
        due += 0.1
        time.sleep(max(0.0, due - time.monotonic()))  # a rate, not a wait for something
    raise AssertionError


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 120)
def test_memory_is_flat(start: Callable[..., Fleet], home: Path) -> None:
    fleet = start(f"{APPS / 'keyed.py'}:q", consumers=2, keep_results=5_000).wait_ready()
    use(keyed.q, home)
    consumers = {f"consumer {number}": pid for number, pid in enumerate(fleet.consumer_pids(), 1)}
    pids = {"broker": fleet.broker_pid, **consumers}
    samples: list[Sample] = []
    made = enqueue_until(time.monotonic() + SECONDS, lambda: samples.append(sample(fleet, pids)))
    wait_until(
        lambda: not any(any(queue.values()) for queue in fleet.status()["queues"].values()), "the end of all", 60.0
    )
    quarter = len(samples) // 4
    told, more = [], {}
    for name in samples[0]:
        quarters = [mean(one[name] for one in samples[quarter * part : quarter * (part + 1)]) for part in range(4)]
        more[name] = quarters[3] - quarters[1]
        told.append(f"{name}: {' '.join(f'{size:.2f}' for size in quarters)} MB, {more[name]:+.2f} since the second")
    print(f"\n{made:,} keys in {SECONDS:.0f} s, by quarters", *told, sep="\n  ")
    assert {name: size for name, size in more.items() if size > MAX_MORE_MB} == {}
