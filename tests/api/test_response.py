"""What Onebox sends, distinguished: data, or the error that says what went wrong."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from types import SimpleNamespace

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
)

HOURS = "time limit reached please try again tomorrow at 18:00 - 06:00"


def sent(status=200, body=b"", *, method="GET", token=True, **headers):
    """A response as requests returns it."""
    response = requests.Response()
    response.status_code = status
    response._content = body.encode() if isinstance(body, str) else body
    response.request = requests.Request(method, "https://dev.example/").prepare()
    if token:
        response.request.headers["Authorization"] = Bearer(None)
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


def envelope(code, message, **records):
    """Onebox's error envelope."""
    records = {"errorCode": code, "userMessage": message, "devMessage": None, **records}
    return json.dumps({"_meta": {"status": "ERROR", "count": 1}, "records": records})


def read(received, login=False, redact=str):
    """Read a response."""
    return read_response(received, "GET x", login=login, redact=redact)


def failure(expected, *args, **kwargs):
    """The error of exactly the expected class that a response is read as."""
    error = read(*args, **kwargs)
    assert type(error) is expected
    assert str(error).startswith("GET x: ")
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize(
    ("body", "expected"),
    [('{"a": 1}', {"a": 1}), ("[1, null]", [1, None]), ("{}", {}), (b"\xef\xbb\xbf{}", {}), (' "x" ', "x")],
)
def test_json(body, expected):
    """JSON of any kind under a 2xx is returned."""
    assert read(sent(200, body)) == expected
    assert read(sent(201, body)) == expected


def test_no_body_by_design():
    """204, and a success of HEAD, have no body; the status of another one still counts."""
    assert read(sent(204)) == read(sent(200, method="HEAD")) == {}
    assert failure(OneboxRequestError, sent(404, method="HEAD")).status == 404


@pytest.mark.parametrize(("status", "code"), [(200, "401"), (401, "401"), (403, "401"), (500, "401"), (401, None)])
@pytest.mark.parametrize("login", [False, True])
def test_service_hours(status, code, login):
    """Outside of its service hours Onebox sends 401 with this message, under any status, at the login too."""
    error = failure(OneboxServiceHoursError, sent(status, envelope(code, HOURS)), login=login)
    assert "18:00 - 06:00" in str(error)
    assert (error.status, error.server_message) == (status, HOURS)
    # Nothing was done: a write may be sent again.
    assert (error.retryable, error.uncertain) == (True, False)


@pytest.mark.parametrize(
    ("received", "uncertain"),
    [
        (sent(500, envelope(500, "Maximum execution time limit reached")), True),
        (sent(500, envelope(None, "Maximum execution time limit reached")), True),
        (sent(500, '{"error": "Maximum execution time limit reached"}'), True),
        (sent(400, envelope(400, "category 'time limit reached' does not exist")), False),
        (sent(200, '{"response_code": "400", "message": "time limit reached"}'), False),
    ],
)
def test_time_limit_of_another_kind(received, uncertain):
    """Only a 401 is about service hours, whatever the message of another rejection is."""
    assert failure(OneboxRequestError, received).uncertain is uncertain


@pytest.mark.parametrize("code", ["401", 401, 400, "403", 422])
@pytest.mark.parametrize("status", [200, 401])
def test_rejected_login(code, status):
    """A rejection of the login concerns the account and is final; a fault of Onebox does not blame the account."""
    error = failure(OneboxAuthError, sent(status, envelope(code, "you are not authorized")), login=True)
    assert "you are not authorized" in str(error)
    assert "Check Email, Password and Site ID" in str(error)
    assert error.retryable is False
    assert failure(OneboxRequestError, sent(status, envelope("500", "oops")), login=True).retryable is True


@pytest.mark.parametrize("body", ["", "<html>no</html>", envelope(401, "Expired token")])
def test_401_without_a_token(body):
    """If no token was sent, none was rejected."""
    error = failure(OneboxRequestError, sent(401, body, token=False))
    assert (error.status, error.retryable, error.uncertain) == (401, False, False)


def test_rejected_token():
    """A 401 that reaches the caller has outlasted the renewal: the login was right, so a retry can help."""
    error = failure(OneboxUnavailableError, sent(401, envelope(401, "Expired token")))
    assert "a token that it had just issued: 'Expired token'" in str(error)
    assert "another login of the same user ended this one" in str(error)
    assert (error.status, error.retryable, error.uncertain) == (401, True, False)


