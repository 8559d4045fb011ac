"""When the broker's loop wakes up."""

from __future__ import annotations

from math import inf

from taskq.system.timers import Timers


def test_the_first_moment_ends_the_sleep() -> None:
    timers = Timers(lambda _now: inf, lambda now: now + 3.0, lambda _now: 12.0)
    assert timers.timeout_s(10.0) == 2.0
    timers.every(5.0, lambda _now: None, 11.5)
    assert timers.timeout_s(10.0) == 1.5
    assert timers.timeout_s(20.0) == 0.0, "what is late is due now"


def test_functions_are_called_again_and_again() -> None:
    calls: list[float] = []
    timers = Timers()
    timers.every(5.0, calls.append, 10.0)
    for now in (9.9, 10.0, 12.0, 14.9, 17.0, 21.0, 22.0):
        timers.run(now)
    assert calls == [10.0, 17.0, 22.0], "the span counts from the call before, which may have been late"
    assert timers.timeout_s(22.0) == 5.0


def test_what_has_nothing_to_do_does_not_wake_the_loop() -> None:
    calls: list[float] = []
    has_work = False
    timers = Timers()
    timers.every(5.0, calls.append, 10.0, lambda _now: has_work)
    timers.run(10.0)
    assert (calls, timers.timeout_s(10.0)) == ([], inf)
    has_work = True
    assert timers.timeout_s(30.0) == 5.0, "from the turn on in which there is something"
    for now in (34.9, 35.0, 40.0):
        timers.run(now)
    has_work = False
    timers.run(45.0)
    assert (calls, timers.timeout_s(45.0)) == ([35.0, 40.0], inf)


def test_who_is_in_a_hurry_is_called_in_the_next_turn() -> None:
    """Also if it says so while it is called; others are called at their time."""
    calls: list[str] = []
    timers = Timers()

    def again(now: float) -> None:
        calls.append("again")
        if len(calls) < 3:
            timers.hurry(again, now)

    timers.every(5.0, again, 1.0)
    timers.every(9.0, lambda _now: calls.append("other"), 1.5)
    for _ in range(5):
        timers.run(1.0)
    assert calls == ["again"] * 3
    assert timers.timeout_s(1.0) == 0.5
    timers.run(1.5)
    assert calls[3:] == ["other"]


def test_a_loop_that_turns_often_does_not_ask_each_time_who_has_something_to_do() -> None:
    asked: list[float] = []
    timers = Timers()
    timers.every(5.0, lambda _now: None, 10.0, lambda now: asked.append(now) or now > 11.0)  # type: ignore[func-returns-value]
    timers.run(10.0)
    asked.clear()
    assert timers.timeout_s(10.5) == inf
    for turn in range(1_000):
        assert turn == 0 or timers.timeout_s(10.5 + turn * 1e-5) <= 0.021, "it must ask before it sleeps for long"
    assert len(asked) == 1
    assert timers.timeout_s(12.0) == 5.0
