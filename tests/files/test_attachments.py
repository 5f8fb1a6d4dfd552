"""Attachments: whole or not at all, from where they may be had, the token for their own Onebox alone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import warnings
from pathlib import Path

import pytest

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.files import attachments
from airflow_provider_onebox.files.attachments import Attachments
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator
from airflow_provider_onebox.sandbox.app import QUOTA


@pytest.fixture
def said(caplog, capsys):
    """Tell what the log says, wherever this Airflow keeps it."""
    caplog.set_level("INFO")
    return lambda: caplog.text + capsys.readouterr().out


@pytest.fixture
def download(connected, tmp_path):
    """Download the attachments of one message: URLs, or attachments as Onebox has them."""

    def run(*urls, max_bytes=10_000, hosts=(), **message):
        downloads = Attachments(OneboxHook().client, tmp_path / "files", max_bytes=max_bytes, hosts=hosts)
        named = [{"File": {"Name": "a.txt", "Path": url}} if isinstance(url, str) else url for url in urls]
        (found,) = downloads.download([{"Id": "7", "ticketId": "12", "Attachments": named, **message}])
        return found["attachmentFiles"], downloads.failed

    return run


@pytest.fixture
def own(connected):
    """The URL of an attachment on the connection's own Onebox."""
    return f"{connected.url}/api/files/{connected.state.ids()[0]}/0.txt"


@pytest.fixture
def public(own):
    """The URL of one on another host, which refuses who sends a token."""
    return own.replace("127.0.0.1", "localhost").replace("/api/files/", "/public/")


def test_operator(connected, tmp_path, said):
    """Each message says where its attachments are, those on another host only if that host is allowed."""
    connected.state.configure(attachment_size=100_000)
    ids = [row_id for row_id in connected.state.ids() if int(row_id) % 4][:8]
    options = {"task_id": "t", "tickets": ids, "output_path": tmp_path / "m.jsonl", "attachments_path": tmp_path / "f"}
    result = OneboxListConversationsOperator(**options, attachment_hosts=["LOCALHOST"], parallelism=4).execute({})
    assert (result["attachments"], result["attachments_failed"]) == (16, 0)
    messages = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert {len(message["attachmentFiles"]) for message in messages if message["Attachments"]} == {1}
    assert {len(message["attachmentFiles"]) for message in messages if not message["Attachments"]} == {0}
    for message in messages[:2]:
        (path,) = message["attachmentFiles"]
        name = message["Attachments"][0]["File"]["Name"]
        assert path == f"{tmp_path}/f/{message['ticketId']}/{message['Id']}-1-{name}"
        content = Path(path).read_bytes()
        assert content.startswith(f"{message['ticketId']}/{name}\n".encode())
        assert len(content) == 100_000
    assert connected.state.logins == 1
    assert "Downloaded 16 attachments, skipped 0." in said()
    result = OneboxListConversationsOperator(**options, max_attachment_bytes="200000").execute({})
    assert (result["attachments"], result["attachments_failed"]) == (8, 8)
    assert "add that host to attachment_hosts" in said()


def test_not_asked_for(connected, tmp_path):
    """Without a folder, nothing is downloaded and the messages are as they came."""
    path = tmp_path / "m.jsonl"
    result = OneboxListConversationsOperator(task_id="t", tickets=connected.state.ids()[:2], output_path=path).execute(
        {}
    )
    assert "attachments" not in result
    assert "attachmentFiles" not in path.read_text()


def test_too_large(connected, download, own, said, tmp_path):
    """One byte too many is too much, whatever the server says of the length; nothing is left of it."""
    connected.state.configure(attachment_size=1000)
    assert download(own, max_bytes=1000)[1] == 0
    for file in (tmp_path / "files" / "12").iterdir():
        file.unlink()
    assert download(own, own, max_bytes=999) == ([], 2)
    assert "message 7, ticket 12 was not downloaded: it is larger than max_attachment_bytes=999" in said()
    assert list((tmp_path / "files" / "12").iterdir()) == []


@pytest.mark.parametrize("limit", [1, 64 * 2**20])
def test_limits_that_can_be_set(connected, download, own, limit):
    """A limit can be as low as a byte and as high as what is read of any reply."""
    connected.state.configure(attachment_size=1)
    assert download(own, max_bytes=limit)[1] == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "http://elsewhere.example/x",
            "on 'elsewhere.example': to download from there, without the token, add",
        ),
        ("//elsewhere.example/x", "on 'elsewhere.example'"),
        ("https://elsewhere.example/x", "on 'elsewhere.example'"),
        ("http://127.0.0.1:1/x", "on '127.0.0.1'"),
        ("ftp://localhost/x", "begins with ftp://, not with https://"),
        ("file:/etc/passwd", "begins with file://"),
        ("http://[x", "is not valid"),
        ("http://127.0.0.1:port/x", "is not valid"),
        ("/api/files/1/absent.txt", "rejected the call (404)"),
        (None, "gives no URL"),
        ("", "gives no URL"),
        (" ", "gives no URL"),
        ({"File": None}, "gives no URL"),
        ("x", "gives no URL"),
    ],
)
def test_not_to_be_had(download, said, url, words):
    """What can't be had for good is counted and told; the rest of the message is not lost."""
    attachment = url if isinstance(url, dict) or url == "x" else {"File": {"Name": "a", "Path": url}}
    if url == "x":
        paths, failed = download(Attachments=["x"])
    else:
        paths, failed = download(attachment, hosts="localhost")
    assert (paths, failed) == ([], 1)
    assert words in said()


