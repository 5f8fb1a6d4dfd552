"""Paging: each record once, whatever happens to the list meanwhile."""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_onebox.api.pagination import Page, paginate
from airflow_provider_onebox.api.rate import RateController
from airflow_provider_onebox.exceptions import OneboxResponseError, OneboxUnavailableError


def paging(fetch, since_id=0, page_size=10, max_records=None, parallelism=2, seconds=0.0):
    """List from a server; each look at the clock takes so many seconds."""
    ticks = itertools.count()
    return paginate(
        fetch,
        since_id=since_id,
        max_records=max_records,
        rate=RateController(page_size, parallelism),
        call="c",
        clock=lambda: seconds * next(ticks),
    )


class Server:
    """A list of ids that responds like Onebox, but for its quirks."""

    extra, cap, least, total = 0, None, 0, True
    offset_ignored = since_ignored = since_included = repeated = False

    def __init__(self, ids, **quirks):
        self.ids = sorted(ids)
        vars(self).update(quirks)
        self.calls = []
        self.before_call = lambda since_id, offset: None
        self.lock = threading.Lock()

    def __call__(self, since_id, offset, limit, on_transient=None):
        with self.lock:
            self.calls.append((since_id, offset, limit))
            self.before_call(since_id, offset)
            first = 0 if self.since_ignored else bisect_right(self.ids, since_id - self.since_included)
            matching = self.ids[first:]
            start = 0 if self.offset_ignored else offset
            asked, limit = limit, max(limit + self.extra, self.least)
            rows = matching[start : start + min(limit, self.cap or limit)]
            count = len(matching)
            totals = {True: count, None: None, "all": len(self.ids), "low": max(0, count - 1), "high": count + 3}
            total = {**totals, "zero": 0, "page": len(rows)}[self.total]
        # A record that is twice in a page counts twice for the server, and once in the ids.
        return Page(rows, [{"Id": str(i)} for i in rows], len(rows) + (self.repeated and bool(rows)), total, asked)

    def paginate(self, *arguments, **options):
        ids = []
        self.announced = []
        for batch in paging(self, *arguments, **options):
            assert batch.rows
            ids += [int(row["Id"]) for row in batch.rows]
            assert batch.last_id == ids[-1]
            self.announced.append(batch.total)
            assert batch.total is None or batch.total >= len(ids)
        return ids


QUIRKS = [
    {},
    {"extra": 1},
    {"cap": 4},
    {"cap": 1},
    {"least": 35},
    {"total": None},
    {"total": "all"},
    {"total": "low"},
    {"total": "zero"},
    {"total": "page"},
    {"offset_ignored": True},
    {"offset_ignored": True, "extra": 1},
    {"offset_ignored": True, "cap": 4},
    {"since_included": True},
    {"since_included": True, "total": None},
    {"since_included": True, "total": "all"},
    {"since_included": True, "cap": 2, "total": None},
    {"since_included": True, "offset_ignored": True, "extra": 2},
    {"repeated": True},
]


def wrong(quirks, cases):
    """List with each page size, parallelism, number of records, first id and time; return what lost or doubled any."""
    found = []
    for page_size, parallelism, count, since_id, seconds in cases:
        server = Server(range(5, 5 + 3 * count, 3), **quirks)
        ids = server.paginate(since_id, page_size, None, parallelism, seconds)
        if ids != [number for number in server.ids if number > since_id]:
            found.append((page_size, parallelism, count, since_id, seconds))
    return found


@pytest.mark.parametrize("quirks", QUIRKS, ids=str)
def test_every_quirk(quirks):
    """All records once, ascending, where the list ends with a page or beside it, at once or after all are in flight."""
    cases = [
        (page_size, parallelism, page_size * pages + more, since_id, 0.0)
        for page_size, parallelism in itertools.product((1, 2, 3, 10), (1, 2, 4))
        for pages in (0, 1, parallelism + 1)
        for more in (0, 1, page_size - 1)
        for since_id in (0, 5)
    ]
    assert wrong(quirks, cases) == []


@pytest.mark.parametrize("quirks", QUIRKS, ids=str)
def test_every_quirk_without_tuning(quirks):
    """The same where the size of pages is found out, from times and without any."""
    counts = (99, 100, 101, 102, 103, 201, 202, 250, 450, 1001 if "cap" in quirks else 2500)
    assert wrong(quirks, itertools.product([None], (None, 1), counts, [0], (0.0, 0.01))) == []


