"""Lists over real sockets: what the server does, and what the rate controller learns from it."""

from __future__ import annotations

import json
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from support.wire import Peer, client_of, http_response

from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.rate import RateController
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxUnavailableError,
)


class Lists(Peer):
    """A Onebox that has one list; `fault` may return something else than the page."""

    def __init__(self, count):
        super().__init__(Lists.serve_pages)
        self.count, self.row = count, {}
        self.asked = []
        self.in_flight = []  # by request, itself included
        self.busy = 0
        self.lock = threading.Lock()
        self.fault = lambda limit, number: None

    def serve_pages(self, conn):
        while request := self.read(conn):
            method, path, _ = request.decode().split(" ", 2)
            if method == "POST":
                conn.sendall(http_response(200, {"token": "opaque"}))
                continue
            query = {name: int(value[0]) for name, value in parse_qs(urlsplit(path).query).items()}
            with self.lock:
                self.asked.append(query)
                number = len(self.asked)
                self.busy += 1
                self.in_flight.append(self.busy)
            response = self.fault(query["limit"], number) or (200, self.page(query))
            with self.lock:
                self.busy -= 1
            conn.sendall(http_response(*response))

    def page(self, query):
        begin = query.get("sinceId", 0) + query.get("offset", 0)
        rows = [{"Id": str(n + 1), **self.row} for n in range(begin, min(begin + query["limit"], self.count))]
        return {"count": len(rows), "total": self.count - query.get("sinceId", 0), "data": rows}

    def client(self, **settings):
        return client_of(self.url, **settings)


def listed(client, **options):
    return [int(row["Id"]) for batch in client.lists.pages("ticketrz", **options) for row in batch.rows]


@pytest.fixture
def lists():
    with Lists(3000) as server:
        yield server


def test_offset_ignored(sandbox):
    """A default listing loses no record where the server ignores offset."""
    sandbox.state.configure(offset_ignored=True)
    client = OneboxClient(Settings("crm", sandbox.url, sandbox.email, sandbox.password, "169"))
    assert listed(client) == list(map(int, sandbox.state.ids()))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"resource": "../x"}, r"Resource '\.\./x' is not a name"),
        ({"resource": ""}, "Resource '' is not a name"),
        ({"since_id": "abc"}, "since_id='abc' is not an id"),
        ({"since_id": -1}, "since_id='-1' is not an id"),
        ({"since": "soon"}, "since='soon' is not a time"),
        ({"last_update": "soon"}, "last_update='soon' is not a time"),
        ({"page_size": 0}, "page_size='0' is not a whole number of at least 1"),
        ({"page_size": "1e2"}, "page_size='1e2' is not a whole number"),
        ({"page_size": True}, "page_size='True' is not a whole number"),
        ({"max_records": -1}, "max_records='-1' is not a whole number of at least 0"),
        ({"parallelism": 0}, "parallelism='0' is not a whole number from 1 to 32"),
        ({"parallelism": 33}, "parallelism='33' is not a whole number from 1 to 32"),
    ],
)
def test_list_arguments_rejected(lists, arguments, problem):
    """Bad arguments are rejected at the call, not at the first record, and nothing is sent."""
    with pytest.raises(OneboxConfigError, match=f"^{problem}"):
        lists.client().lists.pages(**{"resource": "ticketrz", **arguments})
    assert not lists.asked


def test_least_arguments(lists):
    """Pages of one record, one at a time, are as good as others."""
    assert listed(lists.client(), page_size=1, max_records=3, parallelism=1) == [1, 2, 3]
    assert [query["limit"] for query in lists.asked] == [1, 1, 1]


def test_count_is_two_small_requests(lists):
    """Counting asks for the first and the last record, and for no more of them when it has to try again."""
    lists.fault = lambda limit, number: (502, b"") if number in (1, 3) else None
    assert lists.client().lists.count("ticketrz") == (3000, 3000)
    assert lists.asked == [{"limit": 1}] * 2 + [{"limit": 1, "offset": 2999}] * 2


@pytest.mark.parametrize(("count", "expected"), [(0, (0, None)), (1, (1, 1))])
def test_count_of_a_short_list_is_one_request(lists, count, expected):
    """Where the first page is the whole list, nothing else is asked for."""
    lists.count = count
    assert lists.client().lists.count("ticketrz") == expected
    assert lists.asked == [{"limit": 1}]


def test_since_id_ignored(lists):
    """Where the server ignores sinceId, the error says which call it is about."""
    lists.fault = lambda limit, number: (200, {"total": 9, "data": [{"Id": "1"}, {"Id": "2"}]})
    with pytest.raises(OneboxResponseError, match=r"^Connection 'crm', site 169: GET ticketrz: asked for records"):
        listed(lists.client())


