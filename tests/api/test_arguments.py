"""Ids and whole numbers: one rule, wherever they come from."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_onebox.api.arguments import (
    MAX_ID,
    as_id,
    as_list,
    format_time,
    parse_id,
    parse_time,
    whole_number,
)
from airflow_provider_onebox.exceptions import OneboxConfigError


@pytest.mark.parametrize(("value", "number"), [("0", 0), ("007", 7), (12250, 12250), (str(MAX_ID), MAX_ID)])
def test_ids(value, number):
    """Digits as text and integers are ids, up to the largest whole number of a database."""
    assert parse_id(value) == as_id("since_id", value) == number


@pytest.mark.parametrize(
    "value", ["", " 7", "1_000", "\uff11\uff12", "1.9", 1.9, True, -1, "-1", "+1", MAX_ID + 1, "1" * 21, [1], b"1"]
)
def test_no_ids(value):
    """Whatever merely looks like an id is none."""
    assert parse_id(value) is None
    if value != " 7":
        with pytest.raises(OneboxConfigError, match=r"^since_id=.* is not an id: pass up to 20 digits"):
            as_id("since_id", value)


def test_rendered_id():
    """Space around an id that a template has rendered does no harm; nothing is the beginning."""
    assert as_id("since_id", " 7\n") == 7
    assert as_id("since_id", None) == 0


@pytest.mark.parametrize(("value", "number"), [(1, 1), ("32", 32), (" 8 ", 8)])
def test_whole_numbers(value, number):
    """A template renders a number to text."""
    assert whole_number("parallelism", value, 1, 32) == number
    assert whole_number("page_size", value, 1) == number


@pytest.mark.parametrize("value", [0, 33, "0", "1e1", 2.0, None])
def test_no_whole_numbers(value):
    """What is out of bounds, or no number, is refused with the bounds."""
    with pytest.raises(OneboxConfigError, match=r"parallelism=.* is not a whole number from 1 to 32"):
        whole_number("parallelism", value, 1, 32)
    with pytest.raises(OneboxConfigError, match=r"page_size=.* is not a whole number of at least 100"):
        whole_number("page_size", value, 100)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((items, items) for items in ([1, 2], [])),
        *(({"0": 1, "2": 2}, [1, 2]), ({"1": 1}, [1]), ({}, [])),
        *((other, None) for other in ({"0": 1, "total": 2}, {"Id": "1"}, {"-1": 1}, "12", None, (1, 2))),
    ],
)
def test_lists(value, expected):
    """A list is a list, and so is the object that PHP makes of one with gaps; nothing else is."""
    assert as_list(value) == expected


UTC = timezone.utc


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("2026-11-24 08:30", datetime(2026, 11, 24, 8, 30)),
        (" 2026-11-24T08:30:59 ", datetime(2026, 11, 24, 8, 30, 59)),
        ("2026-11-24", datetime(2026, 11, 24)),
        (datetime(2026, 11, 24, 8, 30), datetime(2026, 11, 24, 8, 30)),
        ("2026-11-24 08:30:00+00:00", datetime(2026, 11, 24, 8, 30, tzinfo=UTC)),
        ("2026-11-24T08:30:00.250000+07:00", datetime(2026, 11, 24, 1, 30, 0, 250000, tzinfo=UTC)),
        ("2026-11-24T08:30:00Z", datetime(2026, 11, 24, 8, 30, tzinfo=UTC)),
        (datetime(2026, 11, 24, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)),
    ],
)
def test_times(value, expected):
    """Times come in the forms that templates give, with and without an offset."""
    assert parse_time("since", value) == expected


@pytest.mark.parametrize("value", ["", "None", "Z", "soon", "2026-13-01", "08:30", 20261124.5])
def test_no_times(value):
    """What is not a time is refused, with an example."""
    with pytest.raises(OneboxConfigError) as caught:
        parse_time("until", value)
    assert str(caught.value) == f"until={str(value)!r} is not a time: write it like '2026-11-24 08:30'."


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (None, None),
        (datetime(2026, 11, 24, 8, 30, 59), "2026-11-24 08:30"),
        (datetime(1, 1, 1), "0001-01-01 00:00"),
        (datetime(2026, 11, 24, 8, 30, tzinfo=timezone(timedelta(hours=7))), "2026-11-24 08:30+07:00"),
    ],
)
def test_written_times(moment, text):
    """Onebox reads times to the minute; a trigger's argument keeps the offset."""
    assert format_time(moment) == text
