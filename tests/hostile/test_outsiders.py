"""What customers write in messages and attach to them never makes a task do anything but store it.

CHAOS_CONVERSATIONS sets the number of exports.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from random import Random
from urllib.parse import unquote, urlsplit

import pytest
from hostile.faults import FAULTS
from hostile.test_replies import LOGIN, Scripted, client_of, http
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_onebox.exceptions import OneboxError
from airflow_provider_onebox.files.attachments import Attachments
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator

RUNS = int(os.environ.get("CHAOS_CONVERSATIONS", "12"))
TICKETS = 6

# fmt: off
pieces = st.sampled_from([
    "/", "//", "\\", ".", "..", "%2e", "%2F", "%5c", "%25", "api", "API", "%61pi", "a%70i", "%2561pi", "Api", ";x",
    "%00", "%20", "voc", "VOC", "https:", "https://dev.example", "https://dev.example/voc", "http://dev.example:443",
    "https://me@dev.example/voc", "https://dev.example:443/voc/", "https://files.example", "//files.example",
    "connection", "index.php", "?_url=", "?", "#", "&", "=", "@", ":", "\t", "\n", " ", "é", "漢", "x.txt",
])
# fmt: on
links = st.lists(pieces, max_size=9).map("".join) | st.text(max_size=30)


def places(url):
    """List the places that a server can find in a URL, however often and in whichever order it decodes and resolves."""
    parts = urlsplit(url)
    texts = [f"{parts.path}?{parts.query}"]
    while (decoded := unquote(texts[-1])) != texts[-1]:
        texts.append(decoded)
    for text in texts:
        for spelled in (text, text.replace("\\", "/")):
            path = spelled.partition("?")[0]
            for one in (path, re.sub(r";[^/]*", "", path), path.rstrip(". \0")):
                resolved: list[str] = []
                for part in one.split("/"):
                    if part == "..":
                        resolved[-1:] = []
                    elif part not in ("", "."):
                        resolved.append(part.rstrip(". \0"))
                yield "/" + "/".join(resolved)
            # A router that takes the place from its path info or from a parameter.
            yield from re.findall(r"(?:\.php(?=/)|=)(/?.*)", spelled)


@example("%" + "25" * 5000, None)
@example("/" * 50_000, None)
@example("https://" + "a" * 70_000, None)
@example("https://[::1]" * 99, None)
@example("\ud83d", None)
@example("\0", None)
@example("https://\ud83d", None)
@example("/voc/%61pi/connection", None)
@example("https://dev.example/voc/x/..%2fapi/connection", None)
@example("https://files.example/x", "https://dev.example/voc/index.php?_url=/api/connection")
@given(links, st.none() | links)
def test_token(tmp_path, link, redirect):
    """For any URL and redirect, the token goes below the Onebox URL alone, and never to its API."""
    client, adapter = client_of(LOGIN)
    client.tokens.get()
    responses = [http(200, b"x")]
    if redirect:
        responses.insert(0, http(302, b"", [(b"Location", re.sub(r"[\r\n]", "", redirect).encode())]))
    other = Scripted(*responses)
    adapter.sent, adapter.responses = [], responses
    downloads = Attachments(client, tmp_path, max_bytes=100, hosts=["files.example"], pause=lambda seconds: None)
    downloads._session.mount("https://", other)
    (message,) = downloads.download([{"Id": "7", "Attachments": [{"File": {"Name": "a", "Path": link}}]}])
    assert len(message["attachmentFiles"]) + downloads.failed == 1
    for request in other.sent:
        assert urlsplit(request.url).hostname == "files.example"
        assert "Authorization" not in request.headers
    for request in adapter.sent:
        assert re.match(r"https://([^/]*@)?dev\.example(:443)?/voc/", request.url)
        for place in places(request.url):
            assert not re.match(r"(/voc)?/?api(/|$)", place.casefold()), request.url


API = (
    "/api/connection?limit=100",
    "/api/ticket/close?id=77",
    "/%61pi/connection",
    "{}//api/connection",
    "{}/./api/connection",
)
REJECTIONS = [
    json.dumps({"_meta": {"status": "ERROR"}, "records": {"errorCode": code, "userMessage": message}})
    for code, message in ((401, "Expired token"), (503, "busy"), ("401", "time limit reached"), (404, "no such ticket"))
]
CONTENTS = [
    *REJECTIONS,
    '{"error": "x"}',
    '{"response_code": "500"}',
    "<html>Login</html>",
    "",
    "\x1f\x8b\x08",
    "x" * 9999,
]
ENCODINGS = (None, None, "gzip", "x-gzip", "br", "deflate", "gzip, gzip")
IDS = ("7", "7", 7, None, "7-1", "7.2", "漢" * 60, "𠀀" * 60, "../../x", "a/b", "", {"Id": 1}, "\0")
NAMES = (
    "a.txt",
    "1-a.txt",
    None,
    "../../etc/passwd",
    "漢" * 300 + ".pdf",
    "𠀀" * 300,
    ".",
    "a\nb",
    7,
    ["x"],
    "x." + "y" * 300,
)
BROKEN = (
    {"kind": "empty"},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 504},
    {"kind": "html"},
    {"kind": "envelope", "status": 403},
    {"kind": "drop_before"},
    {"kind": "truncated", "variant": "json"},
    {"kind": "not_json"},
    {"kind": "redirect"},
    *(
        {"kind": "wrong_type", "value": value}
        for value in (None, [], 7, {"data": [1]}, {"data": {"x": {}}}, {"data": "x"})
    ),
)


class Outsider:
    """Writes messages with attachments, and knows what must become of each."""

    def __init__(self, sandbox, chance):
        self.state, self.url, self.chance = sandbox.state, sandbox.url, chance
        self.public = self.url.replace("127.0.0.1", "localhost")
        self.good = sandbox.state.ids()[-1]
        self.files = 0

    def file(self):
        """Make an attachment; return it with its content, or with None if it can't be downloaded."""
        chance, name = self.chance, self.chance.choice(NAMES)
        self.files += 1
        path = f"/files/{self.files}/x"
        own = chance.choice([path, self.url + path])
        content = None
        match chance.choice(
            ["good", "public", "content", "content", "content", "failing", "redirect", "api", "nonsense"]
        ):
            case "good":
                own, content = f"/files/{self.good}/0.txt", (f"{self.good}/0.txt\n".encode() * 100)[:1000]
            case "public":
                own, content = f"{self.public}/public/{self.good}/1.txt", (f"{self.good}/1.txt\n".encode() * 100)[:1000]
            case "content":
                content, encoding = chance.choice(CONTENTS).encode("latin-1"), chance.choice(ENCODINGS)
                headers = {"Content-Encoding": encoding} if encoding else {}
                self.fail(path, "status", status=chance.choice([200, 200, 203, 206]), body=content, headers=headers)
            case "failing":
                kind = chance.choice(["status", "status", "status", "drop_before", "truncated", "raw"])
                self.fail(path, kind, status=chance.choice([400, 401, 403, 404, 429, 500, 502, 503, 504]))
            case "redirect":
                target = chance.choice([*API, "/Login", "/login?x=1", "ftp://x/", own, "http://[", ""]).format(self.url)
                self.fail(path, "redirect", location=target)
            case "api":
                own = chance.choice(API).format(self.url)
            case "nonsense":
                own = chance.choice([None, "", 7, "http://[", "file:/etc/passwd", "http://elsewhere.example/x", ["x"]])
        return {"Description": "x", "File": {"Name": name, "Path": own}}, content

    def fail(self, path, kind, **options):
        """Let a file always fail in a way."""
        self.state.fail(kind, path=f"{path}$", times=10**9, **options)

    def message(self):
        """Make a message; return it with what must become of its attachments."""
        files = [self.file() for _ in range(self.chance.randrange(4))]
        named, contents = [file for file, _ in files], [content for _, content in files]
        match self.chance.choice(["list", "list", "object", "odd"]):
            case "object":
                named = {str(2 * number): file for number, file in enumerate(named)}
            case "odd":
                named, contents = self.chance.choice(
                    [("x", [None]), (7, [None]), ({"File": 1}, [None]), (None, []), ("", [])]
                )
        return {
            "Id": self.chance.choice(IDS),
            "Content": self.chance.choice(REJECTIONS),
            "Attachments": named,
        }, contents

    def conversation(self, ticket):
        """Let a ticket have a conversation; return what must become of its attachments, None if it is not read."""
        match self.chance.choice(["hostile"] * 6 + ["broken", "missing"]):
            case "broken":
                self.state.fail(**self.chance.choice(BROKEN), path=f"conversations/{ticket}$", times=10**9)
                return None
            case "missing":
                self.state.delete([ticket])
                return None
        found = [self.message() for _ in range(self.chance.randrange(4))]
        data = [message for message, _ in found]
        if self.chance.random() < 0.3:
            data = {str(3 * number): message for number, message in enumerate(data)}
        self.state.fail("wrong_type", path=f"conversations/{ticket}$", times=10**9, value={"data": data})
        return [contents for _, contents in found]


