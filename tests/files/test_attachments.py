"""Attachments: whole or not at all; no URL, name or content of one makes the task do anything else."""

from __future__ import annotations

import gzip
import json
import re
import socket
from pathlib import Path
from unittest.mock import ANY
from urllib.parse import quote, urlsplit

import pytest

from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.token import Token, TokenSource
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.files import attachments
from airflow_provider_onebox.files.attachments import Attachments
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator
from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sandbox.app import QUOTA


@pytest.fixture
def said(caplog, capsys):
    """Return the log, wherever this Airflow keeps it."""
    caplog.set_level("INFO")
    return lambda: caplog.text + capsys.readouterr().out


@pytest.fixture
def waits():
    """Return the seconds that were waited between tries."""
    return []


@pytest.fixture
def download(connected, tmp_path, waits):
    """Download the attachments of messages, or of one that has some URLs; return their paths, and how many failed."""

    def run(*urls, messages=None, client=None, folder=tmp_path / "files", max_bytes=10_000, hosts=(), **fields):
        client = client or OneboxHook().client
        downloads = Attachments(client, folder, max_bytes=max_bytes, hosts=hosts, pause=waits.append)
        if messages is None:
            messages = [{"Id": "7", "ticketId": "12", "Attachments": [named(url) for url in urls], **fields}]
        found = downloads.download(messages)
        return [path for message in found for path in message["attachmentFiles"]], downloads.failed

    return run


def named(url, name="a.txt"):
    """Return an attachment as Onebox has it."""
    return {"File": {"Name": name, "Path": url}}


def envelope(code, message="x"):
    """Return the body of a rejection, as a customer can attach it as a file."""
    return json.dumps({"_meta": {"status": "ERROR"}, "records": {"errorCode": code, "userMessage": message}})


@pytest.fixture
def own(connected):
    """The URL of an attachment on the connection's own Onebox."""
    return f"{connected.url}/files/{connected.state.ids()[0]}/0.txt"


@pytest.fixture
def public(own):
    """The URL of one on another host, which rejects whoever sends a token."""
    return own.replace("127.0.0.1", "localhost").replace("/files/", "/public/")


def test_operator(connected, tmp_path, said):
    """Each message says where its attachments are, those on another host only if that host is allowed."""
    connected.state.configure(attachment_size=100_000)
    ids = [row_id for row_id in connected.state.ids() if int(row_id) % 4][:8]
    path = tmp_path / "m.jsonl"

    def execute(**options):
        task = OneboxListConversationsOperator(task_id="t", tickets=ids, output_path=path, **options)
        return task.execute({})

    folder = {"attachments_path": tmp_path / "f"}
    result = execute(**folder, attachment_hosts=["LOCALHOST"], parallelism=4)
    assert (result["attachments"], result["attachments_failed"]) == (16, 0)
    messages = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(message["attachmentFiles"]) == bool(message["Attachments"]) for message in messages)
    for message in messages[:2]:
        (stored,) = message["attachmentFiles"]
        name = message["Attachments"][0]["File"]["Name"]
        assert stored == f"{tmp_path}/f/{message['ticketId']}/{message['Id']}-1-{name}"
        content = Path(stored).read_bytes()
        assert content.startswith(f"{message['ticketId']}/{name}\n".encode())
        assert len(content) == 100_000
    assert connected.state.logins == 1
    assert "Downloaded 16 attachments, skipped 0." in said()
    result = execute(**folder, max_attachment_bytes="200000")
    assert (result["attachments"], result["attachments_failed"]) == (8, 8)
    assert "add that host to attachment_hosts" in said()
    assert "attachments" not in execute()
    assert "attachmentFiles" not in path.read_text()


