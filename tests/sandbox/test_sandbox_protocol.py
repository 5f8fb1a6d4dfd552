"""The sandbox answers as the API pages say."""

from __future__ import annotations

import json
import re

import jwt
import pytest
import requests

from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sandbox.data import RESOURCES


def error(reply):
    """Return code and message of an error envelope."""
    body = reply.json()
    assert body["_meta"] == {"status": "ERROR", "count": 1}
    assert set(body["records"]) == {"errorCode", "userMessage", "devMessage", "more", "applicationCode"}
    return body["records"]["errorCode"], body["records"]["userMessage"]


@pytest.mark.parametrize("path", ["/api/authenticate", "/api/Authenticate", "/api/v1/authenticate"])
def test_login_gives_a_signed_jwt(caller, sandbox, path):
    """Every path of the login gives a token whose claims are those of the documented one."""
    reply = caller.login(path).json()
    assert (reply["response_code"], reply["response_status"]) == ("200", "Success")
    assert jwt.get_unverified_header(reply["token"])["alg"] == "HS256"
    claims = jwt.decode(reply["token"], sandbox.state.secret, ["HS256"])
    assert set(claims) == {"iss", "sub", "sid", "jti", "iat", "nbf", "exp"}
    assert (claims["iss"], claims["sub"], claims["sid"]) == ("127.0.0.1", "55", "169")
    assert claims["exp"] - claims["iat"] == 900
    assert claims["nbf"] == claims["iat"]
    assert sandbox.state.logins == sandbox.state.logins_by_site["169"] == 1
    assert sandbox.state.logins_by_user[sandbox.email] == 1
    assert sandbox.state.requests["POST authenticate"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"siteId": "1691"}, "you are not authorized to log into this site 1691"),
        ({"password": "wrong"}, "invalid email or password"),
        ({"email": "nobody@example.com"}, "invalid email or password"),
    ],
)
def test_login_refused(caller, sandbox, changes, message):
    """A refused login is a 401 whose code is a string."""
    reply = caller.login(**changes)
    assert reply.status_code == 401
    assert error(reply) == ("401", message)
    assert (sandbox.state.logins, sandbox.state.failed_logins) == (0, 1)


def test_login_reads_no_json(caller, sandbox):
    """A JSON body is not read, so nobody is logged in."""
    assert caller.post("/api/authenticate", json=sandbox.credentials).status_code == 401


@pytest.mark.parametrize("as_list", [False, True])
def test_login_without_site_lists_the_sites(caller, sandbox, as_list):
    """An empty siteId is answered by the sites and no token."""
    sandbox.state.sites_as_list = as_list
    reply = caller.login(siteId="")
    assert reply.status_code == 200
    assert "token" not in reply.text
    sites = reply.json() if as_list else reply.json()["sites"]
    assert [site["Id"] for site in sites] == ["169", "170"]
    assert sandbox.state.logins == 0


def test_login_without_site_where_there_is_one(connect):
    """An account with one site need not name it."""
    with Sandbox(records=1, sites=["7"]) as sandbox, connect(sandbox) as caller:
        token = caller.login(siteId="").json()["token"]
        assert sandbox.state.tokens[token].site == "7"


def test_token_is_needed(caller, sandbox):
    """Without a token, with a foreign one and with a dead one the answers differ; each code is an integer."""
    assert error(caller.get("/api/ticketrz", headers={"Authorization": None})) == (401, "jwt token not found")
    foreign = jwt.encode({"sid": "169"}, "x" * 32, "HS256")
    reply = caller.get("/api/ticketrz", headers={"Authorization": f"Bearer {foreign}"})
    assert (reply.status_code, error(reply)) == (401, (401, "Signature verification failed"))
    dead = sandbox.state.issue("169", sandbox.email, life=-1)
    reply = caller.get("/api/ticketrz", headers={"Authorization": f"Bearer {dead}"})
    assert (reply.status_code, error(reply)) == (401, (401, "Expired token"))


def test_token_in_the_query(caller, sandbox):
    """The reported ?token= works too."""
    token = sandbox.state.issue("169", sandbox.email)
    assert caller.get("/api/ticketrz", params={"token": token}).status_code == 200


