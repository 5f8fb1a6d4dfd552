"""The client against the sandbox: login, calls, retries, writes, lists, and what a failure says."""

from __future__ import annotations

import base64
import contextlib
import gc
import http.client
import io
import logging
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from traceback import walk_tb
from urllib.parse import parse_qsl, quote_plus

import pytest
import requests
import requests_mock as rm
from rich.console import Console
from rich.traceback import Traceback
from support.wire import (
    EXPIRED,
    LOGIN,
    NEW_TOKEN,
    PASSWORD,
    TOKEN,
    Peer,
    Silent,
    client_of,
    closed_port,
    cut,
    hang_up,
    http_reply,
    read,
    script,
    write,
)

from airflow_provider_onebox.api.client import MAX_RETRY_AFTER, OneboxClient
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.api.token import Token, TokenSource
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
)

TICKET = {"fullName": "A", "contact": "a@example.com", "subject": "s", "category": "c", "content": "x"}


@pytest.fixture
def make(sandbox):
    """Make a client of the sandbox that does not really wait between tries."""

    def build(**options):
        waits = []
        values = {"conn_id": "crm", "base_url": sandbox.url, "email": sandbox.email, "password": sandbox.password}
        settings = Settings(**{**values, "site_id": "169", "timeout": 5, **options})
        client = OneboxClient(settings, pause=lambda abandoned, seconds: waits.append(seconds))
        client.waits = waits
        return client

    return build


def records(client, resource, **arguments):
    """List records one by one."""
    return (row for batch in client.lists.pages(resource, **arguments) for row in batch.rows)


def test_login(make, sandbox):
    """The form is sent as Onebox reads it."""
    client = make()
    token = client.login()
    assert (token.life, token.site_id) == (900, "169")
    seen = sandbox.state.seen[-1]
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in seen.headers
    assert seen.query == ""


@pytest.mark.parametrize("options", [{"password": "wrong one"}, {"site_id": "1691"}, {"email": "who@example.com"}])
def test_login_refused(make, sandbox, options):
    """A refusal tells Onebox's words and is asked for once, not four times."""
    client = make(**options)
    with pytest.raises(OneboxAuthError, match="Check Email, Password and Site ID") as caught:
        client.request("GET", "ticketrz")
    assert caught.value.status == 401
    assert "Connection 'crm', site " in str(caught.value)
    with pytest.raises(OneboxAuthError):
        client.request("GET", "ticketrz")
    assert sandbox.state.failed_logins == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({"response_code": "200", "response_status": "Success"}, "no token (it holds: response_code, response_status)"),
        ({"token": ""}, "no token"),
        ({"token": 5}, "no token"),
        ({}, "holds: nothing"),
        ([], "holds: list"),
        ([{"Id": "169"}, {"Id": "170"}], "sites (169, 170)"),
        ({"data": [{"Id": "169"}]}, "sites (169)"),
        ({"token": "a\nb"}, "characters that no token has"),
    ],
)
def test_login_without_a_token(make, reply, words):
    """A reply without a token says what came instead."""
    client = make()
    with rm.Mocker() as mock:
        mock.post(client.url_for("authenticate"), json=reply)
        with pytest.raises(OneboxResponseError) as caught:
            client.login()
    assert words in str(caught.value)
    assert caught.value.status == 200


def test_calls_share_a_token_and_a_connection(make, sandbox):
    """One login and one TCP connection serve many calls."""
    client = make()
    for _ in range(5):
        assert client.request("get", "ticketrz", params={"limit": 1})["count"] == 1
    assert (sandbox.state.logins, sandbox.state.connections) == (1, 1)
    assert all("token" not in seen.query for seen in sandbox.state.seen)


def test_dead_token_is_renewed_once(make, sandbox):
    """A revoked token costs one login and one replay, for a write as well."""
    client = make()
    client.request("GET", "ticketrz")
    sandbox.state.revoke()
    assert client.request("POST", "ticket/create", json=TICKET)["ticketId"]
    assert (sandbox.state.logins, len(sandbox.state.tickets)) == (2, 1)


def test_fresh_token_that_is_rejected(make, sandbox):
    """A token that is rejected as soon as it is issued is renewed again within the retries, with a pause."""
    sandbox.state.fail("expired", path="ticketrz", times=5)
    client = make()
    assert client.request("GET", "ticketrz")["count"]
    assert (sandbox.state.logins, sandbox.state.requests["GET list"]) == (6, 6)
    assert len(client.waits) == 2
    sandbox.state.fail("expired", path="ticketrz", times=99)
    with pytest.raises(
        OneboxUnavailableError, match=r"another login of the same user ended this one.*try 2 of 2"
    ) as caught:
        make(max_retries=1).request("POST", "ticketrz", json={})
    assert (caught.value.retryable, caught.value.uncertain, caught.value.code) == (True, False, "401")


def test_expired_under_200(make, sandbox):
    """An expired token is recognized by the envelope, whatever the status."""
    client = make()
    client.request("GET", "ticketrz")
    sandbox.state.configure(envelope_status=200)
    sandbox.state.revoke()
    assert client.request("GET", "ticketrz")["count"]
    assert sandbox.state.logins == 2


