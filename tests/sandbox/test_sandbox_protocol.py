"""The sandbox responds as the API pages say."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from datetime import datetime, timedelta
from hashlib import sha256

import jwt
import pytest
import requests

from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sandbox.data import RESOURCES


def error(response):
    """Return code and message of an error envelope."""
    body = response.json()
    assert body["_meta"] == {"status": "ERROR", "count": 1}
    assert set(body["records"]) == {"errorCode", "userMessage", "devMessage", "more", "applicationCode"}
    return body["records"]["errorCode"], body["records"]["userMessage"]


@pytest.mark.parametrize("path", ["/api/authenticate", "/api/Authenticate", "/api/v1/authenticate"])
def test_login_gives_a_signed_jwt(caller, sandbox, path):
    """Every path of the login gives a token whose claims are those of the documented one."""
    response = caller.login(path).json()
    assert (response["response_code"], response["response_status"]) == ("200", "Success")
    assert jwt.get_unverified_header(response["token"])["alg"] == "HS256"
    claims = jwt.decode(response["token"], sandbox.state.secret, ["HS256"])
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
    """A rejected login is a 401 whose code is a string."""
    response = caller.login(**changes)
    assert response.status_code == 401
    assert error(response) == ("401", message)
    assert caller.post("/api/authenticate", json=sandbox.credentials).status_code == 401  # No JSON is read.
    assert (sandbox.state.logins, sandbox.state.failed_logins) == (0, 2)


@pytest.mark.parametrize("as_list", [False, True])
def test_login_without_site_lists_the_sites(caller, sandbox, as_list):
    """The response to an empty siteId has the sites and no token."""
    sandbox.state.sites_as_list = as_list
    response = caller.login(siteId="")
    assert response.status_code == 200
    assert "token" not in response.text
    sites = response.json() if as_list else response.json()["sites"]
    assert [site["Id"] for site in sites] == ["169", "170"]
    assert sandbox.state.logins == 0


def test_login_without_site_where_there_is_one(connect):
    """An account with one site need not name it."""
    with Sandbox(records=1, sites=["7"]) as sandbox, connect(sandbox) as caller:
        token = caller.login(siteId="").json()["token"]
        assert sandbox.state.tokens[token].site == "7"


def test_token_is_needed(caller, sandbox):
    """No token, a foreign one and an expired one have different messages; each code is an integer."""
    assert error(caller.get("/api/ticketrz", headers={"Authorization": None})) == (401, "jwt token not found")
    foreign = jwt.encode({"sid": "169"}, "x" * 32, "HS256")
    response = caller.get("/api/ticketrz", headers={"Authorization": f"Bearer {foreign}"})
    assert (response.status_code, error(response)) == (401, (401, "Signature verification failed"))
    expired = sandbox.state.issue("169", sandbox.email, life=-1)
    response = caller.get("/api/ticketrz", headers={"Authorization": f"Bearer {expired}"})
    assert (response.status_code, error(response)) == (401, (401, "Expired token"))
    # The reported ?token= works too.
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
    """The response to HEAD is that to GET, without the body."""
    row_id = user.page(limit=1)["data"][0]["Id"]
    for path in ("/api/ticketrz", f"/api/ticketrz/{row_id}"):
        response = user.head(path)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-length"] == user.get(path).headers["content-length"]
    assert user.head("/api/ticketrz/1").status_code == 404


def test_rows_are_plausible(user, sandbox):
    """Ids have gaps, a row says which site it belongs to, and dates are as documented, in order, and end yesterday."""
    rows = user.page(limit=60)["data"]
    ids = [int(row["Id"]) for row in rows]
    assert ids[-1] - ids[0] > 60
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row["CreateDate"]) for row in rows)
    assert [row["CreateDate"] for row in rows] == sorted({row["CreateDate"] for row in rows})
    assert all(row["ModifyDate"] >= row["CreateDate"] for row in rows)
    assert {row["SiteId"] for row in rows} == {"169"}
    assert {"Subject", "Media", "Status", "Priority", "Category", "Requestor", "Assignee"} <= set(rows[0])
    assert 400 <= len(json.dumps(rows)) / 60 <= 650
    # On the server's own clock.
    midnight = datetime.fromisoformat(f"{sandbox.state.local():%Y-%m-%d} 00:00:00")
    assert datetime.fromisoformat(rows[-1]["CreateDate"]) == midnight - timedelta(seconds=1)
    assert max(row["ModifyDate"] for row in rows) < str(midnight)
    assert user.page(since=str(midnight - timedelta(days=1))[:16], limit=60)["total"] == 60
    assert len({row["ModifyDate"] for row in rows}) > 30


def test_dates_end_at_a_time():
    """With a time of the newest row, the same seed gives the same bytes on any day."""
    until = datetime(2026, 11, 24, 8, 30)
    tables = [Sandbox(records=count, until=until).state.table() for count in (60, 1, 2)]
    rows = [[json.loads(row) for row in table.page(size=60)[0]] for table in tables]
    assert [row[-1]["CreateDate"] for row in rows] == ["2026-11-24 08:30:00"] * 3
    assert {name: rows[0][0][name] for name in ("Id", "CreateDate", "ModifyDate")} == {
        "Id": "12045",
        "CreateDate": "2026-11-24 07:05:31",
        "ModifyDate": "2026-11-24 08:08:46",
    }
    assert [row["Id"] for row in rows[1] + rows[2]] == [row["Id"] for row in rows[0][:1] + rows[0][:2]]
    early = Sandbox(records=1, until=datetime(1999, 12, 31)).state.table().page()[0]
    assert json.loads(early[0])["CreateDate"] == json.loads(early[0])["ModifyDate"] == "1999-12-31 00:00:00"


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


BAD_NUMBERS = ("limit=0", "limit=-1", "limit=x", "limit=", "offset=-1", "paging=2", "sinceId=1.5", "sinceId=%D9%A3")
BAD_TIMES = ("since=yesterday", "since=2020-13-01 00:00", "since=2020-W01-1 00:00", "lastUpdate=2020-01-01")


@pytest.mark.parametrize("query", BAD_NUMBERS + BAD_TIMES)
def test_bad_query(user, query):
    """A value that means nothing is refused."""
    response = user.get(f"/api/ticketrz?{query}")
    assert response.status_code == 400
    assert error(response) == ("400", f"{query.partition('=')[0]} is not valid")


def test_sites_have_their_own_rows(caller, sandbox):
    """A token shows one site's rows and no other's; those of its connections have passwords and tokens."""
    caller.sign_in("170")
    assert {row["SiteId"] for row in caller.page()["data"]} == {"170"}
    assert sandbox.state.ids(site="169") != sandbox.state.ids(site="170")
    connection = caller.page("connection", limit=1)["data"][0]
    assert connection["Password"]
    assert connection["Token"]


def test_record(user):
    """The record of a ticket has Ids where its row has names; one that does not exist is a 404 envelope."""
    row = next(row for row in user.page(limit=60)["data"] if row["Status"] == "Closed")
    record = user.get(f"/api/ticketrz/{row['Id']}").json()
    assert (record["Id"], record["StatusId"], record["ExpireDate"]) == (row["Id"], "TS7", "3000-01-01 00:00:00")
    assert re.fullmatch("TP[123]", record["PriorityId"])
    assert {"SiteId", "Requestor", "CategoryId", "ContactId", "MessageId", "AssigneeList"} <= set(record)
    assert not {"Status", "Priority", "Category", "Assignee", "Attachments", "Tags"} & set(record)
    assert (record["Subject"], record["ModifyDate"]) == (row["Subject"], row["ModifyDate"])
    assert user.get(f"/api/ticket/{row['Id']}").json() == record
    for resource in ("contactrz", "prospectrz"):  # Both have no dates, and the record is the row.
        row = user.page(resource, limit=1)["data"][0]
        assert set(row) == {"Id", "Name", "Phone", "Fax", "Email", "Mobile", "TwitterId", "FacebookId", "Media"}
        assert user.get(f"/api/{resource}/{row['Id']}").json() == row
    for missing in ("1", "x", "9" * 5000):
        response = user.get(f"/api/ticketrz/{missing}")
        assert (response.status_code, error(response)[0]) == (404, "404")


@pytest.mark.parametrize("path", ["/api/v1/ticketrz", "/api/Ticket", "/api/v1/Ticket"])
def test_other_names(user, sandbox, path):
    """The reported router's names are other names of the same."""
    assert user.get(path, params={"limit": 3}).json() == user.page(limit=3)
    assert user.get(f"{path}/{sandbox.state.ids()[0]}").json()["Id"] == sandbox.state.ids()[0]
    assert sandbox.state.requests == {"GET list": 2, "GET record": 1}


