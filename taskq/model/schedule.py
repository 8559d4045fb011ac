"""Schedules, and the times at which they fire. Pure: no I/O, no clock, no randomness.

    cron or interval  ->  nominal times  ->  + jitter  ->  fire: one job, with an id made from the name and the time

A schedule that has fired knows the nominal time that comes next (`ScheduleRow.next_at`), which only ever goes forward.
The id of a fired job is made from the schedule's name and that time: whoever fires it again makes the same job.

Cron expressions are those of cronsim, which follows Debian's cron: five fields (or six, seconds first), ``L`` and
``#``. When the clocks change, an expression that names the hour and the minute fires once: right after the gap if its
time is skipped, the first time if its time comes twice. One with ``*`` for either goes by the time that passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from math import ceil, floor, nextafter
from struct import Struct
from typing import Any, Final, Literal, NamedTuple, get_args
from zlib import crc32

from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_CRON_CHARS, MAX_SCHEDULE_PAYLOAD_BYTES, MAX_TASK_NAME_CHARS
from taskq.model.spec import TASK_NAME, Spec
from taskq.model.units import seconds_in

Misfire = Literal["skip", "once", "all"]
Overlap = Literal["allow", "skip", "buffer_one"]

#: A fire that comes later than this is a missed one. A broker that was killed is back well before.
MISSED_AFTER_S: Final = 10.0
#: At most this many due times are looked at, and made jobs of, at once.
MAX_FIRES_AT_ONCE: Final = 100
SHORTEST_INTERVAL_S: Final = 0.1
LONGEST_INTERVAL_S: Final = 366 * 86_400.0
LONGEST_JITTER_S: Final = 86_400.0
#: The arguments of a schedule are packed for this id; `payload_for` makes them those of a job.
NO_JOB: Final = bytes(16)

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_TIME = Struct("!d")
_ID_BITS = (1 << 64) - 1
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is to be enqueued, and when.

    Attributes:
        name: names it, among all of a queue's directory.
        spec: of the jobs.
        payload: the arguments of the jobs, packed for `NO_JOB`.
        cron: the cron expression; None for an interval.
        every_s: the interval: it fires at the multiples of it since 1970.
        zone: the time zone of the cron expression.
        misfire: what becomes of the fires of the time in which no fleet ran: none of them, the last one, or all.
        overlap: what becomes of a fire while the job of the one before has not ended: it runs beside that, is left out,
            or is kept back until that has ended, one at the most.
        jitter_s: each fire is late by a part of this.
        constraints: of the jobs, with times as seconds after the fire; None: they have none.
    """

    name: str
    spec: Spec
    payload: bytes
    cron: str | None = None
    every_s: float | None = None
    zone: str = "UTC"
    misfire: Misfire = "once"
    overlap: Overlap = "allow"
    jitter_s: float = 0.0
    constraints: Constraints | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not TASK_NAME.match(self.name):
            raise ConfigError(
                f"schedule name {self.name!r:.80}: use 1 to {MAX_TASK_NAME_CHARS} of the characters A-Z a-z 0-9 _ . : -"
            )
        if not isinstance(self.payload, bytes) or len(self.payload) > MAX_SCHEDULE_PAYLOAD_BYTES:
            raise ConfigError(
                f"schedule {self.name}: its arguments take more than {MAX_SCHEDULE_PAYLOAD_BYTES:,} bytes: "
                "pass the path of a file instead"
            )
        self._check_times()
        if self.misfire not in get_args(Misfire):
            raise ConfigError(f'misfire={self.misfire!r:.40}: use "skip", "once" or "all"')
        if self.overlap not in get_args(Overlap):
            raise ConfigError(f'overlap={self.overlap!r:.40}: use "allow", "skip" or "buffer_one"')

    def _check_times(self) -> None:
        if (self.cron is None) == (self.every_s is None):
            raise ConfigError(
                f'schedule {self.name}: give it a cron expression, such as "*/5 * * * *", or an interval, every=30'
            )
        if self.cron is not None and (not isinstance(self.cron, str) or len(self.cron) > MAX_CRON_CHARS):
            raise ConfigError(f'cron expression {self.cron!r:.80}: use a text such as "*/5 * * * *"')
        if self.every_s is not None and not _is_within(self.every_s, SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S):
            raise ConfigError(
                f"every={self.every_s!r:.40}: use seconds, or a text such as '30s', "
                f"from {SHORTEST_INTERVAL_S} s to a year"
            )
        if not isinstance(self.zone, str) or len(self.zone) > MAX_CRON_CHARS:
            raise ConfigError(f'timezone={self.zone!r:.80}: use a name such as "Europe/Berlin"')
        if not _is_within(self.jitter_s, 0.0, LONGEST_JITTER_S):
            raise ConfigError(f"jitter={self.jitter_s!r:.40}: use seconds, from 0 to a day")

    def to_wire(self) -> list[object]:
        """The fields in a fixed order, as they travel and are stored."""
        times = [self.cron, self.every_s, self.zone]
        constraints = None if self.constraints is None else self.constraints.to_wire()
        return [
            self.name,
            self.spec.to_wire(),
            self.payload,
            *times,
            self.misfire,
            self.overlap,
            self.jitter_s,
            constraints,
        ]

    @classmethod
    def from_wire(cls, fields: object) -> Schedule:
        """The opposite of `to_wire`. Raises ConfigError if the fields make no sense."""
        match fields:
            case [
                str(name),
                list(spec),
                bytes(payload),
                cron,
                every_s,
                zone,
                str(misfire),
                str(overlap),
                jitter_s,
                constraints,
            ]:
                made = None if constraints is None else Constraints.from_wire(constraints)
                own: Any = (cron, every_s, zone, misfire, overlap, jitter_s, made)
                return cls(name, Spec.from_wire(spec), payload, *own)
        raise ConfigError("a schedule must have ten fields")


