"""Every control and every fault does what it says."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import jwt
import pytest
import requests
from requests.exceptions import ChunkedEncodingError, JSONDecodeError, ReadTimeout
from requests.exceptions import ConnectionError as Dropped

from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sandbox.state import KINDS

TICKET = {"fullName": "Siti", "contact": "s@example.com", "subject": "s", "category": "c", "content": "x"}
QUOTA = "time limit reached please try again tomorrow at 18:00 - 06:00"


def message(response):
    """Return the userMessage of an error envelope."""
    return response.json()["records"]["userMessage"]


# Settings


@pytest.mark.parametrize("life", [3000, 60.5])
def test_token_life_and_clock_skew(caller, sandbox, life):
    """The claims, the server's clock and its own check go together; a life is not rounded down to whole seconds."""
    sandbox.state.configure(token_life=life, clock_skew=360_000)
    claims = jwt.decode(caller.sign_in(), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == int(life)
    assert 350_000 < claims["iat"] - time.time() < 370_000
    assert caller.page()["count"] == 20
    sandbox.state.clock_skew += life
    assert message(caller.get("/api/ticketrz")) == "Expired token"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"opaque_tokens": True, "valid_until": True}, None),
        (
            {"int_claims": True, "token_claims": {"aud": "crm", "iss": None}},
            {"sub", "sid", "usid", "sesid", "jti", "iat", "nbf", "exp", "aud"},
        ),
        ({"endless_tokens": True}, {"sub", "sid", "jti"}),
    ],
)
def test_forms_of_a_token(caller, sandbox, settings, names):
    """A token can be no JWT, have other claims, as integers too, or none of its end; it expires all the same."""
    sandbox.state.configure(**settings)
    assert len(caller.login().json().get("valid_until", "")) == (0 if names else len("2026-01-01 00:00:00"))
    token = caller.sign_in()
    assert ("." in token) is bool(names)
    if names:
        claims = jwt.decode(token, options={"verify_signature": False, "verify_sub": False})
        assert set(claims) == names
        assert (claims["sub"], claims.get("usid", 55), claims.get("aud", "crm")) in ((55, 55, "crm"), ("55", 55, "crm"))
    assert caller.page()["count"] == 20
    sandbox.state.clock_skew += 901
    assert message(caller.get("/api/ticketrz")) == "Expired token"


def test_service_hours(user, sandbox):
    """Outside the service hours every call but the login is rejected, and with a setting the login too."""
    sandbox.state.outside_service_hours = True
    response = user.get("/api/ticketrz")
    assert response.status_code == 401
    assert (message(response), response.json()["records"]["errorCode"]) == (QUOTA, "401")
    assert user.login().status_code == 200
    sandbox.state.service_hours_login = True
    assert message(user.login()) == QUOTA


def test_page_sizes(user, sandbox):
    """A page can hold more than asked for, and never more than a cap; ids can be numbers, in records too."""
    sandbox.state.int_ids = True
    first = int(sandbox.state.ids()[0])
    assert user.page(limit=1)["data"][0]["Id"] == user.get(f"/api/ticketrz/{first}").json()["Id"] == first
    sandbox.state.page_overflow = 1
    page = user.page(limit=2)
    assert (page["limit"], page["count"], len(page["data"])) == ("2", 3, 3)
    sandbox.state.configure(page_cap=5)
    assert user.page(limit=50)["count"] == 5


def test_page_rate(user, sandbox):
    """No more pages are given in any second than the rate allows; the others are counted and rejected."""
    sandbox.state.page_rate = 2
    assert [sandbox.state.admit(now) for now in (7, 7.5, 7.9, 8, 8.4, 8.5)] == [True, True, False, True, False, True]
    assert sandbox.state.rejected_pages == 2
    sandbox.state.pages.extend([float("inf")] * 2)
    response = user.get("/api/ticketrz")
    assert (response.status_code, message(response)) == (429, "too many requests")
    sandbox.state.page_rate = 0
    assert user.page(limit=2)["count"] == 2


