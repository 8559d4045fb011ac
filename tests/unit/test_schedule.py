"""When schedules fire: pure rules, held against plain counting of minutes and against the changes of the clocks."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import inf, nextafter
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskq.model.errors import ConfigError
from taskq.model.info.schedule import schedule_info
from taskq.model.job import enqueued_at, new_job_ids
from taskq.model.schedule import (
    LONGEST_INTERVAL_S,
    MAX_FIRES_AT_ONCE,
    MISSED_AFTER_S,
    NO_JOB,
    Schedule,
    ScheduleRow,
    ahead_s,
    due,
    fire_time,
    fired_id,
    last_fire,
    next_fire,
    payload_for,
    seconds_of,
)
from taskq.model.spec import Spec
from taskq.model.units import seconds_in
from taskq.protocol.codec import CorruptPayload, decode_call, encode_call

BERLIN = ZoneInfo("Europe/Berlin")
PAYLOAD = encode_call(NO_JOB, (1, "two"), {"three": [3]})


def schedule(cron: str | None = None, **fields: Any) -> Schedule:
    """A schedule with these fields."""
    return Schedule("name", Spec("work"), PAYLOAD, cron, **fields)


def at(text: str, zone: Any = UTC, fold: int = 0) -> float:
    """A time of a zone, in seconds since 1970."""
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def fires(made: Schedule, start: float, count: int, zone: Any = UTC) -> list[str]:
    """The next times as local times, with their distance from UTC."""
    told = []
    for _ in range(count):
        start = next_fire(made, start)
        told.append(datetime.fromtimestamp(start, zone).strftime("%m-%d %H:%M %z"))
    return told


# -- cron


minutes = st.sets(st.integers(0, 59), min_size=1, max_size=3)
hours = st.sets(st.integers(0, 23), min_size=1, max_size=3)
days = st.sets(st.integers(1, 31), min_size=1, max_size=3)
weekdays = st.sets(st.integers(0, 6), min_size=1, max_size=3)
moments = st.integers(0, 4_000_000_000).map(float)


def field(chosen: set[int] | None) -> str:
    """A field of a cron expression."""
    return "*" if chosen is None else ",".join(map(str, sorted(chosen)))


def counted(minute: Any, hour: Any, day: Any, weekday: Any, after: float) -> float | None:
    """The next time of a cron expression by looking at each minute of two months, as crontab(5) puts it."""
    found = datetime.fromtimestamp(after // 60 * 60, UTC)
    for _ in range(62 * 24 * 60):
        found += timedelta(minutes=1)
        fits_day = day is None or found.day in day
        fits_weekday = weekday is None or found.isoweekday() % 7 in weekday
        fits = fits_day and fits_weekday if day is None or weekday is None else fits_day or fits_weekday
        if fits and (minute is None or found.minute in minute) and (hour is None or found.hour in hour):
            return found.timestamp()
    return None


@settings(max_examples=60, deadline=None)
@given(minutes | st.none(), hours | st.none(), days | st.none(), weekdays | st.none(), moments)
def test_cron_is_what_counting_finds(minute: Any, hour: Any, day: Any, weekday: Any, after: float) -> None:
    expected = counted(minute, hour, day, weekday, after)
    found = next_fire(schedule(f"{field(minute)} {field(hour)} {field(day)} * {field(weekday)}"), after)
    if expected is None:
        assert found > after + 61 * 86_400  # such as the 31st, from February on
    else:
        assert found == expected


CRONS = [
    "* * * * *",
    "*/7 * * * *",
    "30 2 * * *",
    "0 */2 * * *",
    "15,45 1-3 * * *",
    "0 0 L * *",
    "0 12 * * 1#2",
    "* 3 * * *",
]
crons = st.builds(
    lambda cron, zone: schedule(cron, zone=zone),
    st.sampled_from(CRONS),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
intervals = st.floats(0.1, LONGEST_INTERVAL_S).map(lambda every_s: schedule(every_s=every_s))
schedules = crons | intervals


@given(schedules, moments, st.floats(0.0, 1.0))
@example(made=schedule(every_s=0.10000000000000002), after=1.0, part=1.0)  # the next one is the next number behind 1.0
def test_the_next_time_is_the_next(made: Schedule, after: float, part: float) -> None:
    """It is behind, and whoever asks from a moment in between hears the same."""
    found = next_fire(made, after)
    assert found > after
    between = min(after + (found - after) * part, nextafter(found, after))  # the sum may be rounded up to `found`
    assert after <= between < found
    assert next_fire(made, between) == found
    assert next_fire(made, found) > found


@settings(max_examples=500)
@given(st.floats(0.1, LONGEST_INTERVAL_S), st.floats(0.0, 4e9), st.sampled_from([-1, 0, 1]), st.booleans())
@example(every_s=0.10000000000000002, until=1.0, off=0, is_beside_a_fire=False)
def test_intervals_are_those_of_a_search(every_s: float, until: float, off: int, is_beside_a_fire: bool) -> None:
    """However the product is rounded: the next time is the first multiple behind, the last one the last that is not."""
    number = round(until / every_s)
    if is_beside_a_fire:
        until = number * every_s
    until = max(0.0, nextafter(until, off * inf) if off else until)
    multiples = [one * every_s for one in range(max(0, number - 3), number + 4)]
    made = schedule(every_s=every_s)
    assert next_fire(made, until) == min(at for at in multiples if at > until)
    assert last_fire(made, 0.0, until) == max(at for at in multiples if at <= until)


@given(schedules, moments, st.integers(0, 30), st.floats(0.0, 1.0))
def test_the_last_time_is_the_last(made: Schedule, start: float, steps: int, part: float) -> None:
    """It is found without a look at each."""
    first = found = next_fire(made, start)
    for _ in range(steps):
        found = next_fire(made, found)
    behind = next_fire(made, found)
    assert last_fire(made, first, found) == found
    assert last_fire(made, first, found + (behind - found) * part * 0.999) == found


def test_leap_years_and_ends_of_months() -> None:
    assert fires(schedule("0 0 29 2 *"), at("2026-01-01"), 2) == ["02-29 00:00 +0000"] * 2
    assert next_fire(schedule("0 0 29 2 *"), at("2096-03-01")) == at("2104-02-29"), "2100 is no leap year"
    expected = ["01-31 00:00 +0000", "03-31 00:00 +0000", "05-31 00:00 +0000"]
    assert fires(schedule("0 0 31 * *"), at("2026-01-01"), 3) == expected
    expected = ["01-31 00:00 +0000", "02-28 00:00 +0000", "03-31 00:00 +0000", "04-30 00:00 +0000"]
    assert fires(schedule("0 0 L * *"), at("2026-01-01"), 4) == expected
    assert fires(schedule("@monthly"), at("2026-01-31T12:00"), 1) == ["02-01 00:00 +0000"]
    assert next_fire(schedule("30 59 23 31 12 *"), at("2026-01-01")) == at("2026-12-31T23:59:30"), "seconds first"


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        # 02:00 to 03:00 is left out: what was to be then is done when the clocks have gone forward, once
        ("30 2 * * *", ["03-29 03:00 +0200", "03-30 02:30 +0200"]),
        ("0,30 2,3 * * *", ["03-29 03:00 +0200", "03-29 03:30 +0200", "03-30 02:00 +0200"]),
        ("*/30 * * * *", ["03-29 00:30 +0100", "03-29 01:00 +0100", "03-29 01:30 +0100", "03-29 03:00 +0200"]),
        ("*/30 2 * * *", ["03-30 02:00 +0200", "03-30 02:30 +0200"]),
        ("0 * * * *", ["03-29 01:00 +0100", "03-29 03:00 +0200", "03-29 04:00 +0200"]),
    ],
)
def test_clocks_go_forward(cron: str, expected: list[str]) -> None:
    start = at("2026-03-29T00:00", BERLIN)
    assert fires(schedule(cron, zone="Europe/Berlin"), start, len(expected), BERLIN) == expected


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        # 02:00 to 03:00 comes twice: what names the hour is done once, what has a star goes by the time that passes
        ("30 2 * * *", ["10-25 02:30 +0200", "10-26 02:30 +0100"]),
        ("0 2,3 * * *", ["10-25 02:00 +0200", "10-25 03:00 +0100"]),
        ("30 * * * *", ["10-25 01:30 +0200", "10-25 02:30 +0200", "10-25 02:30 +0100", "10-25 03:30 +0100"]),
        ("*/30 2 * * *", ["10-25 02:00 +0200", "10-25 02:30 +0200", "10-25 02:00 +0100", "10-25 02:30 +0100"]),
    ],
)
def test_clocks_go_back(cron: str, expected: list[str]) -> None:
    start = at("2026-10-25T01:00", BERLIN)
    assert fires(schedule(cron, zone="Europe/Berlin"), start, len(expected), BERLIN) == expected


def test_no_second_time_when_asked_in_the_repeated_hour() -> None:
    """The broker asks from a moment of the hour that comes again: 02:30 was there already."""
    asked = at("2026-10-25T02:15", BERLIN, fold=1)
    found = next_fire(schedule("30 2 * * *", zone="Europe/Berlin"), asked)
    assert found == at("2026-10-26T02:30", BERLIN)


# -- intervals and jitter


def test_intervals_are_multiples() -> None:
    assert next_fire(schedule(every_s=3600), at("2026-05-05T10:20")) == at("2026-05-05T11:00")
    assert next_fire(schedule(every_s=3600), at("2026-05-05T11:00")) == at("2026-05-05T12:00")


@given(st.floats(0.1, 100.0), moments)
def test_intervals_leave_nothing_out(every_s: float, start: float) -> None:
    made = schedule(every_s=every_s)
    times = [next_fire(made, start)]
    for _ in range(20):
        times.append(next_fire(made, times[-1]))
    assert all(behind - before == pytest.approx(every_s, abs=1e-5) for before, behind in pairwise(times))


@given(schedules, st.floats(0.001, 86_400.0), moments)
@example(made=schedule(every_s=0.1), jitter_s=0.001953125, after=3999999999.0)
def test_jitter_stays_within_its_bounds(made: Schedule, jitter_s: float, after: float) -> None:
    made = replace(made, jitter_s=jitter_s)
    nominal = next_fire(made, after)
    fires_at = fire_time(made, nominal)
    assert nominal <= fires_at < nominal + jitter_s
    assert fires_at < next_fire(made, nominal)
    assert fires_at == fire_time(made, nominal), "the same for whoever asks"


def test_jitter_spreads() -> None:
    """By time and by name: else all schedules of a fleet would come together."""
    made = schedule(every_s=60.0, jitter_s=60.0)
    by_time = [fire_time(made, 60.0 * number) - 60.0 * number for number in range(1_000)]
    by_name = [fire_time(replace(made, name=f"n{number}"), 6e8) - 6e8 for number in range(1_000)]
    for parts in (by_time, by_name):
        assert 27.0 < sum(parts) / len(parts) < 33.0
        assert len({int(part / 6) for part in parts}) == 10


# -- what is due


@given(
    schedules,
    moments,
    st.floats(0.0, 1.0),
    st.integers(0, 300),
    st.sampled_from(["skip", "once", "all"]),
    st.sampled_from([0.0, 5.0, 1e4]),
    st.sampled_from([1, 7, MAX_FIRES_AT_ONCE]),
)
@settings(deadline=None)
def test_what_is_due(
    made: Schedule, start: float, part: float, steps: int, misfire: Any, jitter_s: float, most: int
) -> None:
    """Each time is fired once, or missed by the policy; the next one is to come; nothing is fired early."""
    made = replace(made, misfire=misfire, jitter_s=jitter_s)
    first = next_fire(made, start)
    times = [first]
    for _ in range(steps):
        times.append(next_fire(made, times[-1]))
    now = times[-1] + (next_fire(made, times[-1]) - times[-1]) * part * 0.999
    expected = [each for each in times if fire_time(made, each) <= now]
    fired, missed, next_at = list[float](), 0, first
    while (found := due(made, next_at, now, most)).next_at != next_at:
        assert len(found.fires) <= (most if misfire == "all" else 1)
        fired += found.fires
        missed += found.missed
        next_at = found.next_at
    assert next_at == (times[len(expected)] if len(expected) < len(times) else next_fire(made, times[-1]))
    if not expected:
        assert (fired, missed) == ([], 0)
        return
    is_late = now - fire_time(made, expected[-1]) > MISSED_AFTER_S
    match misfire:
        case "all":
            assert fired == expected
        case "once":
            assert fired == expected[-1:]
        case "skip":
            assert fired == ([] if is_late else expected[-1:])
    if len(expected) <= most and not jitter_s:
        assert missed == len(expected) - (not is_late)


@pytest.mark.parametrize("cron", ["* * * * *", "* 3 * 1 *", "0 0 29 2 *", "*/5 * * * * *"])
def test_years_without_a_fleet_take_no_time(cron: str) -> None:
    """A loop that looked at each of ten million times would be blocked for minutes."""
    made, first = schedule(cron, zone="Europe/Berlin"), at("2000-02-29")
    start = time.process_time()
    found = due(made, first, at("2030-06-01T12:00:59"))
    assert time.process_time() - start < 2.0
    assert len(found.fires) == 1
    assert next_fire(made, found.fires[0]) == found.next_at > at("2030-06-01T12:00:59")


def test_not_due_is_nothing() -> None:
    assert due(schedule(every_s=10.0), 100.0, 99.9)[:3] == ([], 100.0, 0)
    assert due(schedule(every_s=10.0), 100.0, 100.0)[:3] == ([100.0], 110.0, 0)
    assert due(schedule(every_s=3600.0, misfire="skip"), 3600.0, 3600.0 + MISSED_AFTER_S)[:3] == ([3600.0], 7200.0, 0)
    assert due(schedule(every_s=3600.0, misfire="skip"), 3600.0, 3700.0)[:3] == ([], 7200.0, 1)


# -- ids and payloads


@given(st.text(min_size=1, max_size=20), st.floats(0.0, 1e11))
def test_ids(name: str, nominal: float) -> None:
    """The same for the same fire; in the layout of the others, and sorting by time with them."""
    job_id = fired_id(name, nominal)
    assert job_id == fired_id(name, nominal)
    assert job_id not in (fired_id(name + "x", nominal), fired_id(name, nominal + 0.1))
    assert enqueued_at(job_id) == int(nominal * 1000) / 1000
    if nominal < 2**48 / 1000:
        parsed = uuid.UUID(bytes=job_id)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_ids_do_not_meet() -> None:
    made = {fired_id(f"name{name}", 0.1 * number) for name in range(20) for number in range(1_000)}
    assert len(made) == 20_000


def test_arguments_become_those_of_a_job() -> None:
    [job_id] = new_job_ids(1)
    made = schedule("* * * * *")
    assert payload_for(made, job_id) == encode_call(job_id, (1, "two"), {"three": [3]})


@given(st.integers(0, 8 * len(PAYLOAD) - 1))
def test_damaged_arguments_are_found(bit: int) -> None:
    damaged = bytearray(PAYLOAD)
    damaged[bit // 8] ^= 1 << bit % 8
    made = replace(schedule("* * * * *"), payload=bytes(damaged))
    with pytest.raises(CorruptPayload, match="checksum"):
        decode_call(b"j" * 16, payload_for(made, b"j" * 16))


# -- definitions


@given(
    schedules,
    st.sampled_from(["skip", "once", "all"]),
    st.sampled_from(["allow", "skip", "buffer_one"]),
    st.floats(0.0, 100.0),
)
def test_wire(made: Schedule, misfire: Any, overlap: Any, jitter_s: float) -> None:
    made = replace(
        made, misfire=misfire, overlap=overlap, jitter_s=jitter_s, spec=Spec("work", priority=7, rate=(1, 2.0))
    )
    assert Schedule.from_wire(made.to_wire()) == made


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.lists(plain, max_size=10), st.dictionaries(st.integers(0, 8), plain, max_size=3))
def test_hostile_fields_are_refused(fields: list[Any], changes: dict[int, Any]) -> None:
    """Whatever a client sends: a schedule that can be asked for its times, or a ConfigError."""
    good = schedule("*/5 * * * *").to_wire()
    for mutated in (fields, [changes.get(number, value) for number, value in enumerate(good)]):
        try:
            made = Schedule.from_wire(mutated)
            assert next_fire(made, 0.0) > 0.0
        except ConfigError:
            pass


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cron": "* * * *"}, "five fields"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "hourly"}, "five fields"),
        ({"cron": "0 0 30 2 *"}, "Bad day-of-month"),
        ({"cron": "0 0 31 2,4 *"}, "Bad day-of-month"),
        ({"cron": ""}, "five fields"),
        ({"cron": "* " * 200}, "cron expression"),
        ({"cron": "* * * * *", "every_s": 5.0}, "give it a cron expression"),
        ({}, "or an interval"),
        ({"every_s": 0.0}, "every=0.0"),
        ({"every_s": -5}, "every=-5"),
        ({"every_s": float("nan")}, "every=nan"),
        ({"every_s": True}, "every=True"),
        ({"every_s": 1e10}, "to a year"),
        ({"every_s": "soon"}, "every='soon'"),
        ({"cron": "* * * * *", "zone": "Europe/Bielefeld"}, "no time zone"),
        ({"cron": "* * * * *", "zone": "Europe"}, "no time zone"),
        ({"cron": "* * * * *", "zone": "../../etc/passwd"}, "no time zone"),
        ({"cron": "* * * * *", "zone": ""}, "no time zone"),
        ({"cron": "* * * * *", "misfire": "never"}, "misfire='never'"),
        ({"cron": "* * * * *", "overlap": "no"}, "overlap='no'"),
        ({"cron": "* * * * *", "jitter_s": -1.0}, "jitter=-1.0"),
        ({"cron": "* * * * *", "jitter_s": 1e6}, "to a day"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        next_fire(schedule(**fields), 0.0)


def test_names_and_sizes() -> None:
    for name in ("", "a b", "x" * 201, "ä"):
        with pytest.raises(ConfigError, match="schedule name"):
            Schedule(name, Spec("work"), b"", "* * * * *")
    with pytest.raises(ConfigError, match="path of a file"):
        Schedule("big", Spec("work"), bytes(40_000), "* * * * *")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (30, 30),
        (0.5, 0.5),
        ("30", 30),
        ("30s", 30),
        ("250ms", 0.25),
        ("1.5 h", 5400),
        ("2d", 172_800),
        (timedelta(minutes=2), 120),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert seconds_of(value) == seconds


@pytest.mark.parametrize("text", ["", "s", "soon", "-1s", "1 s 2", "1e3", ".5s", "10 min"])
def test_texts_that_are_no_duration(text: str) -> None:
    assert seconds_in(text) is None


# -- rows


def test_a_pause_is_no_misfire() -> None:
    row = ScheduleRow(schedule(every_s=60.0), 600.0, is_paused=True)
    assert schedule_info(row).next_at is None
    resumed = row.resumed(100_000.0)
    assert (resumed.is_paused, resumed.next_at) == (False, 100_020.0)


def test_a_new_definition() -> None:
    """New times count at once, anything else keeps them; a pause stays."""
    row = ScheduleRow(schedule(every_s=3600.0), 7200.0, "app", is_paused=True)
    same_times = row.redefined(replace(row.schedule, misfire="all", payload=b"x"), None, 3700.0)
    assert (same_times.next_at, same_times.is_paused, same_times.app) == (7200.0, True, None)
    assert row.redefined(schedule(every_s=10.0), "app", 3704.0).next_at == 3710.0


@given(schedules, moments, st.floats(0.0, 1e6))
def test_a_clock_set_back_fires_nothing_twice(made: Schedule, start: float, back_s: float) -> None:
    """Whatever is done with a schedule that has fired, its next time lies behind that."""
    fired = next_fire(made, start)
    row = ScheduleRow(made, next_fire(made, fired), last_at=fired)
    wall = max(0.0, fired - back_s)
    assert due(made, row.next_at, wall).fires == []
    assert row.resumed(wall).next_at > fired
    assert row.redefined(schedule(every_s=0.5), None, wall).next_at > fired


@given(st.floats(0.1, LONGEST_INTERVAL_S), moments, st.floats(0.0, 1e9))
def test_an_interval_waits_for_no_clock_that_was_set_back(every_s: float, start: float, back_s: float) -> None:
    """In whole intervals it catches up with the clock; as long as that goes right, there is nothing to catch up
    with."""
    made = schedule(every_s=every_s)
    row = ScheduleRow(made, next_fire(made, start), last_at=start)
    assert ahead_s(made, row.next_at, start) == 0.0
    ahead = ahead_s(made, row.next_at, start - back_s)
    assert ahead / every_s == pytest.approx(round(ahead / every_s))
    assert row.next_at - ahead - (start - back_s) <= every_s * 1.5 + 1e-3
    assert ahead == 0.0 or row.next_at - ahead - (start - back_s) >= every_s * 0.5 - 1e-3
    told = schedule_info(row, ahead)
    assert (told.next_at, told.last_at) == (row.next_at - ahead, start - ahead)
    assert ahead_s(schedule("0 3 * * *"), row.next_at, start - back_s) == 0.0, "it names an hour of the day"


def test_a_zone_that_is_gone_can_be_listed() -> None:
    row = ScheduleRow(schedule("* * * * *", zone="Mars/Olympus"), 60.0)
    assert schedule_info(row._replace(schedule=replace(row.schedule, jitter_s=1.0))).next_at is None
