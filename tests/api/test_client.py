"""The client: login, calls, retries, writes, time limits, interruptions, and what a failure says."""

from __future__ import annotations

import base64
import contextlib
import gc
import http.client
import io
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import SimpleNamespace
from urllib.parse import quote_plus

import pytest
import requests
import requests_mock as rm
from support.compliance import assert_no_secret, held_by
from support.wire import (
    EXPIRED,
    NEW_TOKEN,
    PASSWORD,
    PATIENCE,
    TOKEN,
    Peer,
    Silent,
    client_of,
    closed_port,
    cut,
    http_response,
    login_response,
    read,
    script,
    write,
)

from airflow_provider_onebox.api.client import MAX_RETRY_AFTER, OneboxClient
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.api.token import Token, TokenSource
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
)


def test_login():
    """The form is sent as Onebox reads it, without a token, and with nothing in the URL."""
    with Peer(script()) as peer:
        assert client_of(peer.url).login() == Token(NEW_TOKEN)
    head, _, body = peer.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/authenticate HTTP/1.1\r\n")
    assert b"\r\nContent-Type: application/x-www-form-urlencoded\r\n" in head
    assert b"Authorization" not in head
    assert body == b"email=care%40example.com&password=p%40ss+w%2Frd%26100%25&siteId=169"


@pytest.mark.parametrize(
    ("response", "message"),
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
def test_login_without_a_token(response, message):
    """The error says what the response is instead."""
    client = client_of("https://dev.example")
    with rm.Mocker() as mock:
        mock.post(client.url_for("authenticate"), json=response)
        with pytest.raises(OneboxResponseError, match=re.escape(message)) as caught:
            client.login()
    assert caught.value.status == 200


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_transient_errors_are_retried(status, caplog):
    """Reads survive transient errors, with growing waits that are logged; after the last try the error says so."""
    caplog.set_level("WARNING")
    busy = http_response(status, b"")
    with Peer(script(busy, busy, busy, http_response(), busy)) as peer:
        client = client_of(peer.url)
        assert read(client) == {}
        assert [2**n <= wait <= 2**n + 1 for n, wait in enumerate(client.waits)] == [True] * 3
        assert [f"({status})" in text for text in caplog.messages] == [True] * 3
        assert caplog.messages[2].endswith("(3 of 3).")
        with pytest.raises(OneboxUnavailableError, match=rf"\({status}\).*That was try 4 of 4\.$") as caught:
            read(client)
    assert caught.value.retryable is True
    assert len(client.waits) == 6


def test_retry_after_is_honoured():
    """A server that says how long to wait is believed, up to a limit."""
    longest, too_long = int(MAX_RETRY_AFTER), int(MAX_RETRY_AFTER) + 1
    busy = [http_response(429, b"", b"Retry-After: %d" % wait) for wait in (longest, too_long)]
    with Peer(script(busy[0], http_response(), busy[1])) as peer:
        client = client_of(peer.url)
        assert read(client) == {}
        message = f"asks to wait {too_long} s, so the call was not retried"
        with pytest.raises(OneboxUnavailableError, match=message) as caught:
            read(client)
    assert caught.value.retry_after == too_long
    assert client.waits == [longest]


def test_smaller_page_after_transient_errors():
    """A listing learns of each transient error before the wait, and can ask for something smaller then."""
    calls = []

    def shrink(error):
        calls.append((error.status, len(client.waits), error.retry_after))
        return {"limit": 3} if len(calls) == 2 else None

    with Peer(script(*[http_response(503)] * 2, http_response())) as peer:
        client = client_of(peer.url)
        client._call("GET", "ticketrz", params={"limit": 9}, on_transient=shrink)
        assert peer.lines() == [f"GET /api/ticketrz?limit={limit}" for limit in (9, 9, 3)]
    assert calls == [(503, n, wait) for n, wait in enumerate(client.waits)]


def test_login_is_retried():
    """A login that meets a transient error is tried again, but not by the call that needs it too."""
    busy = http_response(502)
    with Peer(script(http_response(), http_response(401, EXPIRED), logins=[busy, login_response(), busy])) as peer:
        client = client_of(peer.url, token=None)
        assert read(client) == {}
        assert peer.count() == (2, 1)
        with pytest.raises(OneboxUnavailableError, match="POST authenticate"):
            read(client)
        assert peer.count() == (2 + 4, 2)


def test_refused_connection():
    """A port that nobody listens on is named, with the number of tries; the write was not sent."""
    port = closed_port()
    with pytest.raises(OneboxUnavailableError) as caught:
        write(client_of(f"http://127.0.0.1:{port}"))
    assert str(caught.value) == (
        f"Connection 'crm', site 169: POST ticket/create: http://127.0.0.1:{port} can't be reached: "
        "Connection refused. That was try 4 of 4."
    )
    assert caught.value.uncertain is False


@pytest.mark.parametrize(
    ("call", "error", "advice"),
    [
        (read, OneboxUnavailableError, "That was try 1 of 1"),
        (write, OneboxUncertainWriteError, "It may have been done: look in Onebox before you clear the task"),
    ],
)
def test_timeout(call, error, advice):
    """A timeout says where it is set; a write that meets one is uncertain, and the error says to look first."""
    with Peer(Silent(0)) as peer:
        message = rf"is too slow: no complete response in [0-9.]+ s .*'timeout' is 0\.1 s.*\. {advice}\.$"
        with pytest.raises(error, match=message):
            call(client_of(peer.url, timeout=0.1, max_retries=0))
        assert len(peer.requests) == 1


def test_base_path():
    """Onebox may live below a path."""
    client = client_of("https://dev.example/feature/voc")
    assert client.url_for("ticketrz/5") == "https://dev.example/feature/voc/api/ticketrz/5"


@pytest.mark.parametrize("endpoint", ["//evil.example/x", "../x", "/ticketrz", "a?b=c", "", None])
def test_endpoint_refused(endpoint):
    """An endpoint that leads elsewhere is refused before anything is sent."""
    with Peer(script(http_response())) as peer:
        with pytest.raises(OneboxConfigError, match="write it like 'ticketrz/12250'"):
            client_of(peer.url).request("GET", endpoint)
        assert peer.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"json": {1, 2}}, "set"),
        ({"json": float("nan")}, "JSON"),
        ({"params": 5}, "non-str"),
        ({"files": 5}, "encode"),
        ({"data": io.BytesIO(b"a=1")}, "read it, and pass what it holds"),
        ({"data": iter([b"a=1"])}, "read it, and pass what it holds"),
        ({"data": io.StringIO("a=1")}, "read it, and pass what it holds"),
    ],
)
def test_arguments_refused(arguments, message):
    """Arguments that can't be encoded, or can be sent only once, are an error of ours, before anything is sent."""
    with Peer(script(http_response(429), http_response())) as peer:
        with pytest.raises(OneboxConfigError, match=f"the arguments can't be sent: .*{message}"):
            write(client_of(peer.url), **arguments)
        assert peer.requests == []


