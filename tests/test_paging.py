"""Paging: each row once, whatever happens to the list meanwhile."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_onebox.exceptions import OneboxResponseError
from airflow_provider_onebox.paging import Page, walk


class Server:
    """A list of ids that answers like Onebox; its quirks are set per test."""

    def __init__(self, ids, *, extra=0, cap=None, offset_ignored=False, since_ignored=False, total=True):
        self.ids = sorted(ids)
        self.extra, self.cap, self.offset_ignored, self.since_ignored = extra, cap, offset_ignored, since_ignored
        self.total = total
        self.calls = []
        self.before_call = lambda n: None
        self.lock = threading.Lock()

    def __call__(self, since_id, offset, limit):
        with self.lock:
            self.calls.append((since_id, offset, limit))
            self.before_call(len(self.calls))
            matching = self.ids if self.since_ignored else self.ids[bisect_right(self.ids, since_id) :]
            start = 0 if self.offset_ignored else offset
            rows = matching[start : start + min(limit + self.extra, self.cap or limit + self.extra)]
            total = {True: len(matching), "all": len(self.ids)}.get(self.total)
        return Page(rows, [{"Id": str(i)} for i in rows], len(rows), total)

    def walk(self, since_id=0, page_size=10, max_records=None, parallelism=2):
        ids = []
        for batch in walk(
            self, since_id=since_id, page_size=page_size, max_records=max_records, parallelism=parallelism, call="c"
        ):
            assert batch.rows
            ids += [int(row["Id"]) for row in batch.rows]
            assert batch.last_id == ids[-1]
            self.announced = batch.total
        return ids


@pytest.mark.parametrize("parallelism", [1, 2, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 100, 237])
@pytest.mark.parametrize("quirks", [{}, {"extra": 1}, {"cap": 4}, {"cap": 1}, {"total": None}, {"total": "all"}])
def test_every_row_once_in_order(count, parallelism, quirks):
    """All rows, ascending, whatever the page sizes and totals are worth."""
    server = Server(range(5, 5 + 3 * count, 3), **quirks)
    assert server.walk(parallelism=parallelism) == server.ids
    assert server.walk(parallelism=parallelism, since_id=50) == [i for i in server.ids if i > 50]


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("most", [0, 1, 9, 10, 11, 25, 1000])
def test_max_records(most, parallelism):
    """Stops after the number asked for, and asks for no page that is not needed."""
    server = Server(range(1, 101))
    assert server.walk(max_records=most, parallelism=parallelism) == server.ids[:most]
    assert len(server.calls) == -(-min(most, 100) // 10)


@pytest.mark.parametrize(("most", "total"), [(None, 95), (1000, 95), (30, 30)])
def test_total(most, total):
    """Each batch tells how many records there will be in all, where the server does."""
    server = Server(range(1, 96))
    server.walk(max_records=most)
    assert server.announced == total
    server.total = None
    server.walk()
    assert server.announced is None


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_no_request_in_vain(parallelism):
    """A list that stands still costs one request a page."""
    server = Server(range(1, 1001))
    assert len(server.walk(page_size=50, parallelism=parallelism)) == 1000
    assert len(server.calls) == 20


def test_offset_ignored():
    """Pages asked for by offset are checked: a server that ignores it costs time, never a row."""
    server = Server(range(1, 201), offset_ignored=True)
    assert server.walk(parallelism=4) == server.ids
    assert len(server.calls) < 30


def test_server_that_repeats_itself():
    """A server that ignores sinceId ends in an error, not in a loop."""
    server = Server(range(1, 100), since_ignored=True)
    with pytest.raises(OneboxResponseError, match="repeats rows up to Id 10"):
        server.walk(parallelism=1)


def test_fault_reaches_the_consumer():
    """A page that fails ahead of time fails the listing when its turn comes."""
    server = Server(range(1, 101))

    def fail(n):
        if n == 4:
            raise OneboxResponseError("broken")

    server.before_call = fail
    given_out = []

    def consume():
        for batch in walk(server, since_id=0, page_size=10, max_records=None, parallelism=2, call="c"):
            given_out.extend(int(row["Id"]) for row in batch.rows)

    with pytest.raises(OneboxResponseError, match="broken"):
        consume()
    assert given_out == server.ids[: len(given_out)]
    assert len(given_out) >= 10


def test_early_end_stops_the_requests():
    """A consumer that stops early leaves no request behind."""
    server = Server(range(1, 1001))
    pages = walk(server, since_id=0, page_size=10, max_records=None, parallelism=3, call="c")
    next(pages)
    pages.close()
    assert len(server.calls) <= 5


@pytest.mark.parametrize(("parallelism", "ahead"), [(1, 1), (2, 3), (4, 5)])
def test_slow_consumer(parallelism, ahead):
    """No more requests are under way than allowed, and pages wait for a slow consumer: the next ones, and no more."""
    server = Server(range(1, 1001))
    under_way, most = set(), 0
    enough = threading.Event()

    def fetch(*page):
        nonlocal most
        under_way.add(page)
        most = max(most, len(under_way))
        time.sleep(0.01)
        under_way.remove(page)
        reply = server(*page)
        if len(server.calls) == 1 + ahead:
            enough.set()
        return reply

    pages = walk(fetch, since_id=0, page_size=10, max_records=None, parallelism=parallelism, call="c")
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
    page_size=st.integers(1, 15),
    parallelism=st.integers(1, 5),
    extra=st.integers(0, 2),
    cap=st.none() | st.integers(1, 20),
    total=st.sampled_from([True, None, "all"]),
)
def test_while_rows_come_and_go(ids, changes, page_size, parallelism, extra, cap, total):
    """No row twice, none missed that was there from start to end, none invented."""
    server = Server(ids, extra=extra, cap=cap, total=total)
    stayed, ever = set(ids), set(ids)

    def change(n):
        gone, come = changes.get(n, (set(), set()))
        stayed.difference_update(gone)
        ever.update(come)
        server.ids = sorted(set(server.ids) - gone | come)

    server.before_call = change
    rows = server.walk(page_size=page_size, parallelism=parallelism)
    assert rows == sorted(set(rows))
    assert stayed <= set(rows) <= ever