def test_quota_never_causes_a_login(make, sandbox):
    """The 401 of service hours leaves the token alone."""
    client = make()
    client.request("GET", "ticketrz")
    sandbox.state.configure(outside_service_hours=True)
    with pytest.raises(OneboxServiceHoursError, match=r"18:00 - 06:00"):
        client.request("GET", "ticketrz")
    assert sandbox.state.logins == 1
    assert client.waits == []


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_faults_are_retried(make, sandbox, status, caplog):
    """Reads survive transient errors, with growing waits that the log tells."""
    sandbox.state.fail("status", path="ticketrz", times=3, status=status)
    client = make()
    with caplog.at_level(logging.WARNING):
        assert client.request("GET", "ticketrz")["count"]
    assert [2**n <= wait <= 2**n + 1 for n, wait in enumerate(client.waits)] == [True] * 3
    assert f"({status})" in caplog.text
    assert "(3 of 3)" in caplog.text


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "truncated"])
def test_dropped_connections_are_retried(make, sandbox, kind):
    """So are connections that break, before, within or instead of the response."""
    sandbox.state.fail(kind, path="GET", times=2)
    client = make()
    assert client.request("GET", "ticketrz")["count"]
    assert len(client.waits) == 2


def test_given_up(make, sandbox):
    """After the last try the error says how many there were, and that a later one can help."""
    sandbox.state.fail("status", path="ticketrz", times=9, status=503)
    client = make(max_retries=2)
    with pytest.raises(OneboxUnavailableError, match=r"\(503\).*That was try 3 of 3\.$") as caught:
        client.request("GET", "ticketrz")
    assert caught.value.retryable is True
    assert len(client.waits) == 2


def test_retry_after_is_honoured(make, sandbox):
    """A server that says how long to wait is believed, up to a limit."""
    longest = int(MAX_RETRY_AFTER)
    sandbox.state.fail("status", path="ticketrz", status=429, headers={"Retry-After": str(longest)})
    client = make()
    assert client.request("GET", "ticketrz")["count"]
    assert client.waits == [longest]
    wait = longest + 1
    sandbox.state.fail("status", path="ticketrz", status=503, headers={"Retry-After": str(wait)})
    with pytest.raises(OneboxUnavailableError, match=f"asks to wait {wait} s, so the call was not retried") as caught:
        client.request("GET", "ticketrz")
    assert caught.value.retry_after == wait
    assert client.waits == [longest]


def test_listing_is_told_of_transient_errors(make, sandbox):
    """Who asks learns of each transient error before the wait, and can ask for something smaller then."""
    sandbox.state.fail("status", path="ticketrz", times=2, status=503)
    client = make()
    calls = []

    def shrink(error):
        calls.append((error.status, list(client.waits), error.retry_after))
        return {"limit": 3} if len(calls) == 2 else None

    page = client._call("GET", "ticketrz", params={"limit": 9}, on_transient=shrink)
    assert page["count"] == 3
    assert [status for status, *_ in calls] == [503, 503]
    assert [waits for _, waits, _ in calls] == [client.waits[:0], client.waits[:1]]
    assert [wait for *_, wait in calls] == client.waits
    assert [seen.query for seen in list(sandbox.state.seen)[-3:]] == ["limit=9", "limit=9", "limit=3"]


def test_login_is_retried(make, sandbox):
    """A login that meets a transient error is tried again, but not by the call that needs it too."""
    sandbox.state.fail("status", path="authenticate", times=2, status=502)
    client = make()
    assert client.request("GET", "ticketrz")["count"]
    assert sandbox.state.logins == 1
    sandbox.state.fail("status", path="authenticate", times=9, status=502)
    sandbox.state.revoke()
    with pytest.raises(OneboxUnavailableError, match="POST authenticate"):
        client.request("GET", "ticketrz")
    assert sandbox.state.requests["POST authenticate"] == 2 + 1 + 4


def test_refused_connection(make):
    """A port that nobody listens on is named, with the number of tries."""
    client = make(base_url=f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(
        OneboxUnavailableError, match=r"127\.0\.0\.1:\d+ can't be reached: Connection refused.*try 4 of 4"
    ):
        client.login()
    with pytest.raises(OneboxUnavailableError, match="Connection refused"):
        make(proxies=(("http", f"http://u:proxypass@127.0.0.1:{closed_port()}"),)).login()


def test_refused_connection_while_handling_another_error(make):
    """The error that the caller is just handling is not taken for the reason."""
    client = make(base_url=f"http://127.0.0.1:{closed_port()}", max_retries=0)
    try:
        raise ValueError("something else")
    except ValueError:
        with pytest.raises(OneboxUnavailableError, match="Connection refused"):
            client.login()


def test_timeout(make, sandbox):
    """A timeout says how long it was and where it is set."""
    sandbox.state.configure(latency=2)
    with pytest.raises(OneboxUnavailableError, match=r"no complete response in 0\.2 s .*'timeout' is 0\.2 s"):
        make(timeout=0.2, max_retries=0).login()


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "truncated", "html", "empty", "hang"])
def test_write_that_may_have_arrived(make, sandbox, kind):
    """A write without an answer is not sent again, and the error says to look first."""
    sandbox.state.fail(kind, path="ticket/create", times=9, processed=True)
    client = make(timeout=0.5)
    with pytest.raises(OneboxUncertainWriteError, match="look in Onebox before you clear the task"):
        client.request("POST", "ticket/create", json=TICKET)
    assert sandbox.state.requests["POST create"] <= 1
    assert client.waits == []