@pytest.mark.parametrize("named", [None, "x", {}])
def test_no_attachments(download, named):
    """A message without a list of attachments has none."""
    assert download(Attachments=named) == ([], 0)


def test_relative(download, own, connected):
    """A URL without a host is on the connection's own Onebox."""
    assert download(own.removeprefix(connected.url))[1] == 0


def test_host_as_it_is_asked(connected, download, said):
    """The host that is judged is the one that is asked, also where parsers of URLs disagree about which that is."""
    asked = f"{connected.url.replace('127.0.0.1', 'localhost')}/public/{connected.state.ids()[0]}/0.txt"
    assert download(asked.replace("/public/", "\\@files.example.com/public/"), hosts=["files.example.com"]) == ([], 1)
    assert "it is on 'localhost'" in said()
    assert not connected.state.requests


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
    assert Path(download(own)[0][0]).read_bytes().endswith(b"")
    redirect(public)
    assert download(own) == ([], 1)
    redirect(own, times=5)
    assert download(own)[1] == 0
    redirect(own, times=6)
    assert download(own) == ([], 1)
    assert "redirected more than 5 times" in said()
    connected.state.fail("status", path="/files/", status=300)
    assert download(own) == ([], 1)
    assert "redirected (300) to 'nowhere'" in said()
    connected.state.calm()
    redirect("/login?next=x")
    assert download(own) == ([], 1)
    assert "its login page" in said()


def test_transient_errors(connected, connect, download, own, public):
    """A read is retried; what lasts fails the task, names the host, and a retry of that can help."""
    connected.state.fail("status", path="/files/", status=503, headers={"Retry-After": "0"})
    assert download(own)[1] == 0
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    for kind, words in (("status", r"not available \(503"), ("truncated", "http://localhost:[0-9]+ can't be reached")):
        connected.state.fail(kind, path="/public/", status=503, times=9)
        with pytest.raises(OneboxUnavailableError, match=words) as caught:
            download(public, hosts=["localhost"])
        assert caught.value.retryable
        connected.state.calm()


def test_long_errors(connected, download, own):
    """The limit is for files: an error or a redirect is read to its end, however long its page is."""
    connected.state.configure(attachment_size=10)
    page = {"path": "/files/", "body": "x" * 1000}
    connected.state.fail("status", status=503, headers={"Retry-After": "0"}, **page)
    assert download(own, max_bytes=10)[1] == 0
    connected.state.fail("status", status=401, **page)
    assert download(own, max_bytes=10)[1] == 0
    assert connected.state.logins == 3
    connected.state.fail("status", status=302, headers={"Location": own.replace("0.txt", "1.txt")}, **page)
    assert download(own, max_bytes=10)[1] == 0


def test_rejections(connected, download, own, public):
    """An expired token is renewed, also under 200; a rejected login fails the task, the same elsewhere does not."""
    connected.state.configure(attachment_size=10)
    assert download(own)[1] == 0
    connected.state.fail("envelope", path="/files/", status=200, code="401", message="Expired token")
    assert download(own)[1] == 0
    assert connected.state.logins == 3
    connected.state.fail("status", path="/public/", status=401, times=9)
    assert download(public, hosts=["localhost"]) == ([], 1)
    connected.state.fail("envelope", path="/files/", status=200, code="401", message="Expired token", times=9)
    with pytest.raises(OneboxAuthError):
        download(own)
    connected.state.calm()
    connected.state.fail("envelope", path="/files/", status=401, code="401", message=QUOTA)
    with pytest.raises(OneboxServiceHoursError):
        download(own)


def test_secrets_in_urls(download, own, said):
    """What a URL holds of secrets is not shown: a user's password, or a signature in the query."""
    url = own.replace("http://", "http://me:pa55word@").replace("0.txt", "absent/x?signature=s1gned")
    assert download(url) == ([], 1)
    # The sandbox runs in the same process, and its server logs what it was asked for.
    words = "\n".join(line for line in said().splitlines() if "uvicorn" not in line)
    assert "absent/x" in words
    assert "pa55word" not in words
    assert "s1gned" not in words


def test_netrc(connected, download, public, tmp_path, monkeypatch):
    """Another host gets no login of the worker's either."""
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert download(public, hosts=["localhost"])[1] == 0


