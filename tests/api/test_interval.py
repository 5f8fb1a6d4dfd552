"""Intervals: each record is in exactly one of those that follow one another."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.interval import Interval
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.exceptions import OneboxConfigError

JAKARTA, BERLIN = ZoneInfo("Asia/Jakarta"), ZoneInfo("Europe/Berlin")
DAY = datetime(2090, 11, 24)


def rows(*dates):
    """Make records with these dates."""
    return [{"Id": str(number), "CreateDate": date} for number, date in enumerate(dates, 1)]


def selected(interval, *dates):
    """Return the dates that an interval selects."""
    return [row["CreateDate"] for row in interval.select(rows(*dates))]


@pytest.fixture
def client(sandbox):
    """A client that knows Onebox's zone, where all records are from before the days of these tests."""
    sandbox.state.until = DAY - timedelta(days=2)
    settings = Settings("crm", sandbox.url, sandbox.email, sandbox.password, "169", timezone=JAKARTA)
    return OneboxClient(settings, pause=lambda abandoned, seconds: None)


def ids(client, resource="ticketrz", **options):
    """List the ids of records."""
    return [row["Id"] for batch in client.lists.pages(resource, **options) for row in batch.rows]


@pytest.mark.parametrize("zone", [None, JAKARTA])
def test_bounds(zone):
    """The first moment is in the interval, the last one is not."""
    interval = Interval("ticketrz", DAY, DAY + timedelta(days=1), zone)
    inside = ["2090-11-24 00:00:00", "2090-11-24T12:00:00", "2090-11-24 23:59:59"]
    outside = ["2090-11-23 23:59:59", "2090-11-25 00:00:00", "3000-01-01 00:00:00"]
    assert selected(interval, *inside, *outside) == inside
    assert interval.left_out == 3


def test_open_bounds():
    """Each bound can be left out."""
    dates = ["2090-11-23 23:59:59", "2090-11-24 00:00:00"]
    assert selected(Interval("ticketrz", DAY, None, None), *dates) == dates[1:]
    assert selected(Interval("ticketrz", None, DAY, None), *dates) == dates[:1]


@pytest.mark.parametrize(
    ("since", "asked"),
    [(None, None), (DAY, datetime(2090, 11, 23, 23, 59)), (datetime.min, datetime(1, 1, 1, 23, 59))],
)
def test_asked(since, asked):
    """Onebox is asked for a minute more, so that it does not matter whether it includes that minute."""
    assert Interval("ticketrz", since, DAY + timedelta(days=1), None).asked == asked


@given(
    starts=st.lists(st.datetimes(datetime(2026, 10, 24), datetime(2026, 10, 27)), min_size=2, max_size=9, unique=True),
    dates=st.lists(st.datetimes(datetime(2026, 10, 24), datetime(2026, 10, 27)), max_size=30),
)
def test_partition(starts, dates):
    """Whatever the intervals, also while clocks are set back, each record is in exactly one of them."""
    bounds = [
        start.replace(tzinfo=timezone.utc).astimezone(BERLIN).replace(tzinfo=None)
        for start in [datetime(2020, 1, 1), *sorted(starts), datetime(2030, 1, 1)]
    ]
    texts = [str(date.replace(microsecond=0)) for date in dates]
    found = []
    for since, until in pairwise(bounds):
        found += selected(Interval("ticketrz", since, until, BERLIN), *texts)
    assert sorted(found) == sorted(texts)


def test_date_with_an_offset():
    """A date that has an offset is taken at its word; one that has no counterpart in UTC is no time."""
    interval = Interval("ticketrz", DAY, DAY + timedelta(hours=1), JAKARTA)
    dates = ["2090-11-23T17:30:00+00:00", "2090-11-24T00:30:00+00:00", "0001-01-01 00:00:00"]
    assert selected(interval, *dates) == dates[:1]


BAD_DATES = [None, "", "0000-00-00 00:00:00", "yesterday", 20261124]


def test_records_without_a_date(caplog):
    """A record whose date is not a time is in no interval, and is reported; without an end, Onebox's filter holds."""
    interval = Interval("ticketrz", DAY, DAY + timedelta(days=1), None)
    with caplog.at_level(logging.INFO):
        assert selected(interval, *BAD_DATES, "2090-11-24 08:30:00") == ["2090-11-24 08:30:00"]
        interval.report()
    undated, read = caplog.messages
    assert undated == "Left out 5 ticketrz records whose CreateDate is not a time, the first with Id 1: 'None'."
    assert read == (
        "Of 6 ticketrz records read, 1 were created in the interval from 2090-11-24 00:00:00 until 2090-11-25 00:00:00;"
        " left out: 0 earlier, 0 later."
    )
    assert selected(Interval("ticketrz", DAY, None, None), *BAD_DATES) == BAD_DATES


def test_resources_without_a_date():
    """Where records have no CreateDate, an end can't be applied, and a beginning is Onebox's to apply."""
    assert Interval("Case", DAY, None, None).select([{"Id": "7"}]) == [{"Id": "7"}]
    interval = Interval("Case", None, DAY, None)
    with pytest.raises(OneboxConfigError) as caught:
        interval.select([{"Id": "7"}])
    assert str(caught.value) == "Case: record 7 has no CreateDate, so until can't be applied."


