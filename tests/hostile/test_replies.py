"""Any response ends in a result or in an error of the one family, on one line, in bounded time.

The number of examples of each property is that of Hypothesis's profile. The release check runs 20,000 in all, with
HYPOTHESIS_PROFILE=thorough.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from http.client import HTTPResponse
from io import BytesIO

import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse as Urllib3Response

from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxError
from airflow_provider_onebox.sandbox import Sandbox

PASSWORD = "correct horse/battery+staple"
QUOTA = "time limit reached please try again tomorrow at 18:00 - 06:00"
CONNECTION = Settings("crm", "https://dev.example/voc", "demo@example.com", PASSWORD, "169")

settings.register_profile("default", max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("thorough", settings.get_profile("default"), max_examples=7000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class Scripted(HTTPAdapter):
    """Responds with given bytes, parsed by the same code that reads a socket."""

    def __init__(self, *responses):
        super().__init__()
        self.responses = list(responses)
        self.sent = []

    def send(self, request, **kwargs):
        self.sent.append(request)
        raw = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]

        class Sock:
            def makefile(self, *_):
                return BytesIO(raw)

        try:
            parsed = HTTPResponse(Sock(), method=request.method)
            parsed.begin()
            message = Urllib3Response(
                body=parsed,
                headers=list(parsed.msg.items()),
                status=parsed.status,
                version=parsed.version,
                reason=parsed.reason,
                preload_content=False,
                original_response=parsed,
                request_method=request.method,
            )
            response = self.build_response(request, message)
            _ = response.content
        except (OSError, requests.RequestException):
            raise
        except Exception as error:
            raise requests.ConnectionError(error) from error
        return response


def client_of(*responses):
    """Make a client to which Onebox responds with these bytes."""
    client = OneboxClient(CONNECTION, pause=lambda abandoned, seconds: None)
    adapter = Scripted(*responses)
    client.session.mount("https://", adapter)
    return client, adapter


def http(status, body, headers=()):
    """Put a response together."""
    lines = [b"HTTP/1.1 %d X" % status, *(name + b": " + value for name, value in headers)]
    return b"\r\n".join(lines) + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


LOGIN = http(200, json.dumps({"token": "opaque-token-0123456789"}).encode())

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
messages = st.text(max_size=60) | st.sampled_from([QUOTA, "Expired token", PASSWORD, "a\nb\x1b[2J\u202e", "x" * 5000])
envelopes = st.fixed_dictionaries(
    {
        "_meta": st.fixed_dictionaries({"status": st.sampled_from(["ERROR", "OK"]) | json_values}),
        "records": st.fixed_dictionaries(
            {"errorCode": st.sampled_from(["401", 401, 503, "x"]) | json_values, "userMessage": messages | json_values}
        )
        | json_values,
    }
)
second_envelopes = st.fixed_dictionaries({"error": messages | json_values})
codes = st.fixed_dictionaries(
    {"response_code": st.sampled_from(["200", 401, "401", "429", 500]) | json_values, "response_status": messages},
    optional={"token": st.just("opaque-token-0123456789"), "data": json_values},
)
pages = st.fixed_dictionaries(
    {
        "data": st.lists(st.fixed_dictionaries({"Id": st.integers(-9, 99).map(str) | json_values}), max_size=6)
        | json_values,
        "total": st.integers(-1, 20) | json_values,
    }
)
tokens = st.fixed_dictionaries({"token": st.text(max_size=40) | json_values, "valid_until": json_values})
bodies = st.one_of(
    st.binary(max_size=200),
    st.one_of(json_values, envelopes, second_envelopes, codes, pages, tokens).map(
        lambda value: json.dumps(value).encode()
    ),
    st.one_of(envelopes, pages, tokens).map(lambda value: json.dumps(value).encode()[:-3]),
    st.sampled_from([b"", b"<html><title>x</title>", b"\xef\xbb\xbf{}", b"[" * 5000, b"null", b'{"Id": 1e999}']),
)
names = st.sampled_from(
    [b"Location", b"Retry-After", b"Content-Type", b"Content-Encoding", b"Set-Cookie", b"Transfer-Encoding", b"X"]
)
values = st.sampled_from(
    [b"/Login", b"https://evil.example/?x=1", b"99999999999999999999", b"Wed, 99 Foo", b"gzip", b"chunked", b"br"]
) | st.binary(max_size=40).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b""))
headers = st.lists(st.tuples(names, values), max_size=4)
responses = st.builds(http, st.integers(100, 599) | st.sampled_from([200, 401, 429, 503, 302]), bodies, headers)


def harmless(text):
    """Return whether a text is one printable line without a secret."""
    return text.isprintable() and PASSWORD not in text and len(text) < 2000


def outcome(call):
    """Make a call; return what came back, or the one kind of error that may."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("airflow_provider_onebox")
    logger.addHandler(handler)
    try:
        result = call()
    except OneboxError as error:
        result = error
    finally:
        logger.removeHandler(handler)
    if isinstance(result, OneboxError):
        assert harmless(str(result)), str(result)
        assert result.server_message is None or harmless(result.server_message)
    assert all(harmless(record.getMessage()) for record in records)
    return result


