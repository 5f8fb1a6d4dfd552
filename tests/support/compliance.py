"""What holds for every way to make a call: the promises about tokens, writes and secrets, as one suite for all.

A subclass of :class:`Compliance` has a fixture ``make_way``, which makes a :class:`Way` to a URL. What a way does
otherwise than the others is in its own small class, and not in the tests.
"""

from __future__ import annotations

import http.client
from contextlib import ExitStack
from traceback import walk_tb
from urllib.parse import urljoin

import pytest
import requests

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
)
from support.wire import EXPIRED, NEW_TOKEN, PASSWORD, PATIENCE, TOKEN, Peer, http_response, login_response, script

SECRETS = (TOKEN, NEW_TOKEN, PASSWORD, "p%40ss")


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


def assert_no_secret(text):
    """Check that a text shows neither token nor password."""
    assert [secret for secret in SECRETS if secret in text] == []


class Way:
    """A way to make a call that returns JSON, or raises an error of ours without the frames of the libraries.

    :param call: makes a call, given method and endpoint.
    :param logins: logins before the first call.
    :param tries: how often a call is made that can be made again.
    """

    def __init__(self, call, *, logins=1, tries=4):
        self.call, self.logins, self.tries = call, logins, tries

    def result(self, method="POST", **body):
        """Make a call and return its JSON."""
        return self.call(method, "ticket/create", **body)

    def raises(self, error, message=None, method="POST", endpoint="ticket/create"):
        """Make a call that raises an error, which shows no secret; return the error."""
        with pytest.raises(error, match=message) as caught:
            self.call(method, endpoint)
        assert type(caught.value) is error
        assert (caught.value.__context__, caught.value.__cause__) == (None, None)
        files = [frame.f_code.co_filename for frame, _ in walk_tb(caught.value.__traceback__)]
        assert [name for name in files if "urllib3" in name or "http/client" in name] == []
        assert_no_secret(held_by(caught.value))
        return caught.value

    def is_rejected(self, error, message=None, method="POST"):
        """Make a call to which Onebox's response is an error; return what ``uncertain`` says."""
        return self.raises(error, message, method).uncertain

    def breaks(self, error, method="POST"):
        """Make a call without a usable response."""
        self.raises(error, None, method)


class SessionWay(Way):
    """A session: it returns responses, raises the errors of requests, and retries nothing."""

    def __init__(self, session, url):
        super().__init__(
            lambda method, endpoint, **body: session.request(method, urljoin(f"{url}/api/", endpoint), **body), tries=1
        )

    def result(self, method="POST", **body):
        return super().result(method, **body).json()

    def is_rejected(self, error, message=None, method="POST"):
        response = self.call(method, "ticket/create")
        assert message in f"{response.headers} {response.text}"
        shown = [response, *response.history]
        assert [each.request.headers["Authorization"] for each in shown] == ["Bearer ***"] * len(shown)
        assert_no_secret(f"{[vars(each.request) for each in shown]}")
        return error.uncertain

    def breaks(self, error, method="POST"):
        with pytest.raises(requests.RequestException) as caught:
            self.call(method, "ticket/create")
        assert_no_secret(held_by(caught.value))


def rejection(code, message):
    """The first of Onebox's forms of a rejection."""
    return {"_meta": {"status": "ERROR"}, "records": {"errorCode": code, "userMessage": message}}


HOURS = rejection(401, "time limit reached please try again tomorrow at 18:00 - 06:00")
CREATED = http_response(200, {"ticketId": "5"})


