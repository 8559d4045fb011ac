"""Who is started when, and who takes whose place: consumers that come up, fail, retire and die in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskq.effects import Key
from taskq.succession import SlotState, Succession

LONG_S = 1000.0  # longer than any pause


@dataclass(eq=False)
class Slot:
    """A consumer without a process."""

    key: Key
    number: int
    started_at: float
    replaces: Key | None
    code: int
    state: SlotState = SlotState.STARTING


class Places:
    """A succession, and a clock."""

    def __init__(self, consumers: int) -> None:
        self.succession = Succession[Slot](consumers)
        self.now = 0.0
        self._last_key = 0
        self.start()

    def start(self) -> list[Slot]:
        started = []
        for number, replaces in self.succession.due(self.now):
            self._last_key += 1
            slot = Slot(self._last_key, number, self.now, replaces, self.succession.code)
            self.succession.slots[slot.key] = slot
            started.append(slot)
        return started

    def ready(self, slot: Slot) -> Slot | None:
        old = self.succession.ready(slot)
        if old is not None:
            assert old.state is SlotState.READY
            assert old.number == slot.number
            old.state = SlotState.RETIRING
        return old

    def dies(self, slot: Slot) -> None:
        self.succession.ended(slot, self.now, did_jobs=False)
        if slot.state is SlotState.STARTING:
            self.succession.boot_failed(slot.code, "it died")

    def slots(self, *states: SlotState) -> list[Slot]:
        return [slot for slot in self.succession.slots.values() if slot.state in states]


def up(consumers: int) -> tuple[Places, list[Slot]]:
    """A fleet that has come up."""
    places = Places(consumers)
    slots = places.slots(SlotState.STARTING)
    for slot in slots:
        places.ready(slot)
    return places, slots


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
    assert places.slots(SlotState.READY) == [one, two]
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
        [slot] = places.slots(SlotState.READY)
        places.dies(slot)
        due = places.succession.next_start()
        assert due is not None
        assert due <= places.now + 0.2
        places.now = due
        [slot] = places.start()
        places.ready(slot)


def test_a_reload_supersedes_those_that_start() -> None:
    places = Places(2)
    before = places.slots(SlotState.STARTING)
    assert places.succession.reload() == before
    for slot in before:
        places.dies(slot)
    assert places.succession.reload_state == "running"
    after = places.start()
    assert [slot.number for slot in after] == [1, 2]
    assert not any(map(places.succession.is_old, after))


def test_new_code_does_not_wait_out_the_pause_of_the_old() -> None:
    places = Places(1)
    for _ in range(10):
        for slot in places.slots(SlotState.STARTING):
            places.dies(slot)
        places.start()
    assert places.slots(SlotState.STARTING) == []
    places.succession.reload()
    assert len(places.start()) == 1


@given(st.data())
def test_whatever_happens_each_number_has_its_consumer_in_the_end(data: st.DataObject) -> None:
    places = Places(data.draw(st.integers(1, 3), "consumers"))
    succession = places.succession
    for _ in range(data.draw(st.integers(0, 60), "steps")):
        actions: list[tuple[str, Any]] = [("reload", None), ("wait", None)]
        actions += [("ready", slot) for slot in places.slots(SlotState.STARTING)]
        actions += [("dies", slot) for slot in succession.slots.values()]
        actions += [("replace", slot) for slot in succession.slots.values()]
        match data.draw(st.sampled_from(actions), "action"):
            case ("reload", _):
                superseded = succession.reload()
                for slot in superseded:
                    places.dies(slot)
            case ("wait", _):
                places.now += data.draw(st.sampled_from((0.05, 1.0, LONG_S)))
            case ("ready", slot):
                places.ready(slot)
            case ("dies", slot):
                places.dies(slot)
            case ("replace", slot):
                succession.replace(slot)
        places.start()
        ours = [slot.number for slot in places.slots(SlotState.READY)]
        assert len(ours) == len(set(ours)), "two at once where one is wanted"
        assert sum(slot.replaces in succession.slots for slot in succession.slots.values()) <= 1
    has_failed = succession.reload_error is not None
    for _ in range(20):  # from now on all goes well
        places.now += LONG_S
        places.start()
        for slot in places.slots(SlotState.STARTING):
            places.ready(slot)
        succession.finish_reload()
    ready = places.slots(SlotState.READY)
    assert sorted(slot.number for slot in ready) == sorted(succession._failures)
    assert has_failed or not any(map(succession.is_old, ready))
    assert not succession.is_reloading
    assert succession.next_start() is None


def test_what_has_failed_for_days_is_tried_again() -> None:
    places = Places(1)
    for _ in range(2000):
        [slot] = places.slots(SlotState.STARTING)
        places.dies(slot)
        places.now += LONG_S
        places.start()
