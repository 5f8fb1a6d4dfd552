"""Paging: each row once, whatever happens to the list meanwhile."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_onebox.api.pagination import Page, paginate
from airflow_provider_onebox.exceptions import OneboxResponseError, OneboxUnavailableError


class Server:
    """A list of ids that answers like Onebox; its quirks are set per test."""

    def __init__(
        self,
        ids,
        *,
        extra=0,
        cap=None,
        least=0,
        offset_ignored=False,
        since_ignored=False,
        since_included=False,
        repeated=False,
        total=True,
    ):
        self.ids = sorted(ids)
        self.extra, self.cap, self.least, self.offset_ignored = extra, cap, least, offset_ignored
        self.since_ignored, self.since_included, self.repeated = since_ignored, since_included, repeated
        self.total = total
        self.calls = []
        self.before_call = lambda n: None
        self.lock = threading.Lock()

    def __call__(self, since_id, offset, limit, on_transient=None):
        with self.lock:
            self.calls.append((since_id, offset, limit))
            self.before_call(len(self.calls))
            first = 0 if self.since_ignored else bisect_right(self.ids, since_id - self.since_included)
            matching = self.ids[first:]
            start = 0 if self.offset_ignored else offset
            limit = max(limit + self.extra, self.least)
            rows = matching[start : start + min(limit, self.cap or limit)]
            count = len(matching)
            totals = {True: count, None: None, "all": len(self.ids), "low": max(0, count - 1), "high": count + 3}
            total = {**totals, "zero": 0, "page": len(rows)}[self.total]
        # A row that stands twice in a page counts twice for the server, and once in the ids.
        return Page(rows, [{"Id": str(i)} for i in rows], len(rows) + (self.repeated and bool(rows)), total)

    def paginate(self, since_id=0, page_size=10, max_records=None, parallelism=2):
        ids = []
        self.announced = []
        for batch in paginate(
            self, since_id=since_id, page_size=page_size, max_records=max_records, parallelism=parallelism, call="c"
        ):
            assert batch.rows
            ids += [int(row["Id"]) for row in batch.rows]
            assert batch.last_id == ids[-1]
            self.announced.append(batch.total)
            assert batch.total is None or batch.total >= len(ids)
        return ids


SAME_ROW_FOR_EVER = {"since_included": True, "total": None}
QUIRKS = [
    {},
    {"extra": 1},
    {"cap": 4},
    {"cap": 1},
    {"least": 35},
    {"total": None},
    {"total": "all"},
    {"total": "low"},
    {"total": "high"},
    {"total": "zero"},
    {"total": "page"},
    {"offset_ignored": True},
    {"offset_ignored": True, "extra": 1},
    {"offset_ignored": True, "cap": 4},
    {"offset_ignored": True, "total": "all"},
    {"since_included": True},
    SAME_ROW_FOR_EVER,
    {"since_included": True, "offset_ignored": True, "extra": 2},
    {"repeated": True},
]


@pytest.mark.parametrize("quirks", QUIRKS, ids=str)
def test_every_quirk_at_many_sizes(quirks):
    """All rows once, ascending, at every count around the ends of pages, every page size and width."""
    wrong = []
    for page_size in (2, 3, 10, 16):
        for count in {0, 1, 2, *(page_size * n + more for n in (1, 2, 3, 5) for more in (-1, 0, 1, 2)), 71}:
            for parallelism in (1, 2, 3, 4, 7):
                server = Server(range(5, 5 + 3 * count, 3), **quirks)
                for since_id in (0, 5, 20):
                    expected = [i for i in server.ids if i > since_id]
                    if quirks == SAME_ROW_FOR_EVER and len(expected) == 1 and since_id not in server.ids:
                        # One row for ever, and no total: that is what a server gives too that ignores sinceId.
                        with pytest.raises(OneboxResponseError, match="repeats rows"):
                            server.paginate(since_id, page_size, None, parallelism)
                        continue
                    rows = server.paginate(since_id, page_size, None, parallelism)
                    if rows != expected:
                        wrong.append((page_size, count, parallelism, since_id))
    assert not wrong


@pytest.mark.parametrize("count", [99, 100, 101, 250, 450, 1001, 5000])
@pytest.mark.parametrize("quirks", QUIRKS, ids=str)
def test_every_quirk_without_tuning(quirks, count):
    """All rows once, ascending, where the pace is found out."""
    server = Server(range(1, count + 1), **quirks)
    assert server.paginate(page_size=None, parallelism=None) == server.ids


@pytest.mark.parametrize("count", [250, 450])
def test_offset_ignored_at_the_default(count):
    """A server that ignores offset loses no row, though its totals look as if the list were at its end."""
    server = Server(range(1, count + 1), offset_ignored=True)
    assert server.paginate(page_size=100, parallelism=2) == server.ids


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("most", [0, 1, 9, 10, 11, 25, 1000])
def test_max_records(most, parallelism):
    """Stops after the number asked for, and asks for no page that is not needed."""
    server = Server(range(1, 99))
    assert server.paginate(max_records=most, parallelism=parallelism) == server.ids[:most]
    # A page that overlaps the one before has a new row less.
    assert len(server.calls) == -(-min(most, 98) // 10) + (parallelism > 1 and most == 1000)
    assert all(limit <= min(10, most) for _, _, limit in server.calls)


@pytest.mark.parametrize("quirks", [{"extra": 3}, {"offset_ignored": True}], ids=str)
def test_max_records_of_an_odd_server(quirks):
    """Neither rows that nobody asked for nor pages asked for in vain lead to more than the number."""
    server = Server(range(1, 99), **quirks)
    assert server.paginate(max_records=25, parallelism=3) == server.ids[:25]
    assert max(since_id + offset + limit for since_id, offset, limit in server.calls) <= 25


def test_last_row_again_in_place_of_a_single_one():
    """Where sinceId includes the row itself, a page of one row is that row: an error, since others may follow."""
    server = Server(range(1, 99), since_included=True)
    with pytest.raises(OneboxResponseError, match="repeats rows up to Id 10"):
        server.paginate(max_records=11, parallelism=1)


@pytest.mark.parametrize(("most", "total"), [(None, 91), (1000, 91), (30, 30)])
def test_total(most, total):
    """Each batch tells how many records there will be in all, where the server does."""
    server = Server(range(1, 92))  # the last page has one new row
    server.paginate(max_records=most)
    assert set(server.announced) == {total}
    server.total = None
    server.paginate()
    assert set(server.announced) == {None}
    server.paginate(max_records=most)
    assert set(server.announced) == {most}


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_no_request_in_vain(parallelism):
    """A list that stands still costs one request a page; a page asked for ahead repeats one row."""
    server = Server(range(1, 981))
    assert len(server.paginate(page_size=50, parallelism=parallelism)) == 980
    assert len(server.calls) == 20
    assert {offset > 0 for _, offset, _ in server.calls} == ({False} if parallelism == 1 else {False, True})


def test_pages_of_one_row():
    """A page of one row has none to overlap with, so none is asked for by offset."""
    server = Server(range(1, 11))
    assert server.paginate(page_size=1) == server.ids
    assert server.calls == [(n, 0, 1) for n in range(11)]


def test_pages_of_different_sizes_join():
    """A page behind one of twice the rows begins where that will end."""
    server, released = Server(range(1, 1001)), threading.Event()

    def fetch(since_id, *page):
        # Else the second page may come before the third is asked for, and change the pace.
        assert since_id != 100 or released.wait(10)
        return replace(server(since_id, *page), seconds=0.1)

    pages = paginate(fetch, since_id=0, page_size=None, max_records=None, parallelism=None, call="c")
    next(pages)
    released.set()
    assert [int(row["Id"]) for batch in pages for row in batch.rows] == server.ids[100:]
    assert {(100, 0, 200), (100, 199, 100), (100, 298, 100)} <= set(server.calls)


@pytest.mark.parametrize("count", [0, 1, 20, 99])
def test_a_short_list_is_one_request(count):
    """Without tuning, a list shorter than the first page is one request, and so is an empty one."""
    server = Server(range(1, count + 1))
    assert server.paginate(page_size=None, parallelism=None) == server.ids
    assert server.calls == [(0, 0, 100)]


def test_total_is_not_believed_on_a_full_page():
    """A full page that ends with the total is followed by one request, which costs less than a row."""
    server = Server(range(1, 21))
    assert len(server.paginate(page_size=10, parallelism=1)) == 20
    assert server.calls == [(0, 0, 10), (10, 0, 10), (20, 0, 10)]


def test_offset_ignored():
    """Pages asked for by offset are checked: a server that ignores it costs time, never a row."""
    server = Server(range(1, 201), offset_ignored=True)
    assert server.paginate(parallelism=4) == server.ids
    # Twenty pages by id, and three times those ahead in vain.
    assert len(server.calls) <= 21 + 3 * 5
    assert [offset for _, offset, _ in server.calls[-15:]] == [0] * 15
    assert set(server.announced) == {200}


def test_offset_ignored_now_and_then():
    """Pages are asked for by offset again after two in a row were of no use, however often that happens."""
    server = Server(range(1, 601))

    def fetch(since_id, offset, limit, on_transient):
        return server(since_id, offset * (since_id % 200 >= 50), limit)

    rows = paginate(fetch, since_id=0, page_size=10, max_records=None, parallelism=2, call="c")
    assert [int(row["Id"]) for batch in rows for row in batch.rows] == server.ids
    assert max(offset for since_id, offset, _ in server.calls if since_id >= 450) > 0


def test_page_that_ends_where_a_longer_one_does():
    """A page without a new row, because the one before had more than it was asked for, is no fault of the server."""
    server = Server(range(1, 26), total=None)

    def fetch(since_id, offset, limit, on_transient):
        return server(since_id, offset, limit + 5 * ((since_id, offset) == (10, 0)))

    pages = paginate(fetch, since_id=0, page_size=10, max_records=None, parallelism=2, call="c")
    assert [int(row["Id"]) for batch in pages for row in batch.rows] == server.ids


def test_server_that_repeats_itself():
    """A server that ignores sinceId ends in an error, not in a loop, and no retry can help it."""
    server = Server(range(1, 100), since_ignored=True)
    with pytest.raises(OneboxResponseError, match="repeats rows up to Id 10") as caught:
        server.paginate(parallelism=1)
    assert not caught.value.retryable


def test_fault_reaches_the_consumer():
    """A page that fails ahead of time fails the listing when its turn comes."""
    server = Server(range(1, 101))

    def fail(n):
        if n == 4:
            raise OneboxResponseError("broken")

    server.before_call = fail
    given_out = []

    def consume():
        for batch in paginate(server, since_id=0, page_size=10, max_records=None, parallelism=2, call="c"):
            given_out.extend(int(row["Id"]) for row in batch.rows)

    with pytest.raises(OneboxResponseError, match="broken"):
        consume()
    assert given_out == server.ids[: len(given_out)]
    assert len(given_out) >= 10


def test_early_end_stops_the_requests():
    """A consumer that stops early leaves no request behind."""
    server = Server(range(1, 1001))
    pages = paginate(server, since_id=0, page_size=10, max_records=None, parallelism=3, call="c")
    next(pages)
    pages.close()
    assert len(server.calls) <= 5


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
                on_transient(OneboxUnavailableError("Too many requests.", status=429))
        return page

    pages = paginate(fetch, since_id=0, page_size=10, max_records=None, parallelism=3, call="c")
    next(pages)
    next(pages)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("onebox-page")]
    time.sleep(0.05)  # By now the third thread waits: since the rejection only two may have a request in flight.
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
        reply = server(*page)
        if len(server.calls) == 1 + ahead:
            enough.set()
        return reply

    pages = paginate(fetch, since_id=0, page_size=10, max_records=None, parallelism=parallelism, call="c")
    next(pages)
    assert enough.wait(10)
    time.sleep(0.1)
    assert len(server.calls) == 1 + ahead
    assert most == parallelism
    assert [int(row["Id"]) for batch in pages for row in batch.rows] == server.ids[10:]


@settings(max_examples=300, deadline=None)
@given(
    ids=st.sets(st.integers(1, 400), max_size=120),
    changes=st.dictionaries(
        st.integers(2, 30), st.tuples(st.sets(st.integers(1, 400), max_size=12), st.sets(st.integers(401, 500)))
    ),
    page_size=st.none() | st.integers(2, 15),
    parallelism=st.none() | st.integers(1, 5),
    caps=st.dictionaries(st.integers(1, 30), st.none() | st.integers(2, 20), max_size=5),
    quirks=st.fixed_dictionaries(
        {
            "extra": st.integers(0, 2),
            "offset_ignored": st.booleans(),
            "repeated": st.booleans(),
            "total": st.sampled_from([True, None, "all", "high"]),
        }
    ),
)
def test_while_rows_come_and_go(ids, changes, page_size, parallelism, caps, quirks):
    """No row twice, none missed that was there from start to end, none invented; the server's limit changes too."""
    server = Server(ids, **quirks)
    stayed, ever = set(ids), set(ids)

    def change(n):
        # A first page cut short whose repeated row makes it look whole can't be told from a whole list.
        server.cap = None if server.repeated else caps.get(n, server.cap)
        gone, come = changes.get(n, (set(), set()))
        stayed.difference_update(gone)
        ever.update(come)
        server.ids = sorted(set(server.ids) - gone | come)

    server.before_call = change
    rows = server.paginate(page_size=page_size, parallelism=parallelism)
    assert rows == sorted(set(rows))
    assert stayed <= set(rows) <= ever