@pytest.mark.parametrize(("size", "limit"), [(0, 1), (1, 1), (1000, 999), (1, 64 * 2**20)])
def test_size(connected, download, own, said, size, limit):
    """A file can be empty, and as large as the limit, which can be a byte, or as much as is read of any response."""
    connected.state.configure(attachment_size=size)
    paths, failed = download(own, max_bytes=limit)
    assert failed == (size > limit)
    assert [Path(path).stat().st_size for path in paths] == [size] * (1 - failed)
    reason = "Attachment 1 of message 7, ticket 12 was not downloaded: it is larger than max_attachment_bytes=999."
    assert (reason in said()) == failed


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://elsewhere.example/x", "on 'elsewhere.example': to download from there, without the token, add"),
        ("//elsewhere.example/x", "on 'elsewhere.example'"),
        ("http://127.0.0.1:1/x", "on '127.0.0.1'"),
        ("ftp://localhost/x", "begins with ftp://, not with https://"),
        ("file:/etc/passwd", "begins with file://"),
        ("http://[x", "is not valid"),
        ("http://127.0.0.1:port/x", "is not valid"),
        ("/files/1/absent.txt", "absent.txt: rejected with status 404."),
        # Checked is the host that is sent, where parsers of URLs disagree about it.
        ("http://elsewhere.example\\@localhost/x", "on 'elsewhere.example'"),
        (None, "gives no URL"),
        (" ", "gives no URL"),
    ],
)
def test_not_to_be_had(download, said, url, message):
    """What can't be downloaded is counted and logged; the rest of the message is not lost."""
    assert download(url, hosts="localhost") == ([], 1)
    assert message in said()


NO_LIST = "What message 7, ticket 12, names as attachments was not downloaded: it is not a list."


@pytest.mark.parametrize(
    ("attachments", "message"),
    [
        *((nothing, None) for nothing in (None, "", [], {})),
        *((odd, NO_LIST) for odd in ("x", 7, named("/x"), {"\u0660": {}})),
        (["x"], "gives no URL"),
        ([{"File": None}], "gives no URL"),
    ],
)
def test_attachments_of_another_form(download, said, attachments, message):
    """What is no list is counted and logged, so that nobody takes it for no attachments, which a message can have."""
    assert download(Attachments=attachments) == ([], bool(message))
    assert (message or "") in said()


def test_list_as_an_object(download, own, tmp_path):
    """PHP writes a list with a gap as an object; a URL without a host is on the connection's own Onebox."""
    attachments = {"0": named(own, "a"), "2": named(urlsplit(own).path, "b")}
    assert download(Attachments=attachments) == ([f"{tmp_path}/files/12/7-1-a", f"{tmp_path}/files/12/7-2-b"], 0)


def test_names_of_hosts(connected, download, public, monkeypatch):
    """A host beyond ASCII is named as people write it or as it is sent, an address of IPv6 in its brackets."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *rest, **options: resolve("127.0.0.1", *rest, **options))
    url = public.replace("localhost", "münchen.example")
    for name in ("münchen.example", "MÜNCHEN.example", "xn--mnchen-3ya.example"):
        assert download(url, hosts=[name])[1] == 0
    assert download(url, hosts=["munchen.example"]) == ([], 1)
    assert download(public.replace("localhost", "[::1]"), hosts=["[::1]"])[1] == 0


def test_redirect_beyond_ascii(connected, download, own):
    """A file's name in a redirect is read as the UTF-8 that servers send; one in Latin-1 does no harm."""
    target = own.replace("0.txt", "Übersicht.txt")
    for raw, name in ((target.encode().decode("latin-1"), "Übersicht.txt"), (target, "bersicht.txt")):
        connected.state.fail("status", path="/files/", status=302, headers={"Location": raw})
        (path,), _ = download(own)
        assert name in Path(path).read_text()


def test_redirects(connected, download, own, public, said):
    """A redirect is followed where the attachment itself might be, without the token where it is another host."""

    def redirect(target, times=1):
        connected.state.fail("status", path="/files/", status=302, headers={"Location": target}, times=times)

    redirect(public)
    assert download(own, hosts=["localhost"])[1] == 0
    redirect(own.replace("0.txt", "1.txt"))
    assert Path(download(own)[0][0]).read_text().startswith(own.split("/")[-2] + "/1.txt")
    redirect(public)
    assert download(own) == ([], 1)
    redirect(own, times=5)
    assert download(own)[1] == 0
    redirect(own, times=6)
    assert download(own) == ([], 1)
    assert "redirected more than 5 times" in said()
    connected.state.fail("status", path="/files/", status=300)
    assert download(own) == ([], 1)
    assert "redirected (300) to 'nowhere'." in said()
    connected.state.calm()
    redirect("/login?next=x")
    assert download(own) == ([], 1)
    assert "redirected (302) to '/login', a login page." in said()
    assert connected.state.logins == 7