@pytest.mark.parametrize("proxy", ["http://u:proxypass@[::1", "nonsense://u:proxypass@x y"])
@pytest.mark.parametrize("call", [OneboxClient.login, write])
def test_unusable_proxy_of_the_environment(monkeypatch, proxy, call):
    """A proxy that makes no sense is named as such, without its password; a write was never sent."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(OneboxConfigError, match="'proxies'") as caught:
        call(client_of("https://dev.example"))
    assert "proxypass" not in str(caught.value)


def test_secrets_in_a_servers_message():
    """A server that repeats what it was sent does not make it public."""
    forms = [TOKEN, PASSWORD, quote_plus(PASSWORD), base64.b64encode(PASSWORD.encode()).decode()]
    message = " | ".join(forms)
    with Peer(script(http_response(400, message.encode()))) as peer:
        client = client_of(peer.url)
        with pytest.raises(OneboxRequestError) as caught:
            read(client)
    assert client.redact(message) == " | ".join(["***"] * 4)
    assert not [form for form in forms if form in str(caught.value)]
    assert "***" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sent"),
    [("since", "since=2026-01-02+03%3A03"), ("last_update", "lastUpdate=2026-01-02+03%3A04")],
)
def test_list_by_time(name, sent):
    """Times are sent as Onebox reads them, that of creation a minute earlier."""
    with Peer(script(http_response(200, {"data": [], "total": 0}))) as peer:
        assert list(client_of(peer.url).lists.pages("ticketrz", **{name: datetime(2026, 1, 2, 3, 4, 5)})) == []
        assert peer.lines()[-1].endswith(sent)


@pytest.fixture
def lists_of():
    """Make the lists of a client to which these pages are the responses, the last one again and again."""
    with rm.Mocker() as mock:

        def make(*pages):
            mock.get("http://dev.example/api/ticketrz", [{"json": page} for page in pages])
            return client_of("http://dev.example").lists

        yield make


def test_abandoned_call():
    """A call that nobody waits for any more is not sent, and not tried again either."""
    abandoned = threading.Event()
    abandoned.set()
    with Peer(script(http_response())) as peer:
        client = client_of(peer.url)
        with pytest.raises(OneboxUnavailableError, match=r"not sent, because its result was no longer needed"):
            client._call("GET", "ticketrz", abandoned=abandoned)
        assert (client.waits, peer.requests) == ([], [])


@pytest.mark.parametrize(
    ("page", "message"),
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
def test_page_that_makes_no_sense(lists_of, page, message):
    """The error says what the page is; if its records are the reason, no retry can help."""
    with pytest.raises(OneboxResponseError, match=re.escape(message)) as caught:
        list(lists_of(page).pages("ticketrz"))
    assert caught.value.retryable is ("not a page" in message)


@pytest.mark.parametrize(
    ("page", "ids"),
    [
        # PHP writes a list with gaps as an object whose keys are digits.
        ({"data": {"0": {"Id": "4"}, "2": {"Id": "7"}}, "total": 2}, ["4", "7"]),
        # Order does not matter if one page is the whole list; a record that is in it twice is one.
        ({"data": [{"Id": 3}, {"Id": "2"}, {"Id": "3"}], "total": "3"}, ["2", "3"]),
    ],
)
def test_whole_list(lists_of, page, ids):
    """A list in another form than usual can be read."""
    assert [row["Id"] for batch in lists_of(page).pages("ticketrz") for row in batch.rows] == ids


@pytest.mark.parametrize(
    "quirks", [{}, {"total_ignores_since_id": True}, {"page_overflow": 2}, {"offset_ignored": True}]
)
def test_count(sandbox, quirks):
    """How many records match, and which is the last, whatever the server's totals are worth."""
    ids = sandbox.state.ids()
    sandbox.state.configure(**quirks)
    lists = OneboxClient(Settings("crm", sandbox.url, sandbox.email, sandbox.password, "169")).lists
    assert lists.count("ticketrz", since_id=ids[99]) == (150, int(ids[-1]))
    assert lists.count("ticketrz", since_id=ids[-2]) == (1, int(ids[-1]))
    assert lists.count("ticketrz", since_id=ids[-1]) == (0, None)


