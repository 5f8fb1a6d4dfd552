"""The session: which host gets the token, and what happens when Onebox rejects it."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle

import pytest
import requests
from support.compliance import assert_no_secret, held_by
from support.wire import EXPIRED, NEW_TOKEN, PATIENCE, TOKEN, Peer, client_of, http_response, read, script

from airflow_provider_onebox.api.auth import OneboxAuth
from airflow_provider_onebox.api.token import Bearer, Token, TokenSource
from airflow_provider_onebox.exceptions import OneboxConfigError


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
def test_other_host(url):
    """Another scheme, host or port is not sent the token."""
    with pytest.raises(OneboxConfigError, match="alone"):
        requests.Request("GET", url, auth=OneboxAuth(source(), "https://dev.example/voc")).prepare()


def test_request_does_not_show_the_token():
    """A request carries a mark, however it is printed, copied or pickled."""
    header = Bearer(source(), Token(TOKEN))
    copied = pickle.dumps(copy.deepcopy(header)).decode("latin-1")
    assert [repr(header), f"{header}", json.dumps([header])] == ["'Bearer ***'", "Bearer ***", '["Bearer ***"]']
    assert "Bearer ***" in copied
    assert TOKEN not in copied


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://münchen.example", "https://xn--mnchen-3ya.example/api/x"),
        ("https://xn--mnchen-3ya.example", "https://münchen.example/api/x"),
        ("https://MÜNCHEN.example:443", "https://münchen.example/api/x"),
        ("http://one.example", "http://one.example:80/api"),
        ("https://one.example", "https://one.example:443/api"),
    ],
)
def test_same_host(base, url):
    """A host beyond ASCII is the same as in ASCII, and so is one with the port that its scheme has anyway."""
    prepared = requests.Request("GET", url, auth=OneboxAuth(source(), base)).prepare()
    assert prepared.headers["Authorization"] == "Bearer ***"


@pytest.mark.parametrize("status", [400, 401, 500])
def test_stream(status):
    """A streamed response is the caller's to read, and an expired token is renewed before, under any status."""
    expired = http_response(status, {"response_code": 401, "message": "Expired token"})
    with Peer(script(expired, http_response(200, {"count": 1}))) as peer:
        session = client_of(peer.url).session
        for _ in range(2):
            with session.get(f"{peer.url}/api/ticketrz", stream=True) as response:
                assert json.loads(response.raw.read()) == {"count": 1}
        assert peer.tokens() == [TOKEN, NEW_TOKEN, NEW_TOKEN]


def test_upstream_token_that_is_rejected(caplog):
    """The log says once, at INFO, that an upstream token was rejected and a login replaces it."""
    with Peer(script(http_response(401, EXPIRED), http_response())) as peer, caplog.at_level(logging.INFO):
        client = client_of(peer.url)
        for _ in range(3):
            read(client)
    message = "Connection 'crm', site 169: Onebox rejected the upstream token; logging in instead."
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("INFO", message)]


def test_prepared_request_can_be_sent_again():
    """A request that a user has prepared once carries the token of the moment each time."""
    with Peer(script(http_response(), http_response(401, EXPIRED), http_response())) as peer:
        session = client_of(peer.url).session
        prepared = session.prepare_request(requests.Request("GET", f"{peer.url}/api/x"))
        responses = [session.send(prepared) for _ in range(3)]
        assert [response.status_code for response in responses] == [200] * 3
        assert [[first.status_code for first in response.history] for response in responses] == [[], [401], []]
        assert peer.tokens() == [TOKEN, TOKEN, NEW_TOKEN, NEW_TOKEN]
        assert prepared.headers["Authorization"] == "Bearer ***"


def test_hook_of_a_user_sees_the_last_response():
    """A hook of the caller's is called once, with what the caller gets, and can replace it."""
    seen = []
    with Peer(script(http_response(401, EXPIRED), http_response())) as peer:
        hooks = {"response": lambda response, **_: seen.append(response.status_code) or "replaced"}
        assert client_of(peer.url).session.get(f"{peer.url}/api/x", hooks=hooks) == "replaced"
    assert seen == [200]


def test_users_request_without_a_token():
    """A user's own authorization is sent as it is, and nothing is renewed for it."""
    with Peer(script(http_response(401))) as peer:
        session = client_of(peer.url).session
        assert session.get(f"{peer.url}/api/x", auth=("me", "mine")).status_code == 401
        assert b"Authorization: Basic bWU6bWluZQ==" in peer.requests[0]
        assert len(peer.requests) == 1


def test_users_stream_is_not_replayed():
    """A body that can be sent once is not sent again by the session; the 401 is the caller's."""
    with Peer(script(http_response(401, EXPIRED))) as peer:
        session = client_of(peer.url).session
        assert session.post(f"{peer.url}/api/x", data=io.BytesIO(b"abc")).status_code == 401
        assert len(peer.requests) == 1


@pytest.mark.parametrize("arguments", [{"headers": {"Authorization": "", "X": "x" * 2**23}}, {"data": "x" * 2**23}])
def test_broken_call_of_a_user_holds_no_token(arguments):
    """The session's own errors show no token, whether the head or the body of the request does not get through."""
    with Peer(lambda peer, conn: peer.over.wait(PATIENCE)) as peer:
        # The first header is sent first.
        with pytest.raises(requests.ConnectionError) as caught:
            client_of(peer.url, timeout=0.1).session.post(f"{peer.url}/api/x", **arguments)
        shown = held_by(caught.value)
    assert "Bearer ***" in shown
    assert_no_secret(shown)
    assert caught.value.request.headers["Authorization"] == "Bearer ***"


def test_session_is_not_pickled():
    """A session holds a login."""
    with pytest.raises(TypeError, match="A session of Onebox is not pickled"):
        pickle.dumps(client_of("https://dev.example").session)


def test_upstream_token_that_has_expired(caplog):
    """An upstream token that has expired is not sent, and not said to be rejected."""
    with Peer(script(http_response())) as peer, caplog.at_level(logging.INFO):
        read(client_of(peer.url, token=None).with_token(Token(TOKEN, use_until=0.0)))
        assert peer.tokens() == [NEW_TOKEN]
    assert caplog.messages == []


def test_response_can_be_pickled():
    """As with requests, a response can be pickled; what is known of its request is left out."""
    with Peer(script(http_response(200, {"count": 1}))) as peer:
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
    with Peer(script(http_response())) as peer:
        session = client_of(peer.url.replace("http:", "https:")).session
        prepared = session.prepare_request(requests.Request("GET", f"{peer.url.replace('http:', 'https:')}/api/x"))
        with pytest.raises(OSError, match=r"none\.pem"):
            session.send(prepared)