class Broken(Server):
    """Gives no records after an id, and a total that says there are some; how often, is set."""

    def __init__(self, ids, after, times, rows=(), **quirks):
        super().__init__(ids, **quirks)
        self.after, self.times, self.rows = after, times, list(rows)

    def __call__(self, since_id, offset, limit, on_transient=None):
        page = super().__call__(since_id, offset, limit)
        if since_id != self.after or offset or not self.times:
            return page
        self.times -= 1
        return Page(self.rows, [{"Id": str(n)} for n in self.rows], len(self.rows), page.total, limit)


@pytest.mark.parametrize("rows", [[], [50]], ids=["empty", "the last record again"])
@pytest.mark.parametrize("parallelism", [1, 4])
@pytest.mark.parametrize("total", [True, "all"])
def test_page_that_its_total_contradicts(parallelism, total, rows):
    """The page is asked for once more; if that doesn't help, the listing fails and can be run again."""
    server = Broken(range(1, 1001), 50, 1, rows, total=total)
    assert server.paginate(page_size=50, parallelism=parallelism) == server.ids
    server = Broken(range(1, 1001), 50, 2, rows, total=total)
    message = "^c: asked twice for records after Id 50, Onebox returned none and a total of (950|1,000), so records are"
    with pytest.raises(OneboxResponseError, match=message) as caught:
        server.paginate(page_size=50, parallelism=parallelism)
    assert caught.value.retryable


def test_first_page_that_its_total_contradicts():
    """A listing does not begin with a page that can't be right either."""
    assert Broken(range(1, 100), 0, 1).paginate() == list(range(1, 100))
    server = Broken(range(1, 100), 0, 2)
    with pytest.raises(OneboxResponseError, match="after Id 0, Onebox returned none and a total of 99, so"):
        server.paginate()
    assert server.calls == [(0, 0, 10), (0, 0, 10), (0, 98, 2)]


