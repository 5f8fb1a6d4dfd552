"""The session: which host gets the token, and what happens when Onebox rejects it."""

from __future__ import annotations

import copy
import http.client
import io
import json
import logging
import pickle
from traceback import walk_tb

import pytest
import requests
from support.wire import EXPIRED, NEW_TOKEN, PASSWORD, TOKEN, Peer, client_of, http_reply, script, write

from airflow_provider_onebox.api import transport
from airflow_provider_onebox.api.auth import OneboxAuth
from airflow_provider_onebox.api.token import Bearer, Token, TokenSource
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxRequestError,
)


def source(token=None):
    """A source that never logs in."""
    return TokenSource(lambda rejected: pytest.fail("a login"), token)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/api/x",
        "http://dev.example/api/x",
        "https://dev.example:8443/api/x",
        "https://dev.example.evil.example/api",
    ],
)
def test_token_stays_home(url):
    """Another scheme, host or port never sees the token."""
    with pytest.raises(OneboxConfigError, match="alone"):
        requests.Request("GET", url, auth=OneboxAuth(source(), "https://dev.example/voc")).prepare()


def test_request_does_not_show_the_token():
    """A prepared request carries a mark, however it is printed, copied or pickled; nothing is asked for yet."""
    auth = OneboxAuth(source(Token("opaque-token")), "https://dev.example/voc")
    request = requests.Request("GET", "https://dev.example:443/voc/api/x", auth=auth).prepare()
    assert request.url == "https://dev.example:443/voc/api/x"
    assert request.headers["Authorization"] == "Bearer ***"
    header = Bearer(source(), Token("opaque-token"))
    for shown in (
        repr(header),
        f"{header}",
        json.dumps([header]),
        pickle.dumps(copy.deepcopy(header)).decode("latin-1"),
    ):
        assert "Bearer ***" in shown
        assert "opaque" not in shown


@pytest.mark.parametrize(
    "base", ["https://münchen.example", "https://MÜNCHEN.example:443", "https://xn--mnchen-3ya.example"]
)
def test_one_form_of_a_host(base):
    """A host with a name beyond ASCII is the same host as in ASCII, and no other."""
    auth = OneboxAuth(source(), base)
    for url in ("https://münchen.example/api/x", "https://xn--mnchen-3ya.example/api/x"):
        assert requests.Request("GET", url, auth=auth).prepare().headers["Authorization"]
    with pytest.raises(OneboxConfigError, match="alone"):
        requests.Request("GET", "https://munchen.example/api/x", auth=auth).prepare()


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_default_port_is_no_other_host(scheme, port):
    """An address with the port that its scheme has anyway is Onebox's own, and is sent the token."""
    auth = OneboxAuth(source(), f"{scheme}://one.example")
    request = requests.Request("GET", f"{scheme}://one.example:{port}/api").prepare()
    assert "Authorization" in auth(request).headers


@pytest.mark.parametrize("status", [400, 401, 500])
def test_stream(status):
    """A reply that is streamed is the caller's to read, and an expired token is renewed before, whatever its status."""
    expired = http_reply(status, {"response_code": 401, "message": "Expired token"})
    with Peer(script(expired, http_reply(200, {"count": 1}))) as peer:
        with client_of(peer.url).session.get(f"{peer.url}/api/ticketrz", stream=True) as response:
            assert json.loads(response.raw.read()) == {"count": 1}
        assert len(set(peer.tokens())) == 2
        with client_of(peer.url).session.get(f"{peer.url}/api/ticketrz", stream=True) as response:
            assert json.loads(response.raw.read()) == {"count": 1}


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
@pytest.mark.parametrize("arguments", [{"json": {"a": 1}}, {"data": {"a": "1"}}, {"files": {"f": b"1"}}])
def test_expired_token_under_any_status(status, arguments):
    """An expired token is renewed once and the write sent again, whole, whatever the HTTP status."""
    with Peer(script(http_reply(status, EXPIRED), http_reply(200, {"ticketId": "5"}))) as peer:
        assert write(client_of(peer.url), **arguments) == {"ticketId": "5"}
        assert peer.tokens() == [TOKEN, NEW_TOKEN]
        first, _, second = peer.requests
        assert first.partition(b"\r\n\r\n")[2] == second.partition(b"\r\n\r\n")[2] != b""


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"message": "Unauthorized"}'])
def test_bare_401_renews(body):
    """So is one that a 401 without Onebox's envelope tells of."""
    with Peer(script(http_reply(401, body), http_reply())) as peer:
        assert client_of(peer.url).request("GET", "ticketrz") == {}
        assert peer.tokens() == [TOKEN, NEW_TOKEN]