@pytest.mark.usefixtures("impatient")
def test_conversations(sandbox, connect, capsys, tmp_path):
    """Each readable message is written once, each file is what was sent, and all others are counted."""
    connect(sandbox.url, login=sandbox.email, password=sandbox.password, timeout=2, max_retries=1)
    tally: Counter[str] = Counter()
    failures = []
    for seed in range(RUNS):
        chance = Random(seed)  # noqa: S311 - no secret
        sandbox.state.seed = seed
        sandbox.state.reset()
        tickets = sandbox.state.ids()[:TICKETS]
        outsider = Outsider(sandbox, chance)
        expected = [outsider.conversation(ticket) for ticket in tickets]
        has_faults = seed % 4 == 3
        if has_faults:
            sandbox.state.configure(fault_rate=0.1, fault_kinds=FAULTS)
        folder, path = tmp_path / str(seed), tmp_path / f"{seed}.jsonl"
        task = OneboxListConversationsOperator(
            task_id="t",
            tickets=tickets,
            output_path=path,
            parallelism=chance.choice([1, 2, 4]),
            attachments_path=folder,
            attachment_hosts=["localhost"],
            max_failed_share=1,
        )
        read = [contents for contents in expected if contents is not None]
        try:
            result = task.execute({})
        except OneboxError as error:
            if not read:
                tally["nothing to read"] += 1
            elif has_faults and (error.retryable or "POST authenticate: Onebox rejected the login" in str(error)):
                tally["ended by faults"] += 1
            else:
                failures.append((seed, repr(error)))
            assert not path.exists()
            result = None
        check_requests(sandbox.state, tally)
        if not has_faults:
            tally["logins by content"] += sandbox.state.logins - 1
        if result is not None:
            check_result(
                result, [json.loads(line) for line in path.read_text().splitlines()], expected, tally, has_faults
            )
            stored = {str(file) for file in folder.rglob("*") if file.is_file()}
            tally["files of nobody"] += len(stored) - result["attachments"]
            tally["outside of the folder"] += sum(not re.fullmatch(rf"{folder}/[^/]+/[^/]+", name) for name in stored)
            tally["exports"] += 1
    with capsys.disabled():
        print(f"\n{dict(tally)}")  # noqa: T201 - the figures that the release notes quote
    assert all(tally[name] > 0 for name in ("exports", "downloaded", "skipped", "unread", "messages"))
    assert failures == []
    problems = (
        "asked the API",
        "token to another host",
        "lost",
        "another content",
        "miscounted",
        "files of nobody",
        "outside of the folder",
        "logins by content",
    )
    assert {name: tally[name] for name in problems} == dict.fromkeys(problems, 0)