def test_count_without_a_total(lists_of):
    """Records of a server that sends no total are counted page by page."""
    pages = [[{"Id": "1"}], [{"Id": "1"}, {"Id": "2"}], []]
    assert lists_of(*({"data": page} for page in pages)).count("ticketrz") == (2, 2)


def test_many_threads(sandbox):
    """One client serves 32 threads with one login."""
    client = OneboxClient(Settings("crm", sandbox.url, sandbox.email, sandbox.password, "169"))
    with ThreadPoolExecutor(32) as pool:
        limits = range(1, 65)
        pages = pool.map(lambda limit: client.request("GET", "ticketrz", params={"limit": limit}), limits)
        assert [page["count"] for page in pages] == list(limits)
    assert sandbox.state.logins == 1


def test_another_adapter():
    """If another adapter sends, or another session, nothing is known of a write that fails: it is uncertain."""
    client, lost = client_of("https://dev.example"), {"exc": requests.ConnectionError("no idea")}
    with rm.Mocker(session=client.session) as mock:
        mock.post(rm.ANY, **lost)
        with pytest.raises(OneboxUncertainWriteError, match="no idea"):
            write(client)
    adapter = rm.Adapter()
    adapter.register_uri("POST", rm.ANY, **lost)
    client.session.mount("https://", adapter)
    with pytest.raises(OneboxUncertainWriteError, match="no idea"):
        write(client)
    assert client.waits == []


def test_counts():
    """Logins and retries are counted, and writes by their result."""
    counted = []
    responses = [http_response(status) for status in (429, 200, 404, 500, 404)]
    with Peer(script(*responses)) as peer:
        settings = Settings("crm", peer.url, "care@example.com", PASSWORD, "169")
        client = OneboxClient(settings, pause=lambda abandoned, seconds: None, count=counted.append)
        for call in (write, write, write, read):
            with contextlib.suppress(OneboxRequestError, OneboxUncertainWriteError):
                call(client)
    assert counted == ["logins", "retries", "writes.done", "writes.rejected", "writes.uncertain"]


def test_secrets_of_others_in_a_servers_message():
    """A token and the user of an address are known by their shape, and what is around them stays."""
    message = "see https://me:pw@proxy.example and eyJhbGciOiJ.eyJzdWIiOjF9.c2ln, please"
    assert client_of("https://dev.example").redact(message) == "see https://***@proxy.example and ***, please"