@pytest.mark.parametrize(("status", "error"), [(500, OneboxUncertainWriteError), (502, OneboxUncertainWriteError)])
def test_write_that_met_a_fault(make, sandbox, status, error):
    """A fault of the server leaves a write uncertain."""
    sandbox.state.fail("status", path="ticket/create", times=9, status=status)
    with pytest.raises(error) as caught:
        make().request("POST", "ticket/create", json=TICKET)
    assert caught.value.status == status


def test_write_that_was_not_done(make, sandbox):
    """429 and a refused connection say that nothing was done: the write is sent again, once done."""
    sandbox.state.fail("status", path="ticket/create", times=2, status=429)
    client = make()
    assert client.request("POST", "ticket/create", json=TICKET)["ticketId"]
    assert len(sandbox.state.tickets) == 1
    with pytest.raises(OneboxRequestError, match="400"):
        client.request("POST", "ticket/create", json={})
    gone = make(base_url=f"http://127.0.0.1:{closed_port()}").with_token(client.tokens.get())
    with pytest.raises(OneboxUnavailableError, match="Connection refused") as caught:
        gone.request("POST", "ticket/create", json=TICKET)
    assert caught.value.uncertain is False


def test_reply_too_large(make, sandbox, monkeypatch):
    """A body without end is cut off; after a write it leaves uncertain what was done."""
    monkeypatch.setattr("airflow_provider_onebox.api.client.MAX_JSON_BYTES", 2**18)
    sandbox.state.fail("huge", path="ticket", times=2)
    with pytest.raises(OneboxResponseError, match="Request fewer records per page") as caught:
        make().request("GET", "ticketrz")
    assert caught.value.retryable is False
    with pytest.raises(OneboxUncertainWriteError):
        make().request("POST", "ticket/create", json=TICKET)


def test_wrong_base_path(make, sandbox):
    """The redirect to the login page says that the base path is wrong."""
    with pytest.raises(OneboxResponseError, match="base path"):
        make(base_url=sandbox.url + "/wrong").login()


def test_base_path(make, sandbox):
    """Onebox may live below a path."""
    client = make(base_url="https://dev.example/feature/voc")
    assert client.url_for("ticketrz/5") == "https://dev.example/feature/voc/api/ticketrz/5"


@pytest.mark.parametrize(
    "endpoint", ["//evil.example/x", "https://evil.example", "../x", "/ticketrz", "a?b=c", "", None]
)
def test_endpoint_refused(make, sandbox, endpoint):
    """An endpoint that leads elsewhere is refused before anything is sent."""
    with pytest.raises(OneboxConfigError, match="write it like 'ticketrz/12250'"):
        make().request("GET", endpoint)
    assert not sandbox.state.requests


@pytest.mark.parametrize("arguments", [{"json": {1, 2}}, {"json": float("nan")}, {"params": 5}, {"files": 5}])
def test_arguments_refused(make, arguments, sandbox):
    """Arguments that can't be encoded are refused in the family's own words, before anything is sent."""
    with pytest.raises(OneboxConfigError, match=r"the arguments can't be sent"):
        make().request("POST", "message", **arguments)
    assert sandbox.state.requests["POST message"] == 0


@pytest.mark.parametrize("proxy", ["http://u:proxypass@[::1", "nonsense://u:proxypass@x y"])
def test_unusable_proxy_of_the_environment(make, monkeypatch, proxy):
    """A proxy that makes no sense is named as such, without its password; a write was never sent."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    client = make(base_url="https://dev.example").with_token(Token("opaque"))
    for call in (client.login, lambda: client.request("POST", "ticket/create", json=TICKET)):
        with pytest.raises(OneboxConfigError, match="'proxies'") as caught:
            call()
        assert "proxypass" not in str(caught.value)


def test_untrusted_certificate(make, tmp_path):
    """A certificate of an unknown CA points at the field that helps; so does a CA file that is none."""
    trustme = pytest.importorskip("trustme", reason="comes with the test dependencies")
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for _ in range(2):
                raw, _ = listener.accept()
                try:
                    with context.wrap_socket(raw, server_side=True) as conn:
                        # All of it: what is left unread at the end takes the answer along.
                        read = conn.recv(65536)
                        while b"siteId=" not in read and (more := conn.recv(65536)):
                            read += more
                        conn.sendall(
                            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 12\r\n\r\n" + b'{"token":"a"'
                        )
                except OSError:
                    raw.close()

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(OneboxConfigError, match=r"not trusted.*'verify'"):
            make(base_url=url).login()
        pem = tmp_path / "ca.pem"
        ca.cert_pem.write_to_path(pem)
        with pytest.raises(OneboxResponseError, match="JSON that was cut off after 12 bytes"):
            make(base_url=url, verify=str(pem)).login()
        thread.join()
    (tmp_path / "none.pem").write_text("nothing")
    with pytest.raises(OneboxConfigError, match="'verify'"):
        make(base_url=url, verify=str(tmp_path / "gone.pem")).login()


def test_secrets_in_the_servers_words(make, sandbox):
    """A server that repeats what it was sent does not make it public."""
    client = make()
    token, password = client.tokens.get().value, sandbox.password
    forms = [token, password, quote_plus(password), base64.b64encode(password.encode()).decode()]
    words = " | ".join(forms)
    sandbox.state.fail("status", path="ticketrz", status=400, body=words)
    with pytest.raises(OneboxRequestError) as caught:
        client.request("GET", "ticketrz")
    assert client.redact(words) == " | ".join(["***"] * 4)
    assert not any(form in str(caught.value) for form in forms)
    assert "***" in str(caught.value)


def test_list(make, sandbox):
    """All records, once, with the connection's own page size or a given one."""
    ids = sandbox.state.ids("ticketrz")
    client = make()
    assert [row["Id"] for row in records(client, "ticketrz")] == ids
    assert [row["Id"] for row in records(client, "ticketrz", since_id=ids[9], page_size=7)] == ids[10:]
    assert [row["Id"] for row in records(client, "contactrz", max_records=3)] == sandbox.state.ids("contactrz")[:3]
    assert sandbox.state.logins == 1