@pytest.mark.parametrize("until", [DAY, DAY - timedelta(days=1)])
def test_empty(until):
    """An empty interval is refused, with the cause that it usually has."""
    with pytest.raises(OneboxConfigError) as caught:
        Interval("ticketrz", DAY, until, None)
    assert str(caught.value) == (
        f"The interval from since=2090-11-24 00:00:00 until={until} (in Onebox's zone) is empty. On Airflow 3, runs of "
        "a cron schedule such as '@daily' have empty intervals: use schedule=CronDataIntervalTimetable('@daily', "
        "timezone='UTC')."
    )


@pytest.mark.parametrize("inclusive", [False, True])
def test_days(client, sandbox, inclusive):
    """A record of midnight belongs to the new day, whether Onebox's own since includes it or not."""
    sandbox.state.configure(times_inclusive=inclusive)
    table = sandbox.state.table("ticketrz")
    seconds = [-1, 0, 1, 86399, 86400, 86401, 30]  # the last one has become visible late
    new = [table.add(1, DAY + timedelta(seconds=offset))[0] for offset in seconds]
    # Midnight in Jakarta.
    start = datetime(2090, 11, 23, 17, tzinfo=timezone.utc)
    day = {"since": start, "until": str(start + timedelta(days=1))}
    assert ids(client, **day) == [*new[1:4], new[6]]
    assert client.lists.count("ticketrz", **day) == (4, int(new[6]))
    assert ids(client, since=start) == new[1:]
    assert ids(client, since="2090-11-24 00:00:01") == new[2:]
    assert ids(client, until=start)[-1] == new[0]
    assert client.lists.count("ticketrz", since=start) == (6 if inclusive else 5, int(new[6]))


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 9])
def test_max_records(client, sandbox, most):
    """The bound counts the records of the interval, not those that are left out."""
    table = sandbox.state.table("ticketrz")
    new = [table.add(1, DAY + timedelta(days=offset))[0] for offset in (1, 0, 1, 0, 1, 0, 1, 0)]
    day = {"since": DAY, "until": DAY + timedelta(days=1)}
    assert ids(client, **day, max_records=most) == new[1::2][:most]


def test_max_records_is_cheap(client, sandbox):
    """Where nothing is left out, no more is asked for than is wanted."""
    assert len(ids(client, since="2017-01-01", max_records=5)) == 5
    assert [seen.query for seen in sandbox.state.seen][1:] == ["limit=5&since=2016-12-31+23%3A59"]


def report_of(caplog):
    """Return the line that says how many records were read."""
    (line,) = [line for line in caplog.messages if line.startswith("Of ")]
    return line


def test_few_are_read_on(client, sandbox, caplog):
    """Where the first ones are outside, the rest is read page by page."""
    caplog.set_level(logging.INFO)
    sandbox.state.table("ticketrz").add(1, DAY)
    assert len(ids(client, until=DAY, max_records=250)) == 250
    assert ids(client, since=DAY - timedelta(minutes=1), max_records=1) == sandbox.state.ids()[-1:]
    assert report_of(caplog) == (
        "Of 250 ticketrz records read, 250 were created in the interval from the beginning until 2090-11-24 00:00:00; "
        "left out: 0 earlier, 0 later."
    )


def test_report_of_a_beginning(client, sandbox, caplog):
    """Without an end, only what was left out is worth a line."""
    caplog.set_level(logging.INFO)
    for moment in (DAY - timedelta(seconds=30), DAY):
        sandbox.state.table("ticketrz").add(1, moment)
    assert len(ids(client, since=DAY)) == 1
    assert report_of(caplog) == (
        "Of 2 ticketrz records read, 1 were created in the interval from 2090-11-24 00:00:00 until now; left out: "
        "1 earlier, 0 later."
    )


def test_contacts(client, sandbox):
    """Contacts have no dates: their since is Onebox's own, and until is refused before anything is sent."""
    ids(client, "contactrz", since="2090-11-24 08:30")
    assert sandbox.state.seen[-1].query == "limit=100&since=2090-11-24+08%3A30"
    seen = len(sandbox.state.seen)
    for resource in ("contactrz", "prospectrz", "ContactRz"):
        with pytest.raises(OneboxConfigError) as caught:
            client.lists.pages(resource, until="2090-11-24")
        assert str(caught.value) == f"until can't be applied to {resource}, whose records have no dates."
    assert len(sandbox.state.seen) == seen


@pytest.mark.parametrize("method", ["pages", "count"])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"until": "2090-11-24", "last_update": "2090-11-23"},
            "until selects by the time of creation",
        ),
        ({"until": "soon"}, "until='soon' is not a time"),
        ({"since": "2090-11-24", "until": "2090-11-24"}, "is empty"),
        ({"resource": "../x", "since": "2090-11-24"}, "is not a name such as 'ticketrz'"),
    ],
)
def test_refused(client, sandbox, method, options, problem):
    """What makes no sense is refused before anything is sent."""
    with pytest.raises(OneboxConfigError, match=problem):
        getattr(client.lists, method)(**{"resource": "ticketrz", **options})
    assert not sandbox.state.seen
