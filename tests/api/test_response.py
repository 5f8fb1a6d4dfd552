"""What Onebox answers, told apart: data, or the error that says what went wrong."""

from __future__ import annotations

import email.utils
import json
import time

import pytest
import requests

from airflow_provider_onebox.api.json import decode
from airflow_provider_onebox.api.response import is_expired_token, read_response, rejection_in, retry_after
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
)

QUOTA = "time limit reached please try again tomorrow at 18:00 - 06:00"


def reply(status=200, body=b"", **headers):
    """A reply as requests hands it over."""
    response = requests.Response()
    response.status_code = status
    response._content = body.encode() if isinstance(body, str) else body
    response.request = requests.Request("GET", "https://dev.example/").prepare()
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


def envelope(code, message, **records):
    """Onebox's error envelope."""
    records = {"errorCode": code, "userMessage": message, "devMessage": None, **records}
    return json.dumps({"_meta": {"status": "ERROR", "count": 1}, "records": records})


def read(response, login=False, redact=str):
    """Read a reply."""
    return read_response(response, "GET x", login=login, redact=redact)


def failure(expected, *args, **kwargs):
    """The error of exactly the expected class that a reply turns into."""
    error = read(*args, **kwargs)
    assert type(error) is expected
    assert str(error).startswith("GET x: ")
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize(
    ("body", "expected"),
    [('{"a": 1}', {"a": 1}), ("[1, null]", [1, None]), ("{}", {}), (b"\xef\xbb\xbf{}", {}), (' "x" ', "x")],
)
def test_json_comes_back(body, expected):
    """JSON of any kind under a 2xx is the answer."""
    assert read(reply(200, body)) == expected
    assert read(reply(201, body)) == expected


def test_no_content_is_an_empty_answer():
    """204 says that there is nothing to say."""
    assert read(reply(204)) == {}


@pytest.mark.parametrize("status", [200, 401, 403, 500])
def test_quota_is_no_login_matter(status):
    """The quota is told by its words, under any status, at the login too."""
    for login in (False, True):
        error = failure(OneboxServiceHoursError, reply(status, envelope("401", QUOTA)), login=login)
        assert "18:00 - 06:00" in str(error)
        assert (error.status, error.code, error.server_message, error.retryable) == (status, "401", QUOTA, True)


@pytest.mark.parametrize("code", ["401", 401, 400, "403", 422])
@pytest.mark.parametrize("status", [200, 401])
def test_login_refused(code, status):
    """A refusal at the login concerns the account: it fails at once."""
    error = failure(OneboxAuthError, reply(status, envelope(code, "you are not authorized")), login=True)
    assert "you are not authorized" in str(error)
    assert "Check Email, Password and Site ID" in str(error)
    assert error.retryable is False


def test_login_fault_is_no_refusal():
    """A fault of Onebox at the login does not blame the account."""
    assert failure(OneboxRequestError, reply(500, envelope("500", "oops")), login=True).retryable is True
    assert failure(OneboxAuthError, reply(403, "<html>"), login=True).status == 403


def test_token_refused():
    """A 401 that reaches the caller has outlived the renewal."""
    error = failure(OneboxAuthError, reply(401, envelope(401, "Expired token")))
    assert "had just given" in str(error)
    assert failure(OneboxAuthError, reply(401, "<html>no</html>")).status == 401


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_unavailable(status):
    """The passing faults, with and without an envelope, and an envelope's code under 200."""
    for body in ("", "<html></html>", envelope(status, "busy")):
        error = failure(OneboxUnavailableError, reply(status, body, Retry_After="7"))
        assert (error.status, error.retry_after, error.retryable) == (status, 7.0, True)
    assert failure(OneboxUnavailableError, reply(200, envelope(status, "busy"))).status == 200


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (404, False), (500, True)])
def test_refused(status, retryable):
    """Onebox's words come with the refusal; only a fault of its own may pass."""
    for response in (reply(status, envelope(status, "no such ticket")), reply(200, envelope(status, "no such ticket"))):
        error = failure(OneboxRequestError, response)
        assert "no such ticket" in str(error)
        assert error.retryable is retryable
    assert failure(OneboxRequestError, reply(status, "<html>")).retryable is retryable
    assert failure(OneboxRequestError, reply(status, '{"a": 1}')).status == status


