"""The moments that people name on the command line."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from taskq.cli.common import moment_of
from taskq.model.errors import ConfigError


def test_a_duration_is_counted_back_from_now() -> None:
    found = moment_of("10m", "--since")
    assert found is not None
    assert abs(datetime.now().astimezone() - found - timedelta(minutes=10)) < timedelta(seconds=10)


@pytest.mark.parametrize("minutes", [-90, -1, 2, 90])
def test_a_time_of_day_is_the_last_one(minutes: int) -> None:
    """A time that has yet to come today was yesterday."""
    wanted = (datetime.now() + timedelta(minutes=minutes)).replace(second=0, microsecond=0)
    found = moment_of(wanted.strftime("%H:%M"), "--since")
    assert found is not None
    assert (found.hour, found.minute) == (wanted.hour, wanted.minute)
    assert timedelta(0) <= datetime.now().astimezone() - found < timedelta(days=1, hours=2)


def test_a_date_and_a_time() -> None:
    assert moment_of("2026-05-09T03:10", "--until") == datetime(2026, 5, 9, 3, 10).astimezone()
    assert moment_of("2026-05-09 03:10+00:00", "--until") == datetime.fromisoformat("2026-05-09T03:10+00:00")


def test_without_a_text_there_is_no_limit() -> None:
    assert moment_of(None, "--since") is None


@pytest.mark.parametrize("text", ["soon", "25:10", "2026-13-01", "", "9999999999y"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--since .*use a duration such as 10m"):
        moment_of(text, "--since")
