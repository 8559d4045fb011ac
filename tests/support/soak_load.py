"""What clients do in tests/postgres_soak.py: producers enqueue with all options, an operator cancels, retries, pauses and
waits. All note what they mean to do, and what was acknowledged."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Any
from uuid import uuid4

import psycopg
from apps import soak_machines as tasks
from history import Limits, Read
from history_limits import Limited, Place
from history_machines import MachinesHistory

from taskq import BrokerUnavailable, JobState, TaskQError, chain, chord
from taskq.client.job import Job

#: Jobs that wait at most: more would only wait longer.
AHEAD = 250
_SUCCEEDS = frozenset({"succeeded"})
_RATES = {"rated": (20, 5.0), "rated_key": (4, 5.0)}
#: What a client may be told while the database is away, or full, or when it comes too late.
REFUSALS = (TaskQError, psycopg.Error)


class Load:
    """What all clients share."""

    def __init__(self, history: MachinesHistory, path: str, dsn: str, seed: str) -> None:
        self.history, self.path, self.dsn, self.seed = history, path, dsn, seed
        self.is_over, self.lock = Event(), Lock()
        self.jobs: dict[str, Job[Any]] = {}
        self.singles: list[str] = []  # jobs on which no other depends
        self.failing: list[str] = []
        self.refusals: Counter[str] = Counter()
        self.acts: Counter[str] = Counter()
        self.waiting = 0  # jobs that have not ended

    def threads(self, producers: int) -> list[Thread]:
        """Those that make the load, until `is_over`."""
        return [*(Producer(self, number) for number in range(producers)), Operator(self)]

    def acked(self, made: Sequence[tuple[str, Job[Any]]], ends: frozenset[str] = _SUCCEEDS) -> None:
        """Jobs were acknowledged."""
        now = time.monotonic()
        with self.lock:
            for label, job in made:
                self.history.acked[label] = now
                self.history.may_end[label] = ends
                self.jobs[label] = job


class Client(Thread):
    """Does what chance says."""

    def __init__(self, load: Load, name: str, pause_s: tuple[float, float]) -> None:
        super().__init__(name=name)
        self.load, self.history, self.path = load, load.history, load.path
        self.random = random.Random(f"{load.seed} {name}")
        self._pause_s = pause_s

    def acts(self) -> Sequence[tuple[int, Callable[[], object]]]:
        """How often, and what."""
        raise NotImplementedError

    def may(self) -> bool:
        """Whether it may do something now."""
        return True

    def run(self) -> None:
        weights, acts = zip(*self.acts(), strict=True)
        while not self.load.is_over.wait(self.random.uniform(*self._pause_s)):
            if not self.may():
                continue
            [act] = self.random.choices(acts, weights)
            try:
                act()
                with self.load.lock:
                    self.load.acts[act.__name__.strip("_")] += 1
            except REFUSALS as error:
                with self.load.lock:
                    self.load.refusals[f"{act.__name__}: {type(error).__name__}"] += 1
            except Exception as error:
                self.history.leaks.append(f"{self.name} got {error!r}: no client should")


class Producer(Client):
    """Enqueues."""

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(load, f"producer {number}", (0.005, 0.15))
        self._number, self._labels = number, 0

    def may(self) -> bool:
        return self.load.waiting < AHEAD

    def acts(self) -> Sequence[tuple[int, Callable[[], object]]]:
        return (
            (6, self._one),
            (2, self._many),
            (2, self._chain),
            (2, self._chord),
            (2, self._later),
            (2, self._expires),
            (5, self._within),
            (2, self._limited),
            (2, self._of_key),
            (3, self._in_line),
            (2, self._rated),
            (1, self._on_gpu),
            (2, self._only_one),
            (2, self._parent),
            (1, self._items),
            (2, self._resumes),
            (1, self._odd),
        )

    def _label(self) -> str:
        self._labels += 1
        label = f"{self._number}-{self._labels}"
        self.history.intents[label] = label
        return label

    def _seconds(self) -> float:
        return self.random.choice((0.0, 0.0, 0.01, 0.05, 0.3, 2.0, 6.0))

    def _short(self) -> float:
        return self.random.choice((0.0, 0.02, 0.2, 1.5))

    def _single(self, label: str, job: Job[Any], ends: frozenset[str] = _SUCCEEDS) -> None:
        self.load.acked([(label, job)], ends)
        self.load.singles.append(label)

    def _one(self) -> None:
        label, path = self._label(), self.path
        priority = self.random.choice((0, 0, 5))
        dice = self.random.random()
        if dice < 0.2:
            self._single(label, tasks.fails_once.options(priority=priority).enqueue(path, label))
        elif dice < 0.5:
            self.history.queues[label] = "second"
            self._single(label, tasks.work_in_second.enqueue(path, label, self._seconds()))
        else:
            self._single(label, tasks.work.options(priority=priority).enqueue(path, label, self._seconds()))

    def _odd(self) -> None:
        label, path = self._label(), self.path
        match self.random.choice(("fails", "dies", "hangs")):
            case "fails":
                self.history.limits[label] = Limits(1, tasks.CRASHES)
                self.load.acked([(label, tasks.fails.enqueue(path, label))], frozenset({"failed"}))
                self.load.failing.append(label)
            case "dies":
                self._single(label, tasks.dies_once.enqueue(path, label))
            case "hangs":
                self.history.limits[label] = Limits(2, tasks.CRASHES, is_watched=True)
                self._single(label, tasks.hangs_once.enqueue(path, label))

    def _many(self) -> None:
        labels = [self._label() for _ in range(20)]
        made = tasks.work.enqueue_many([(self.path, label, 0.001) for label in labels])
        self.load.acked(list(zip(labels, made, strict=True)))

    def _chain(self) -> None:
        labels, path = [self._label() for _ in range(3)], self.path
        first, *others = labels
        self.history.after.update((label, {before: False}) for before, label in zip(labels, others, strict=False))
        fails = self.random.random() < 0.2
        steps = [tasks.follow.step(path, label) for label in others]
        begin = tasks.fails.step(path, first) if fails else tasks.work.step(path, first, 0.05)
        if fails:
            self.history.limits[first] = Limits(1, tasks.CRASHES)
        last = chain(begin, *steps).enqueue()
        self.load.acked([(others[-1], last)], frozenset({"cancelled"}) if fails else _SUCCEEDS)

    def _chord(self) -> None:
        *members, last = (self._label() for _ in range(4))
        self.history.after[last] = dict.fromkeys(members, False)
        parts = [tasks.work.step(self.path, label, self._short()) for label in members]
        self.load.acked([(last, chord(parts, tasks.follow.step(self.path, last)).enqueue())])

    def _later(self) -> None:
        label, in_s = self._label(), self.random.choice((0.5, 3.0))
        self.history.not_before[label] = time.monotonic() + in_s
        self._single(label, tasks.work.options(delay=in_s).enqueue(self.path, label, 0.0))

    def _expires(self) -> None:
        label, in_s = self._label(), self.random.choice((0.3, 2.0, 10.0))
        self.history.not_after[label] = time.monotonic() + in_s
        job = tasks.work.options(expires=in_s).enqueue(self.path, label, 0.0)
        self.load.acked([(label, job)], frozenset({"succeeded", "expired"}))

    def _within(self) -> None:
        label, order = self._label(), uuid4()
        is_kept, has_savepoint = self.random.random() < 0.6, self.random.random() < 0.3
        self.history.orders[label] = str(order)
        with psycopg.connect(self.load.dsn, connect_timeout=5) as connection:
            connection.execute("INSERT INTO public.orders VALUES (%s)", [order])
            with tasks.q.within(connection):
                job = tasks.work.enqueue(self.path, label, 0.0)
            if has_savepoint:
                self._roll_back_to_savepoint(connection)
            if is_kept:
                connection.commit()
            else:
                connection.rollback()
        if is_kept:
            self.load.acked([(label, job)])

    def _roll_back_to_savepoint(self, connection: psycopg.Connection[Any]) -> None:
        label, order = self._label(), uuid4()
        self.history.orders[label] = str(order)
        with connection.transaction(force_rollback=True):
            connection.execute("INSERT INTO public.orders VALUES (%s)", [order])
            with tasks.q.within(connection):
                tasks.work.enqueue(self.path, label, 0.0)

    def _limited(self) -> None:
        label = self._label()
        self.history.limited[label] = Limited(("two_at_once", 2))
        self._single(label, tasks.two_at_once.enqueue(self.path, label, self._short()))

    def _of_key(self) -> None:
        label, key = self._label(), f"key{self.random.randrange(5)}"
        self.history.limited[label] = Limited((f"one_of_key {key}", 1))
        self._single(label, tasks.one_of_key.enqueue(self.path, label, self._short(), key))

    def _in_line(self) -> None:
        key, asked_at = f"line{self.random.randrange(4)}", time.monotonic()
        labels = [self._label() for _ in range(self.random.choice((1, 1, 4)))]
        for number, label in enumerate(labels):
            self.history.places[label] = Place(key, asked_at, number)
        calls = [
            (self.path, label, self.random.choice((0.0, 0.02, 0.3)), key, self.random.choice((0, 0, 1, 2)))
            for label in labels
        ]
        self.load.acked(list(zip(labels, tasks.in_line.enqueue_many(calls), strict=True)))

    def _rated(self) -> None:
        label = self._label()
        key = self.random.choice(("", "", "a", "b"))
        subject = "rated_key" if key else "rated"
        self.history.limited[label] = Limited(None, (f"{subject} {key}", *_RATES[subject]))
        if key:
            self._single(label, tasks.rated_key.enqueue(self.path, label, key))
        else:
            self._single(label, tasks.rated.enqueue(self.path, label))

    def _on_gpu(self) -> None:
        label = self._label()
        self.history.limited[label] = Limited(resources=(("gpu", 1),))
        self._single(label, tasks.on_gpu.enqueue(self.path, label, self._short()))

    def _only_one(self) -> None:
        label, key = self._label(), f"unique{self.random.randrange(6)}"
        job = tasks.only_one.enqueue(self.path, label, self._short(), key)
        if not job.is_duplicate:
            self.load.acked([(label, job)])
            self.history.keys[label] = key

    def _parent(self) -> None:
        label = self._label()
        self.load.acked([(label, tasks.parent.enqueue(self.path, label, self.random.choice((0, 1))))])

    def _items(self) -> None:
        label, count = self._label(), self.random.choice((3, 30))
        self.history.wanted_items[label] = [f"{label}:{number}" for number in range(count)]
        job = tasks.items.enqueue(self.path, label, count)
        self.load.acked([(label, job)])
        if self.random.random() < 0.3:
            seen = self.history.items.setdefault(label, [])
            with suppress(TimeoutError):
                for item in job.items(timeout=5.0):
                    seen.append(item)

    def _resumes(self) -> None:
        label = self._label()
        self._single(label, tasks.resumes.enqueue(self.path, label, self.random.choice((2, 20))))


class Operator(Client):
    """Waits for jobs, cancels and retries some, and pauses a queue."""

    def __init__(self, load: Load) -> None:
        super().__init__(load, "operator", (0.05, 0.5))

    def acts(self) -> Sequence[tuple[int, Callable[[], object]]]:
        return (6, self._wait), (3, self._cancel), (3, self._retry), (1, self._pause), (1, self._look)

    def _wait(self) -> None:
        with self.load.lock:
            label = self.random.choice(list(self.load.jobs)[-50:]) if self.load.jobs else None
        if label is not None:
            job = self.load.jobs[label]
            if job.wait(timeout=5) and (state := job.info().state) is not JobState.CANCELLED:
                self.history.reads.append(Read(label, state.value, "", time.monotonic()))

    def _cancel(self) -> None:
        if not self.load.singles:
            return
        label = self.random.choice(self.load.singles[-30:])
        self.history.cancels.add(label)
        if self.load.jobs[label].cancel(running=self.random.random() < 0.7):
            self.history.cancelled.setdefault(label, time.monotonic())

    def _retry(self) -> None:
        if not self.load.failing:
            return
        label = self.random.choice(self.load.failing[-30:])
        self.history.retried.add(label)
        self.history.asked_retries[label] += 1
        self.load.jobs[label].retry()
        self.history.requeued[label] += 1

    def _pause(self) -> None:
        try:
            tasks.q.pause("second")
            self.history.pauses.append(("second", time.monotonic()))
            self.load.is_over.wait(self.random.choice((0.5, 3.0)))
        finally:
            self.history.resumes.append(time.monotonic())
            until_done(lambda: tasks.q.resume("second"))

    def _look(self) -> None:
        tasks.q.status()
        list(tasks.q.jobs(state=JobState.FAILED, limit=10))


def put_schedule(load: Load, name: str, every_s: float) -> None:
    """A schedule that makes up for what it has missed."""
    load.history.every_s[name] = every_s
    tasks.q.schedules.add(name, tasks.tick, every=every_s, misfire="all", args=(load.path,))


def remove_schedule(name: str) -> None:
    """It fires no more."""

    def remove() -> None:
        if any(each.name == name for each in tasks.q.schedules.list()):  # else the answer to an earlier try was lost
            tasks.q.schedules.remove(name)

    until_done(remove)


def until_done(act: Callable[[], object]) -> None:
    """Does something until the database says that it is done."""
    while True:
        try:
            act()
        except BrokerUnavailable:
            time.sleep(0.2)
        else:
            return