@pytest.mark.parametrize("setting", [{"latency": 0.05}, {"page_seconds": 0.5}], ids=str)
def test_seconds(user, sandbox, setting):
    """Every response waits; a page takes ten times as long for five times the records, so a tenth for a fifth."""
    sandbox.state.configure(**setting)
    begun = time.monotonic()
    assert user.page(limit=20)["count"] == 20
    assert time.monotonic() - begun >= 0.05


def test_ignored_parameters(user, sandbox):
    """The server can repeat itself, and can count what it should not."""
    ids = sandbox.state.ids()
    sandbox.state.total_ignores_since_id = True
    assert user.page(sinceId=ids[49])["total"] == 60
    sandbox.state.since_id_ignored = True
    assert user.page(sinceId=ids[49])["data"][0]["Id"] == ids[0]
    assert user.page(offset=30)["data"][0]["Id"] == ids[30]
    sandbox.state.offset_ignored = True
    assert user.page(offset=30)["data"][0]["Id"] == ids[0]


@pytest.mark.parametrize("order", ["descending", "shuffled", "page"])
def test_order(user, sandbox, order):
    """Rows can come in another order, and all of them do."""
    sandbox.state.configure(id_order=order)
    ids = sandbox.state.ids()
    found = [row["Id"] for offset in range(0, 60, 20) for row in user.page(offset=offset)["data"]]
    assert found != ids
    assert sorted(found) == ids
    if order == "descending":
        assert found == ids[::-1]
    if order == "page":
        assert found[:20] == ids[19::-1]


def test_grow_and_shrink(user, sandbox):
    """Rows can be added, removed and changed between two pages."""
    ids = sandbox.state.ids()
    sandbox.state.configure(grow=2, shrink=1)
    assert user.page(limit=5)["total"] == 60
    assert user.page(limit=5)["total"] == 61
    assert sandbox.state.ids()[:58] == ids[2:]
    sandbox.state.reset()
    sandbox.state.churn = 2
    user.headers["Authorization"] = f"Bearer {sandbox.state.issue('169', sandbox.email)}"
    user.page(limit=5)
    sandbox.state.churn = 0
    assert user.page(lastUpdate=f"{sandbox.state.local():%Y-%m-%d} 00:00")["total"] == 2


EXPIRED = "Expired token"


@pytest.mark.parametrize(
    ("settings", "status", "details"),
    [
        *(({"envelope_status": status}, status, (401, EXPIRED)) for status in (200, 403, 500)),
        *(({"envelope_code": kind}, 401, (code, EXPIRED)) for kind, code in (("", 401), ("string", "401"))),
        ({"envelope_form": "error"}, 401, {"error": EXPIRED}),
        ({"envelope_form": "message"}, 401, {"message": EXPIRED}),
        ({"envelope_form": "response_code"}, 401, {"response_code": "401", "response_status": EXPIRED}),
    ],
    ids=str,
)
def test_envelope(user, sandbox, settings, status, details):
    """Errors can have any status, 200 included, the code as a string or an integer, and another form."""
    sandbox.state.configure(**{"envelope_code": "string" if "envelope_form" in settings else "", **settings})
    sandbox.state.revoke()
    response = user.get("/api/ticketrz/1")
    body = response.json()
    if isinstance(details, tuple):
        assert body["_meta"]["status"] == "ERROR"
        body = body["records"]["errorCode"], body["records"]["userMessage"]
    assert (response.status_code, body) == (status, details)


@pytest.mark.parametrize(("kind", "code"), [("string", "401"), ("integer", 401)])
def test_envelope_code_of_a_login(user, sandbox, kind, code):
    """The code of a rejected login is a string, unless it is set to be an integer."""
    sandbox.state.envelope_code = kind
    assert user.login(password="x").json()["records"]["errorCode"] == code