def flat(data):
    """Return the messages of a conversation, threads included, in order."""
    return [message for item in data for message in (flat(item["data"]) if "data" in item else [item])]


def test_conversations(user, sandbox):
    """The messages of a ticket name it, and some of them are in threads, and threads in threads."""
    depths = set()
    for ticket in sandbox.state.ids()[:20]:
        response = user.get(f"/api/ticket/conversations/{ticket}").json()
        assert (response["response_code"], response["response_status"], response["type"]) == (
            "200",
            "Success",
            "message",
        )
        assert response["ticketId"] == ticket
        messages = flat(response["data"])
        assert [message["Id"] for message in messages] == [f"{ticket}{n}" for n in range(len(messages))]
        assert {(type(message["Content"]), type(message["Contents"])) for message in messages} == {(str, list)}
        assert {message["Processing"] for message in messages} <= {1, "1"}
        depths.add(len(messages))
        if len(messages) == 4:
            thread = response["data"][2]
            assert (thread["ticketId"], thread["data"][1]["data"]) == (ticket, messages[3:])
    assert depths == {1, 2, 3, 4}
    assert user.get("/api/ticket/conversations/1").status_code == 404


def attachments(user, ticket):
    """Return the URLs of a ticket's attachments."""
    data = user.get(f"/api/ticket/conversations/{ticket}").json()["data"]
    return [item["File"]["Path"] for message in flat(data) for item in message["Attachments"]]