def test_json_and_empty_files(connected, download, own, public):
    """A file is a file, whatever it holds: the rejection of another host's JSON is its content."""
    connected.state.fail("envelope", path="/public/", status=200, code="401", message="Expired token")
    (path,), _ = download(public, hosts=["localhost"])
    assert json.loads(Path(path).read_bytes())
    connected.state.configure(attachment_size=0)
    (path,), _ = download(own)
    assert Path(path).read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a b\n<c>.pdf", "a_b_c_.pdf"),
        ("übersicht.тест", "übersicht.тест"),
        ("漢" * 300 + ".jpeg", "漢" * 40 + ".jpeg"),
        ("x." + "y" * 300, "x." + "y" * 16),
        (".", "file"),
        (None, "file"),
        (7, "7"),
    ],
)
def test_names(connected, download, own, tmp_path, name, plain):
    """No name leads out of the folder, and each can be one on a file system."""
    file = {"Name": name, "Path": own}
    (path,), _ = download({"File": file})
    assert path == f"{tmp_path}/files/12/7-1-{plain}"
    assert Path(path).exists()


@pytest.mark.parametrize("message_id", [None, "7", 7, "7/"])
def test_messages_that_look_alike(connected, own, tmp_path, message_id):
    """Two messages never share a path: not without ids, and not with the same one, as a comment and a mail may have."""
    named = [{"File": {"Name": "a.txt", "Path": own}}] * 2
    downloads = Attachments(OneboxHook().client, tmp_path, max_bytes=10_000, hosts=None)
    messages = [{"Id": one, "ticketId": "1", "Attachments": named} for one in ("7", message_id, message_id)]
    paths = [path for message in downloads.download(messages) for path in message["attachmentFiles"]]
    assert len(set(paths)) == 6
    assert paths[0] == f"{tmp_path}/1/7-1-a.txt"
    assert message_id or paths[2] == f"{tmp_path}/1/no-id-1-a.txt"


def test_again(connected, download, own, tmp_path):
    """A retry replaces the files by the same ones, and what a killed task has left is removed."""
    folder = tmp_path / "files" / "12"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        child = os.fork()
    if not child:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        try:
            download(own)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    (left,) = folder.iterdir()
    assert left.suffix == ".tmp"
    ((path,), _), ((again,), _) = download(own), download(own)
    assert path == again
    assert [file.name for file in folder.iterdir()] == [Path(path).name]


def test_full_disk(connected, download, own, tmp_path, monkeypatch):
    """An attachment that can't be written fails the task, and nothing is left of it."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OneboxError, match=r"7-1-a.txt was not written: No space left on device") as caught:
        download(own)
    assert caught.value.retryable
    assert list((tmp_path / "files" / "12").iterdir()) == []


def test_url_of_a_folder(connected, own, tmp_path):
    """The folder is whatever ObjectStoragePath takes, with or without a slash at its end."""
    downloads = Attachments(OneboxHook().client, f"file://{tmp_path}/f_/", max_bytes=10_000, hosts=())
    (found,) = downloads.download([{"Id": 7, "ticketId": "1", "Attachments": [{"File": {"Name": "a", "Path": own}}]}])
    assert found["attachmentFiles"] == [f"file://{tmp_path}/f_/1/7-1-a"]
    assert (tmp_path / "f_/1/7-1-a").read_bytes()


def test_folder_in_the_way(download, own, tmp_path):
    """A folder where the file has to go is named, with the argument that leads there."""
    (tmp_path / "files/12/7-1-a.txt").mkdir(parents=True)
    with pytest.raises(OneboxConfigError, match=r"attachments_path='.*/7-1-a\.txt' is a folder"):
        download(own)


@pytest.mark.parametrize("count", [20, 21, 30])
def test_log_is_bounded(download, caplog, count):
    """Of very many attachments that can't be had, the log names the first ones, and says once that there are others."""
    assert download(*(["ftp://127.0.0.1/x"] * count), hosts="127.0.0.1")[1] == count
    told = [record.getMessage() for record in caplog.records if record.name == attachments.log.name]
    named = [re.match("Attachment ([0-9]+) of message 7, ticket 12 was not downloaded", line) for line in told[:20]]
    assert [int(match[1]) for match in named if match] == list(range(1, 21))
    assert told[20:] == ["Further attachments that can't be downloaded are only counted."] * (count > 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attachments_path": " "}, "attachments_path=' ' names no folder"),
        ({"attachments_path": "None"}, "names no folder"),
        ({"attachments_path": "nowhere://x"}, "attachments_path='nowhere://x/attachment' can't be reached"),
        ({"max_attachment_bytes": 0}, "max_attachment_bytes='0' is not a whole number from 1 to 67108864"),
        ({"max_attachment_bytes": "many"}, "max_attachment_bytes='many'"),
        ({"max_attachment_bytes": 2**26 + 1}, "max_attachment_bytes='67108865'"),
        (
            {"attachment_hosts": ["https://x.example"]},
            "host names: write them like 'files.example.com'",
        ),
        ({"attachment_hosts": [7]}, "is not a list of host names"),
        ({"attachment_hosts": ["ü_.example"]}, "is not a list of host names"),
    ],
)
def test_bad_arguments(connected, tmp_path, arguments, words):
    """What can't work is refused before anything is sent."""
    options = {"attachments_path": tmp_path / "f", "tickets": ["1"], "output_path": tmp_path / "m", **arguments}
    with pytest.raises(OneboxConfigError, match=words.replace("(", r"\(")):
        OneboxListConversationsOperator(task_id="t", **options).execute({})
    assert not connected.state.requests