@pytest.mark.parametrize("most", [0, 1, 3000, 3001])
def test_most_records(lists, most):
    """No more records than are wanted come, none at all included, and for those nothing is asked."""
    assert listed(lists.client(), max_records=most) == list(range(1, min(most, 3000) + 1))
    assert bool(lists.asked) is (most > 0)


def test_rows_and_requests_grow(lists):
    """Without tuning, a list takes far fewer requests than pages of 100, and no more than four in flight."""
    lists.count = 20_000
    lists.fault = lambda limit, number: time.sleep(0.05)
    assert listed(lists.client()) == list(range(1, 20_001))
    assert len(lists.asked) < 100
    assert lists.asked[0] == {"limit": 100}
    assert max(lists.in_flight) <= 4


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (413, b"<html><title>Request Entity Too Large</title></html>"),
        (400, {"_meta": {"status": "ERROR"}, "records": {"errorCode": 400, "userMessage": "limit is at most 100"}}),
        (500, b"<b>Fatal error</b>: Allowed memory size of 134217728 bytes exhausted"),
        (200, b""),
    ],
)
def test_server_that_fails_at_large_pages(lists, status, body):
    """A page that is larger than any before and is rejected is asked for again with fewer records."""
    lists.fault = lambda limit, number: (status, body) if limit > 100 else time.sleep(0.001)
    assert listed(lists.client()) == list(range(1, 3001))
    rejected = [query for query in lists.asked if query["limit"] > 100]
    assert 0 < len(rejected) < 12


def test_413_at_the_first_page(lists):
    """A first page that is too large shrinks too, down to a single record."""
    lists.count = 40
    lists.fault = lambda limit, number: (413, b"") if limit > 1 else None
    assert listed(lists.client()) == list(range(1, 41))
    assert [query["limit"] for query in lists.asked[:4]] == [100, 25, 6, 1]


@pytest.mark.parametrize(("status", "limits"), [(413, [100, 25, 6, 1]), (404, [100]), (403, [100])])
def test_error_of_every_page(lists, status, limits):
    """A record that is too large by itself ends the listing with the server's message; other errors end it at once."""
    lists.fault = lambda limit, number: (status, b"<title>Too Large</title>")
    with pytest.raises(OneboxRequestError, match="Too Large"):
        listed(lists.client())
    assert [query["limit"] for query in lists.asked] == limits


def test_response_that_is_too_large(lists, monkeypatch):
    """A page past the bound on responses is asked for again with fewer records, and so are the next ones."""
    monkeypatch.setattr("airflow_provider_onebox.api.client.MAX_JSON_BYTES", 4_000_000)
    lists.count, lists.row = 100, {"Body": "x" * 200_000}
    assert listed(lists.client()) == list(range(1, 101))
    assert [query["limit"] for query in lists.asked[:2]] == [100, 25]
    # A mebibyte holds five such records.
    assert {query["limit"] for query in lists.asked[12:]} <= set(range(1, 7))


def test_error_at_a_page_no_larger_than_before(lists):
    """Records that came once are not too many, so an error of such a page is a different one."""
    lists.fault = lambda limit, number: (200, b"") if number == 3 else None
    with pytest.raises(OneboxResponseError):
        listed(lists.client(), page_size=100)


def test_rejections_slow_the_listing_down(lists):
    """After a rejection requests start apart; the size of pages stays."""
    starts = []

    def fault(limit, number):
        starts.append(time.monotonic())
        return (429, b"", b"Retry-After: 0") if number == 9 else time.sleep(0.05)

    lists.count, lists.fault = 1800, fault
    # More than the size to which a page shrinks after another error.
    assert listed(lists.client(), page_size=120, parallelism=4) == list(range(1, 1801))
    assert {query["limit"] for query in lists.asked} == {120}
    assert max(lists.in_flight) == 4
    # Eight pages came in 0.1 to 0.2 s before the rejection, so that is how far apart all others start.
    assert starts[-1] - starts[12] > 0.01 * (len(starts) - 13)


@pytest.mark.parametrize("status", [502, 504])
def test_try_again_with_fewer_rows(lists, status):
    """A gateway that timed out at a large page is asked for a quarter, then for as few records as at first."""
    lists.fault = lambda limit, number: (status, b"") if number in (1, 2) else None
    assert listed(lists.client(), page_size=1000) == list(range(1, 3001))
    assert [query["limit"] for query in lists.asked[:3]] == [1000, 250, 100]