@pytest.mark.parametrize("idle", [0.1, 60])
def test_keep_alive(user, sandbox, idle):
    """An idle connection is closed after the time of the setting."""
    sandbox.state.configure(keep_alive=idle)
    user.page()
    while sandbox.state.transports and idle < 1:
        time.sleep(0.01)
    user.page()
    assert sandbox.state.connections == (2 if idle < 1 else 1)


def test_settings_are_checked(sandbox):
    """A setting, an order or a fault that does not exist is an error, not silence."""
    state = sandbox.state
    for error, problem, call in (
        (KeyError, "no setting tokenlife", lambda: state.configure(tokenlife=1)),
        (ValueError, "id_order is one of", lambda: state.configure(id_order="up")),
        (ValueError, "envelope_form is one of", lambda: state.configure(envelope_form="nosuch")),
        (ValueError, "envelope_code is one of", lambda: state.configure(envelope_code="nosuch")),
        (ValueError, "no fault kind nosuch", lambda: state.configure(fault_kinds=["nosuch"])),
        (ValueError, "no fault kind nosuch", lambda: state.fail("nosuch")),
        (KeyError, "no ticketrz at site 1", lambda: state.add(1, site="1")),
    ):
        state.reset()
        with pytest.raises(error, match=problem):
            call()


# Data, tokens and counters


def test_rows_are_changed(user, sandbox):
    """Rows are added, deleted and touched, and the truth can be asked for."""
    state = sandbox.state
    ids = state.ids()
    new = state.add(3, Subject="new", CreateDate=None)
    assert state.delete([ids[0], "1"]) == 1
    assert state.ids() == ids[1:] + new
    row = user.page(sinceId=ids[-1])["data"][0]
    assert (row["Id"], row["Subject"], row["CreateDate"]) == (new[0], "new", None)
    state.touch(ids[5], "2030-01-01 00:00:00")
    assert [row["Id"] for row in user.page(lastUpdate="2029-12-31 23:59")["data"]] == [ids[5]]
    with pytest.raises(KeyError):
        state.touch("1", "2030-01-01 00:00:00")


def test_what_happens_now(user, sandbox):
    """A row that is added or changed has the server's local time, to the second; lastUpdate finds it."""
    state = sandbox.state
    state.configure(utc_offset=-3)
    ids, before = state.ids(), state.local()
    assert abs(before - datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(hours=3)) < timedelta(seconds=5)
    new = state.add(1)[0]
    state.touch(ids[3:5], Subject="changed", Status="Closed")
    minute = f"{before:%Y-%m-%d} 00:00"
    rows = user.page(lastUpdate=minute)["data"]
    assert [(row["Id"], row["Subject"]) for row in rows[:2]] == [(row_id, "changed") for row_id in ids[3:5]]
    assert rows[2]["Id"] == new
    assert rows[2]["CreateDate"] == rows[2]["ModifyDate"] >= str(before)
    assert rows[0]["CreateDate"] < rows[0]["ModifyDate"]
    assert user.get(f"/api/ticketrz/{ids[3]}").json()["StatusId"] == "TS7"
    assert [row["Id"] for row in user.page(since=minute)["data"]] == [new]
    state.touch(state.ids("contactrz")[0], resource="contactrz", Name="changed")
    assert user.page("contactrz", lastUpdate=minute)["data"][0]["Name"] == "changed"


def test_the_boundary(user, sandbox):
    """A row of the very second can be after it or not, and lastUpdate can be no filter at all."""
    ids = sandbox.state.ids()
    sandbox.state.touch(ids[:3], "2030-01-01 10:05:00")
    sandbox.state.touch(ids[1], "2030-01-01 10:05:01")
    query = {"lastUpdate": "2030-01-01 10:05"}
    assert [row["Id"] for row in user.page(**query)["data"]] == [ids[1]]
    sandbox.state.configure(times_inclusive=True)
    assert [row["Id"] for row in user.page(**query)["data"]] == ids[:3]
    assert user.get("/api/ticketrz", params={"since": "0001-01-01 00:00"}).status_code == 400
    sandbox.state.configure(last_update_ignored=True)
    assert user.page(**query)["total"] == 60


