"""What Onebox answers, distinguished: data, or the error that says what went wrong."""

from __future__ import annotations

import email.utils
import json
import time

import pytest
import requests

from airflow_provider_onebox.api.response import is_expired_token, read_response, rejection_in, retry_after
from airflow_provider_onebox.api.token import Bearer
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
    OneboxUnusableResultError,
)

HOURS = "time limit reached please try again tomorrow at 18:00 - 06:00"


def reply(status=200, body=b"", *, token=True, **headers):
    """A reply as requests hands it over."""
    response = requests.Response()
    response.status_code = status
    response._content = body.encode() if isinstance(body, str) else body
    response.request = requests.Request("GET", "https://dev.example/").prepare()
    if token:
        response.request.headers["Authorization"] = Bearer(None)
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
@pytest.mark.parametrize("login", [False, True])
def test_service_hours(status, login):
    """Outside of its service hours Onebox says 401 in so many words, under any status, at the login too."""
    responses = [reply(status, envelope("401", HOURS)), reply(401, envelope(None, HOURS))]
    for error in [
        failure(OneboxServiceHoursError, response, login=login) for response in responses[: 1 + (status == 401)]
    ]:
        assert "18:00 - 06:00" in str(error)
        assert (error.status, error.server_message) == (status, HOURS)
        # Nothing was done: a write may be sent again.
        assert (error.retryable, error.uncertain) == (True, False)


@pytest.mark.parametrize(
    ("response", "uncertain"),
    [
        (reply(500, envelope(500, "Maximum execution time limit reached")), True),
        (reply(500, envelope(None, "Maximum execution time limit reached")), True),
        (reply(500, '{"error": "Maximum execution time limit reached"}'), True),
        (reply(400, envelope(400, "category 'time limit reached' does not exist")), False),
        (reply(200, '{"response_code": "400", "message": "time limit reached"}'), False),
    ],
)
def test_time_limit_of_another_kind(response, uncertain):
    """Only a 401 is about service hours, whatever the words of another rejection are."""
    assert failure(OneboxRequestError, response).uncertain is uncertain


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
    """A 401 that reaches the caller has outlived the renewal: the login was right, so a retry can help."""
    error = failure(OneboxUnavailableError, reply(401, envelope(401, "Expired token")))
    assert "a token that it had just issued: 'Expired token'" in str(error)
    assert "another login of the same user ended this one" in str(error)
    assert (error.status, error.retryable, error.uncertain) == (401, True, False)


@pytest.mark.parametrize("body", ["", "<html>no</html>", envelope(401, "Expired token")])
def test_401_without_a_token(body):
    """Where no token was sent, none was rejected."""
    error = failure(OneboxRequestError, reply(401, body, token=False))
    assert (error.status, error.retryable, error.uncertain) == (401, False, False)


@pytest.mark.parametrize("body", ["", "<html>no</html>", '{"message": "no"}'])
def test_401_of_a_proxy(body):
    """A 401 that is not in Onebox's form is probably not Onebox's, and the error says so."""
    error = failure(OneboxUnavailableError, reply(401, body))
    assert "probably a proxy or a firewall between Airflow and Onebox sent it. If not, another login" in str(error)
    assert (error.status, error.uncertain) == (401, False)
    for status in (401, 403):
        error = failure(OneboxAuthError, reply(status, body, token=False), login=True)
        assert f"the login was rejected with status {status}" in str(error)
        assert "probably a proxy or a firewall" in str(error)
        assert error.retryable is False


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_unavailable(status):
    """The transient errors, with and without an envelope, and an envelope's code under 200."""
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
        (reply(200, "<!DOCTYPE html><html><title>\n Our\nportal </title>"), "HTML page titled 'Our portal'"),
        (reply(200, "  <p>hm", Content_Type="text/html"), "a page (text/html)"),
        (
            reply(200, '{"data": [{"Id": "1"', Content_Type="application/json"),
            "answered 200 with JSON that was cut off after 20 bytes: usually by a proxy",
        ),
        (reply(200, b"\xff\xfe\x00"), "3 bytes of no content type that begin with '\ufffd\ufffd', which is not JSON"),
        (reply(200, "[" * 100000), "which is not JSON"),
        (
            reply(200, '{"a": 1}{', Content_Type="text/json"),
            "9 bytes of text/json that begin with '{\"a\": 1}{', which",
        ),
        (reply(302, "", Location="https://dev.example/Login"), "(302). That is its login page: probably the base path"),
        (reply(302, "<html>", Location="/login/?next=x"), "That is its login page: probably the base path"),
        (
            reply(301, "", Location="https://new.example/api"),
            "to 'https://new.example/api' (301). That is not its login",
        ),
        (reply(301, "", Location="https://new.example/api"), "enter its new address as Onebox URL"),
        (reply(307), "'nowhere'"),
        (reply(304, "{}"), "to 'nowhere' (304)"),
    ],
)
def test_nonsense_is_named(response, words):
    """A reply that makes no sense says what it is and what it usually means."""
    error = failure(OneboxResponseError, response)
    assert words in str(error)
    assert error.retryable is (response.status_code == 200)


def test_server_words_are_redacted():
    """Secrets that a server repeats are taken out of its messages, wherever they are."""
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
    for begin, words in (("", "cut off"), ("x", "which is not JSON")):
        error = failure(OneboxResponseError, reply(200, begin + '{"token": "opaque-token-0123456789'), login=True)
        assert "opaque" not in str(error)
        assert words in str(error)


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
        (envelope("401", HOURS), False),
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
    """A response_code that is not 2xx rejects the call, whatever else is in it, also under 200."""
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
    assert "cut off" not in str(error)


