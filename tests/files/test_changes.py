"""What is new or changed, and in which order Onebox is asked for it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_onebox.api.pagination import Batch
from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.files import changes as module
from airflow_provider_onebox.files.changes import ByChanges, Changes

ODD = [None, "", "0000-00-00 00:00:00", "3000-01-01 00:00:00", 5, "soon"]


class Server:
    """Records with the time of their last change, listed three a page."""

    def __init__(self, *, inclusive=False):
        self.records = {}
        self.inclusive = inclusive
        self.keeps_odd = False
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
            date = str(date or "")
            if self.keeps_odd and date[:4] in ("", "0000"):
                return True
            return time is None or (date >= str(time) if self.inclusive else date > str(time))

        while rows := [r for n, r in sorted(self.records.items()) if n > after and fits(r["ModifyDate"])][: most or 3]:
            after = int(rows[-1]["Id"])
            yield Batch([dict(row) for row in rows], after, None)
            if most:
                return
            between()
            between = lambda: None  # noqa: E731

    def run(self, overlap=0):
        """List the changes since the last run."""
        policy = ByChanges(self.list_since, "ticketrz", overlap=overlap)
        rows = [row for batch in policy.batches(self.known, None, set()) for row in batch.rows]
        done, self.known = policy.result()
        ids = [int(row["Id"]) for row in rows]
        assert (done.count, done.first, done.last) == (len(ids), *((ids[0], ids[-1]) if ids else (None, None)))
        return ids


@pytest.fixture(params=[False, True], ids=["exclusive", "inclusive"])
def server(request, monkeypatch):
    """A server whose lastUpdate leaves out, or keeps, a record of that very second."""
    monkeypatch.setattr(module, "STRAYS", 0)
    return Server(inclusive=request.param)


def test_none_lost_none_twice(server):
    """Each change is in the next listing and in no other, also where a minute is shared or asked for again."""
    assert server.run() == []
    assert server.known == Changes()
    server.change("2026-03-01 10:04:59", 1, 2)
    server.change("2026-03-01 10:05:00", *range(3, 9))
    server.change("2026-03-01 10:05:30", 9)
    assert server.run() == list(range(1, 10))
    assert server.known.until == "2026-03-01 10:05:00"
    assert server.known.floor == "2026-03-01 10:04:00"
    assert server.run() == []
    server.change("2026-03-01 10:05:30", 9, Subject="changed in the same second")
    server.change("2026-03-01 10:05:30", 10)
    assert server.run() == [9, 10]
    server.change("2026-03-01 10:05:10", 11)  # Later in its minute than others that are written.
    assert server.run() == [11]
    server.change("2026-03-01 10:05:59", 1)
    server.change("2026-03-01 10:06:00", 2)
    assert server.run() == [1, 2]
    del server.records[3]
    assert server.run() == server.run() == []


def test_changed_back_within_a_second(server):
    """A record that changes and changes back within a second is written each time."""
    for subject in ("a", "b", "a"):
        server.change("2026-03-01 10:05:00", 1, Subject=subject)
        assert server.run() == [1]
        assert server.run() == []


def test_changed_while_listing(server):
    """What changes during a listing is written in its later state, then or next time, and no state twice."""
    server.change("2026-03-01 10:05:00", *range(1, 7))
    server.between = lambda: server.change("2026-03-01 11:00:00", 1, 6, Subject="changed")
    assert server.run() == [1, 2, 3, 4, 5, 6]
    assert server.run() == [1]
    assert server.run() == []


@pytest.mark.parametrize(
    ("date", "overlap", "found"), [("09:56:00", 10, [3]), ("09:56:00", 5, []), ("10:04:30", 0, [3])]
)
def test_late_change(server, date, overlap, found):
    """A change that becomes visible late is written if its time is that close to the latest, and once."""
    server.change("2026-03-01 09:00:00", 1)
    server.change("2026-03-01 10:05:30", 2)
    assert server.run(overlap) == [1, 2]
    server.change(f"2026-03-01 {date}", 3)
    assert server.run(overlap) == found
    assert server.run(overlap) == []


def test_overlap_that_is_changed(server):
    """A longer overlap writes nothing twice, because it begins where fingerprints were kept; a shorter one neither."""
    server.change("2026-03-01 09:00:00", 1)
    server.change("2026-03-01 10:05:30", 2)
    assert server.run(5) == [1, 2]
    assert server.run(600) == []
    assert server.run(2) == server.run(0) == []
    assert server.known.floor == "2026-03-01 10:04:00"
    assert server.run(600) == []


def test_only_what_must_be_known_is_kept(server):
    """Fingerprints of records that will not be listed again are not kept."""
    server.change("2026-03-01 10:05:00", *range(1, 50))
    server.run()
    server.change("2026-03-01 10:09:10", 50)
    assert server.run() == [50]
    assert list(server.known.seen) == ["50"]


def test_too_many_to_know(server, monkeypatch):
    """The state is bounded: more fingerprints than that are an error with the remedy."""
    monkeypatch.setattr(module, "MAX_SEEN", 6)
    server.change("2026-03-01 10:05:30", *range(1, 7))
    assert len(server.run()) == 6
    server.change("2026-03-01 10:05:30", 7)
    with pytest.raises(OneboxConfigError, match=r"^ticketrz: more than 6 records .* Lower overlap=3"):
        server.run(3)


def test_few_questions(server):
    """A first listing asks for one record about 25 times, a later one of the day about 12 times; then it lists."""
    server.change("2026-03-01 10:05:00", 1)
    server.run()
    assert 20 <= len(server.asked) <= 28
    assert server.asked[-1] == (None, None)
    assert {most for _, most in server.asked[1:-1]} == {1}
    server.change(f"{datetime.now() - timedelta(days=1):%Y-%m-%d %H:%M:%S}", 1)
    server.run()
    server.asked.clear()
    assert server.run(10) == []
    assert len(server.asked) <= 16
    assert server.asked[-1] == (datetime.fromisoformat(server.known.floor), None)


def test_begins_at_a_time(server):
    """A first listing can begin at a time; what was changed before it is not listed, then or later."""
    server.change("2026-03-01 10:04:59", 1)
    server.change("2026-03-01 10:05:00", 2)
    server.known = ByChanges(server.list_since, "ticketrz", "2026-03-01 10:05:00").start()
    assert server.run(10) == [2]
    server.change("2026-03-01 10:04:59", 3)
    assert server.run(10) == []
    assert server.known.floor == "2026-03-01 10:05:00"
    server.change("2026-03-01 10:07:00", 4)
    assert server.run(1) == [4]
    assert server.known.begin == "2026-03-01 10:05:00"


def test_date_of_nothing(server):
    """The beginning of a computer's time is a time like any other."""
    server.change("1970-01-01 00:00:00", 1)
    assert server.run() == [1]
    assert server.run() == []


