"""How long the turns of a loop take."""

from __future__ import annotations

from taskq.system.turns import LongestTurns, TurnTimes


def test_nothing_is_known_before_a_turn_has_ended() -> None:
    turns = TurnTimes()
    turns.ended(5.0)
    assert turns.longest(5.0) == LongestTurns(0.0, 0.0)


def test_sleep_does_not_count() -> None:
    turns = TurnTimes()
    for began_at, ended_at in ((100.0, 100.25), (200.0, 200.125)):
        turns.began(began_at)
        turns.ended(ended_at)
    assert turns.longest(200.125) == LongestTurns(0.25, 0.125)


def test_the_last_minute_forgets_what_was_before_it() -> None:
    turns = TurnTimes()
    turns.began(100.0)
    turns.ended(100.5)
    for second in range(101, 180):
        turns.began(second)
        turns.ended(second + 0.125)
        expected = 0.5 if second < 165 else 0.125 if second > 175 else None
        if expected is not None:
            assert turns.longest(second + 0.125) == LongestTurns(0.5, expected)
    assert turns.longest(1_000.0) == LongestTurns(0.5, 0.0), "it has slept since"