def test_books(user, sandbox):
    """The books have each write as it was sent, with the Id of what was done and the fault that it met."""
    sandbox.state.configure(undocumented_writes=True)
    sandbox.state.fail("drop_before", path="create")
    with pytest.raises(Dropped):
        user.post("/api/ticket/create", json=TICKET)
    sandbox.state.fail("drop_after", path="create")
    with pytest.raises(Dropped):
        user.post("/api/ticket/create", json=TICKET)
    user.post("/api/ticket/create", json={"subject": "s"})
    sandbox.state.fail("status", path="DELETE")
    user.delete(f"/api/v1/Ticket/{sandbox.state.ids()[0]}")
    user.login()
    user.page()
    assert user.get("/sandbox/books").json() == sandbox.state.books()
    common = {"site": "169", "call": "POST /api/ticket/create"}
    before, after, refused, deleted = sandbox.state.books()
    assert before == {**common, "site": None, "id": None, "body": TICKET, "refusal": None, "fault": "drop_before"}
    row_id = sandbox.state.ids()[-1]
    assert after == {**common, "id": row_id, "body": TICKET, "refusal": None, "fault": "drop_after"}
    assert refused["refusal"] == "missing fullName, contact, category, content"
    assert (refused["id"], refused["fault"], refused["body"]) == (None, None, {"subject": "s"})
    assert deleted["call"] == f"DELETE /api/ticketrz/{sandbox.state.ids()[0]}"
    assert (deleted["id"], deleted["fault"]) == (None, "status")
    assert [ticket["ticketId"] for ticket in sandbox.state.tickets] == [row_id]


def test_rows_repeat():
    """The same seed gives the same rows, another seed others."""
    rows = [Sandbox(records=5, seed=seed).state.table().page()[0] for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]


def test_requests_are_seen(user, sandbox):
    """Headers, paths and queries can be asserted on, in-process and over HTTP."""
    user.get("/api/ticketrz?limit=1&x=%20", headers={"X-Test": "Yes"})
    seen = sandbox.state.seen[-1]
    assert (seen.method, seen.path, seen.query) == ("GET", "/api/ticketrz", "limit=1&x=%20")
    assert seen.headers["x-test"] == "Yes"
    snapshot = user.get("/sandbox/snapshot").json()
    assert snapshot["seen"][-1]["headers"]["x-test"] == "Yes"
    assert snapshot["requests"] == {"GET list": 1}
    assert snapshot["settings"]["token_life"] == 900


def test_concurrency(user, sandbox):
    """Requests that wait together are counted together, each on its own connection."""
    sandbox.state.latency = 1000
    headers = {"Authorization": user.headers["Authorization"]}

    def wait():
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(f"{sandbox.url}/api/ticketrz", headers=headers, timeout=600)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    while sandbox.state.active < 4:
        time.sleep(0.01)
    sandbox.disconnect()
    for thread in threads:
        thread.join()
    assert (sandbox.state.max_concurrent, sandbox.state.connections) == (4, 4)