@pytest.mark.parametrize(
    ("name", "sent"),
    [("since", "since=2026-01-02+03%3A03"), ("last_update", "lastUpdate=2026-01-02+03%3A04")],
)
def test_list_by_time(make, sandbox, name, sent):
    """Times are sent as Onebox reads them, that of creation a minute earlier."""
    list(records(make(), "ticketrz", **{name: datetime(2026, 1, 2, 3, 4, 5)}))
    assert sandbox.state.seen[-1].query.endswith(sent)


def test_list_while_rows_come_and_go(make, sandbox):
    """Rows that stay are given once each while others are added and removed after every page."""
    before = sandbox.state.ids()
    sandbox.state.configure(grow=2, shrink=1)
    rows = []
    for row in records(make(), "ticketrz", page_size=10):
        rows.append(row["Id"])
        if len(rows) == 300:
            # Rows that come with each request could keep the listing busy for ever.
            sandbox.state.configure(grow=0, shrink=0)
    assert len(rows) == len(set(rows))
    assert set(before) & set(sandbox.state.ids()) <= set(rows)


def test_list_with_expiry_between_pages(make, sandbox):
    """A token that expires between two pages is renewed, and no row is lost."""
    rows = []
    # One page at a time: with several in flight, the second expiry can meet the renewed token before its first use.
    for record in records(make(), "ticketrz", page_size=25, parallelism=1):
        rows.append(record["Id"])
        if len(rows) in (60, 160):
            sandbox.state.revoke()
    assert rows == sandbox.state.ids()
    assert sandbox.state.logins == 3


@pytest.mark.parametrize(
    "quirks", [{}, {"total_ignores_since_id": True}, {"page_overflow": 2}, {"offset_ignored": True}]
)
def test_count(make, sandbox, quirks):
    """How many records match, and which is the last, whatever the server's totals are worth."""
    ids = sandbox.state.ids()
    sandbox.state.configure(**quirks)
    client = make()
    assert client.lists.count("ticketrz", since_id=ids[99]) == (150, int(ids[-1]))
    assert client.lists.count("ticketrz", since_id=ids[-2]) == (1, int(ids[-1]))
    assert client.lists.count("ticketrz", since_id=ids[-1]) == (0, None)


def test_count_without_a_total(make):
    """A server that tells no total is counted page by page."""
    client = make()
    with rm.Mocker() as mock:
        mock.post(client.url_for("authenticate"), json={"token": "opaque"})
        pages = [[{"Id": "1"}], [{"Id": "1"}, {"Id": "2"}], []]
        mock.get(client.url_for("ticketrz"), [{"json": {"data": page}} for page in pages])
        assert client.lists.count("ticketrz") == (2, 2)


def test_no_row_too_many_is_asked_for(make, sandbox):
    """However many pages are asked for ahead, none reaches beyond the last row that is wanted."""
    ids = sandbox.state.ids()
    assert len(list(records(make(), "ticketrz", max_records=130, page_size=20, parallelism=4))) == 130
    pages = [dict(parse_qsl(seen.query)) for seen in sandbox.state.seen if "limit" in seen.query]
    begins = [ids.index(page["sinceId"]) + 1 if "sinceId" in page else 0 for page in pages]
    ends = [begin + int(page.get("offset", 0)) + int(page["limit"]) for begin, page in zip(begins, pages, strict=True)]
    assert max(ends) == 130


def test_abandoned_call(make, sandbox):
    """A call that nobody waits for any more is not sent, and not tried again either."""
    client, abandoned = make(), threading.Event()
    abandoned.set()
    with pytest.raises(OneboxUnavailableError, match=r"not sent, because its result was no longer needed"):
        client._call("GET", "ticketrz", abandoned=abandoned)
    assert (client.waits, sandbox.state.requests["GET list"]) == ([], 0)