def check_requests(state, tally):
    """Look at what was asked for."""
    for seen in state.seen:
        has_token = "authorization" in seen.headers
        asks = re.fullmatch(r"/api/(authenticate|ticketrz|ticket/conversations/\d+)", seen.path)
        tally["asked the API"] += seen.path.casefold().startswith("/api") and not asks
        tally["asked the API"] += seen.path == "/api/ticketrz" and seen.query != "limit=1"
        tally["token to another host"] += has_token and not (asks or seen.path.startswith("/files/"))


def check_result(result, messages, expected, tally, has_faults):
    """Compare what was written with what was sent."""
    read = [contents for contents in expected if contents is not None]
    wanted = sum(len(contents) for contents in read)
    skipped = result["missing"] + result["failed"]
    tally["messages"] += len(messages)
    tally["unread"] += skipped
    tally["lost"] += len(messages) != wanted if not has_faults else len(messages) > wanted
    tally["lost"] += skipped != len(expected) - len(read) if not has_faults else skipped < len(expected) - len(read)
    files = [path for message in messages for path in message["attachmentFiles"]]
    tally["downloaded"] += len(files)
    tally["skipped"] += result["attachments_failed"]
    tally["miscounted"] += (result["count"], result["attachments"]) != (len(messages), len(set(files)))
    if has_faults:
        return
    named = [contents for conversation in read for contents in conversation]
    tally["miscounted"] += result["attachments"] + result["attachments_failed"] != sum(map(len, named))
    for message, contents in zip(messages, named, strict=True):
        found = [Path(path).read_bytes() for path in message["attachmentFiles"]]
        tally["another content"] += found != [content for content in contents if content is not None]