def test_control_over_http(user, sandbox):
    """Each call of the state can be made over HTTP, and mistakes are reported."""

    def call(name, **arguments):
        response = user.post(f"/sandbox/{name}", json=arguments)
        assert response.status_code == 200, response.text
        return response.json()

    call("configure", page_cap=1)
    assert user.page()["count"] == 1
    assert call("add", count=1, resource="message") == call("ids", resource="message")[-1:]
    assert call("delete", ids=sandbox.state.ids()[:2]) == 2
    call("warm", count=5)
    assert user.get("/sandbox/ids?resource=message").json() == sandbox.state.ids("message")
    call("touch", ids=sandbox.state.ids()[0], when="2030-01-01 00:00:00")
    call("fail", kind="status", times=2)
    assert len(call("snapshot")["faults"]) == 1
    call("calm")
    assert call("revoke") == 1
    call("reset")
    assert len(sandbox.state.ids()) == 60
    for path, body in [("configure", {"nosuch": 1}), ("fail", {"kind": "status", "path": "("}), ("add", {})]:
        assert user.post(f"/sandbox/{path}", json=body).status_code == 400
    assert user.post("/sandbox/add", data="{").status_code == 400
    assert user.get("/sandbox/secret").status_code == 404
    assert sandbox.state.requests == {}


# Faults


def test_every_kind_is_tried():
    """No kind of fault lacks a test in this file."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []


@pytest.mark.parametrize(
    ("fault", "timeout", "error", "problem"),
    [
        ({"kind": "drop_before"}, 60, Dropped, "closed connection"),
        ({"kind": "drop_before", "reset": True}, 60, Dropped, "reset by peer"),
        ({"kind": "truncated"}, 60, (ChunkedEncodingError, Dropped), "IncompleteRead"),
        ({"kind": "hang"}, 0.1, ReadTimeout, "timed out"),
        ({"kind": "delay", "pause": 0.3}, 0.1, ReadTimeout, "timed out"),
        ({"kind": "header_bomb"}, 60, Dropped, "more than 100 headers"),
        ({"kind": "raw", "data": b"SSH-2.0-x\r\n"}, 60, Dropped, "SSH-2"),
    ],
)
def test_no_response(user, sandbox, fault, timeout, error, problem):
    """Nothing comes, too late, or nothing that is HTTP; the next request gets a response."""
    sandbox.state.fail(**fault)
    with pytest.raises(error, match=problem):
        user.get("/api/ticketrz", timeout=timeout)
    assert user.page()["count"] == 20


def test_times_and_after(user, sandbox):
    """A fault lets some requests of its path pass, meets some, and is over."""
    sandbox.state.fail("status", path="ticketrz", times=2, after=1)
    assert user.page("contactrz")["count"] == 20
    statuses = [user.get("/api/ticketrz").status_code for _ in range(4)]
    assert statuses == [200, 503, 503, 200]


def test_processed_status(user, sandbox):
    """A status can be sent after the work was done."""
    sandbox.state.fail("status", status=504, processed=True)
    assert user.post("/api/ticket/create", json=TICKET).status_code == 504
    assert len(sandbox.state.tickets) == 1


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        ({"kind": "status", "status": 429, "body": {"a": 1}}, 429, {"a": 1}),
        *(({"kind": "wrong_type", "value": value}, 200, value) for value in ([], 7, None)),
        (
            {"kind": "wrong_type", "status": 422, "value": {"message": "no such field"}},
            422,
            {"message": "no such field"},
        ),
        ({"kind": "expired"}, 401, (401, "Expired token")),
        ({"kind": "expired", "status": 500}, 500, (401, "Expired token")),
        ({"kind": "envelope", "status": 200, "code": 429, "message": "slow down"}, 200, (429, "slow down")),
        ({"kind": "envelope_200", "message": "no way", "code": 500}, 200, (500, "no way")),
        (
            {"kind": "envelope", "status": 200, "code": "401", "message": "no", "form": "response_code"},
            200,
            {"response_code": "401", "response_status": "no"},
        ),
        ({"kind": "envelope", "status": 401, "message": "no", "form": "error"}, 401, {"error": "no"}),
    ],
    ids=str,
)
def test_any_response(user, sandbox, fault, status, body):
    """A response's status, headers, code, message and form are independent of each other."""
    sandbox.state.fail(**fault, headers={"Retry-After": "7"})
    response = user.get("/api/ticketrz")
    found = response.json()
    if isinstance(body, tuple):
        found = found["records"]["errorCode"], found["records"]["userMessage"]
    assert (response.status_code, found) == (status, body)
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("fault", "content"),
    [
        ({"kind": "html"}, "<form>"),
        ({"kind": "empty"}, ""),
        ({"kind": "not_json"}, ""),
        ({"kind": "not_json", "body": b"\xff"}, ""),
        ({"kind": "truncated", "variant": "json"}, '{"'),
    ],
    ids=str,
)
def test_bodies_that_make_no_sense(user, sandbox, fault, content):
    """A page of HTML, nothing, text, and JSON that ends within, all with status 200 and whole by their length."""
    sandbox.state.fail(**fault)
    response = user.get("/api/ticketrz")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html") is (fault["kind"] == "html")
    assert content in response.text
    assert fault["kind"] != "empty" or response.content == b""
    assert response.content == fault.get("body", response.content)
    with pytest.raises(JSONDecodeError):
        response.json()