@pytest.mark.parametrize("body", ["", "<html>no</html>", '{"message": "no"}'])
def test_401_of_a_proxy(body):
    """A 401 that is not in Onebox's form is probably not Onebox's, and the error says so."""
    error = failure(OneboxUnavailableError, sent(401, body))
    assert "probably a proxy or a firewall between Airflow and Onebox sent it. If not, another login" in str(error)
    assert (error.status, error.uncertain) == (401, False)
    for status in (401, 403):
        error = failure(OneboxAuthError, sent(status, body, token=False), login=True)
        assert f"the login was rejected with status {status}" in str(error)
        assert "probably a proxy or a firewall" in str(error)
        assert (error.status, error.retryable) == (status, False)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_unavailable(status):
    """The transient errors, with and without an envelope, and an envelope's code under 200."""
    for received in (
        (status, ""),
        (status, "<html></html>"),
        (status, envelope(status, "busy")),
        (200, envelope(status, "busy")),
    ):
        error = failure(OneboxUnavailableError, sent(*received, Retry_After="7"))
        assert (error.status, error.retry_after, error.retryable) == (received[0], 7.0, True)


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (404, False), (500, True)])
def test_rejection(status, retryable):
    """The error holds Onebox's message; only a fault of Onebox may pass."""
    for received in (status, envelope(status, "no such ticket")), (200, envelope(status, "no such ticket")):
        error = failure(OneboxRequestError, sent(*received))
        assert "no such ticket" in str(error)
        assert error.retryable is retryable
    assert failure(OneboxRequestError, sent(status, "<html>")).retryable is retryable
    assert failure(OneboxRequestError, sent(status, '{"a": 1}')).status == status


def test_rejection_without_a_message():
    """An envelope with nothing in it is still a rejection."""
    error = failure(OneboxRequestError, sent(200, '{"_meta": {"status": "ERROR"}, "records": null}'))
    assert "no reason given" in str(error)
    assert error.code is None
    dev = envelope("x", "", devMessage="for developers")
    assert "for developers" in str(failure(OneboxRequestError, sent(200, dev)))


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (sent(200, ""), "empty body"),
        (sent(200, "<!DOCTYPE html><html><title>\n Our\nportal </title>"), "HTML page titled 'Our portal'"),
        (sent(200, "  <p>hm", Content_Type="text/html"), "a page (text/html)"),
        (
            sent(200, '{"data": [{"Id": "1"', Content_Type="application/json"),
            "received status 200 with JSON that was cut off after 20 bytes: usually by a proxy",
        ),
        (sent(200, b"\xff\xfe\x00"), "3 bytes of no content type that begin with '\ufffd\ufffd', which is not JSON"),
        (sent(200, "[" * 100000), "which is not JSON"),
        (
            sent(200, '{"a": 1}{', Content_Type="text/json"),
            "9 bytes of text/json that begin with '{\"a\": 1}{', which",
        ),
        (sent(302, "", Location="https://dev.example/Login"), "(302). That is its login page: probably the base path"),
        (sent(302, "<html>", Location="/login/?next=x"), "That is its login page: probably the base path"),
        (
            sent(301, "", Location="https://new.example/api"),
            "to 'https://new.example/api' (301). That is not its login",
        ),
        (sent(301, "", Location="https://new.example/api"), "enter its new address as Onebox URL"),
        (sent(302, Location="http://[::1"), "'http://[::1'"),
        (sent(307), "'nowhere'"),
        (sent(304, "{}"), "to 'nowhere' (304)"),
    ],
)
def test_nonsense_is_named(received, message):
    """The error of a response that makes no sense says what it is and what it usually means."""
    error = failure(OneboxResponseError, received)
    assert message in str(error)
    assert error.retryable is (received.status_code == 200)
    # What a form has created is redirected to; a page for logins is not that.
    assert error.uncertain is ("That is its login page" not in str(error))


def test_messages_are_redacted():
    """Secrets that a server repeats are taken out of its messages, wherever they are."""
    for received in (
        sent(401, envelope(401, "bad password hunter2")),
        sent(200, "<title>hunter2</title>"),
        sent(200, "hunter2 is wrong"),
        sent(422, '{"message": "hunter2"}'),
        sent(200, '{"error": "hunter2"}'),
        sent(302, "", Location="/x?password=hunter2"),
        sent(200, "<p>", Content_Type="hunter2"),
    ):
        error = read(received, redact=lambda text: text.replace("hunter2", "***"))
        assert "hunter2" not in str(error)
        assert "***" in str(error)


def test_half_of_a_login_is_not_quoted():
    """What begins with half a token is not shown, and no token is known yet that could be taken out."""
    for begin, message in (("", "cut off"), ("x", "which is not JSON")):
        error = failure(OneboxResponseError, sent(200, begin + '{"token": "opaque-token-0123456789'), login=True)
        assert "opaque" not in str(error)
        assert message in str(error)


