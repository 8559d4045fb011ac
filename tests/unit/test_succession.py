"""Who is started when, and who takes whose place: consumers that come up, fail, retire and die in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.consumers.succession import ProcessState, Succession
from taskq.model.effects import Key

LONG_S = 1000.0  # longer than any pause


@dataclass(eq=False)
class Slot:
    """A consumer without a process."""

    key: Key
    number: int
    started_at: float
    replaces: Key | None
    code: int
    state: ProcessState = ProcessState.STARTING


class Places:
    """A succession, and a clock."""

    def __init__(self, consumers: int) -> None:
        self.succession = Succession[Slot](consumers)
        self.now = 0.0
        self._last_key = 0
        self.start()

    def start(self) -> list[Slot]:
        started = []
        while (start := self.succession.due(self.now)) is not None:
            self._last_key += 1
            consumer = Slot(self._last_key, start.number, self.now, start.replaces, self.succession.code)
            self.succession.consumers[consumer.key] = consumer
            started.append(consumer)
        return started

    def ready(self, consumer: Slot) -> Slot | None:
        old = self.succession.ready(consumer)
        if old is not None:
            assert old.state is ProcessState.READY
            assert old.number == consumer.number
            old.state = ProcessState.RETIRING
        return old

    def dies(self, consumer: Slot) -> None:
        self.succession.ended(consumer, self.now, did_jobs=False)
        if consumer.state is ProcessState.STARTING:
            self.succession.boot_failed(consumer.code, "it died")

    def consumers(self, *states: ProcessState) -> list[Slot]:
        return [consumer for consumer in self.succession.consumers.values() if consumer.state in states]


def up(consumers: int) -> tuple[Places, list[Slot]]:
    """A fleet that has come up."""
    places = Places(consumers)
    consumers = places.consumers(ProcessState.STARTING)
    for consumer in consumers:
        places.ready(consumer)
    return places, consumers


def test_a_reload_replaces_one_after_the_other() -> None:
    places, (one, two) = up(2)
    assert places.succession.reload() == []
    [new] = places.start()
    assert (new.number, new.replaces, places.start()) == (1, one.key, [])
    assert places.ready(new) is one
    assert not places.succession.finish_reload()
    [other] = places.start()
    assert places.ready(other) is two
    assert places.succession.finish_reload()
    assert not places.succession.finish_reload()
    assert (places.start(), places.succession.reload_state) == ([], "done")


def test_a_reload_that_fails_keeps_the_old_ones() -> None:
    places, (one, two) = up(2)
    places.succession.reload()
    [new] = places.start()
    places.dies(new)
    places.now += LONG_S
    assert places.start() == []
    assert places.consumers(ProcessState.READY) == [one, two]
    assert places.succession.reload_state == "failed"
    assert places.succession.reload_error == "it died"


def test_the_old_code_is_forgotten_with_the_last_that_runs_it() -> None:
    places, (one,) = up(1)
    places.succession.reload()
    places.dies(places.start()[0])
    places.dies(one)
    places.now += LONG_S
    places.ready(places.start()[0])
    assert places.succession.reload_state == "done"


def test_nobody_retires_for_a_successor_of_a_dead_one() -> None:
    places, (one,) = up(1)
    places.succession.replace(one)
    [new] = places.start()
    places.dies(one)
    assert places.start() == []
    assert places.ready(new) is None


def test_if_both_die_the_number_is_started_again() -> None:
    places, (one,) = up(1)
    places.succession.replace(one)
    [new] = places.start()
    places.dies(one)
    places.dies(new)
    places.now += LONG_S
    [another] = places.start()
    assert (another.number, another.replaces) == (1, None)


def test_a_successor_that_does_not_come_up_is_tried_again_after_a_pause() -> None:
    """The one that has done its share asks after each job."""
    places, (one,) = up(1)
    for _ in range(20):
        places.succession.replace(one)
        [new] = places.start()
        places.dies(new)
        due = places.succession.next_start()
        assert due is not None
        places.now = max(places.now, due)
    places.succession.replace(one)
    assert places.now > 60
    assert places.start() != []


def test_jobs_that_kill_their_consumers_do_not_keep_others_waiting_for_long() -> None:
    """Each such job is charged, so that does not go on for ever."""
    places, _ = up(1)
    for _ in range(100):
        [consumer] = places.consumers(ProcessState.READY)
        places.dies(consumer)
        due = places.succession.next_start()
        assert due is not None
        assert due <= places.now + 0.2
        places.now = due
        [consumer] = places.start()
        places.ready(consumer)


def test_a_reload_supersedes_those_that_start() -> None:
    places = Places(2)
    before = places.consumers(ProcessState.STARTING)
    assert places.succession.reload() == before
    for consumer in before:
        places.dies(consumer)
    assert places.succession.reload_state == "running"
    after = places.start()
    assert [consumer.number for consumer in after] == [1, 2]
    assert not any(map(places.succession.is_old, after))


def test_new_code_does_not_wait_out_the_pause_of_the_old() -> None:
    places = Places(1)
    for _ in range(10):
        for consumer in places.consumers(ProcessState.STARTING):
            places.dies(consumer)
        places.start()
    assert places.consumers(ProcessState.STARTING) == []
    places.succession.reload()
    assert len(places.start()) == 1


@given(st.data())
def test_whatever_happens_each_number_has_its_consumer_in_the_end(data: st.DataObject) -> None:
    places = Places(data.draw(st.integers(1, 3), "consumers"))
    succession = places.succession
    for _ in range(data.draw(st.integers(0, 60), "steps")):
        actions: list[tuple[str, Any]] = [("reload", None), ("wait", None)]
        actions += [("ready", consumer) for consumer in places.consumers(ProcessState.STARTING)]
        actions += [("dies", consumer) for consumer in succession.consumers.values()]
        actions += [("replace", consumer) for consumer in succession.consumers.values()]
        match data.draw(st.sampled_from(actions), "action"):
            case ("reload", _):
                superseded = succession.reload()
                for consumer in superseded:
                    places.dies(consumer)
            case ("wait", _):
                places.now += data.draw(st.sampled_from((0.05, 1.0, LONG_S)))
            case ("ready", consumer):
                places.ready(consumer)
            case ("dies", consumer):
                places.dies(consumer)
            case ("replace", consumer):
                succession.replace(consumer)
        places.start()
        ours = [consumer.number for consumer in places.consumers(ProcessState.READY)]
        assert len(ours) == len(set(ours)), "two at once where one is wanted"
        assert sum(consumer.replaces in succession.consumers for consumer in succession.consumers.values()) <= 1
    has_failed = succession.reload_error is not None
    for _ in range(20):  # from now on everything works
        places.now += LONG_S
        places.start()
        for consumer in places.consumers(ProcessState.STARTING):
            places.ready(consumer)
        succession.finish_reload()
    ready = places.consumers(ProcessState.READY)
    assert sorted(consumer.number for consumer in ready) == sorted(succession._failures)
    assert has_failed or not any(map(succession.is_old, ready))
    assert not succession.is_reloading
    assert succession.next_start() is None


def test_what_has_failed_for_days_is_tried_again() -> None:
    places = Places(1)
    for _ in range(2000):
        [consumer] = places.consumers(ProcessState.STARTING)
        places.dies(consumer)
        places.now += LONG_S
        places.start()