@pytest.mark.parametrize("quirks", [{}, {"offset_ignored": True}, {"total": "all", "offset_ignored": True}], ids=str)
def test_total_that_is_always_too_high(quirks):
    """Where records are missing by the total at the end of every listing, every listing fails: who knows why."""
    server = Server(range(1, 31), **{"total": "high", **quirks})
    if quirks == {"total": "all", "offset_ignored": True}:
        # Two records where one belongs: offset is ignored, so this says nothing of the last one.
        with pytest.raises(OneboxResponseError, match="a total of 30, so"):
            server.paginate(30)
        return
    with pytest.raises(OneboxResponseError, match="after Id 30, Onebox returned none and a total of 3, so"):
        server.paginate()


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("most", [0, 1, 9, 10, 11, 25, 1000])
def test_max_records(most, parallelism):
    """Stops after the number asked for, and asks for no page that is not needed."""
    server = Server(range(1, 99))
    assert server.paginate(max_records=most, parallelism=parallelism) == server.ids[:most]
    # A page that overlaps the one before has a new record less.
    assert len(server.calls) == -(-min(most, 98) // 10) + (parallelism > 1 and most == 1000)
    assert all(limit <= min(10, most) for _, _, limit in server.calls)


@pytest.mark.parametrize("quirks", [{"extra": 3}, {"offset_ignored": True}], ids=str)
def test_max_records_of_an_odd_server(quirks):
    """Neither records that nobody asked for nor pages asked for in vain lead to more than the number."""
    server = Server(range(1, 99), **quirks)
    assert server.paginate(max_records=25, parallelism=3) == server.ids[:25]
    assert max(since_id + offset + limit for since_id, offset, limit in server.calls) <= 25


def test_pages_of_one_record_for_ever():
    """Pages of one record, always the last one again, lead on by offset; not where sinceId or offset is ignored."""
    server = Server(range(5, 30, 3), cap=1, total=None, since_included=True)
    assert server.paginate() == server.ids
    for quirks in (
        {"since_ignored": True, "total": None},
        {"since_ignored": True},
        {"since_ignored": True, "offset_ignored": True},
        {"since_included": True, "offset_ignored": True, "total": None},
    ):
        server = Server(range(1, 9), cap=1, **quirks)
        with pytest.raises(OneboxResponseError, match="repeats records up to Id 1"):
            server.paginate()


@pytest.mark.parametrize(("most", "total"), [(None, 91), (1000, 91), (30, 30)])
def test_total(most, total):
    """Each batch says how many records there will be in all, where the server does."""
    server = Server(range(1, 92))  # the last page has one new record
    server.paginate(max_records=most)
    assert set(server.announced) == {total}
    server.total = None
    server.paginate(max_records=most)
    assert set(server.announced) == {most}


def test_total_that_is_exceeded():
    """A total is not believed any more when more records arrive than it says."""
    server = Server(range(1, 92), total="page")
    server.paginate()
    assert server.announced == [10, *[None] * 9]


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_no_request_in_vain(parallelism):
    """A list that does not change costs one request a page; a page asked for ahead repeats one record."""
    server = Server(range(1, 981))
    assert len(server.paginate(page_size=50, parallelism=parallelism)) == 980
    assert len(server.calls) == 20
    assert {offset > 0 for _, offset, _ in server.calls} == ({False} if parallelism == 1 else {False, True})


def test_pages_of_different_sizes_join():
    """A page behind one of more records begins where that will end."""
    server = Server(range(1, 20_001))
    assert server.paginate(page_size=None, parallelism=None, seconds=1e-3) == server.ids
    sizes = {limit for _, _, limit in server.calls}
    assert {100, 600, 1600} <= sizes
    assert len(server.calls) < 40


@pytest.mark.parametrize(
    ("count", "quirks", "options", "calls"),
    [
        # Without tuning, a list shorter than the first page is one request, and so is an empty one.
        *((count, {}, {"page_size": None, "parallelism": None}, [(0, 0, 100)]) for count in (0, 1, 99)),
        # A page of one record has none to overlap with, so none is asked for by offset.
        (10, {}, {"page_size": 1}, [(n, 0, 1) for n in range(11)]),
        # A full page that ends with the total is followed by one request, which costs less than a record.
        (20, {}, {"parallelism": 1}, [(0, 0, 10), (10, 0, 10), (20, 0, 10)]),
        # Where sinceId includes the record itself, a page of one is that record, so that two are asked for.
        (98, {"since_included": True}, {"max_records": 11, "parallelism": 1}, [(0, 0, 10), (10, 0, 1), (10, 0, 2)]),
    ],
)
def test_requests(count, quirks, options, calls):
    """What is asked for in these cases, and nothing else."""
    server = Server(range(1, count + 1), **quirks)
    assert server.paginate(**options) == server.ids[: options.get("max_records")]
    assert server.calls == calls


def test_offset_ignored():
    """Pages asked for by offset are checked: a server that ignores it costs time, never a record."""
    server = Server(range(1, 201), offset_ignored=True)
    assert server.paginate(parallelism=4) == server.ids
    # Twenty pages by id, and three times those ahead in vain.
    assert len(server.calls) <= 21 + 3 * 5
    assert [offset for _, offset, _ in server.calls[-15:]] == [0] * 15
    assert set(server.announced) == {200}


def test_offset_ignored_now_and_then():
    """Pages are asked for by offset again after two in a row were of no use, however often that happens."""
    server = Server(range(1, 601))
    server.before_call = lambda since_id, offset: setattr(server, "offset_ignored", since_id % 200 < 50)
    assert server.paginate() == server.ids
    assert max(offset for since_id, offset, _ in server.calls if since_id >= 450) > 0


def test_page_that_ends_where_a_longer_one_does():
    """A page without a new record, because the one before had more than it was asked for, is no fault of the server."""
    server = Server(range(1, 26), total=None)
    server.before_call = lambda *page: setattr(server, "extra", 5 * (page == (10, 0)))
    assert server.paginate() == server.ids


def test_server_that_repeats_itself():
    """A server that ignores sinceId ends in an error, not in a loop, and no retry can help it."""
    server = Server(range(1, 100), since_ignored=True)
    with pytest.raises(OneboxResponseError, match="repeats records up to Id 10") as caught:
        server.paginate(parallelism=1)
    assert not caught.value.retryable


def test_fault_reaches_the_consumer():
    """A page that fails ahead of time fails the listing when its turn has come."""
    server = Server(range(1, 101))

    def fail(*_):
        if len(server.calls) == 4:
            raise OneboxResponseError("broken")

    server.before_call = fail
    pages, found = paging(server), []
    with pytest.raises(OneboxResponseError, match="broken"):
        found.extend(int(row["Id"]) for batch in pages for row in batch.rows)
    assert found == server.ids[: len(found)]
    assert len(found) >= 10


def test_early_end_waits_for_nothing():
    """A listing that ends early waits for no page, and those that wait for their turn are never asked for."""
    server = Server(range(1, 1001))
    together, released, ended = threading.Barrier(3), threading.Event(), []

    def fetch(since_id, offset, limit, on_transient):
        page = server(since_id, offset, limit)
        if len(server.calls) > 1:
            together.wait(10)
            if offset:
                released.wait(5)
                ended.append(offset)
            else:
                on_transient(OneboxUnavailableError("Too many requests.", status=429, retry_after=60))
        return page

    pages = paging(fetch, parallelism=3)
    next(pages)
    next(pages)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("onebox-page")]
    time.sleep(0.05)  # By now the third thread waits, as the rejection asks for.
    pages.close()
    assert not ended
    released.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(ended) == 2
    assert len(server.calls) == 4