@pytest.mark.parametrize("resource", RESOURCES)
def test_listing_by_since_id(user, sandbox, resource):
    """Paging by sinceId meets every row once, in order, with the total of what is left."""
    ids = sandbox.state.ids(resource)
    assert len(ids) == 60
    found, since = [], "0"
    while page := user.page(resource, sinceId=since, limit=7)["data"]:
        found += [row["Id"] for row in page]
        since = found[-1]
    assert found == ids
    page = user.page(resource, sinceId=ids[9], limit=3)
    assert (page["limit"], page["offset"], page["count"], page["total"]) == ("3", 0, 3, 50)
    assert [row["Id"] for row in page["data"]] == ids[10:13]


def test_listing_by_offset(user, sandbox):
    """Offset skips rows, the default page holds 20, and the last page is short."""
    ids = sandbox.state.ids()
    assert [row["Id"] for row in user.page()["data"]] == ids[:20]
    assert user.page()["limit"] == 20
    page = user.page(offset=55, paging=1)
    assert (page["offset"], page["count"], page["total"]) == ("55", 5, 60)
    assert [row["Id"] for row in page["data"]] == ids[55:]
    assert user.page(offset=60)["data"] == []


def test_head(user):
    """HEAD is answered like GET, without the body."""
    row_id = user.page(limit=1)["data"][0]["Id"]
    for path in ("/api/ticketrz", f"/api/ticketrz/{row_id}"):
        reply = user.head(path)
        assert (reply.status_code, reply.content) == (200, b"")
        assert reply.headers["content-length"] == user.get(path).headers["content-length"]
    assert user.head("/api/ticketrz/1").status_code == 404


def test_rows_are_plausible(user):
    """Ids have gaps, dates are as documented and in order, and a row says which site it belongs to."""
    rows = user.page(limit=60)["data"]
    ids = [int(row["Id"]) for row in rows]
    assert ids[-1] - ids[0] > 60
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row["CreateDate"]) for row in rows)
    assert [row["CreateDate"] for row in rows] == sorted({row["CreateDate"] for row in rows})
    assert all(row["ModifyDate"] >= row["CreateDate"] for row in rows)
    assert {row["SiteId"] for row in rows} == {"169"}
    assert {"Subject", "Media", "Status", "Priority", "Category", "RequesterName"} <= set(rows[0])
    assert 400 <= len(json.dumps(rows)) / 60 <= 650


def test_since_and_last_update(user):
    """Both times filter strictly, and total counts what is left."""
    rows = user.page(limit=60)["data"]
    since = rows[30]["CreateDate"][:16]
    page = user.page(since=since, limit=60)
    assert page["data"] == [row for row in rows if row["CreateDate"] > f"{since}:00"]
    assert page["total"] == page["count"] < 60
    changed = sorted(row["ModifyDate"] for row in rows)[40][:16]
    expected = [row for row in rows if row["ModifyDate"] > f"{changed}:00"]
    assert user.page(lastUpdate=changed, limit=60)["data"] == expected
    assert 0 < len(expected) < 60
    rest = user.page(lastUpdate=changed, sinceId=expected[1]["Id"], limit=3)
    assert (rest["data"], rest["total"]) == (expected[2:5], len(expected) - 2)


@pytest.mark.parametrize(
    "query",
    [
        *(
            "limit=0",
            "limit=-1",
            "limit=x",
            "limit=",
            "offset=-1",
            "paging=2",
            "sinceId=1.5",
            "sinceId=%D9%A3",
        ),
        *("since=yesterday", "since=2020-13-01 00:00", "since=2020-W01-1 00:00", "lastUpdate=2020-01-01"),
    ],
)
def test_bad_query(user, query):
    """A value that means nothing is refused."""
    reply = user.get(f"/api/ticketrz?{query}")
    assert reply.status_code == 400
    assert error(reply) == ("400", f"{query.partition('=')[0]} is not valid")


def test_sites_have_their_own_rows(caller, sandbox):
    """A token shows one site's rows and no other's."""
    caller.sign_in("170")
    assert {row["SiteId"] for row in caller.page()["data"]} == {"170"}
    assert sandbox.state.ids(site="169") != sandbox.state.ids(site="170")


def test_connections_carry_secrets(user):
    """A connection row has the customer's own password and token in it."""
    row = user.page("connection", limit=1)["data"][0]
    assert row["Password"]
    assert row["Token"]


def test_record(user):
    """A record is the row of the list, and one that does not exist is a 404 envelope."""
    row = user.page(limit=1)["data"][0]
    assert user.get(f"/api/ticketrz/{row['Id']}").json() == row
    for missing in ("1", "x", "9" * 5000):
        reply = user.get(f"/api/ticketrz/{missing}")
        assert (reply.status_code, error(reply)[0]) == (404, "404")