def test_abandoned_listing_leaves_nothing_in_flight(make, sandbox):
    """When a listing ends early, pages ahead of it are not tried again behind the caller's back."""
    client = make()
    client._pause = threading.Event.wait
    batches = client.lists.pages("ticketrz", page_size=20, parallelism=4)
    next(batches)
    # The pages that are ahead, one more than threads, have come before the trouble begins, on a slow machine too: of
    # five requests, that for the next page need not be one.
    deadline = time.monotonic() + 30
    while (sandbox.state.requests["GET list"] < 6 or sandbox.state.active) and time.monotonic() < deadline:
        time.sleep(0.01)
    sandbox.state.fail("status", path="ticketrz", times=99, status=503)
    next(batches)
    deadline = time.monotonic() + 30
    while sandbox.state.requests["GET list"] == 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    batches.close()
    asked = sandbox.state.requests["GET list"]
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("onebox-page")]
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    assert sandbox.state.requests["GET list"] <= asked + 4


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ([], "not a page: it is of the type list, not an object with a list 'data'."),
        ({"data": {"Id": "1"}}, "not a page: its 'data' is of the type dict, not a list."),
        ({"data": None}, "not a page: its 'data' is of the type NoneType, not a list."),
        (
            {"Id": "1", "Name": "x"},
            "not a page: it has no list 'data', but Id, Name; usually the resource is not a list.",
        ),
        ({}, "not a page: it has no list 'data', but nothing;"),
        (
            {"data": [{"Name": "x"}]},
            "a record has the Id 'None', and ids are whole numbers up to 18446744073709551615,",
        ),
        ({"data": [5]}, "a record has the Id 'None', and"),
        ({"data": [{"Id": "x"}]}, "a record has the Id 'x', and"),
        ({"data": [{"Id": 2**64}]}, "a record has the Id '18446744073709551616', and"),
        ({"data": [{"Id": "3"}, {"Id": "2"}], "total": 9}, "the records are not in the order of their ids, so"),
    ],
)
def test_page_that_makes_no_sense(make, page, words):
    """A page that can't be read says what came; where its records are the reason, no retry can help."""
    client = make()
    with rm.Mocker() as mock:
        mock.post(client.url_for("authenticate"), json={"token": "opaque"})
        mock.get(client.url_for("ticketrz"), json=page)
        with pytest.raises(OneboxResponseError, match=re.escape(words)) as caught:
            list(records(client, "ticketrz"))
    assert caught.value.retryable is ("not a page" in words)


@pytest.mark.parametrize("data", [{"0": {"Id": "4"}, "2": {"Id": "7"}}, [{"Id": "4"}, {"Id": "7"}]])
def test_list_with_gaps(make, data):
    """PHP writes a list with gaps as an object whose keys are digits."""
    client = make()
    with rm.Mocker() as mock:
        mock.post(client.url_for("authenticate"), json={"token": "opaque"})
        mock.get(client.url_for("ticketrz"), json={"total": 2, "data": data})
        assert list(records(client, "ticketrz")) == [{"Id": "4"}, {"Id": "7"}]


def test_whole_list_in_any_order(make):
    """Order does not matter where one page is the whole list; a record that is in it twice comes once."""
    client = make()
    with rm.Mocker() as mock:
        mock.post(client.url_for("authenticate"), json={"token": "opaque"})
        mock.get(client.url_for("ticketrz"), json={"data": [{"Id": 3}, {"Id": "2"}, {"Id": "3"}], "total": "3"})
        assert [row["Id"] for row in records(client, "ticketrz")] == ["2", "3"]


def test_many_threads(make, sandbox):
    """One client serves 32 threads with one login."""
    client = make()
    with ThreadPoolExecutor(32) as pool:
        counts = list(
            pool.map(lambda n: client.request("GET", "ticketrz", params={"limit": n + 1})["count"], range(96))
        )
    assert counts == list(range(1, 97))
    assert sandbox.state.logins == 1


def test_client_made_before_a_fork(make, sandbox):
    """A child has its own sockets, and its calls and its parent's do not mix."""
    client = make()
    assert client.request("GET", "ticketrz", params={"limit": 1})["count"] == 1
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        right = all(client.request("GET", "ticketrz", params={"limit": 2})["count"] == 2 for _ in range(20))
        os.write(writer, b"right" if right else b"wrong")
        os._exit(0)
    assert all(client.request("GET", "ticketrz", params={"limit": 3})["count"] == 3 for _ in range(20))
    os.waitpid(child, 0)
    assert os.read(reader, 5) == b"right"
    os.close(reader)
    os.close(writer)
    assert (sandbox.state.logins, sandbox.state.connections) == (1, 2)


def test_secrets_of_others_in_the_servers_words(make):
    """A token and the user of an address are known by their shape, and what stands around them stays."""
    words = "see https://me:pw@proxy.example and eyJhbGciOiJ.eyJzdWIiOjF9.c2ln, please"
    assert make().redact(words) == "see https://***@proxy.example and ***, please"