def test_refusal_without_words():
    """An envelope with nothing in it is still a refusal."""
    body = '{"_meta": {"status": "ERROR"}, "records": null}'
    error = failure(OneboxRequestError, reply(200, body))
    assert "no reason given" in str(error)
    assert error.code is None
    dev = envelope("x", "", devMessage="for developers")
    assert "for developers" in str(failure(OneboxRequestError, reply(200, dev)))


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (reply(200, ""), "empty body"),
        (reply(200, "<!DOCTYPE html><html><title>\n Sign\nin </title>"), "HTML page titled 'Sign in'"),
        (reply(200, "  <p>hm", Content_Type="text/html"), "a page (text/html)"),
        (reply(200, '{"data": [{"Id": "1"', Content_Type="application/json"), "not whole JSON"),
        (reply(200, b"\xff\xfe\x00"), "not whole JSON"),
        (reply(200, "[" * 100000), "not whole JSON"),
        (reply(200, '{"a": NaN}'), "not whole JSON"),
        (reply(302, "", Location="https://dev.example/Login"), "login page: the base path"),
        (reply(302, "<html>", Location="/login/?next=x"), "login page: the base path"),
        (reply(301, "", Location="https://new.example/api"), "enter the new address"),
        (reply(307), "'nowhere'"),
        (reply(304, "{}"), "redirected (304)"),
    ],
)
def test_nonsense_is_named(response, words):
    """A reply that makes no sense says what it is and what it usually means."""
    error = failure(OneboxResponseError, response)
    assert words in str(error)
    assert error.retryable is (response.status_code == 200)


def test_server_words_are_redacted():
    """Secrets that a server repeats are taken out of its words, wherever they stand."""
    for response in (
        reply(401, envelope(401, "bad password hunter2")),
        reply(200, "<title>hunter2</title>"),
        reply(200, "hunter2 is wrong"),
        reply(422, '{"message": "hunter2"}'),
        reply(200, '{"error": "hunter2"}'),
        reply(302, "", Location="/x?password=hunter2"),
        reply(200, "<p>", Content_Type="hunter2"),
    ):
        error = read(response, redact=lambda words: words.replace("hunter2", "***"))
        assert "hunter2" not in str(error)
        assert "***" in str(error)


def test_cut_reply_to_a_login_is_not_quoted():
    """What begins with half a token is not shown, and no token is known yet that could be taken out."""
    error = failure(OneboxResponseError, reply(200, '{"token": "opaque-token-0123456789'), login=True)
    assert "opaque" not in str(error)
    assert "not whole JSON" in str(error)


def test_server_words_on_one_line():
    """A server can't forge lines of a log."""
    error = failure(OneboxRequestError, reply(400, envelope(400, "bad\n[2026-01-01] INFO - all is well\x1b[2J")))
    assert error.server_message == "bad [2026-01-01] INFO - all is well [2J"


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
@pytest.mark.parametrize(
    ("body", "expired"),
    [
        (envelope(401, "Expired token"), True),
        (envelope("401", "jwt token not found"), True),
        (envelope("401", QUOTA), False),
        (envelope(404, "no such ticket"), False),
        ('{"response_code": "401", "response_status": "Unauthorized"}', True),
        ('{"response_code": 404}', False),
        ('{"error": "no access to this channel"}', False),
    ],
)
def test_expired_token(status, body, expired):
    """Only an expired token asks for a new one; the envelope's code counts, under whatever status it stands."""
    assert is_expired_token(status, body.encode()) is expired


@pytest.mark.parametrize("body", ["", "<html>", "{}", '{"message": "no"}', '{"_meta": {"status": "OK"}}', "[]"])
def test_bare_401(body):
    """A 401 that says nothing more may mean the token; the same under another status does not."""
    assert is_expired_token(401, body.encode())
    for status in (200, 302, 400, 403, 500):
        assert not is_expired_token(status, body.encode())


def test_envelope_without_a_code():
    """Where an envelope has no code, or one that is no status, the HTTP status counts."""
    for code in (None, "", "x", 0, 200, True, 12345, [401]):
        assert is_expired_token(401, envelope(code, "?").encode())
        assert not is_expired_token(403, envelope(code, "?").encode())


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        "x",
        None,
        {"_meta": 1},
        {"_meta": {"status": "OK"}},
        {"response_code": "200", "ticketId": "1"},
        {"response_code": 201},
        {"response_code": None},
        {"Id": "5", "error": "bounced"},
    ],
)
def test_no_rejection(data):
    """What is no rejection is not taken for one."""
    assert rejection_in(200, data) is None


@pytest.mark.parametrize("code", ["401", 401, "403", "400", 500, "x"])
@pytest.mark.parametrize("more", [{}, {"token": "eyJ.a.b"}, {"data": []}])
def test_response_code_is_read(code, more):
    """A response_code that is not 2xx rejects the call, whatever stands beside it, also under 200."""
    body = json.dumps({"response_code": code, "response_status": "Failed for a reason", **more})
    error = read(reply(200, body))
    assert isinstance(error, OneboxError)
    assert "Failed for a reason" in str(error)
    assert error.code == str(code)
    if str(code) in ("400", "401", "403"):
        assert type(read(reply(200, body), login=True)) is OneboxAuthError