class ScheduleRow(NamedTuple):
    """A schedule as the store keeps it and the broker holds it.

    Attributes:
        schedule: what it is.
        next_at: the nominal time that comes next, in seconds since 1970.
        app: the name of the application in whose code it stands; None if it was added at run time.
        is_paused: it does not fire.
        last_at: the nominal time of the last fire.
        last_id: the job of the last fire; the one that runs before it, if it was kept back (see `last_jobs`).
    """

    schedule: Schedule
    next_at: float
    app: str | None = None
    is_paused: bool = False
    last_at: float | None = None
    last_id: bytes | None = None

    @property
    def fires_at(self) -> float:
        """When it fires next, its jitter included."""
        return fire_time(self.schedule, self.next_at)

    @property
    def last_jobs(self) -> list[bytes]:
        """The jobs of the last fires; those before them have ended.

        There may be two: one that was kept back, and the one that it is kept back for. Which outlives the other is not
        sure, since both can be cancelled.
        """
        made = None if self.last_at is None else fired_id(self.schedule.name, self.last_at)
        return list(dict.fromkeys(job_id for job_id in (made, self.last_id) if job_id is not None))

    @property
    def last_job(self) -> str | None:
        """The job that was made last, also one that is kept back."""
        return max((job_id.hex() for job_id in self.last_jobs), default=None)

    def resumed(self, wall: float) -> ScheduleRow:
        """Not paused any more: what would have been fired meanwhile is not missed, it was not wanted."""
        return self._replace(is_paused=False, next_at=self._next_after(self.schedule, wall))

    def redefined(self, schedule: Schedule, app: str | None, wall: float) -> ScheduleRow:
        """With a new definition. A pause stays; new times count at once."""
        same = _times_of(schedule) == _times_of(self.schedule)
        next_at = self.next_at if same else self._next_after(schedule, wall)
        return self._replace(schedule=schedule, app=app, next_at=next_at)

    def _next_after(self, schedule: Schedule, wall: float) -> float:
        return next_fire(schedule, wall if self.last_at is None else max(wall, self.last_at))