API = [
    "/api/connection?limit=100",
    "/api/ticket/close?id=77",
    "/API/connection",
    "/%61pi/connection",
    "/%2561pi/connection",
    "/%25252525252561pi/connection",
    "{}//api/connection",
    "{}/./api/connection",
    "{}/.%2Fapi/connection",
    "/x/../api/connection",
    "/x/%2e%2e/api/connection",
    "/x%2f..%2fapi/connection",
    "{}/x\\..\\api\\connection",
    "/api;x/connection",
    "/api%00/connection",
    "/api./connection",
    "/api",
    "/index.php/api/connection",
    "/index.php?_url=/api/connection",
    "/?r=%2Fapi%2Fconnection",
    "http://me:secret@127.0.0.1:{port}/api/connection",
    "/files/../x.txt%2f..%2f",
]


@pytest.mark.parametrize(
    ("how", "path"),
    [
        *(("named", path) for path in API),
        *((how, path) for how in ("redirect", "redirect of another host") for path in API[:4]),
    ],
)
def test_api_is_no_place_for_files(connected, download, own, public, said, how, path):
    """No URL that a customer writes makes the task ask the API, in whatever case and encoding."""
    url = path.format(connected.url, port=connected.port)
    if how != "named":
        url = url if "://" in url else f"{connected.url}{url}"
        connected.state.fail("redirect", path="/files/|/public/", location=url)
        url = own if how == "redirect" else public
    assert download(url, hosts=["localhost"]) == ([], 1)
    assert "in the API, or outside of the connection's Onebox URL, on '127.0.0.1'" in said()
    assert len(connected.state.seen) == {"named": 0, "redirect": 2, "redirect of another host": 1}[how]


def test_api_without_the_token(connected, download):
    """Who names Onebox's own host in attachment_hosts lets the API be asked as a stranger would ask it."""
    assert download("/api/connection", hosts=["127.0.0.1"]) == ([], 1)
    (seen,) = connected.state.seen
    assert "authorization" not in seen.headers


@pytest.mark.parametrize("name", ["API documentation.pdf", "my-api.txt", "a..b", "api.json", "apis", "100%.pdf"])
def test_names_that_are_not_the_api(connected, download, own, name):
    """A file can have a name like the API's."""
    assert download(own.replace("0.txt", quote(name)))[1] == 0


@pytest.mark.parametrize(
    "url", ["/files/1/0", "/voc2/files/1/0", "/VOC/files/1/0", "/voc/../files/1/0", "/voc%2ffiles/1/0"]
)
def test_outside_of_the_base_path(connect, download, said, url):
    """What is beside the base path on the same host belongs to somebody else."""
    with Sandbox(records=5, base_path="/voc") as sandbox:
        connect(sandbox.url, login=sandbox.email, password=sandbox.password)
        inside = f"{sandbox.url}/files/{sandbox.state.ids()[0]}/0.txt"
        (path,), failed = download(url, inside)
        assert (path[-9:], failed) == ("7-2-a.txt", 1)
        asked = [seen.path for seen in sandbox.state.seen if "authenticate" not in seen.path]
        assert asked == [urlsplit(inside).path]
    assert "outside of the connection's Onebox URL, on '127.0.0.1': to download from there" in said()


@pytest.mark.parametrize(
    ("content", "asks"),
    [
        *((content, 1) for content in (envelope(401, "Expired token"), envelope(503), envelope(401, QUOTA))),
        ('{"error": "x"}', 1),
        # A file that is too large for a rejection is not looked into.
        *((envelope(401, "x" * (size - len(envelope(401, "")))), asks) for size, asks in ((4096, 1), (4097, 0))),
    ],
)
@pytest.mark.parametrize("other", [False, True])
def test_files_that_look_like_rejections(connected, download, own, public, content, asks, other):
    """A file that comes with success is the file: no new login, and no error, because of what it holds."""
    connected.state.fail("status", path="/files/|/public/", status=200, body=content, times=9)
    (path,), failed = download(public if other else own, hosts=["localhost"])
    assert (Path(path).read_text(), failed) == (content, 0)
    assert connected.state.logins == (not other)
    assert connected.state.requests["GET list"] == (0 if other else asks)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "br", "gzip, gzip", "nonsense"])