@pytest.mark.parametrize("status", [200, 401])
def test_second_envelope_is_not_replayed(status):
    """{"error": ...} rejects a write with Onebox's words; it is neither sent again nor followed by a login."""
    with Peer(script(http_reply(status, {"error": "the channel is in use"}))) as peer:
        with pytest.raises(OneboxRequestError, match="the channel is in use"):
            write(client_of(peer.url))
        assert peer.lines() == ["POST /api/ticket/create"]


def test_retries_send_the_renewed_token():
    """After a renewal every retry carries the new token, not the expired one first."""
    script_ = script(http_reply(401, EXPIRED), http_reply(503), http_reply(503), http_reply())
    with Peer(script_) as peer:
        assert client_of(peer.url).request("GET", "ticketrz") == {}
        assert peer.tokens() == [TOKEN, NEW_TOKEN, NEW_TOKEN, NEW_TOKEN]


def test_handed_in_token_that_is_rejected(caplog):
    """The log says once, at INFO, that a handed-in token was rejected and a login took its place."""
    with Peer(script(http_reply(401, EXPIRED), http_reply())) as peer, caplog.at_level(logging.INFO):
        client = client_of(peer.url)
        for _ in range(3):
            client.request("GET", "ticketrz")
        said = [record for record in caplog.records if "upstream token" in record.getMessage()]
        assert [record.levelname for record in said] == ["INFO"]
        assert "Connection 'crm', site 169" in said[0].getMessage()
        assert peer.connections == 1
        assert TOKEN not in caplog.text


def test_prepared_request_can_be_sent_again():
    """A request that a user has prepared once carries the token of the moment each time."""
    with Peer(script(http_reply(), http_reply(401, EXPIRED), http_reply())) as peer:
        session = client_of(peer.url).session
        prepared = session.prepare_request(requests.Request("GET", f"{peer.url}/api/x"))
        for _ in range(3):
            assert session.send(prepared).status_code == 200
        assert peer.tokens() == [TOKEN, TOKEN, NEW_TOKEN, NEW_TOKEN]
        assert prepared.headers["Authorization"] == "Bearer ***"


@pytest.mark.parametrize("stream", [False, True])
def test_user_sees_no_token(stream, capsys, monkeypatch):
    """Neither the request of a reply nor its history nor http.client's debug output shows token or password."""
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    transport._connection_class.cache_clear()  # as in a process in which it was set before the first call
    with Peer(script(http_reply(401, EXPIRED), http_reply())) as peer:
        response = client_of(peer.url).session.get(f"{peer.url}/api/x", stream=stream)
        response.close()
        assert peer.tokens() == [TOKEN, NEW_TOKEN]
        seen = [response, *response.history]
        assert [shown.request.headers["Authorization"] for shown in seen] == ["Bearer ***"] * 2
        print(*(dict(shown.request.headers) for shown in seen), vars(response.request))  # noqa: T201
        printed = capsys.readouterr().out
        assert "Bearer ***" in printed
        for secret in (TOKEN, NEW_TOKEN, PASSWORD, "p%40ss"):
            assert secret not in printed
        # Another connection of the same process still tells.
        requests.get(f"{peer.url}/api/authenticate", timeout=5)
        assert "send:" in capsys.readouterr().out