def test_fork_while_another_thread_logs_in():
    """A child does not wait for a lock that only its parent's thread would release."""
    with Peer(script(http_response())) as peer:
        client = client_of(peer.url, token=None)
        with client.tokens._lock:
            child = os.fork()
            if child == 0:
                signal.alarm(PATIENCE)
                os._exit(0 if read(client) == {} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("status", [200, 429])
def test_write_that_was_not_done(status):
    """A 429, in the body too, says that nothing was done: the write is sent again after the wait that it asks for."""
    slow = {"_meta": {"status": "ERROR"}, "records": {"errorCode": 429, "userMessage": "slow down"}}
    with Peer(script(http_response(status, slow, b"Retry-After: 3"), http_response())) as peer:
        client = client_of(peer.url)
        assert write(client) == {}
        assert client.waits == [3]


def test_head():
    """HEAD returns an empty dictionary, or raises the error of its status."""
    with Peer(script(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nContent-Encoding: br\r\n\r\n")) as peer:
        assert client_of(peer.url).request("HEAD", "ticketrz") == {}
    no = b"HTTP/1.1 404 No\r\nContent-Length: 99\r\n\r\n"
    with Peer(script(no)) as peer, pytest.raises(OneboxRequestError, match="404"):
        client_of(peer.url).request("head", "ticketrz/1")


@pytest.mark.parametrize("method", ["GET\n", "", "G T", "GÉT", None, 5])
def test_method_is_checked(method):
    """A method that is none is named, and nothing is sent."""
    with Peer(script(http_response())) as peer:
        with pytest.raises(OneboxConfigError, match="method="):
            client_of(peer.url).request(method, "ticketrz")
        assert peer.requests == []


def test_error_that_the_caller_is_handling():
    """It is not taken for the reason, whatever its class, and keeps its frames."""
    with Peer(cut) as peer:
        try:
            raise ConnectionResetError(104, "something of the caller's")
        except OSError:
            with pytest.raises(OneboxUnavailableError, match="Remote end closed connection") as caught:
                read(client_of(peer.url, max_retries=0))
    assert "caller" not in str(caught.value)
    outer = caught.value.__context__
    assert type(outer) is ConnectionResetError
    assert outer.__traceback__ is not None


@pytest.mark.parametrize(("time_limit", "timeout"), [(10, 4), (100, 5)])
def test_time_limit_holds_a_login_and_a_call(time_limit, timeout):
    """With a time limit, a login and a call without a response end within it, with one try each."""
    client = client_of("http://dev.example", token=None, time_limit=time_limit)
    with rm.Mocker() as mock:
        mock.post(client.url_for("authenticate"), json={"token": TOKEN})
        mock.post(client.url_for("ticket/create"), exc=requests.ReadTimeout)
        with pytest.raises(OneboxUncertainWriteError):
            write(client)
    assert [request.timeout for request in mock.request_history] == [timeout, timeout]
    assert client.waits == []


@pytest.fixture
def time_is_up(monkeypatch):
    """Let the time of a call be up once this event is set, and not before."""
    event = threading.Event()

    def wait(pending, seconds):
        assert seconds == PATIENCE
        assert event.wait(PATIENCE)
        return SimpleNamespace(done=set())

    monkeypatch.setattr("airflow_provider_onebox.api.client.futures.wait", wait)
    return event


@pytest.mark.parametrize(
    ("call", "error", "uncertain"),
    [
        (write, OneboxUncertainWriteError, True),
        (read, OneboxUnavailableError, True),
        (OneboxClient.login, OneboxUnavailableError, False),
    ],
)
def test_time_limit_of_a_dripping_onebox(time_is_up, call, error, uncertain):
    """A response that drips is not waited for either; a write that was in flight is uncertain."""

    def drip(peer, conn):
        peer.read(conn)
        time_is_up.set()
        while not peer.over.wait(0.05):
            conn.sendall(b"H")

    with Peer(drip) as peer:
        with pytest.raises(error, match=r"no response within the 60 s that the call may take") as caught:
            call(client_of(peer.url, time_limit=PATIENCE))
        assert caught.value.uncertain is uncertain


def end_abandoned_calls():
    """Wait until calls that nobody waits for are over."""
    for thread in threading.enumerate():
        if thread.name == "onebox-call":
            assert thread.daemon, "it would keep the process from ending"
            thread.join(PATIENCE)


def test_time_limit_of_a_name_that_is_not_found(time_is_up, monkeypatch):
    """Nor is a resolver that hangs; what was abandoned before it began is not done later."""
    resolved, look_up = threading.Event(), socket.getaddrinfo

    def slow(host, *args, **kwargs):
        time_is_up.set()
        assert resolved.wait(PATIENCE)
        return look_up("127.0.0.1", *args, **kwargs)

    with Peer(script(http_response())) as peer:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        client = client_of(f"http://dev.example:{peer.port}", token=None, time_limit=PATIENCE)
        with pytest.raises(OneboxUnavailableError, match=r"within the 60 s") as caught:
            write(client)
        assert caught.value.uncertain is False
        resolved.set()
        end_abandoned_calls()
        assert set(peer.lines()) <= {"POST /api/authenticate"}


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


@pytest.fixture
def no_collector():
    """Run without the collector: its finalizers, of the responses of earlier tests too, would run at any line."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def call_interrupted_at(step, client, method):
    """Make a call that is interrupted at a line; return the error and the places.

    In a thread that ends then: with Python 3.12, one may go on handling what it handled at the interruption.
    """
    try:
        with interrupted_at(step) as places:
            client.request(method, "ticket/create", json={"subject": "s"})
    except BaseException as error:  # noqa: BLE001 - of which kind it is, is what this is about
        return error, places
    return None, places


# Of a socket whose making was interrupted within the standard library.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.usefixtures("no_collector")
def test_interruption_anywhere(method, token):
    """Wherever a call is interrupted, a write that has begun is uncertain, the rest passes; nothing shows a secret."""
    responses = (http_response(401, EXPIRED), http_response()) if token else (http_response(),)
    kinds = set()
    for step in range(1, 4000, 97):
        with Peer(script(*responses)) as peer:
            client = client_of(peer.url, token=token, max_retries=0)
            assert client.session
            with ThreadPoolExecutor(1) as pool:
                caught, places = pool.submit(call_interrupted_at, step, client, method).result()
            if caught is None:
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
            assert_no_secret(held_by(caught))
    assert kinds == ({Interruption, OneboxUncertainWriteError} if method == "POST" else {Interruption})


@pytest.mark.parametrize("failure", [KeyboardInterrupt("k"), Interruption()])
@pytest.mark.parametrize("is_sent", [False, True])
def test_interruption_of_a_call_with_a_time_limit(failure, is_sent, monkeypatch):
    """The same where the call is made in a separate thread, and the caller's is the one that is interrupted."""
    waiting, proceed = threading.Event(), threading.Event()

    def interrupt(pending, seconds):
        assert waiting.wait(PATIENCE)
        raise failure

    def respond(peer, conn):
        peer.read(conn)
        waiting.set()
        peer.over.wait(PATIENCE)

    def issue(rejected):
        waiting.set()
        assert proceed.wait(PATIENCE)
        return Token(TOKEN)

    monkeypatch.setattr("airflow_provider_onebox.api.client.futures.wait", interrupt)
    with Peer(respond) as peer:
        source = TokenSource(issue, Token(TOKEN) if is_sent else None)
        client = OneboxClient(Settings("crm", peer.url, "e", PASSWORD, "169"), tokens=source, time_limit=30)
        with pytest.raises(OneboxUncertainWriteError if is_sent else type(failure)) as caught:
            write(client)
        assert (caught.value is failure) is not is_sent
        if is_sent:
            reason = str(failure) or "Interruption"
            assert f"interrupted before the response: {reason}. It may have been done" in str(caught.value)
        proceed.set()
    end_abandoned_calls()
    assert peer.lines() == ["POST /api/ticket/create"] * is_sent


def test_users_of_one_account_in_several_processes():
    """Where each login ends the earlier token, four processes with 20 calls each get through."""
    lock, valid = threading.Lock(), []

    def respond(peer, conn):
        while request := peer.read(conn):
            with lock:
                if b"/api/authenticate" in request.split(b"\r\n")[0]:
                    valid[:] = [f"token-{len(peer.requests)}-{time.monotonic_ns()}"]
                    response = login_response(valid[0])
                else:
                    is_valid = f"Bearer {valid[0]}\r\n".encode() in request if valid else False
                    response = http_response() if is_valid else http_response(401, EXPIRED)
            conn.sendall(response)

    with Peer(respond) as peer:
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                code = 1
                with contextlib.suppress(OneboxError):
                    settings = Settings("crm", peer.url, "e", PASSWORD, "169")
                    # Apart as with real waits, which are ten times as long.
                    client = OneboxClient(settings, pause=lambda abandoned, seconds: abandoned.wait(seconds / 10))
                    for number in range(20):
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
    with Peer(script(http_response())) as peer:
        read(client_of(peer.url))
    assert hops == [["request", "_call", "send", "send", "endheaders"]]