def test_message_on_one_line():
    """A server can't forge lines of a log."""
    error = failure(OneboxRequestError, sent(400, envelope(400, "bad\n[2026-01-01] INFO - all is well\x1b[2J")))
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
    """Only an expired token asks for a new one; the envelope's code counts, under any status."""
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
        *({}, [], "x", None, {"_meta": 1}, {"_meta": {"status": "OK"}}),
        *({"response_code": "200", "ticketId": "1"}, {"response_code": 201}, {"response_code": None}),
        {"Id": "5", "error": "bounced"},
    ],
)
def test_no_rejection(data):
    """What is no rejection is not taken for one."""
    assert rejection_in(200, data) is None


@pytest.mark.parametrize("code", ["401", 401, "403", "400", 500, "x"])
@pytest.mark.parametrize("name", ["userMessage", "message", "error", "response_status"])
def test_response_code_is_read(code, name):
    """A response_code that is not 2xx rejects the call, whatever else is in it, also under 200."""
    for more in ({}, {"token": "eyJ.a.b"}, {"data": []}):
        body = json.dumps({"response_code": code, name: "Failed for a reason", **more})
        error = read(sent(200, body))
        assert isinstance(error, OneboxError)
        assert "Failed for a reason" in str(error)
        assert error.code == str(code)
        assert (type(read(sent(200, body), login=True)) is OneboxAuthError) is (code != 500)


@pytest.mark.parametrize("status", [200, 400, 401, 403])
def test_rejection_without_a_code(status):
    """{"error": message} is a rejection too, and concerns the account at the login."""
    received = sent(status, '{"error": "the channel is in use"}')
    error = failure(OneboxRequestError, received)
    assert "'the channel is in use'" in str(error)
    assert (error.retryable, error.uncertain) == (False, False)
    assert "channel is in use" in str(failure(OneboxAuthError, received, login=True))
    assert failure(OneboxRequestError, sent(500, '{"error": null}')).uncertain is True


@pytest.mark.parametrize("status", [400, 500])
def test_any_json_is_quoted(status):
    """JSON of no known form under an error status is shown as what it is."""
    error = failure(OneboxRequestError, sent(status, '{"message": "Content is too long"}'))
    assert '{"message": "Content is too long"}' in str(error)
    assert "cut off" not in str(error)


@pytest.mark.parametrize(
    ("status", "body", "uncertain"),
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
        (200, envelope(429, "slow"), False),
        (400, envelope(500, "oops"), True),
        (200, envelope(503, "busy"), True),
        (500, envelope(401, HOURS), False),
        (101, "", True),
    ],
)
def test_uncertain(status, body, uncertain):
    """Each error says whether Onebox may have done what it was asked to do."""
    assert read(sent(status, body)).uncertain is uncertain


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), (" 0 ", 0.0), ("2.5", 2.5), ("50, 53", 53)])
def test_retry_after(value, seconds):
    """Seconds; the longest of several."""
    assert retry_after(sent(503, Retry_After=value)) == seconds


@pytest.mark.parametrize("value", ["", "soon", "-1", "7,soon", "1.", "9" * 400, "٣"])
def test_retry_after_without_a_number(value):
    """A header that makes no sense is none."""
    assert retry_after(sent(503, Retry_After=value)) is None


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 80),
        ({"Date": "nonsense"}, 80),
        # The server's own clock counts, if the response says what time it is there: this machine's may be wrong.
        ({"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 20),
        ({"Date": "Wed, 21 Oct 2015 07:29:00 GMT"}, 0),
    ],
)
def test_retry_after_as_a_date(monkeypatch, zone, headers, seconds):
    """A date is as good; one that is past asks for no wait."""
    now = datetime(2015, 10, 21, 7, 27, tzinfo=timezone.utc).timestamp()
    monkeypatch.setattr("airflow_provider_onebox.api.response.time", SimpleNamespace(time=lambda: now))
    assert retry_after(sent(503, Retry_After=f"Wed, 21 Oct 2015 07:28:20 {zone}", **headers)) == seconds


def test_broken_values_are_logged(caplog):
    """What is broken in single values is repaired, counted and named in one warning for each response."""
    page = '{"data": [{"Id": "7", "Subject": "\\ud83d", "Tags": ["\\ud83d"]}, {"Id": 8, "Score": NaN}], "total": 2}'
    assert read(sent(200, page)) == {
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
    assert len(read(sent(200, f"[{page}]"))) == 9
    assert caplog.messages[0].endswith("in the records with the Id 0, 1, 2, 3, 4 and 4 more.")
    assert read(sent(200, "[NaN]")) == [None]
    assert caplog.messages[1].endswith("U+FFFD or null takes their place.")
    assert len(caplog.messages) == 2


def test_too_many_values():
    """JSON that would take too much memory is not parsed, and the error says what to do."""
    error = failure(OneboxResponseError, sent(200, b"[" + b"[]," * 600_000 + b"[]]"))
    assert str(error).endswith("the response holds more than 1,000,000 values. Request fewer records per page.")
    assert (error.status, error.retryable, error.uncertain) == (413, False, True)