def test_attachments(user, sandbox):
    """One file is on the server itself and needs the token, one is public and must not be sent it."""
    ticket = next(row_id for row_id in sandbox.state.ids() if int(row_id) % 4)
    own, public = attachments(user, ticket)
    assert own.startswith(f"{sandbox.url}/files/")
    assert public.startswith(f"http://localhost:{sandbox.port}/public/")
    headers = {"Authorization": user.headers["Authorization"]}
    assert len(requests.get(own, headers=headers, timeout=60).content) == 1000
    assert error(requests.get(own, timeout=60)) == (401, "jwt token not found")
    sandbox.state.configure(attachment_size=123_456)
    assert len(requests.get(public, timeout=60).content) == 123_456
    assert requests.get(public, headers=headers, timeout=60).status_code == 400
    assert user.get("/files/1/0.txt").status_code == 404
    url = sandbox.url.replace("127.0.0.1", "localhost")
    response = requests.get(f"{url}/api/ticket/conversations/{ticket}", headers=headers, timeout=60)
    assert f"{url}/files/" in response.text
    assert f"{sandbox.url}/public/" in response.text


def test_host_of_uploaded_files(user, sandbox):
    """An uploaded file has the host by which the server is asked now, in each place that names it."""
    ticket = user.post("/api/ticket/create", data=TICKET, files={"file": ("a.txt", b"hello")}).json()["ticketId"]
    file = {"Name": "b.txt", "Content": b64encode(b"world").decode()}
    message = user.post("/api/message", json={"ConversationId": ticket, "Attachments": [{"File": file}]}).json()
    paths = [
        f"ticket/conversations/{ticket}",
        f"ticketrz?sinceId={int(ticket) - 1}",
        f"message/{message['data'][0]['Id']}",
    ]
    for host in ("127.0.0.1", "localhost"):
        url = sandbox.url.replace("127.0.0.1", host)
        headers = {"Authorization": user.headers["Authorization"]}
        texts = [requests.get(f"{url}/api/{path}", headers=headers, timeout=60).text for path in paths]
        assert [re.findall(r"\w+:[/\w.:]*/files/\d/[ab].txt", text) for text in texts] == [
            [f"{url}/files/1/a.txt", f"{url}/files/2/b.txt"],
            [f"{url}/files/1/a.txt"],
            [f"{url}/files/2/b.txt"],
        ]
    assert message["data"][0]["Attachments"][0]["File"]["Path"] == f"{sandbox.url}/files/2/b.txt"


TICKET = {"fullName": "Siti", "contact": "s@example.com", "subject": "caf\u00e9", "category": "c", "content": "x"}