class Compliance:
    """The suite. The first login issues ``TOKEN``, which an upstream token is too, and all later ones ``NEW_TOKEN``."""

    @pytest.fixture
    def serve(self, make_way, monkeypatch, capsys, caplog):
        """Start a server with responses, and a way to it that does not wait between tries; nothing shows a secret."""
        monkeypatch.setattr("airflow_provider_onebox.api.client.MAX_RETRY_AFTER", 0.0)
        monkeypatch.setattr("airflow_provider_onebox.api.transport.MAX_IDLE_BEFORE_WRITE", PATIENCE)
        monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
        caplog.set_level("DEBUG")
        with ExitStack() as stack:

            def start(*responses, logins=None):
                peer = Peer(None)
                way = make_way(stack.enter_context(peer).url)
                issued = [login_response(TOKEN)] * way.logins + [login_response()]
                peer.respond = script(*responses, logins=logins or issued)
                return peer, way

            yield start
            assert_no_secret(capsys.readouterr().out + caplog.text)

    def test_debug_output(self, serve, capsys):
        """What http.client prints of the process's other requests, it doesn't print of those that carry a secret."""
        peer, way = serve(http_response(401, EXPIRED), CREATED)
        way.result()
        assert "send:" not in capsys.readouterr().out
        requests.get(f"{peer.url}/", timeout=PATIENCE)
        assert "send:" in capsys.readouterr().out

    def test_one_login_and_one_connection_for_all_calls(self, serve):
        """Calls share a token and a connection."""
        peer, way = serve(CREATED)
        for method in ("GET", "POST", "POST"):
            assert way.result(method) == {"ticketId": "5"}
        assert peer.count() == (way.logins, 3)
        assert peer.tokens() == [TOKEN] * 3
        assert peer.connections == 1

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (200, {"json": {"a": 1}}),
            (400, {"data": {"a": "1"}}),
            (401, {"files": {"f": b"1"}}),
            (403, {"json": {"a": 1}}),
            (500, {"data": b"1"}),
        ],
    )
    def test_expired_token(self, serve, status, body):
        """An expired token is renewed once and the write sent once more, whole, under any status."""
        peer, way = serve(http_response(status, EXPIRED), CREATED)
        assert way.result(**body) == way.result(**body) == {"ticketId": "5"}
        assert peer.tokens() == [TOKEN, NEW_TOKEN, NEW_TOKEN]
        assert peer.count() == (way.logins + 1, 3)
        bodies = [request.partition(b"\r\n\r\n")[2] for request in peer.requests if b"authenticate" not in request]
        assert bodies[0] == bodies[1] != b""

    @pytest.mark.parametrize("body", [b"", b"<html>", b'{"message": "Unauthorized"}'])
    def test_401_without_a_rejection(self, serve, body):
        """A 401 that is in none of Onebox's forms renews the token too."""
        peer, way = serve(http_response(401, body), CREATED)
        assert way.result() == {"ticketId": "5"}
        assert peer.tokens() == [TOKEN, NEW_TOKEN]

    def test_token_that_is_rejected_each_time(self, serve):
        """Each try renews the token once; the write was not done."""
        peer, way = serve(http_response(401, EXPIRED))
        assert way.is_rejected(OneboxUnavailableError, "Expired token") is False
        assert peer.count() == (way.logins + 2 * way.tries - 1, 2 * way.tries)

    def test_retries_send_the_renewed_token(self, serve):
        """After a renewal every retry carries the new token, not the expired one first."""
        peer, way = serve(http_response(401, EXPIRED), http_response(503, b"busy"))
        way.is_rejected(OneboxUnavailableError, "busy", "GET")
        assert peer.tokens() == [TOKEN] + [NEW_TOKEN] * way.tries

    @pytest.mark.parametrize("status", [200, 401])
    def test_rejection_without_a_code(self, serve, status):
        """{"error": ...} rejects a write with Onebox's message; it is not sent again, and no login follows."""
        peer, way = serve(http_response(status, {"error": "the channel is in use"}))
        assert way.is_rejected(OneboxRequestError, "the channel is in use") is False
        assert peer.count() == (way.logins, 1)

    @pytest.mark.parametrize("status", [200, 401])
    def test_service_hours(self, serve, status):
        """Outside of the service hours a call is made once, and no login follows."""
        peer, way = serve(http_response(status, HOURS))
        assert way.is_rejected(OneboxServiceHoursError, "18:00 - 06:00") is False
        assert peer.count() == (way.logins, 1)

    def test_wrong_password(self, serve):
        """A login that Onebox rejects is tried once, however many calls need it."""
        peer, way = serve(http_response(401, EXPIRED), logins=[http_response(200, rejection(401, "wrong"))])
        for _ in range(3):
            way.raises(OneboxAuthError, "Check Email, Password and Site ID")
        assert peer.count()[0] == 1

    @pytest.mark.parametrize(
        ("response", "error", "message"),
        [
            ({"token": "a b " + NEW_TOKEN}, OneboxResponseError, "characters that no token has"),
            ({"response_code": "401", "token": NEW_TOKEN}, OneboxAuthError, "rejected the login"),
            (b'{"token": "' + NEW_TOKEN.encode(), OneboxResponseError, "cut off"),
            (b" " * (2**20 + 1), OneboxResponseError, "larger than 1 MiB"),
        ],
    )
    def test_login_without_a_usable_token(self, serve, response, error, message):
        """The error shows no part of what the login's response holds, and no call is made with it."""
        peer, way = serve(http_response(401, EXPIRED), logins=[http_response(200, response)])
        assert way.raises(error, message).uncertain is False
        assert peer.count() == (1, 1 - way.logins)

    def test_login_that_breaks_off(self, serve):
        """A login that may have arrived says nothing of the write that it was for: Onebox did nothing."""
        peer, way = serve(http_response(401, EXPIRED), logins=[None])
        assert way.raises(OneboxUnavailableError, "POST authenticate").uncertain is False
        assert peer.count()[1] == 1 - way.logins

    @pytest.mark.parametrize("url", ["https://127.0.0.1:{}", "http://127.0.0.1.example:{}", "http://127.0.0.1:1"])
    def test_other_host(self, serve, url):
        """Another scheme, host or port gets no request, and so no token."""
        peer, way = serve(CREATED)
        way.raises(OneboxConfigError, "alone|write it like", endpoint=f"{url.format(peer.port)}/api/x")
        assert peer.requests == []

    @pytest.mark.parametrize("status", [301, 302, 307])
    def test_redirect(self, serve, status):
        """A redirect is not followed; PHP redirects to what a form has created, so a redirected write is uncertain."""
        with Peer(script(CREATED)) as other:
            peer, way = serve(http_response(status, b"", b"Location: %s/ticket/5" % other.url.encode()))
            assert way.is_rejected(OneboxUncertainWriteError, "/ticket/5") is True
            way.is_rejected(OneboxResponseError, "/ticket/5", "GET")
            assert (peer.count()[1], other.connections) == (2, 0)

    @pytest.mark.parametrize("response", [None, b"nonsense\r\n\r\n"])
    def test_write_without_a_response(self, serve, response):
        """A write that was sent and has no readable response is not sent again, and is uncertain."""
        peer, way = serve(response)
        way.breaks(OneboxUncertainWriteError)
        assert peer.count() == (way.logins, 1)

    @pytest.mark.parametrize("status", [200, 500, 502])
    def test_write_with_a_response_that_says_nothing(self, serve, status):
        """So is one that a fault of the server, or a page of a proxy, is the response to."""
        peer, way = serve(http_response(status, b"oops"))
        assert way.is_rejected(OneboxUncertainWriteError, "oops") is True
        assert peer.count() == (way.logins, 1)

    def test_read_without_a_response(self, serve):
        """A read is made again, and never uncertain."""
        peer, way = serve(None)
        way.breaks(OneboxUnavailableError, "GET")
        assert peer.count() == (way.logins, way.tries)

    @pytest.mark.parametrize("status", [200, 429])
    def test_write_that_was_not_done(self, serve, status):
        """429 says so, as a status or in the body: the write is sent again."""
        peer, way = serve(http_response(status, rejection(429, "slow down")))
        assert way.is_rejected(OneboxUnavailableError, "slow down") is False
        assert peer.count() == (way.logins, way.tries)