@pytest.mark.parametrize("content", [b"\x01\x02\x03", gzip.compress(b"x" * 1000)], ids=["bytes", "gzip"])
def test_encoded_files(connected, download, own, encoding, content):
    """A file is asked for uncompressed and stored as it is sent, however its encoding is named."""
    connected.state.fail("status", path="/files/", status=206, body=content, headers={"Content-Encoding": encoding})
    (path,), _ = download(own)
    assert Path(path).read_bytes() == content
    assert connected.state.seen[-1].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(("times", "failed"), [(1, 0), (4, 0), (5, 1)])
def test_encoded_many_times(connected, download, own, times, failed):
    """A URL that is encoded too often is not followed to its end, and gets no token."""
    name = "a b"
    for _ in range(times):
        name = quote(name)
    assert download(own.replace("0.txt", name)) == ([] if failed else [ANY], failed)


def test_unencrypted(connect, download, said):
    """No file is requested without encryption, unless Onebox itself is."""
    connect("https://dev.example")
    download("http://dev.example/x", "https://dev.example:port/?signature=s1gned", hosts=["dev.example"])
    logged = said()
    assert "its URL begins with http://, not with https://." in logged
    assert "its URL 'https://dev.example:port/' is not valid." in logged


@pytest.mark.parametrize(
    ("fault", "message", "tries"),
    [
        ({"kind": "status", "status": 503}, "rejected with status 503.", 4),
        ({"kind": "status", "status": 429}, "rejected with status 429.", 4),
        ({"kind": "status", "status": 401}, "rejected with status 401.", 1),
        ({"kind": "status", "status": 403}, "rejected with status 403.", 1),
        ({"kind": "status", "status": 503, "headers": {"Retry-After": "31"}}, "rejected with status 503.", 1),
        ({"kind": "redirect"}, "redirected (302) to '/Login', a login page.", 1),
        ({"kind": "truncated"}, "broke off after the request was sent", 4),
        ({"kind": "raw"}, "broke off after the request was sent", 4),
    ],
)
@pytest.mark.parametrize("other", [False, True])
def test_files_that_always_fail(connected, download, own, public, said, waits, fault, message, tries, other):
    """One file never ends an export: it is tried again within bounds, skipped, counted and named, without a login."""
    connected.state.fail(**fault, path="/files/|/public/", times=99)
    assert download(public if other else own, hosts=["localhost"]) == ([], 1)
    logged = said()
    assert f"Attachment 1 of message 7, ticket 12 was not downloaded: GET {public if other else own}: " in logged
    assert message in logged
    assert connected.state.requests["GET other" if other else "GET files"] == tries
    assert waits == [1, 2, 4][: tries - 1]
    assert connected.state.logins == (not other)
    # Onebox is asked once whether it, or the token, is the reason.
    assert connected.state.requests["GET list"] == (not other and fault.get("status") != 403)


def test_transient_errors(connected, download, own, waits):
    """A download is tried again, after as long as the server asks for."""
    connected.state.fail("status", path="/files/", status=503, headers={"Retry-After": "30"})
    connected.state.fail("status", path="/files/", status=500)
    assert download(own)[1] == 0
    assert waits == [30, 2]
    assert connected.state.requests["GET list"] == 0


def test_few_retries(connected, download, own, waits):
    """After many failures, a download is tried once only."""
    connected.state.fail("status", path="/files/", status=500, times=999)
    assert download(*([own] * 25)) == ([], 25)
    assert len(waits) == 20 * 3


