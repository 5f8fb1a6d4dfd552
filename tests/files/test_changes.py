"""What is new or changed, and in which order Onebox is asked for it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import msgspec
import pytest

from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.files.changes import Changes, list_changes


class Server:
    """Records with the time of their last change, listed three a page."""

    def __init__(self, *, inclusive=False):
        self.records = {}
        self.inclusive = inclusive
        self.asked = []
        self.known = Changes()
        self.between = lambda: None  # happens after the first page

    def change(self, date, *ids, **fields):
        """Add records, or change them."""
        for row in ids:
            self.records[row] = {**self.records.get(row, {}), "Id": str(row), "ModifyDate": date, **fields}

    def list_since(self, time, most):
        """List what was changed after a time."""
        self.asked.append((time, most))
        after, between = 0, self.between

        def fits(date):
            return time is None or (date >= str(time) if self.inclusive else date > str(time))

        while rows := [r for n, r in sorted(self.records.items()) if n > after and fits(r["ModifyDate"])][: most or 3]:
            after = int(rows[-1]["Id"])
            yield Batch([dict(row) for row in rows], after, None)
            if most:
                return
            between()
            between = lambda: None  # noqa: E731

    def run(self):
        """List the changes since the last run."""
        new = Changes()
        rows = [row for batch in list_changes(self.list_since, self.known, new, "ticketrz") for row in batch.rows]
        self.known = new
        return [int(row["Id"]) for row in rows]


@pytest.fixture(params=[False, True], ids=["exclusive", "inclusive"])
def server(request):
    """A server whose lastUpdate leaves out, or keeps, a record of that very second."""
    return Server(inclusive=request.param)


def test_none_lost_none_twice(server):
    """Each change comes in the next listing and in no other, also where a minute is shared or asked for again."""
    assert server.run() == []
    assert server.known == Changes()
    server.change("2026-03-01 10:04:59", 1, 2)
    server.change("2026-03-01 10:05:00", *range(3, 9))
    server.change("2026-03-01 10:05:30", 9)
    assert server.run() == list(range(1, 10))
    assert server.known.until[:16] == "2026-03-01 10:05"
    assert sorted(server.known.seen) == [str(row) for row in range(3, 10)]
    assert server.run() == []
    server.change("2026-03-01 10:05:30", 9, Subject="changed in the same second")
    server.change("2026-03-01 10:05:30", 10)
    assert server.run() == [9, 10]
    server.change("2026-03-01 10:05:59", 1)
    server.change("2026-03-01 10:06:00", 2)
    assert server.run() == [1, 2]
    del server.records[3]
    assert server.run() == server.run() == []


def test_changed_while_listing(server):
    """What changes during a listing comes in its later state, then or next time, and no state comes twice."""
    server.change("2026-03-01 10:05:00", *range(1, 7))
    server.between = lambda: server.change("2026-03-01 11:00:00", 1, 6, Subject="changed")
    assert server.run() == [1, 2, 3, 4, 5, 6]
    assert server.run() == [1]
    assert server.run() == []


def test_only_what_must_be_known_is_kept():
    """Fingerprints of records changed before the boundary minute are not kept."""
    server = Server()
    server.change("2026-03-01 10:05:00", *range(1, 50))
    server.run()
    server.change("2026-03-01 10:09:10", 50)
    assert server.run() == [50]
    assert list(server.known.seen) == ["50"]


def test_few_questions(server):
    """A first listing asks for one record about 25 times, a later one of the day about 12 times; then it lists."""
    server.change("2026-03-01 10:05:00", 1)
    server.run()
    assert 20 <= len(server.asked) <= 28
    assert server.asked[-1] == (None, None)
    assert {most for _, most in server.asked[:-1]} == {1}
    server.asked.clear()
    server.change(f"{datetime.now() - timedelta(days=1):%Y-%m-%d %H:%M:%S}", 1)
    server.run()
    server.asked.clear()
    assert server.run() == []
    assert len(server.asked) <= 16
    begin = datetime.fromisoformat(server.known.until).replace(second=0)
    assert server.asked[-1] == (begin - timedelta(minutes=1), None)


def test_begins_at_a_time(server):
    """A first listing can begin at a time; what was changed before it does not come."""
    server.change("2026-03-01 10:04:59", 1)
    server.change("2026-03-01 10:05:00", 2)
    server.known = Changes("2026-03-01 10:05:00")
    assert server.run() == [2]
    assert server.run() == []


def test_changed_within_the_minute(server):
    """A change comes, too, if another one later in its minute was seen before it."""
    server.change("2026-03-01 10:05:30", 1)
    assert server.run() == [1]
    server.change("2026-03-01 10:05:10", 2)
    assert server.run() == [2]


def test_date_of_nothing(server):
    """The time with which a database stands for none at all is a time like any other."""
    server.change("1970-01-01 00:00:00", 1)
    assert server.run() == [1]
    assert server.run() == []


def test_date_in_the_future(server):
    """A date up to a day ahead is another zone's; a later one is wrong, or lastUpdate did not filter it."""
    now = datetime.now(timezone.utc).replace(tzinfo=None, microsecond=0)
    server.change(str(now + timedelta(hours=23)), 1)
    assert server.run() == [1]
    server.change(str(now + timedelta(hours=25)), 2)
    with pytest.raises(OneboxConfigError, match="or this machine's clock is wrong"):
        server.run()


def test_written_by_hand():
    """A time is enough to say where to begin."""
    known = msgspec.json.decode('{"until": "2026-11-24 08:30:00"}', type=Changes)
    assert known == Changes(until="2026-11-24 08:30:00", seen={}, count=0)


def test_last_update_is_ignored():
    """A server that gives records of yesterday when it is asked for tomorrow's is found out, with the remedy."""
    server = Server()
    server.change("2026-03-01 10:05:00", 1)
    with pytest.raises(
        OneboxConfigError, match=r"returned one changed at 2026-03-01 10:05:00\. .* use incremental=True"
    ):
        list(list_changes(lambda time, most: server.list_since(None, most), Changes(), Changes(), "ticketrz"))
    assert len(server.asked) == 1


@pytest.mark.parametrize("date", [None, "", 5, "2026-03-01", "2026-03-01T10:05:00", "0000-00-00 00:00:00"])
def test_no_date(date):
    """A record that does not tell when it was changed is rejected, with its id and the remedy, never passed over."""
    rows = [{"Id": "7", "ModifyDate": date}]
    with pytest.raises(OneboxConfigError, match=r"^ticketrz: record 7 has the ModifyDate .* Use incremental=True"):
        list(list_changes(lambda time, most: [] if time else [Batch(rows, 7, None)], Changes(), Changes(), "ticketrz"))