@pytest.mark.parametrize("how", ["json", "data", "files"])
def test_create_ticket(user, sandbox, how):
    """A ticket is created from JSON, from a form and with a file, and then listed last."""
    body = {"data": TICKET, "files": {"file": ("a.txt", b"hello")}} if how == "files" else {how: TICKET}
    response = user.post("/api/ticket/create", **body).json()
    assert (response["response_code"], response["response_status"]) == ("200", "Success")
    assert response["ticketId"] == sandbox.state.ids()[-1]
    file = {"file": [{"filename": "a.txt", "size": 5, "sha256": sha256(b"hello").hexdigest()}]}
    file = file if how == "files" else {}
    assert sandbox.state.tickets == [{**TICKET, **file, "ticketId": response["ticketId"], "siteId": "169"}]
    row = user.get(f"/api/ticketrz/{response['ticketId']}").json()
    assert (row["Subject"], row["StatusId"]) == ("caf\u00e9", "TS2")
    assert user.page(limit=100)["data"][-1]["Requestor"] == "Siti"


def test_ticket_files(user, sandbox):
    """Files of a ticket, whatever is in them, come back from its conversation as they were sent."""
    contents = [bytes(range(256)) * 3, b"\r\n--x\r\n\xff", b""]
    files = [("attachment", (f"f {n}.bin", content)) for n, content in enumerate(contents[:2])]
    response = user.post("/api/ticket/create", data=TICKET, files=[*files, ("file", ("f.txt", contents[2]))]).json()
    body = sandbox.state.books()[-1]["body"]
    assert [file["size"] for file in body["attachment"] + body["file"]] == [768, 8, 0]
    paths = attachments(user, response["ticketId"])
    found = [user.get(path[len(sandbox.url) :]).content for path in paths]
    assert [content for content in found if content in contents] == contents


def test_contact(user, sandbox):
    """A contact comes back as it is stored, with the Id that it was given."""
    row = user.post("/api/contactrz", json={"Name": "Siti", "Fax": None, "Id": "1", "count": 5}).json()
    assert (row["Name"], row["Fax"], row["Id"]) == ("Siti", None, sandbox.state.ids("contactrz")[-1])


def test_message(user, sandbox):
    """A new message comes back in a page that holds it; the page can hold older ones too."""
    file = {"Name": "a.bin", "Date": "2026-01-01", "Content": b64encode(b"\xff\x00").decode()}
    public = {"Name": "b.png", "Path": "https://files.example/b.png"}
    body = {
        "ConnectionId": "1",
        "MethodId": "DIRECT",
        "Subject": "hi",
        "Content": {"Body": "<p>x</p>", "ContentType": "text/html"},
        "Attachments": [{"Description": "a", "File": file}, {"File": public}],
        "Users": [{"IdentityId": "1", "Name": "A", "RoleId": "MSR1"}],
    }
    page = user.post("/api/message", json=body).json()
    assert (page["limit"], page["offset"], page["count"], page["total"]) == (20, 0, 2, 61)
    (row,) = page["data"]
    assert (row["Id"], row["Subject"]) == (sandbox.state.ids("message")[-1], "hi")
    own, other = (item["File"]["Path"] for item in row["Attachments"])
    assert user.get(own[len(sandbox.url) :]).content == b"\xff\x00"
    assert other == public["Path"]
    assert sandbox.state.books()[-1]["body"]["Attachments"][0]["File"]["size"] == 2
    sandbox.state.configure(message_page=2)
    assert [row["Subject"] for row in user.post("/api/message", json={"Subject": "2"}).json()["data"]] == ["hi", "2"]


def test_response_to_a_message(user, sandbox):
    """One to a conversation, to a message of one and to another one is at the end of the conversation."""
    ticket = sandbox.state.ids()[0]
    before = len(flat(user.get(f"/api/ticket/conversations/{ticket}").json()["data"]))
    sent = []

    def send(**to):
        body = {**to, "Content": {"BodyText": f"text {len(sent)}"}}
        sent.append(user.post("/api/message", json=body).json()["data"][0]["Id"])

    send(ConversationId=ticket)
    send(PreviousId=f"{ticket}0")
    send(PreviousId=sent[0])
    messages = flat(user.get(f"/api/ticket/conversations/{ticket}").json()["data"])[before:]
    assert [(message["Id"], message["Content"]) for message in messages] == [
        (number, f"text {n}") for n, number in enumerate(sent)
    ]
    first = sandbox.state.ids("message")[0]
    assert user.post("/api/message", json={"PreviousId": first}).status_code == 200
    for to in ({"ConversationId": "1"}, {"PreviousId": "x"}):
        assert user.post("/api/message", json=to).status_code == 404


