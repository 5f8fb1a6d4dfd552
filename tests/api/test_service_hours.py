"""The hours that Onebox names: how long until they begin."""

from __future__ import annotations

import time
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from airflow_provider_onebox.api.service_hours import MARGIN, TIMEZONE, seconds_until_opening

QUOTA = "time limit reached please try again tomorrow at 18:00 - 06:00"


def at(hour, minute=0, second=0, *, day=24, month=11, zone=TIMEZONE):
    """A time of day at the account's place."""
    return datetime(2026, month, day, hour, minute, second, tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("now", "hours"),
    [
        (at(7), 11),
        (at(17, 59), 1 / 60),
        # A clock that is ahead of Onebox's meets the service hours just after their beginning.
        (at(18), 0),
        (at(18, 0, 59), -59 / 3600),
        (at(18, 1), 24 - 1 / 60),
        (at(23), 19),
        (at(0, 30), 17.5),
    ],
)
def test_next_opening(now, hours):
    """The wait ends a minute after the next opening, and never at once."""
    assert seconds_until_opening(QUOTA, now=now) == pytest.approx(hours * 3600 + MARGIN)


@pytest.mark.parametrize(
    ("message", "hour", "minute"),
    [
        ("at 00:00 - 06:00", 0, 0),
        ("at 0:00-6:00", 0, 0),
        ("at 9:05 - 17:00", 9, 5),
        ("at 19:59 - 06:00", 19, 59),
        ("at 20:00 - 06:00", 20, 0),
        ("at 23:59  -  06:00", 23, 59),
    ],
)
def test_hours_are_read(message, hour, minute):
    """Every time of day can be an opening."""
    assert seconds_until_opening(message, now=at(12)) == pytest.approx((at(hour, minute) - at(12)) % 86400 + MARGIN)


@pytest.mark.parametrize("message", [None, "", "time limit reached", "at 24:00 - 06:00", "at 18:60 - 6", "at 18:00"])
def test_no_hours(message):
    """A message without hours, or with some that no clock shows, says nothing."""
    assert seconds_until_opening(message, now=at(12)) is None


def test_zone():
    """The hours are those of the zone that is named."""
    noon = at(12, zone="UTC")
    assert seconds_until_opening(QUOTA, "UTC", noon) == 6 * 3600 + MARGIN
    assert seconds_until_opening(QUOTA, now=noon) == 23 * 3600 + MARGIN
    with pytest.raises(KeyError, match="Atlantis"):
        seconds_until_opening(QUOTA, "Atlantis/Capital", noon)


@pytest.mark.parametrize(("month", "day", "hours"), [(3, 28, 23), (10, 24, 25)])
def test_clocks_change(month, day, hours):
    """Where a day has 23 or 25 hours, the wait has as many."""
    now = at(18, 30, month=month, day=day, zone="Europe/Berlin")
    assert seconds_until_opening(QUOTA, "Europe/Berlin", now) == (hours - 0.5) * 3600 + MARGIN


def test_this_machines_clock(monkeypatch):
    """Without a time it is now."""
    monkeypatch.setattr(time, "time", lambda: at(17))
    assert seconds_until_opening(QUOTA) == 3600 + MARGIN