def test_onebox_is_down(connected, connect, download, own):
    """Where it is Onebox that can't be used, the task fails, so that a retry downloads what is missing."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)

    def fail(file_status, kind, **options):
        connected.state.calm()
        connected.state.fail("status", path="/files/", status=file_status)
        connected.state.fail(kind, path="ticketrz", **options)

    fail(503, "status", status=503, times=9)
    with pytest.raises(OneboxUnavailableError, match=r"GET ticketrz: not available \(503\)") as caught:
        download(own)
    assert caught.value.retryable
    fail(401, "envelope", status=401, code="401", message=QUOTA)
    with pytest.raises(OneboxServiceHoursError):
        download(own)
    fail(401, "envelope", status=500)
    with pytest.raises(OneboxRequestError):
        download(own)
    fail(401, "envelope", status=403)
    assert download(own) == ([], 1)
    connected.state.configure(outside_service_hours=True, service_hours_login=True)
    with pytest.raises(OneboxServiceHoursError):
        download(own)


@pytest.mark.parametrize(
    "fault",
    [None, {"kind": "redirect"}, {"kind": "envelope", "status": 200, "code": 401, "message": "Expired token"}],
    ids=["401", "login page", "under 200"],
)
def test_expired_token(connected, connect, download, own, fault):
    """A token that Onebox no longer accepts is renewed, once Onebox itself has said so."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    client = OneboxHook().client
    client.tokens.get()
    connected.state.revoke()
    if fault:
        connected.state.fail(path="/files/", **fault)
    (path,), _ = download(own, client=client)
    assert Path(path).read_bytes().startswith(b"1")
    assert (connected.state.logins, connected.state.requests["GET files"]) == (2, 2)


def test_long_errors(connected, download, own):
    """The limit is for files: the length of an error's page does not matter."""
    connected.state.configure(attachment_size=10)
    page = {"path": "/files/", "body": "x" * 1000}
    connected.state.fail("status", status=503, **page)
    assert download(own, max_bytes=10)[1] == 0
    connected.state.fail("status", status=302, headers={"Location": own.replace("0.txt", "1.txt")}, **page)
    assert download(own, max_bytes=10)[1] == 0


def test_rejected_login(connected, connect, download, own):
    """A rejected login is not the file's fault, also when the token expires as the file is requested."""

    def issue(_):
        raise OneboxAuthError("no")

    tokens = TokenSource(issue, Token("t", use_until=1.0), clock=iter([0.0, 2.0, 2.0]).__next__)
    with pytest.raises(OneboxAuthError, match=r"^no$"):
        download(own, client=OneboxClient(OneboxHook().settings, tokens=tokens))
    connect(connected.url, login=connected.email, password="wrong")
    with pytest.raises(OneboxAuthError):
        download(own)


def test_secrets_in_urls(download, own, said):
    """What a URL holds of secrets is not shown: a user's password, or a signature in the query."""
    url = own.replace("http://", "http://me:pa55word@").replace("0.txt", "absent/x?signature=s1gned")
    assert download(url) == ([], 1)
    # The sandbox runs in the same process, and its server logs what it was asked for.
    logged = "\n".join(line for line in said().splitlines() if "uvicorn" not in line)
    assert "absent/x" in logged
    assert "pa55word" not in logged
    assert "s1gned" not in logged


def test_netrc(connected, download, public, tmp_path, monkeypatch):
    """Another host gets no login of the worker's either."""
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert download(public, hosts=["localhost"])[1] == 0


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a b\n<c>.pdf", "a_b_c_.pdf"),
        ("übersicht.тест", "übersicht.тест"),
        ("漢" * 300 + ".jpeg", "漢" * 40 + ".jpeg"),
        ("𠀀" * 300, "𠀀" * 30),
        ("x" * 121, "x" * 120),
        ("𠀀" * 300 + "." + "𠀀" * 300, "𠀀" * 30 + "." + "𠀀" * 4),
        ("x." + "y" * 300, "x." + "y" * 16),
        (".", "file"),
        (None, "file"),
        (7, "7"),
    ],
)
def test_names(connected, download, own, tmp_path, name, plain):
    """No name leads out of the folder, and each can be one on a file system."""
    (path,), _ = download(Attachments=[named(own, name)])
    assert path == f"{tmp_path}/files/12/7-1-{plain}"
    assert Path(path).exists()


LONG = "𠀀" * 99


