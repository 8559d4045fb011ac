"""How much of a job's output is logged: all of a little, the beginning and the end of a flood, and how much was left
out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.consumers.excerpt import BYTES_PER_S, FIRST_BYTES, LAST_BYTES, Excerpt, Portion

NOTHING = Portion(0, [])


def test_little_is_reported_at_once() -> None:
    """Line by line, as it comes."""
    excerpt = Excerpt(0.0)
    for number in range(1_000):
        assert excerpt.take([f"line {number}"], 0.0, 9) == Portion(0, [f"line {number}"])
    assert excerpt.end() == NOTHING


def test_slow_output_is_reported_for_ever() -> None:
    """Ten lines of 100 characters a second, for days."""
    excerpt = Excerpt(0.0)
    for number in range(100_000):
        assert excerpt.take(["x" * 100], number / 10, 9) == Portion(0, ["x" * 100])


def test_first_and_last_lines_of_a_flood() -> None:
    """And the number of those between."""
    excerpt = Excerpt(0.0)
    lines = [f"line {number}" for number in range(100_000)]
    first = excerpt.take(lines, 0.0, len(lines))
    assert first.left_out == 0
    assert first.lines == lines[: len(first.lines)]
    last = excerpt.end()
    assert last.lines == lines[-len(last.lines) :]
    assert len(first.lines) + last.left_out + len(last.lines) == len(lines)
    assert len(first.lines) > 1_000
    assert len(last.lines) > 100


def test_what_was_held_back_is_reported_when_time_allows() -> None:
    """Of a flood that goes on, something is logged now and then. One that is over is logged to its end, though the job
    goes on."""
    excerpt = Excerpt(0.0)
    excerpt.take(["x"] * 50_000, 0.0, 50_000)
    assert excerpt.due(1.0) == NOTHING
    portion = excerpt.due(LAST_BYTES / BYTES_PER_S)
    assert portion.left_out > 0
    assert portion.lines
    assert excerpt.due(1e9) == excerpt.end() == NOTHING


def test_what_may_not_be_reported_now_is_reported_soon() -> None:
    """The log has no room for more this second: the lines wait, and go out with the next look, or with the end."""
    excerpt = Excerpt(0.0)
    assert excerpt.take(["a", "b", "c"], 0.0, 1) == Portion(0, ["a"])
    assert excerpt.take(["d"], 0.0, 9) == NOTHING, "in order"
    assert excerpt.due(0.1) == Portion(0, ["b", "c", "d"])
    assert excerpt.take(["e"], 0.2, 0) == NOTHING
    assert excerpt.end() == Portion(0, ["e"])


@given(
    writes=st.lists(
        st.tuples(st.floats(0, 20), st.integers(0, 3_000), st.integers(0, 8_192), st.integers(0, 3_000)), max_size=20
    ),
)
def test_nothing_is_unaccounted_for_and_all_is_bounded(writes: list[tuple[float, int, int, int]]) -> None:
    """Logged lines and lines that were left out add up, in order. What is logged is bounded by the time that has
    passed."""
    excerpt, now, written, told = Excerpt(0.0), 0.0, 0, []
    for pause_s, count, length, most in writes:
        now += pause_s
        portions = [excerpt.due(now), excerpt.take([f"{written + n} ".ljust(length) for n in range(count)], now, most)]
        written += count
        told += portions
        size = sum(len(line) for portion in told for line in portion.lines)
        assert size <= FIRST_BYTES + BYTES_PER_S * now + 1
        assert sum(map(len, excerpt._held or ())) <= LAST_BYTES
    told.append(excerpt.end())
    expected = 0
    for portion in told:
        expected += portion.left_out
        for line in portion.lines:
            assert int(line.split()[0]) == expected
            expected += 1
    assert expected == written