def test_time_out_of_a_large_page(lists):
    """A page that takes longer than the timeout is asked for with fewer records."""
    released = threading.Event()
    lists.fault = lambda limit, number: released.wait(5) and None if limit > 500 else None
    try:
        assert listed(lists.client(timeout=0.5), page_size=1000, parallelism=1) == list(range(1, 3001))
    finally:
        released.set()


def test_trouble_that_lasts(lists):
    """The tries of a page are as many as of every other call."""
    lists.fault = lambda limit, number: (502, b"")
    with pytest.raises(OneboxUnavailableError, match="try 3 of 3"):
        listed(lists.client(max_retries=2))
    assert len(lists.asked) == 3


def test_listing_that_is_left_tries_nothing_again(lists):
    """A page that waits to be tried again when the listing ends is not, and its thread ends at once."""
    lists.fault = lambda limit, number: (503, b"") if number > 1 else None
    client, waits, ends = lists.client(), threading.Event(), []

    def pause(abandoned, seconds):
        waits.set()
        ends.append(abandoned.wait(5))

    client._pause = pause
    batches = client.lists.pages("ticketrz", page_size=10, parallelism=1)
    next(batches)
    assert waits.wait(10)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("onebox-page")]
    batches.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert ends == [True]
    assert len(lists.asked) == 2


def test_rejected_token_is_no_measure(lists, monkeypatch):
    """A 401 is small; its size says nothing of the page that arrives after a new login."""
    envelope = {"_meta": {"status": "ERROR"}, "records": {"errorCode": 401, "userMessage": "Expired token"}}
    lists.fault = lambda limit, number: (401, envelope) if number == 2 else None
    sizes = []
    record_page = RateController.record_page

    def record(rate, *, size, **page):
        sizes.append(size)
        record_page(rate, size=size, **page)

    monkeypatch.setattr(RateController, "record_page", record)
    assert listed(lists.client(), page_size=100, parallelism=1) == list(range(1, 3001))
    queries = [{"limit": 100}, {"sinceId": 100, "limit": 100}, {"sinceId": 200, "limit": 100}]
    assert sizes[:3] == [len(json.dumps(lists.page(query))) for query in queries]


@pytest.mark.parametrize("times", [1, 2])
def test_count_that_its_total_contradicts(lists, times):
    """A page without records and with a total is asked for once more, then the count fails and can be run again."""
    lists.fault = lambda limit, number: (200, {"count": 0, "total": 1000, "data": []}) if number <= times else None
    if times == 1:
        assert lists.client().lists.count("ticketrz") == (3000, 3000)
        return
    with pytest.raises(OneboxResponseError, match="GET ticketrz: asked twice for records after Id 0, ") as caught:
        lists.client().lists.count("ticketrz")
    assert caught.value.retryable


def test_listing_that_its_total_contradicts(lists):
    """A listing does not end in silence because a page is empty."""
    lists.fault = lambda limit, number: (200, {"count": 0, "total": 1000, "data": []}) if number > 1 else None
    with pytest.raises(OneboxResponseError, match="after Id 100, Onebox returned none and a total of 1,000, so"):
        listed(lists.client())


@pytest.mark.parametrize("count", [0, 20])
def test_count_where_totals_ignore_since_id(lists, count):
    """A total that counts the records before the id too is no reason to fail, where the last one of all is known."""
    lists.count = 3000
    whole = lists.page

    def page(query):
        return {**whole(query), "total": 3000}

    lists.page = page
    assert lists.client().lists.count("ticketrz", since_id=3000 - count) == (count, 3000 if count else None)


@pytest.mark.parametrize(("count", "packed"), [(1, True), (1, False), (150, False)])
@pytest.mark.parametrize(
    ("row", "cleaned"),
    [
        ({"Token": "x", "Name": "{"}, {"Name": "{"}),
        ({"Token": None, "a": [{"b": {"app_secret": "x", "c": 1}}]}, {"Token": None, "a": [{"b": {"c": 1}}]}),
        ({"a": {"Password": "x"}}, {"a": {}}),
    ],
)
def test_secrets_are_left_out(lists, row, cleaned, count, packed):
    """No record of any page has a field that holds a secret, however deep, unless it is asked for."""
    lists.count, lists.row = count, row

    def fault(limit, number):
        page = lists.page(lists.asked[-1])
        if packed:
            page["data"] = {str(n): row for n, row in enumerate(page["data"])}
        return 200, page

    lists.fault = fault
    client = lists.client()
    for include_secrets, expected in ((False, cleaned), (True, row)):
        batches = client.lists.pages("ticketrz", parallelism=1, include_secrets=include_secrets)
        rows = [row for batch in batches for row in batch.rows]
        assert rows == [{"Id": str(n + 1), **expected} for n in range(count)]