@pytest.mark.parametrize(("parallelism", "ahead"), [(1, 1), (2, 3), (4, 5), (7, 8)])
def test_slow_consumer(parallelism, ahead):
    """No more requests are in flight than allowed, and pages wait for a slow consumer: the next ones, and no more."""
    server = Server(range(1, 1001))
    in_flight, most = set(), 0
    together, enough = threading.Event(), threading.Event()

    def fetch(*page):
        nonlocal most
        in_flight.add(page)
        most = max(most, len(in_flight))
        if most == parallelism:
            together.set()
        # The first page comes alone.
        assert not server.calls or together.wait(10)
        in_flight.remove(page)
        response = server(*page)
        if len(server.calls) == 1 + ahead:
            enough.set()
        return response

    pages = paging(fetch, parallelism=parallelism)
    next(pages)
    assert enough.wait(10)
    time.sleep(0.1)
    assert len(server.calls) == 1 + ahead
    assert most == parallelism
    assert [int(row["Id"]) for batch in pages for row in batch.rows] == server.ids[10:]


@settings(max_examples=150, deadline=None)
@given(
    ids=st.sets(st.integers(1, 400), max_size=120),
    changes=st.dictionaries(
        st.integers(2, 30), st.tuples(st.sets(st.integers(1, 400), max_size=12), st.sets(st.integers(401, 500)))
    ),
    page_size=st.none() | st.integers(1, 15),
    parallelism=st.none() | st.integers(1, 5),
    caps=st.dictionaries(st.integers(1, 30), st.none() | st.integers(2, 20), max_size=5),
    seconds=st.sampled_from([0.0, 1e-4, 0.01, 1.0]),
    quirks=st.fixed_dictionaries(
        {
            "extra": st.integers(0, 2),
            "offset_ignored": st.booleans(),
            "repeated": st.booleans(),
            "since_included": st.booleans(),
            "total": st.sampled_from([True, None]),
        }
    ),
)
def test_while_records_come_and_go(ids, changes, page_size, parallelism, caps, seconds, quirks):
    """No record twice, none missed that existed from start to end, none invented; the server's limit changes too."""
    # Where offset is ignored as well, a single record for ever can't be distinguished from a sinceId that is ignored.
    quirks["since_included"] &= not quirks["offset_ignored"]
    server = Server(ids, **quirks)
    stayed, ever = set(ids), set(ids)

    def change(*_):
        n = len(server.calls)
        # A first page cut short whose repeated row makes it look whole can't be distinguished from a whole list.
        server.cap = None if server.repeated else caps.get(n, server.cap)
        gone, come = changes.get(n, (set(), set()))
        stayed.difference_update(gone)
        ever.update(come)
        server.ids = sorted(set(server.ids) - gone | come)

    server.before_call = change
    rows = server.paginate(page_size=page_size, parallelism=parallelism, seconds=seconds)
    assert rows == sorted(set(rows))
    assert stayed <= set(rows) <= ever