@pytest.mark.parametrize(
    ("messages", "paths"),
    [
        # Ids and numbers of attachments don't run together.
        (
            [("7-1", "a"), ("7", "1-a"), ("7", "b"), ("7.2", "c"), ("7.2", "d"), (7, "e")],
            ["7_1-1-a", "7-1-1-a", "7.2-1-b", "7.2.3-1-c", "7.2.4-1-d", "7.5-1-e"],
        ),
        # No ids, and equal ones, as a comment and a mail may have.
        ([(None, "a"), (None, "a"), ("7", "a"), ("7/", "a")], ["no-id-1-a", "no-id.1-1-a", "7-1-a", "7_-1-a"]),
        # Long ids that begin alike.
        *(
            ([(letter * 60 + end, f"{LONG}.{LONG}") for end in "ab"], [f"{cut}-1-{name}", f"{cut}.1-1-{name}"])
            for letter, kept in (("x", 60), ("漢", 20), ("𠀀", 15))
            for cut, name in [(letter * kept, f"{LONG[:30]}.{LONG[:4]}")]
        ),
    ],
)
def test_no_path_twice(connected, own, download, tmp_path, messages, paths):
    """No two attachments share a path, however long their messages' ids and names are and however alike they look."""
    ticket = "漢" * 60
    found, _ = download(
        messages=[{"Id": row_id, "ticketId": ticket, "Attachments": [named(own, name)]} for row_id, name in messages]
    )
    assert found == [f"{tmp_path}/files/{ticket[:20]}/{path}" for path in paths]


def test_again(connected, download, own, tmp_path):
    """A retry replaces the files by the same ones."""
    found = download(own)
    assert found == download(own) == ([f"{tmp_path}/files/12/7-1-a.txt"], 0)
    assert len(list((tmp_path / "files/12").iterdir())) == 1


def test_url_of_a_folder(connected, own, download, tmp_path):
    """The folder is a path as ObjectStoragePath takes it, with or without a slash at its end."""
    found = download(own, folder=f"file://{tmp_path}/f_/", hosts=None)
    assert found == ([f"file://{tmp_path}/f_/12/7-1-a.txt"], 0)
    assert (tmp_path / "f_/12/7-1-a.txt").read_bytes()


def test_file_that_cannot_be_written(download, own, tmp_path):
    """A file that can't be written fails the task; if a folder is in its place, the argument for that is named."""
    (tmp_path / "files").write_text("")
    with pytest.raises(
        OneboxError, match=r"7-1-a\.txt was not written: .+ \(an existing file is unchanged\)"
    ) as caught:
        download(own)
    assert caught.value.retryable
    (tmp_path / "files").unlink()
    (tmp_path / "files/12/7-1-a.txt").mkdir(parents=True)
    with pytest.raises(OneboxConfigError, match=r"attachments_path='.*/7-1-a\.txt' is a folder"):
        download(own)


@pytest.mark.parametrize("count", [20, 21, 30])
def test_log_is_bounded(download, caplog, count):
    """Of very many attachments that can't be had, the log names the first ones, and says once that there are others."""
    assert download(*(["ftp://127.0.0.1/x"] * count), hosts="127.0.0.1")[1] == count
    logged = [record.getMessage() for record in caplog.records if record.name == attachments.log.name]
    named = [re.match("Attachment ([0-9]+) of message 7, ticket 12 was not downloaded", line) for line in logged[:20]]
    assert [int(match[1]) for match in named if match] == list(range(1, 21))
    assert logged[20:] == ["Further attachments that can't be downloaded are only counted."] * (count > 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attachments_path": " "}, "attachments_path=' ' names no folder"),
        ({"attachments_path": "None"}, "names no folder"),
        ({"attachments_path": "nowhere://x"}, "attachments_path='nowhere://x/attachment' can't be reached"),
        ({"max_attachment_bytes": 0}, "max_attachment_bytes='0' is not a whole number from 1 to 67108864"),
        ({"max_attachment_bytes": "many"}, "max_attachment_bytes='many'"),
        ({"max_attachment_bytes": 2**26 + 1}, "max_attachment_bytes='67108865'"),
        ({"max_failed_attachments": -1}, "max_failed_attachments='-1' is not a whole number of at least 0"),
        ({"attachment_hosts": ["https://x.example"]}, "host names: write them like 'files.example.com'"),
        ({"attachment_hosts": [7]}, "is not a list of host names"),
        ({"attachment_hosts": ["ü_.example"]}, "is not a list of host names"),
    ],
)
def test_bad_arguments(connected, tmp_path, arguments, message):
    """What can't work is rejected before anything is sent."""
    options = {"attachments_path": tmp_path / "f", "tickets": ["1"], "output_path": tmp_path / "m", **arguments}
    with pytest.raises(OneboxConfigError, match=message.replace("(", r"\(")):
        OneboxListConversationsOperator(task_id="t", **options).execute({})
    assert not connected.state.requests