def test_users_request_without_a_token():
    """A user's own authorization is sent as it is, and nothing is renewed for it."""
    with Peer(script(http_reply(401))) as peer:
        session = client_of(peer.url).session
        assert session.get(f"{peer.url}/api/x", auth=("me", "mine")).status_code == 401
        assert b"Authorization: Basic bWU6bWluZQ==" in peer.requests[0]
        assert len(peer.requests) == 1


def test_users_stream_is_not_replayed():
    """A body that can be sent once is not sent again by the session; the 401 is the caller's."""
    with Peer(script(http_reply(401, EXPIRED))) as peer:
        session = client_of(peer.url).session
        assert session.post(f"{peer.url}/api/x", data=io.BytesIO(b"abc")).status_code == 401
        assert len(peer.requests) == 1


def test_broken_call_of_a_user_holds_no_token():
    """The session's own errors, with the frames of the libraries, show no token either."""
    with Peer(lambda peer, conn: peer.over.wait(20)) as peer:
        session = client_of(peer.url, timeout=0.2).session
        # Whatever part of the request does not get through, the head or the body. The first header stands first.
        big = "x" * 2**23
        for arguments in ({"headers": {"Authorization": "", "X": big}}, {"data": big}):
            with pytest.raises(requests.ConnectionError) as caught:
                session.post(f"{peer.url}/api/x", **arguments)
            texts, error = [], caught.value
            while error:
                for frame, _ in walk_tb(error.__traceback__):
                    for value in frame.f_locals.values():
                        texts += value.values() if isinstance(value, dict) else [value]
                error = error.__context__
            texts = [text.decode("latin-1") if isinstance(text, bytes) else text for text in texts]
            texts = [text for text in texts if isinstance(text, str)]
            assert "Bearer ***" in texts
            assert not any(TOKEN in text for text in texts)
            assert caught.value.request.headers["Authorization"] == "Bearer ***"


def test_session_is_not_pickled():
    """A session holds a login."""
    with pytest.raises(TypeError, match="A session of Onebox is not pickled"):
        pickle.dumps(client_of("https://dev.example").session)


def test_upstream_token_that_has_expired(caplog):
    """An upstream token that has expired is not sent, and not said to be rejected."""
    with Peer(script(http_reply())) as peer, caplog.at_level(logging.INFO):
        client = client_of(peer.url, token=None).with_token(Token(TOKEN, use_until=0.0))
        assert client.request("GET", "ticketrz") == {}
        assert peer.tokens() == [NEW_TOKEN]
        assert "rejected" not in caplog.text


def test_response_can_be_pickled():
    """As with requests, a response can be pickled; what is known of its request stays behind."""
    with Peer(script(http_reply(200, {"count": 1}))) as peer:
        response = client_of(peer.url).session.get(f"{peer.url}/api/ticketrz")
    copied = pickle.loads(pickle.dumps(response))  # noqa: S301 - our own bytes
    assert copied.json() == {"count": 1}
    assert TOKEN not in repr(vars(copied.request))


def test_request_that_is_not_prepared():
    """As with requests, only a prepared request can be sent."""
    with pytest.raises(ValueError, match="You can only send PreparedRequests"):
        client_of("https://dev.example").session.send(requests.Request("GET", "https://dev.example"))


def test_certificates_of_the_environment(monkeypatch, tmp_path):
    """A prepared request of a user is checked against REQUESTS_CA_BUNDLE, as those of requests' own sessions are."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with Peer(script(http_reply())) as peer:
        session = client_of(peer.url.replace("http:", "https:")).session
        prepared = session.prepare_request(requests.Request("GET", f"{peer.url.replace('http:', 'https:')}/api/x"))
        with pytest.raises(OSError, match=r"none\.pem"):
            session.send(prepared)
