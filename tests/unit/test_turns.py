"""How long the turns of a loop take."""

from __future__ import annotations

from taskq.system.turns import LongestTurns, TurnTimes


def _no_cpu() -> float:
    return 0.0


def test_nothing_is_known_before_a_turn_has_ended() -> None:
    turns = TurnTimes(_no_cpu)
    turns.ended(5.0)
    assert turns.longest(5.0) == LongestTurns(0.0, 0.0, 0.0)


def test_sleep_does_not_count() -> None:
    turns = TurnTimes(_no_cpu)
    for began_at, ended_at in ((100.0, 100.25), (200.0, 200.125)):
        turns.began(began_at)
        turns.ended(ended_at)
    assert turns.longest(200.125) == LongestTurns(0.25, 0.125, 0.0)


def test_the_last_minute_forgets_what_was_before_it() -> None:
    turns = TurnTimes(_no_cpu)
    turns.began(100.0)
    turns.ended(100.5)
    for second in range(101, 180):
        turns.began(second)
        turns.ended(second + 0.125)
        expected = 0.5 if second < 165 else 0.125 if second > 175 else None
        if expected is not None:
            assert turns.longest(second + 0.125) == LongestTurns(0.5, expected, 0.0)
    assert turns.longest(1_000.0) == LongestTurns(0.5, 0.0, 0.0), "it has slept since"


def test_the_cpu_time_of_a_turn_is_told_apart_from_its_sync_and_its_waits() -> None:
    used = iter((1.0, 1.125, 5.0, 5.25, 9.0, 9.0625))
    turns = TurnTimes(lambda: next(used))
    for began_at, ended_at in ((100.0, 108.0), (110.0, 110.5), (120.0, 121.0)):
        turns.began(began_at)
        turns.ended(ended_at)
    assert turns.longest(121.0) == LongestTurns(8.0, 8.0, 0.25)


def test_how_busy_it_was_in_the_last_minute() -> None:
    turns = TurnTimes(_no_cpu)
    assert turns.busy_share(5.0) == 0.0
    for second in range(100, 300):
        turns.began(second)
        turns.ended(second + 0.25)
        if second > 110:
            assert 0.2 < turns.busy_share(second + 0.25) < 0.3
    assert 0.05 < turns.busy_share(345.0) < 0.15, "most of the last minute it slept"
    assert turns.busy_share(1_000.0) == 0.0
    turns.began(2_000.0)
    turns.ended(2_090.0)
    assert turns.busy_share(2_090.0) == 1.0, "a turn that is longer than a minute"