def test_slow(user, sandbox):
    """A body comes in pieces."""
    whole = user.get("/api/ticketrz").content
    sandbox.state.fail("slow", pieces=3, pause=0.05)
    start = time.monotonic()
    assert user.get("/api/ticketrz").content == whole
    assert time.monotonic() - start >= 0.15


def test_login_faults(user, sandbox):
    """A login without a token was a login, one that is redirected was none."""
    sandbox.state.fail("no_token", path="authenticate")
    assert user.login().json() == {"response_code": "200", "response_status": "Success"}
    assert sandbox.state.logins == 1
    sandbox.state.fail("redirect", status=308, location="http://elsewhere.example/")
    response = user.login()
    assert (response.status_code, response.headers["location"]) == (308, "http://elsewhere.example/")
    assert sandbox.state.logins == 1


@pytest.mark.parametrize("with_token", [False, True])
def test_login_that_says_401(user, sandbox, with_token):
    """The success envelope can carry another code, with a token beside it and without one; other fields too."""
    fields = {"response_code": "401", "response_status": "Failed", "note": {"a": [1]}}
    fields |= {} if with_token else {"token": None}
    sandbox.state.fail("merge", path="authenticate", fields=fields, status=403)
    response = user.login()
    assert (response.status_code, response.json()["response_code"], response.json()["note"]) == (403, "401", {"a": [1]})
    assert ("token" in response.json()) is with_token
    sandbox.state.fail("merge", path="ticketrz", fields={"extra": 1})
    page = user.page(limit=1)
    assert (page["extra"], len(page["data"])) == (1, 1)
    sandbox.state.configure(sites_as_list=True)
    sandbox.state.fail("merge", fields={"extra": 1})
    assert [site["Id"] for site in user.login(siteId="").json()] == ["169", "170"]


def test_body_without_end(user, sandbox):
    """A body goes on for ever; the server lives on."""
    sandbox.state.fail("huge")
    with user.get("/api/ticketrz", stream=True) as response:
        assert len(response.raw.read(2_000_000)) == 2_000_000
    assert user.page()["count"] == 20


def test_random_faults_repeat(user, sandbox):
    """A sequential client meets the same random faults each time, until they are calmed."""
    runs = []
    for _ in range(2):
        sandbox.state.reset()
        user.headers["Authorization"] = f"Bearer {sandbox.state.issue('169', sandbox.email)}"
        sandbox.state.configure(fault_rate=0.3, fault_kinds=["status", "empty"])
        responses = [user.get("/api/ticketrz?limit=1") for _ in range(40)]
        runs.append([(response.status_code, len(response.content)) for response in responses])
    assert runs[0] == runs[1]
    assert len({status for status, _ in runs[0]}) == 2
    assert 3 < sum(size == 0 for _, size in runs[0]) < 25
    sandbox.state.calm()
    assert all(user.get("/api/ticketrz").ok for _ in range(20))