def test_fork_while_another_thread_logs_in(make):
    """A child does not wait for a lock that only its parent's thread would release."""
    client = make()
    reader, writer = os.pipe()
    with client.tokens._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            os.write(writer, str(client.request("GET", "ticketrz", params={"limit": 1})["count"]).encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"1"
    os.close(reader)


def test_write_by_an_adapter_that_is_not_ours(make):
    """Of a write that an adapter of somebody else's sends, nobody knows whether it left: it is not sent again."""
    client = make()
    with rm.Mocker(session=client.session) as mocker:
        mocker.post(f"{client.settings.base_url}/api/authenticate", json={"token": "t" * 20})
        mocker.post(f"{client.settings.base_url}/api/ticket/create", exc=requests.ConnectionError("gone"))
        with pytest.raises(OneboxUncertainWriteError):
            client.request("POST", "ticket/create", json=TICKET)
    assert client.waits == []


def test_429_under_200_is_retried():
    """A write that Onebox answers with 429 in the body is sent again: it was not done."""
    slow = {"_meta": {"status": "ERROR"}, "records": {"errorCode": 429, "userMessage": "slow down"}}
    with Peer(script(http_reply(200, slow, b"Retry-After: 3"), http_reply())) as peer:
        client = client_of(peer.url)
        assert write(client) == {}
        assert client.waits == [3]


def test_response_code_at_the_login():
    """A login that response_code rejects fails at once, with a token beside it as well."""
    for more in ({}, {"token": NEW_TOKEN}):
        reply = http_reply(200, {"response_code": "401", "response_status": "Wrong password", **more})
        with Peer(lambda peer, conn, reply=reply: peer.read(conn) and conn.sendall(reply)) as peer:
            with pytest.raises(OneboxAuthError, match="Wrong password"):
                client_of(peer.url, token=None).login()
            assert len(peer.requests) == 1


def test_redirect_to_what_is_no_address():
    """A Location that can't be parsed is shown as it is."""
    answer = script(http_reply(302, b"", b"Location: http://[::1"))
    with Peer(answer) as peer, pytest.raises(OneboxResponseError, match=re.escape("http://[::1")):
        read(client_of(peer.url))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirected_write(status):
    """PHP redirects to what a form has created, so a redirected write is uncertain; one to the login page is not."""
    with Peer(
        script(http_reply(status, b"", b"Location: /ticket/5"), http_reply(status, b"", b"Location: /Login"))
    ) as peer:
        with pytest.raises(OneboxUncertainWriteError, match="'/ticket/5'"):
            write(client_of(peer.url))
        with pytest.raises(OneboxResponseError, match="That is its login page") as caught:
            write(client_of(peer.url))
        assert (caught.value.uncertain, caught.value.retryable) == (False, False)
        assert len(peer.requests) == 2


def test_head(sandbox):
    """HEAD gives an empty answer, or the error of its status."""
    with Peer(script(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nContent-Encoding: br\r\n\r\n")) as peer:
        assert client_of(peer.url).request("HEAD", "ticketrz") == {}
    no = b"HTTP/1.1 404 No\r\nContent-Length: 99\r\n\r\n"
    with Peer(script(no)) as peer, pytest.raises(OneboxRequestError, match="404"):
        client_of(peer.url).request("head", "ticketrz/1")


@pytest.mark.parametrize("method", ["GET\n", "", "G T", "GÉT", None, 5])
def test_method_is_checked(method):
    """A method that is none is named, and nothing is sent."""
    with Peer(script(http_reply())) as peer:
        with pytest.raises(OneboxConfigError, match="method="):
            client_of(peer.url).request(method, "ticketrz")
        assert peer.requests == []


@pytest.mark.parametrize("data", [io.BytesIO(b"a=1"), iter([b"a=1"]), io.StringIO("a=1")])
def test_body_that_can_be_sent_once(data):
    """A file or an iterator would be empty when it is sent again: it is refused, with the remedy."""
    with Peer(script(http_reply(429), http_reply())) as peer:
        with pytest.raises(OneboxConfigError, match="read it, and pass what it holds"):
            write(client_of(peer.url), data=data)
        assert peer.requests == []


def test_error_of_the_caller_is_not_quoted():
    """An error that the caller is just handling is not taken for the reason, whatever its class."""
    with Peer(cut) as peer:
        try:
            raise ConnectionResetError(104, "something of the caller's own")
        except OSError:
            with pytest.raises(OneboxUnavailableError, match="Remote end closed connection") as caught:
                client_of(peer.url, max_retries=0).request("GET", "ticketrz")
        assert "caller" not in str(caught.value)


@pytest.mark.parametrize(("steps", "error"), [(0, OneboxUnavailableError), (1, OneboxUncertainWriteError)])
def test_time_limit_of_a_silent_onebox(steps, error):
    """With a time limit, a login and a call together take no longer, with one try each."""
    with Peer(Silent(steps)) as peer:
        client = client_of(peer.url, token=None, time_limit=1)
        start = time.monotonic()
        with pytest.raises(error, match=r"no complete response in 0\.[45] s"):
            write(client)
        assert time.monotonic() - start < 1.5
        assert len(peer.requests) == steps + 1
        assert client.waits == []


def test_time_limit_of_a_dripping_onebox():
    """Nor does a reply that drips hold it longer; a write that was in flight is uncertain, a read is not."""

    def drip(peer, conn):
        peer.read(conn)
        while not peer.over.wait(0.05):
            conn.sendall(b"H")

    with Peer(drip) as peer:
        for method, error in (("POST", OneboxUncertainWriteError), ("GET", OneboxUnavailableError)):
            start = time.monotonic()
            with pytest.raises(error, match=r"within the 1\.5 s that the call may take"):
                client_of(peer.url, time_limit=1.5).request(method, "ticketrz")
            assert 1.4 < time.monotonic() - start < 3
        with pytest.raises(OneboxUnavailableError, match=r"within the 1\.5 s") as caught:
            client_of(peer.url, time_limit=1.5, token=None).login()
        assert caught.value.uncertain is False


def end_abandoned_calls():
    """Wait until calls that nobody waits for are over."""
    for thread in threading.enumerate():
        if thread.name == "onebox-call":
            assert thread.daemon, "it would keep the process from ending"
            thread.join(20)


def test_time_limit_of_a_name_that_is_not_found(monkeypatch):
    """Nor does a resolver that hangs; what was abandoned before it began is not done later."""
    resolved, look_up = threading.Event(), socket.getaddrinfo

    def slow(host, *args, **kwargs):
        resolved.wait(20)
        return look_up("127.0.0.1", *args, **kwargs)

    with Peer(script(http_reply())) as peer:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        client = client_of(f"http://dev.example:{peer.port}", token=None, time_limit=0.3)
        with pytest.raises(OneboxUnavailableError, match=r"within the 0\.3 s") as caught:
            write(client)
        assert caught.value.uncertain is False
        resolved.set()
        end_abandoned_calls()
        assert set(peer.lines()) <= {"POST /api/authenticate"}


def test_time_limit_of_a_token_that_comes_too_late():
    """A call that was abandoned while it waited for its token is not made once the token is there."""
    issued = threading.Event()

    def issue(rejected):
        assert issued.wait(20)
        return Token(TOKEN)

    with Peer(script(http_reply())) as peer:
        settings = Settings("crm", peer.url, "care@example.com", PASSWORD, "169")
        client = OneboxClient(settings, tokens=TokenSource(issue), time_limit=0.3)
        with pytest.raises(OneboxUnavailableError, match=r"within the 0\.3 s") as caught:
            write(client)
        assert caught.value.uncertain is False
        issued.set()
        end_abandoned_calls()
        assert client.tokens.current == Token(TOKEN)
        assert peer.lines() == []


def test_time_limit_keeps_answers_and_errors():
    """A call in time gives what it always gives; what nobody foresaw comes through."""
    with Peer(script(http_reply(), http_reply(404))) as peer:
        client = client_of(peer.url, time_limit=5)
        assert write(client) == {}
        with pytest.raises(OneboxRequestError, match="404"):
            write(client)
        with pytest.raises(OneboxConfigError, match="not a path"):
            client.request("GET", "//x")


def rendered(error):
    """Render an error as Airflow's console does at its most talkative."""
    console = Console(file=io.StringIO(), width=4000, legacy_windows=False)
    console.print(
        Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True, locals_max_string=None)
    )
    return console.file.getvalue()


def by_status(status, body=b""):
    """Answer everything with a status, logins included."""

    def answer(peer, conn):
        while peer.read(conn):
            conn.sendall(http_reply(status, body))

    return answer


def locked_out(peer, conn):
    """Answer the first login, expire its token, and reject the next login."""
    while peer.read(conn):
        logins = sum(b"/api/authenticate" in request for request in peer.requests)
        is_first = logins == len(peer.requests) == 1
        conn.sendall(http_reply(200, LOGIN) if is_first else http_reply(401, EXPIRED))


def hung(peer, conn):
    """Answer a login, then nothing."""
    Silent(1)(peer, conn)


@pytest.mark.parametrize(
    "answer",
    [
        by_status(401, {"error": "wrong password"}),
        by_status(401, EXPIRED),
        by_status(200, {"token": "a b " + NEW_TOKEN}),
        by_status(200, {"response_code": "401", "token": NEW_TOKEN}),
        by_status(200, b'{"token": "' + NEW_TOKEN.encode()),
        script(http_reply(401, EXPIRED)),
        script(http_reply(500)),
        script(http_reply(200, b"<html>")),
        script(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        script(http_reply(200, b" " * 2**21)),
        locked_out,
        hung,
        cut,
        hang_up,
    ],
)
@pytest.mark.parametrize(("method", "time_limit"), [("GET", None), ("POST", 1)])
def test_traceback_holds_no_secret(answer, method, time_limit, monkeypatch):
    """A traceback with all its locals shows neither token nor password, whatever went wrong."""
    monkeypatch.setattr("airflow_provider_onebox.api.client.MAX_JSON_BYTES", 2**20)
    with Peer(answer) as peer:
        proxied = client_of(
            "http://dev.example",
            token=None,
            timeout=0.3,
            max_retries=0,
            proxies=(("http", peer.url.replace("//", "//me:proxypass@")),),
            time_limit=time_limit,
        )
        with pytest.raises(OneboxError) as caught:
            proxied.request(method, "ticketrz", json={"subject": "s"})
    error = caught.value
    text = rendered(error)
    assert "locals" in text
    for secret in (NEW_TOKEN, NEW_TOKEN[:12], PASSWORD, "p%40ss", "proxypass", "bWU6cHJveHlwYXNz"):
        assert secret not in text
    frames = {frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)}
    assert not any("requests" in name or "urllib3" in name or "http/client" in name for name in frames)
    assert error.__context__ is None
    assert error.__cause__ is None


class Interruption(BaseException):
    """A timeout of a task, Ctrl-C, the end of a greenlet: no Exception."""


FOLLOWED = re.compile("airflow_provider_onebox/api|/requests/|/urllib3/|/http/client")


@contextlib.contextmanager
def interrupted_at(step):
    """Interrupt the package and the libraries at their line number `step`, once; yields a list of the line's place."""
    left, places = step, []

    def trace(frame, event, arg):
        nonlocal left
        # What finalizers raise goes nowhere.
        is_finalizer = frame.f_code.co_name in ("_close_pool_connections", "closed")
        if is_finalizer or not FOLLOWED.search(frame.f_code.co_filename):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                sys.settrace(None)
                raise Interruption("Timeout, PID: 7")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield places
    finally:
        sys.settrace(before)


def held_by(error, outer=None):
    """Return everything that a traceback with its locals shows of an error, and of all that led to it."""
    shown, pending, seen = [], [error], {id(outer)}
    while pending:
        inner = pending.pop()
        if inner is None or id(inner) in seen:
            continue
        seen.add(id(inner))
        shown.append(repr(inner))
        for frame, _ in walk_tb(inner.__traceback__):
            if "/tests/" not in frame.f_code.co_filename:
                shown += [text for value in frame.f_locals.values() for text in (repr(value), str(value))]
                shown += [value.decode("latin-1") for value in frame.f_locals.values() if isinstance(value, bytes)]
        pending += [inner.__cause__, inner.__context__]
    return "\n".join(shown)


SECRETS = (TOKEN, NEW_TOKEN, PASSWORD, "p%40ss")


@pytest.fixture
def no_collector():
    """Run without the collector: its finalizers, of the responses of earlier tests too, would run at any line."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# Of a socket whose making was interrupted within the standard library.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.usefixtures("no_collector")
def test_interruption_anywhere(method, token):
    """Wherever a call is interrupted, a write that has begun is uncertain, the rest passes; nothing shows a secret."""
    answers = script(http_reply(401, EXPIRED), http_reply(200, {"ticketId": "5"})) if token else script(http_reply())
    kinds = set()
    for step in range(1, 4000, 61):
        with Peer(answers) as peer:
            client = client_of(peer.url, token=token, max_retries=0)
            assert client.session
            try:
                with interrupted_at(step) as places:
                    client.request(method, "ticket/create", json={"subject": "s"})
            except BaseException as error:  # noqa: BLE001 - of which kind it is, is what this is about
                caught = error
            else:
                assert not places
                break
            calls = [line for line in peer.lines() if "authenticate" not in line]
            kinds.add(type(caught))
            if isinstance(caught, Interruption):
                # The first of two was rejected, because of its token.
                assert method == "GET" or len(calls) < (2 if token else 1), places
            else:
                assert type(caught) is OneboxUncertainWriteError, places
                assert method == "POST"
                assert "interrupted before the response: Timeout, PID: 7. It may have been done" in str(caught)
            shown = held_by(caught)
            assert not any(secret in shown for secret in SECRETS), places
    assert kinds == ({Interruption, OneboxUncertainWriteError} if method == "POST" else {Interruption})


@pytest.mark.parametrize("failure", [KeyboardInterrupt("k"), Interruption()])
@pytest.mark.parametrize("is_sent", [False, True])
def test_interruption_of_a_call_with_a_time_limit(failure, is_sent, monkeypatch):
    """The same where the call is made in a separate thread, and the caller's is the one that is interrupted."""
    waiting, proceed = threading.Event(), threading.Event()

    def interrupt(pending, seconds):
        assert waiting.wait(20)
        raise failure

    def answer(peer, conn):
        peer.read(conn)
        waiting.set()
        peer.over.wait(20)

    def issue(rejected):
        waiting.set()
        assert proceed.wait(20)
        return Token(TOKEN)

    monkeypatch.setattr("airflow_provider_onebox.api.client.futures.wait", interrupt)
    with Peer(answer) as peer:
        source = TokenSource(issue, Token(TOKEN) if is_sent else None)
        client = OneboxClient(Settings("crm", peer.url, "e", PASSWORD, "169"), tokens=source, time_limit=30)
        with pytest.raises(OneboxUncertainWriteError if is_sent else type(failure)) as caught:
            write(client)
        assert (caught.value is failure) is not is_sent
        if is_sent:
            words = str(failure) or "Interruption"
            assert f"interrupted before the response: {words}. It may have been done" in str(caught.value)
        proceed.set()
    end_abandoned_calls()
    assert peer.lines() == ["POST /api/ticket/create"] * is_sent


def test_interruption_keeps_what_the_caller_handles():
    """The frames of an error that the caller is just handling are the caller's own."""
    with Peer(Silent(0)) as peer:
        caught = None
        try:
            int("the caller's")
        except ValueError:
            with pytest.raises(OneboxUnavailableError) as caught:
                client_of(peer.url, timeout=0.2, max_retries=0).request("GET", "ticketrz")
    outer = caught.value.__context__
    assert type(outer) is ValueError
    assert outer.__traceback__ is not None


def test_users_of_one_account_in_several_processes():
    """Where each login ends the earlier token, four processes with 60 calls each get through."""
    lock, valid = threading.Lock(), []

    def answer(peer, conn):
        while request := peer.read(conn):
            time.sleep(0.002)
            with lock:
                if b"/api/authenticate" in request.split(b"\r\n")[0]:
                    valid[:] = [f"token-{len(peer.requests)}-{time.monotonic_ns()}"]
                    reply = http_reply(200, {"token": valid[0]})
                else:
                    is_valid = f"Bearer {valid[0]}\r\n".encode() in request if valid else False
                    reply = http_reply() if is_valid else http_reply(401, EXPIRED)
            conn.sendall(reply)

    with Peer(answer) as peer:
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                code = 1
                with contextlib.suppress(OneboxError):
                    client = OneboxClient(Settings("crm", peer.url, "e", PASSWORD, "169"))
                    for number in range(60):
                        client.request("POST" if number % 2 else "GET", "ticketrz", json={})
                    code = 0
                os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, 0, 0]


def test_hops_to_the_socket(monkeypatch):
    """A call passes five functions of ours from the client to the socket."""
    hops, send = [], http.client.HTTPConnection.send

    def spy(self, data):
        stack = traceback.extract_stack()
        hops.append([frame.name for frame in stack if "airflow_provider_onebox/api" in frame.filename])
        send(self, data)

    monkeypatch.setattr(http.client.HTTPConnection, "send", spy)
    with Peer(script(http_reply())) as peer:
        read(client_of(peer.url))
    assert hops == [["request", "_call", "send", "send", "endheaders"]]