NO_MESSAGES = [
    {"MethodId": "2"},
    {"Content": "x"},
    {"Users": [{"RoleId": "MSR5"}]},
    {"Users": [{}]},
    *({"Attachments": [{"File": file}]} for file in ({"Name": "a"}, {"Name": "a/b", "Path": "x"})),
    {"Attachments": [{"File": {"Name": "a", "Content": "?"}}]},
    [],
]
TYPE = "Content-Type"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("message", {"json": body}) for body in NO_MESSAGES),
        *(("ticket/create", {"json": body}) for body in ({**TICKET, "subject": None}, {**TICKET, "coordinate": 1}, [])),
        ("ticket/create", {"data": b"{", "headers": {TYPE: "application/json"}}),
        *(("ticket/create", {"data": b"x", "headers": {TYPE: kind}}) for kind in ("text/plain", "multipart/form-data")),
        ("contactrz", {"data": {"Name": "Siti"}}),
        ("contactrz", {"json": {"Name": ["Siti"]}}),
    ],
    ids=str,
)
def test_write_refused(user, sandbox, path, body):
    """A body that is incomplete, unreadable or not what the page describes changes nothing."""
    response = user.post(f"/api/{path}", **body)
    assert (response.status_code, error(response)[0]) == (400, "400")
    assert sandbox.state.tickets == []
    assert {len(sandbox.state.ids(resource)) for resource in ("ticketrz", "contactrz", "message")} == {60}
    assert sandbox.state.books()[-1]["id"] is None


@pytest.mark.parametrize("status", [0, 200])
def test_connection(user, sandbox, status):
    """A connection comes back with its secrets; a refusal is only a message, with status 401 or 200."""
    sandbox.state.configure(envelope_status=status)
    row = user.post("/api/connection", json={"Name": "n", "Type": "Email", "Password": "p"}).json()
    assert (row["Name"], row["Password"], row["Id"]) == ("n", "p", sandbox.state.ids("connection")[-1])
    changed = user.patch(f"/api/connection/{row['Id']}", json={"Token": "t", "Id": "5"}).json()
    assert (changed["Id"], changed["Name"], changed["Token"]) == (row["Id"], "n", "t")
    for response in (
        user.post("/api/connection", json={"Type": "Email"}),
        user.patch(f"/api/connection/{row['Id']}", json={"Name": None}),
    ):
        assert (response.status_code, response.json()) == (status or 401, {"error": "Name is missing"})


@pytest.mark.parametrize("bare", [False, True])
def test_news(user, sandbox, bare):
    """News are created with longitude first, and found by their date and text."""
    sandbox.state.configure(news_as_list=bare, utc_offset=0, clock_skew=0)
    for subject, place in (("Banjir", "106.8, -6.2"), ("Macet", None)):
        body = {"Subject": subject, "Coordinate": place, "Location": "Jakarta"}
        response = user.post("/api/news/create", json=body).json()
    assert (response["response_code"], response["ticketId"]) == ("200", "2")
    today = sandbox.state.local().strftime("%d-%m-%Y")

    def subjects(**query):
        found = user.get("/api/news/get", params=query).json()
        return [row["Subject"] for row in (found if bare else found["data"])]

    assert subjects(startdate=today, enddate=today, city="jakarta") == ["Banjir", "Macet"]
    assert subjects(subject="mac") == subjects(offset=1, limit=1) == ["Macet"]
    assert subjects(enddate="01-01-2020") == []
    assert user.get("/api/news/get?startdate=2020-01-01").status_code == 400
    for body in ({"Subject": "x", "Coordinate": "-6.2, 106.8"}, {}):
        assert user.post("/api/news/create", json=body).status_code == 400


def test_worklist(user, sandbox):
    """The worklist has the tickets that are not closed, and the site as a number."""
    response = user.get("/api/VocWorklist").json()
    assert response["meta"] == {"site_id": 169, "count": len(response["data"])}
    assert {row["Status"] for row in response["data"]} == {"New", "Open", "Pending"}


def test_delete_ticket(user, sandbox):
    """A deleted ticket is gone, and deleting it again is a 404."""
    ticket = sandbox.state.ids()[3]
    assert user.delete(f"/api/ticketrz/{ticket}").json() == {}
    assert user.delete(f"/api/ticketrz/{ticket}").status_code == 404
    assert user.page(limit=1)["total"] == 59


UNDOCUMENTED = [
    ("POST", "/api/ticketrz", 405),
    ("POST", "/api/prospectrz", 405),
    ("PUT", "/api/ticketrz/{ticketrz}", 405),
    ("PATCH", "/api/ticketrz/{ticketrz}", 405),
    ("PATCH", "/api/contactrz/{contactrz}", 405),
    ("DELETE", "/api/contactrz/{contactrz}", 405),
    ("DELETE", "/api/connection/{connection}", 405),
    ("POST", "/api/v1/contactrz", 404),
    ("POST", "/api/Contact", 404),
    ("DELETE", "/api/v1/Ticket/{ticketrz}", 404),
]