@pytest.mark.parametrize("status", [200, 400, 401, 403])
def test_second_envelope(status):
    """{"error": words} is a rejection with Onebox's words, and concerns the account at the login."""
    response = reply(status, '{"error": "the channel is in use"}')
    error = failure(OneboxRequestError, response)
    assert "'the channel is in use'" in str(error)
    assert (error.retryable, error.uncertain) == (False, False)
    assert "channel is in use" in str(failure(OneboxAuthError, response, login=True))
    assert failure(OneboxRequestError, reply(500, '{"error": null}')).uncertain is True


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_any_json_is_quoted(status):
    """JSON of no known form under an error status is shown as what it is."""
    error = failure(OneboxRequestError, reply(status, '{"message": "Content is too long"}'))
    assert '{"message": "Content is too long"}' in str(error)
    assert "not whole" not in str(error)


def test_429_under_200():
    """The envelope's 429 says that nothing was done, as the status does."""
    error = failure(OneboxUnavailableError, reply(200, envelope(429, "slow down"), Retry_After="3"))
    assert (error.uncertain, error.retryable, error.retry_after) == (False, True, 3)


@pytest.mark.parametrize(
    ("status", "body", "acted"),
    [
        (200, "<html>", True),
        (201, "", True),
        (300, "", False),
        (302, "", False),
        (400, "", False),
        (404, '{"a": 1}', False),
        (429, "", False),
        (500, "", True),
        (502, "<html>", True),
        (500, envelope(400, "no"), False),
        (500, envelope(429, "slow"), False),
        (400, envelope(500, "oops"), True),
        (200, envelope(503, "busy"), True),
        (500, envelope(401, QUOTA), False),
        (101, "", True),
    ],
)
def test_may_have_acted(status, body, acted):
    """Each error says whether Onebox may have done what it was asked to do."""
    assert read(reply(status, body)).uncertain is acted


def test_redirect_with_a_body():
    """Whatever a redirect brings along is no answer."""
    for status in (300, 308):
        assert f"redirected ({status}) to 'nowhere'" in str(failure(OneboxResponseError, reply(status, "{}")))


def test_head():
    """A reply to HEAD has no body by design; its status still counts."""
    response = reply(200)
    response.request = requests.Request("HEAD", "https://dev.example/").prepare()
    assert read(response) == {}
    response.status_code = 404
    assert failure(OneboxRequestError, response).status == 404


def test_proxy_wants_a_password():
    """A 407 comes from a proxy and is no matter of Onebox; a retry can't help."""
    error = failure(OneboxConfigError, reply(407, "<html>"))
    assert "'proxies'" in str(error)


def test_unreadable_address_of_a_redirect():
    """A Location that is no address is quoted as it is."""
    assert "'http://[::1'" in str(failure(OneboxResponseError, reply(302, "", Location="http://[::1")))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), (" 0 ", 0.0), ("", None), ("soon", None), ("-1", None), ("1.5", None), ("9" * 400, None), ("٣", None)],
)
def test_retry_after(value, seconds):
    """Seconds, or nothing that makes sense."""
    assert retry_after(reply(503, Retry_After=value)) == seconds


def test_retry_after_as_a_date():
    """A date is as good; one that is past asks for no wait."""
    at = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retry_after(reply(503, Retry_After=at)) == pytest.approx(100, abs=2)
    assert retry_after(reply(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")) == 0


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": 1', b"\xff"])
def test_decode_refuses_what_is_no_json(body):
    """With a ValueError, also where msgspec's own error is none."""
    with pytest.raises(ValueError, match=r".") as caught:
        decode(body)
    assert type(caught.value) is ValueError


def test_decode_refuses_deep_nesting():
    """Nesting that exhausts the stack is bad JSON, not a crash."""
    with pytest.raises(ValueError, match=r"(?i)nest|depth|recursion"):
        decode(b"[" * 1_000_000)


@pytest.mark.parametrize("name", ["userMessage", "message", "error", "response_status"])
def test_words_of_a_response_code(name):
    """The server's words are shown, whatever it calls them."""
    assert "for a reason" in str(
        failure(OneboxRequestError, reply(200, json.dumps({"response_code": "400", name: "for a reason"})))
    )


def test_quota_is_no_doubt_about_a_write():
    """Out of hours nothing was done, whatever the status says: a write may be sent again."""
    error = failure(OneboxServiceHoursError, reply(500, envelope(401, QUOTA)))
    assert (error.uncertain, error.retryable) == (False, OneboxServiceHoursError.retryable)