class Due(NamedTuple):
    """What is to be done for a schedule now.

    Attributes:
        fires: the nominal times for which a job is to be made, oldest first.
        next_at: the nominal time that comes next.
        missed: how many of the times that were due were missed; a lower bound if they are very many.
        since: the first time that was due.
    """

    fires: list[float]
    next_at: float
    missed: int
    since: float


def ahead_s(schedule: Schedule, next_at: float, wall: float) -> float:
    """How far the nominal times of an interval run ahead of the clock, in whole intervals: 0, unless that was set back.

    They only ever go forward, so an interval would be silent for as long as the clock was set back. So that much is
    taken off that it fires between half an interval and one and a half from now.
    """
    if schedule.every_s is None:
        return 0.0
    return max(0, ceil((next_at - wall) / schedule.every_s - 1.5)) * schedule.every_s


def _times_of(schedule: Schedule) -> tuple[object, ...]:
    return schedule.cron, schedule.every_s, schedule.zone


def _is_within(value: object, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def seconds_of(value: object) -> Any:
    """The seconds in a number, a timedelta, or a text such as ``"30s"``; anything else as it is, to be refused."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    seconds = seconds_in(value) if isinstance(value, str) else None
    return value if seconds is None else seconds


# -- times


@lru_cache(maxsize=256)
def zone_of(name: str) -> tzinfo:
    """The time zone of a name.

    Raises:
        ConfigError: there is none.
    """
    from zoneinfo import ZoneInfo  # see _cron_times

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:  # a folder of zones is an OSError, "../x" a ValueError
        raise ConfigError(f'there is no time zone {name!r:.80}: use a name such as "Europe/Berlin" or "UTC"') from error


def next_fire(schedule: Schedule, after: float) -> float:
    """The first nominal time of a schedule behind a time; both in seconds since 1970.

    Raises:
        ConfigError: the cron expression, or its time zone, makes no sense, or never comes true.
    """
    if schedule.every_s is not None:
        return _next_multiple(schedule.every_s, after)
    for at in _cron_times(str(schedule.cron).strip(), schedule.zone, after):
        if at > after:  # not so in the hour that the clocks go through twice
            return at
    raise ConfigError(f"cron expression {schedule.cron!r}: it never comes true")


def _cron_times(text: str, zone: str, after: float) -> Iterator[float]:
    from cronsim import CronSim, CronSimError  # takes 5 ms, with zoneinfo: a fleet without cron starts earlier

    try:
        start = datetime.fromtimestamp(floor(after), UTC if zone == "UTC" else zone_of(zone))
        for at in CronSim(_MACROS.get(text.lower(), text), start):
            yield at.timestamp()
    except (CronSimError, AssertionError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        told = str(error) or "no such form"
        raise ConfigError(f'cron expression {text!r}: {told}; use five fields, such as "*/5 * * * *"') from error


def _next_multiple(every_s: float, after: float) -> float:
    number = floor(after / every_s)
    while number * every_s <= after:
        number += 1
    return number * every_s


def last_fire(schedule: Schedule, first: float, until: float) -> float:
    """The last nominal time up to `until`; `first` is one that is not behind it. Looks at few of those between."""
    if schedule.every_s is not None:
        number = floor(until / schedule.every_s) + 1
        while number * schedule.every_s > until:
            number -= 1
        return max(first, number * schedule.every_s)
    if next_fire(schedule, first) > until:
        return first
    before, behind = first, until  # the last one is behind the first of these, and not behind the second
    while behind - before > 1.0:
        middle = (before + behind) / 2
        if next_fire(schedule, middle) <= until:
            before = middle
        else:
            behind = middle
    return next_fire(schedule, before)


def fire_time(schedule: Schedule, nominal: float) -> float:
    """When a schedule fires for a nominal time: late by a part of its jitter, but before the next nominal time. The
    part comes from the name and the time, so it is the same for whoever asks."""
    if not schedule.jitter_s:
        return nominal
    room_s = min(schedule.jitter_s, next_fire(schedule, nominal) - nominal)
    late_s = room_s * (crc32(schedule.name.encode() + _TIME.pack(nominal)) / 2**32)
    return min(nominal + late_s, nextafter(nominal + room_s, nominal))  # the sum may be rounded up


def due(schedule: Schedule, next_at: float, now: float, most: int = MAX_FIRES_AT_ONCE) -> Due:
    """What is to be done at a time for a schedule whose next nominal time is `next_at`.

    Of the times that are due all but the last are missed, and the last one too if it is late by more than
    MISSED_AFTER_S. `misfire` says what becomes of those.

    Args:
        most: at most this many jobs are made, where each time becomes a job: the others in the next go.
    """
    makes_all = schedule.misfire == "all"
    most = min(most, MAX_FIRES_AT_ONCE) if makes_all and schedule.overlap == "allow" else MAX_FIRES_AT_ONCE
    times: list[float] = []
    at = next_at
    while fire_time(schedule, at) <= now:
        if len(times) == most:
            if makes_all:
                break  # the others in the next go
            at = _last_due(schedule, at, now)
        times.append(at)
        at = next_fire(schedule, at)
    if not times:
        return Due([], next_at, 0, next_at)
    is_late = now - fire_time(schedule, times[-1]) > MISSED_AFTER_S
    missed = len(times) - (not is_late)
    if makes_all:
        return Due(times, at, missed, next_at)
    fires = [] if is_late and schedule.misfire == "skip" else times[-1:]
    return Due(fires, at, missed, next_at)


def _last_due(schedule: Schedule, first: float, now: float) -> float:
    last = last_fire(schedule, first, now)
    return last if fire_time(schedule, last) <= now else last_fire(schedule, first, last - 0.001)


def fired_id(name: str, nominal: float) -> bytes:
    """The id of the job that a schedule makes for a time, in the layout of `taskq.model.job.new_job_ids`."""
    from hashlib import sha256  # 4 ms, which a fleet without schedules starts without

    digest = int.from_bytes(sha256(name.encode() + b"\0" + _TIME.pack(nominal)).digest()[:10], "big")
    head = int(nominal * 1000) << 80 | 7 << 76 | (digest >> 64 & 0xFFF) << 64
    return (head | 2 << 62 | (digest & _ID_BITS) >> 2).to_bytes(16, "big")


def payload_for(schedule: Schedule, job_id: bytes) -> bytes:
    """The arguments of a schedule as the payload of a job, without a look at what is in them.

    The checksum in front (see `taskq.protocol.codec.encode_call`) covers the id. It is changed by the difference that
    the ids make, so what was damaged on its way or on disk is still found by the consumer.
    """
    body = schedule.payload[_CRC_BYTES:]
    difference = crc32(body, crc32(NO_JOB)) ^ crc32(body, crc32(job_id))
    checksum = int.from_bytes(schedule.payload[:_CRC_BYTES], "big") ^ difference
    return checksum.to_bytes(_CRC_BYTES, "big") + body


def constraints_for(schedule: Schedule, wall: float, after: bytes | None = None) -> Constraints | None:
    """The constraints of a job that a schedule makes at a time; it may be kept back until another one has ended."""
    constraints = schedule.constraints
    if after is not None:
        constraints = replace(constraints or NO_CONSTRAINTS, after=((after, True),))
    if constraints is None:
        return None
    due_at = None if constraints.due_at is None else wall + constraints.due_at
    expires_at = None if constraints.expires_at is None else wall + constraints.expires_at
    return replace(constraints, due_at=due_at, expires_at=expires_at)