def test_conversations(user, sandbox):
    """The conversations of a ticket name it."""
    ticket = sandbox.state.ids()[0]
    reply = user.get(f"/api/ticket/conversations/{ticket}").json()
    assert (reply["response_code"], reply["ticketId"], len(reply["data"])) == ("200", ticket, 2)
    assert user.get("/api/ticket/conversations/1").status_code == 404


TICKET = {
    "fullName": "Siti",
    "contact": "s@example.com",
    "subject": "caf\u00e9",
    "category": "c",
    "content": "x",
}


@pytest.mark.parametrize("how", ["json", "data", "files"])
def test_create_ticket(user, sandbox, how):
    """A ticket is created from JSON, from a form and with a file, and then listed last."""
    body = {"data": TICKET, "files": {"file": ("a.txt", b"hello")}} if how == "files" else {how: TICKET}
    reply = user.post("/api/ticket/create", **body).json()
    assert (reply["response_code"], reply["response_status"]) == ("200", "Success")
    assert reply["ticketId"] == sandbox.state.ids()[-1]
    file = {"file": {"filename": "a.txt", "size": 5}} if how == "files" else {}
    assert sandbox.state.tickets == [{**TICKET, **file, "ticketId": reply["ticketId"], "siteId": "169"}]
    row = user.get(f"/api/ticketrz/{reply['ticketId']}").json()
    assert (row["Subject"], row["RequesterEmail"]) == ("caf\u00e9", "s@example.com")


def test_create_ticket_refused(user, sandbox):
    """A body that is incomplete, wrong or unreadable creates nothing."""
    bodies = [
        {"json": {**TICKET, "subject": None}},
        {"json": {**TICKET, "coordinate": 1}},
        {"json": [TICKET]},
        {"data": b"{", "headers": {"Content-Type": "application/json"}},
        {"data": b"x", "headers": {"Content-Type": "text/plain"}},
        {"data": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    ]
    for body in bodies:
        reply = user.post("/api/ticket/create", **body)
        assert (reply.status_code, error(reply)[0]) == (400, "400")
    assert sandbox.state.tickets == []
    assert len(sandbox.state.ids()) == 60


def test_store_message_and_contact(user, sandbox):
    """A message or a contact comes back as it is stored; a form is not read."""
    for resource in ("message", "contactrz"):
        row = user.post(f"/api/{resource}", json={"Subject": "hi", "Id": "1"}).json()
        assert row["Subject"] == "hi"
        assert row["Id"] == sandbox.state.ids(resource)[-1]
        assert user.post(f"/api/{resource}", data={"Subject": "hi"}).status_code == 400


def test_delete_ticket(user, sandbox):
    """A deleted ticket is gone, and deleting it again is a 404."""
    ticket = sandbox.state.ids()[3]
    assert user.delete(f"/api/ticketrz/{ticket}").json() == {}
    assert ticket not in sandbox.state.ids()
    assert user.delete(f"/api/ticketrz/{ticket}").status_code == 404
    assert user.page(limit=1)["total"] == 59


def test_unknown_paths(user):
    """Below /api an unknown path is an envelope; elsewhere it is a redirect to the login page."""
    assert error(user.get("/api/nosuch")) == ("404", "Not Found")
    reply = user.put("/api/ticketrz")
    assert (reply.status_code, error(reply)[0]) == (405, "405")
    assert "GET" in reply.headers["allow"]
    reply = user.get("/feature/voc/api/ticketrz")
    assert (reply.status_code, reply.headers["location"]) == (302, "/Login")
    assert user.get("/Login").headers["content-type"].startswith("text/html")


def test_base_path(connect):
    """Under a base path the API answers there and nowhere else."""
    with Sandbox(records=3, base_path="/feature/voc/") as sandbox, connect(sandbox) as caller:
        assert sandbox.url.endswith("/feature/voc")
        caller.sign_in()
        assert caller.page()["total"] == 3
        outside = f"http://{sandbox.host}:{sandbox.port}/api/ticketrz"
        assert requests.get(outside, allow_redirects=False, timeout=5).headers["location"] == "/Login"
        assert sandbox.state.requests["GET list"] == 1
        assert caller.get("/sandbox/snapshot").json()["logins"] == 1