@pytest.mark.parametrize("date", ODD)
def test_odd_date(server, date):
    """A time that means nothing is written once, and hides neither its record's next change nor another's."""
    server.change("2026-03-01 10:05:30", 2, 3)
    server.change(date, 1, 4)
    assert server.run(10) == [1, 2, 3, 4]
    assert server.known.until == "2026-03-01 10:05:00"
    assert server.run(10) == []
    server.change("2026-03-01 10:06:00", 1, 2)
    assert server.run(10) == [1, 2]
    assert server.run(10) == []


@pytest.mark.parametrize("date", ODD)
def test_odd_date_of_all(server, date):
    """Where no record has a time that means anything, each is written once."""
    server.change(date, *range(1, 6))
    assert server.run(10) == [1, 2, 3, 4, 5]
    server.change(date, 6)
    assert server.run(10) == [6]
    assert server.known.until == ""


@pytest.mark.parametrize("date", [None, "0000-00-00 00:00:00"])
def test_filter_that_keeps_records_without_a_time(server, date):
    """Records without a time are written once, too, where a server lists them for any time."""
    server.keeps_odd = True
    server.change("2026-03-01 10:05:30", 2, 3)
    server.change(date, 1)
    assert server.run() == [1, 2, 3]
    assert server.run() == []
    server.change(date, 7)
    assert server.run() == [7]
    assert server.run() == []
    server.change(date, 1, Subject="changed")
    assert server.run() == [1]


def test_clock_that_is_ahead(monkeypatch):
    """Some records with a time ahead of Onebox's clock don't hide what changes until then."""
    monkeypatch.setattr(module, "STRAYS", 2)
    server = Server()
    now = datetime.now(timezone.utc).replace(tzinfo=None, microsecond=0)
    server.change(str(now - timedelta(hours=2)), 1, 2, 3)
    server.change(str(now + timedelta(hours=23)), 4, 5)
    assert server.run() == [1, 2, 3, 4, 5]
    assert server.known.until == f"{now - timedelta(hours=2):%Y-%m-%d %H:%M}:00"
    server.change(str(now - timedelta(hours=1)), 6)
    assert server.run() == [6]
    assert server.run() == []
    assert module.STRAYS == 2


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (Changes(), "nothing was written yet; this run lists all changes"),
        (Changes(begin="a"), "nothing was written yet; this run lists all changes since a"),
        (Changes(until="b"), "everything changed before b was written"),
    ],
)
def test_describe(known, text):
    """The log says what was written, of the first run too."""
    assert ByChanges(lambda *_: [], "ticketrz").describe(known) == text


def test_last_update_is_ignored():
    """A server that lists records of yesterday when it is asked for tomorrow's is found out, with the remedy."""
    server = Server()
    server.change("2026-03-01 10:05:00", 1)
    policy = ByChanges(lambda time, most: server.list_since(None, most), "ticketrz")
    with pytest.raises(
        OneboxConfigError, match=r"returned one changed at 2026-03-01 10:05:00\. .* use incremental=True"
    ):
        list(policy.batches(Changes(), None, set()))
    assert len(server.asked) == 1


def test_no_date():
    """A resource whose records have no time of a change is rejected, with an id and the remedy."""
    policy = ByChanges(lambda time, most: [] if time else [Batch([{"Id": "7"}], 7, None)], "ticketrz")
    with pytest.raises(OneboxConfigError, match=r"^ticketrz: record 7 has no ModifyDate.* incremental=True"):
        list(policy.batches(Changes(), None, set()))