ODD = [
    http(200, b'{"token": "a\\nb"}'),
    http(200, b'{"token": ""}'),
    http(200, b'[{"Id": "169"}, {"Id": "170"}]'),
    http(302, b"", [(b"Location", b"/Login")]),
    http(200, b'{"_meta": {"status": "ERROR", "count": 1}, "records": []}'),
    http(401, json.dumps({"_meta": {"status": "ERROR"}, "records": {"userMessage": QUOTA}}).encode()),
    http(503, b"", [(b"Retry-After", b"9" * 300)]),
    http(200, b"\x1f\x8b\x08\x00garbage", [(b"Content-Encoding", b"gzip")]),
    http(200, b'{"data": [{"Id": 1e999}]}'),
    http(200, b'{"data": [{"Id": "1"}, {"Id": "1"}], "total": true}'),
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
    http(302, b"", [(b"Location", b"http://[::1")]),
    http(200, b'{"error": "no"}'),
    http(401, b'{"error": "no"}'),
    http(200, b'{"response_code": "401", "token": "opaque-token-0123456789"}'),
    http(500, b'{"_meta": {"status": "ERROR"}, "records": {"errorCode": 401, "userMessage": "Expired token"}}'),
    http(422, b'{"message": "' + PASSWORD.encode() + b'"}'),
    b"not HTTP at all",
    b"",
]


def corpus(test):
    """Try the odd ones first, always."""
    for raw in ODD:
        test = example(raw)(test)
    return test


@corpus
@given(responses | st.binary(max_size=120))
def test_login(raw):
    """A login ends in a token that a header can hold, or in an error of the family."""
    client, _ = client_of(raw)
    result = outcome(client.login)
    if not isinstance(result, OneboxError):
        assert result.value.isascii()
        assert result.value.isprintable()
        assert " " not in result.value


@corpus
@given(responses | st.binary(max_size=120))
def test_call(raw):
    """A call ends in parsed JSON or in an error of the family, and never logs in more than twice."""
    client, adapter = client_of(LOGIN, raw)
    outcome(lambda: client.request("GET", "ticketrz/1"))
    logins = sum(request.path_url.endswith("/authenticate") for request in adapter.sent)
    assert logins <= 2
    assert all(request.url.startswith("https://dev.example/voc/api/") for request in adapter.sent)


@corpus
@given(responses)
def test_list(raw):
    """A listing ends; its rows have ids, ascending, each once."""
    client, _ = client_of(LOGIN, raw)
    result = outcome(lambda: [row for batch in client.lists.pages("ticketrz") for row in batch.rows])
    if not isinstance(result, OneboxError):
        ids = [int(row["Id"]) for row in result]
        assert ids == sorted(set(ids))


@settings(max_examples=50)
@example(http(401, b'{"error": "no"}'))
@given(responses)
def test_write_is_sent_once(raw):
    """A write goes out once, unless the response says by itself that nothing was done."""
    client, adapter = client_of(LOGIN, raw)
    outcome(lambda: client.request("POST", "ticket/create", json={}))
    writes = [request for request in adapter.sent if request.path_url.endswith("create")]
    status = int(raw[9:12])
    assert len(writes) == 1 or status in (401, 429) or b"401" in raw or b"429" in raw
    if raw.endswith(b'{"error": "no"}'):
        assert len(writes) == 1


@pytest.fixture(scope="module")
def server():
    """A Onebox of one record."""
    with Sandbox(records=1, password=PASSWORD) as sandbox:
        yield sandbox


@settings(max_examples=max(20, settings().max_examples // 20))
@given(responses | st.binary(max_size=300))
def test_over_a_socket(server, raw):
    """The same over a real connection, where the HTTP library itself reads the bytes."""
    connection = Settings("crm", server.url, server.email, PASSWORD, "169", timeout=0.3, max_retries=1)
    for path in ("authenticate", "ticketrz"):
        server.state.reset()
        server.state.fail("raw", path=path, data=raw, times=9)
        client = OneboxClient(connection, pause=lambda abandoned, seconds: None)
        outcome(lambda client=client: client.request("GET", "ticketrz"))


def test_quota_does_not_log_in():
    """The 401 of service hours leaves the token alone, whatever else is in the response."""
    body = json.dumps({"_meta": {"status": "ERROR"}, "records": {"errorCode": 401, "userMessage": QUOTA}}).encode()
    client, adapter = client_of(LOGIN, http(401, body))
    assert not isinstance(outcome(lambda: client.request("GET", "ticketrz")), OneboxAuthError)
    assert len(adapter.sent) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target", [b"https://evil.example/api/x", b"//evil.example/x", b"http://dev.example/voc/api/x"]
)
@pytest.mark.parametrize("after_replay", [False, True])
def test_nothing_goes_elsewhere(status, target, after_replay):
    """No redirect carries the password or the token away: on the login, on a call, or after a replay."""
    away = http(status, b"", [(b"Location", target)])
    expired = http(401, json.dumps({"_meta": {"status": "ERROR"}, "records": {"userMessage": "Expired"}}).encode())
    script = [LOGIN, expired, LOGIN.replace(b"0123", b"4567"), away] if after_replay else [LOGIN, away]
    for call, scripted in ((OneboxClient.login, [away]), (lambda c: c.request("GET", "ticketrz"), script)):
        client, adapter = client_of(*scripted)
        assert isinstance(outcome(lambda call=call, client=client: call(client)), OneboxError)
        assert {request.url.split("/api/")[0] for request in adapter.sent} == {"https://dev.example/voc"}
        assert len(adapter.sent) == len(scripted)


def test_no_thread_is_left():
    """Listings that end badly leave no thread behind."""
    for _ in range(20):
        client, _ = client_of(LOGIN, http(200, b'{"data": [{"Id": "1"}], "total": 9}'))
        assert isinstance(outcome(lambda c=client: list(c.lists.pages("ticketrz", parallelism=4))), OneboxError)
    for thread in threading.enumerate():
        if thread.name.startswith("onebox-page"):
            thread.join(5)
            assert not thread.is_alive()