def test_429_under_200():
    """The envelope's 429 says that nothing was done, as the status does."""
    error = failure(OneboxUnavailableError, reply(200, envelope(429, "slow down"), Retry_After="3"))
    assert (error.uncertain, error.retryable, error.retry_after) == (False, True, 3)


@pytest.mark.parametrize(
    ("status", "body", "acted"),
    [
        (200, "<html>", True),
        (201, "", True),
        (300, "", True),
        (302, "", True),
        (400, "", False),
        (404, '{"a": 1}', False),
        (429, "", False),
        (500, "", True),
        (502, "<html>", True),
        (500, envelope(400, "no"), False),
        (500, envelope(429, "slow"), False),
        (400, envelope(500, "oops"), True),
        (200, envelope(503, "busy"), True),
        (500, envelope(401, HOURS), False),
        (101, "", True),
    ],
)
def test_may_have_acted(status, body, acted):
    """Each error says whether Onebox may have done what it was asked to do."""
    assert read(reply(status, body)).uncertain is acted


def test_redirect_with_a_body():
    """Whatever a redirect brings along is no answer."""
    for status in (300, 308):
        assert f"redirected the call to 'nowhere' ({status})" in str(failure(OneboxResponseError, reply(status, "{}")))


def test_head():
    """A reply to HEAD has no body by design; its status still counts."""
    response = reply(200)
    response.request = requests.Request("HEAD", "https://dev.example/").prepare()
    assert read(response) == {}
    response.status_code = 404
    assert failure(OneboxRequestError, response).status == 404


def test_proxy_wants_a_password():
    """A 407 comes from a proxy that has got the request; a retry can't help."""
    error = failure(OneboxUnusableResultError, reply(407, "<html>"))
    assert "'proxies'" in str(error)
    assert (error.uncertain, error.retryable) == (True, False)


def test_unreadable_address_of_a_redirect():
    """A Location that is no address is quoted as it is."""
    assert "'http://[::1'" in str(failure(OneboxResponseError, reply(302, "", Location="http://[::1")))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("2.5", 2.5),
        ("50, 53", 53),
        ("7,soon", None),
        ("1.", None),
        ("9" * 400, None),
        ("٣", None),
    ],
)
def test_retry_after(value, seconds):
    """Seconds, or nothing that makes sense."""
    assert retry_after(reply(503, Retry_After=value)) == seconds


def test_retry_after_as_a_date():
    """A date is as good; one that is past asks for no wait."""
    at = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retry_after(reply(503, Retry_After=at)) == pytest.approx(100, abs=2)
    assert retry_after(reply(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")) == 0
    assert retry_after(reply(503, Retry_After=at, Date="nonsense")) == pytest.approx(100, abs=2)


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_retry_after_does_not_need_a_right_clock(zone):
    """A date is measured against the server's own clock where the response says what time it is there."""
    wait = f"Wed, 21 Oct 2015 07:28:20 {zone}"
    assert retry_after(reply(503, Retry_After=wait, Date="Wed, 21 Oct 2015 07:28:00 GMT")) == 20
    assert retry_after(reply(503, Retry_After=wait, Date="Wed, 21 Oct 2015 07:29:00 GMT")) == 0


def test_broken_values_are_logged(caplog):
    """What is broken in single values is repaired, counted and named in one warning for each response."""
    page = '{"data": [{"Id": "7", "Subject": "\\ud83d", "Tags": ["\\ud83d"]}, {"Id": 8, "Score": NaN}], "total": 2}'
    assert read(reply(200, page)) == {
        "data": [{"Id": "7", "Subject": "\ufffd", "Tags": ["\ufffd"]}, {"Id": 8, "Score": None}],
        "total": 2,
    }
    assert caplog.text.count("broken values") == len(caplog.messages) == 1
    assert caplog.messages[0] == (
        "GET x: broken values in the response: 3 (half an emoji, bytes that are not UTF-8, or a number that is not "
        "finite); U+FFFD or null takes their place, in the records with the Id 7, 8."
    )


def test_few_broken_records_are_named(caplog):
    """A page full of broken records does not fill the log, and what an Id holds does not forge its lines."""
    page = ", ".join(f'{{"Id": "{n}\\n", "a": 1e999}}' for n in range(9))
    assert len(read(reply(200, f"[{page}]"))) == 9
    assert caplog.messages[0].endswith("in the records with the Id 0, 1, 2, 3, 4 and 4 more.")
    assert read(reply(200, "[NaN]")) == [None]
    assert caplog.messages[1].endswith("U+FFFD or null takes their place.")
    assert len(caplog.messages) == 2


def test_too_many_values():
    """JSON that would take too much memory is not parsed, and the error says what to do."""
    error = failure(OneboxResponseError, reply(200, b"[" + b"[]," * 600_000 + b"[]]"))
    assert str(error).endswith("the response holds more than 1,000,000 values. Request fewer records per page.")
    assert (error.status, error.retryable, error.uncertain) == (413, False, True)


@pytest.mark.parametrize("name", ["userMessage", "message", "error", "response_status"])
def test_words_of_a_response_code(name):
    """The server's message is shown, whatever it calls them."""
    assert "for a reason" in str(
        failure(OneboxRequestError, reply(200, json.dumps({"response_code": "400", name: "for a reason"})))
    )