@pytest.mark.parametrize(("method", "path", "status"), UNDOCUMENTED)
def test_undocumented_writes(user, sandbox, method, path, status):
    """A write that no page describes is there only if it is switched on."""
    path = path.format(**{resource: sandbox.state.ids(resource)[0] for resource in RESOURCES})
    body = None if method == "DELETE" else {"Email": "a@example.com"}
    response = user.request(method, path, json=body)
    assert (response.status_code, error(response)[0]) == (status, str(status))
    assert sandbox.state.books()[-1]["id"] is None
    sandbox.state.configure(undocumented_writes=True)
    assert user.request(method, path, json=body).status_code == 200
    assert sandbox.state.books()[-1]["id"]


def test_written_record(user, sandbox):
    """After a write, a ticket's record and its row say the same, whichever form was written."""
    sandbox.state.configure(undocumented_writes=True)
    ticket = sandbox.state.ids()[0]
    for fields, status, priority in [
        ({"StatusId": "TS7"}, ("Closed", "TS7"), None),
        ({"Status": "Pending", "Priority": "Low"}, ("Pending", "TS4"), ("Low", "TP1")),
        ({"PriorityId": "TP3", "Subject": "new"}, ("Pending", "TS4"), ("High", "TP3")),
    ]:
        user.patch(f"/api/ticketrz/{ticket}", json=fields)
        row, record = user.page(limit=1)["data"][0], user.get(f"/api/ticketrz/{ticket}").json()
        assert (row["Status"], record["StatusId"]) == status
        assert priority in (None, (row["Priority"], record["PriorityId"]))
        assert not {"StatusId", "PriorityId"} & set(row)
        both = row.keys() & record.keys() - {"Requestor"}
        assert {name: row[name] for name in both} == {name: record[name] for name in both}
    assert row["Subject"] == "new"
    new = user.post("/api/ticketrz", json={"StatusId": "TS7"}).json()
    assert new["Status"] == "Closed"


NO_FIELDS = ({"StatusId": "TP1"}, {"StatusId": 7}, {"Status": "Done"}, {"Priority": None}, {"PriorityId": ""})


@pytest.mark.parametrize("fields", [*NO_FIELDS, {"ContactId": "5"}], ids=str)
def test_field_of_a_record_that_is_refused(user, sandbox, fields):
    """A code that is none, and an Id that the row does not have, change nothing."""
    sandbox.state.configure(undocumented_writes=True)
    ticket = sandbox.state.ids()[0]
    before = user.get(f"/api/ticketrz/{ticket}").json()
    response = user.patch(f"/api/ticketrz/{ticket}", json=fields)
    (name,) = fields
    message = f"{name if name == 'ContactId' else name.removesuffix('Id')} is not valid"
    assert (response.status_code, error(response)) == (400, ("400", message))
    assert user.get(f"/api/ticketrz/{ticket}").json() == before


def test_unknown_paths(user):
    """Below /api an unknown path is an envelope; elsewhere it is a redirect to the login page."""
    assert error(user.get("/api/nosuch")) == ("404", "Not Found")
    response = user.put("/api/ticketrz")
    assert user.get("/api").status_code == 302
    assert user.get("/api/ticketrz/1/2").status_code == 404
    assert (response.status_code, error(response)[0]) == (405, "405")
    assert "GET" in response.headers["allow"]
    response = user.get("/feature/voc/api/ticketrz")
    assert (response.status_code, response.headers["location"]) == (302, "/Login")
    assert user.get("/Login").headers["content-type"].startswith("text/html")


def test_base_path(connect):
    """Under a base path the API is found there and nowhere else."""
    with Sandbox(records=3, base_path="/feature/voc/") as sandbox, connect(sandbox) as caller:
        assert sandbox.url.endswith("/feature/voc")
        caller.sign_in()
        assert caller.page()["total"] == 3
        outside = f"http://{sandbox.host}:{sandbox.port}/api/ticketrz"
        assert requests.get(outside, allow_redirects=False, timeout=60).headers["location"] == "/Login"
        assert sandbox.state.requests["GET list"] == 1
        assert caller.get("/sandbox/snapshot").json()["logins"] == 1
