"""The forms of conversations, messages and attachments in requests and responses."""

from __future__ import annotations

import pytest

from airflow_provider_onebox.api.messages import greatest_id, messages_in
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files import uploads
from airflow_provider_onebox.files.uploads import read_files, read_ticket_files

DEEP = {"data": [{"Id": "1"}]}
for _ in range(3000):
    DEEP = {"type": "thread", "data": [DEEP]}


@pytest.mark.parametrize(
    ("reply", "ids"),
    [
        ({"data": []}, []),
        ({"data": [{"Id": "1"}, {"type": "t", "data": [{"Id": "2"}, {"data": [{"Id": "3"}]}]}, {"Id": "4"}]}, "1234"),
        ({"data": [{"data": []}, {"Id": "1", "data": None}]}, "1"),
        ({"data": {}}, []),
        ({"data": {"0": {"Id": "1"}, "2": {"data": {"1": {"Id": "2"}}}, "3": {"Id": "3", "data": {"a": 1}}}}, "123"),
        (DEEP, "1"),
    ],
    ids=["none", "threads", "empty thread", "empty object", "objects", "deep"],
)
def test_flatten(reply, ids):
    """Messages come in the order in which they would be read, however deep they are, with the ticket's id."""
    found = messages_in(reply, "7")
    assert [message["Id"] for message in found] == list(ids)
    assert all(message["ticketId"] == "7" for message in found)


@pytest.mark.parametrize(
    "reply",
    [None, [], "x", {}, {"data": None}, {"data": {"a": {}}}, {"data": [1]}, {"data": [[]]}, {"data": {"\u0661": {}}}],
)
def test_no_conversation(reply):
    """What is no conversation is none, not an empty one."""
    assert messages_in(reply, "7") is None


def test_greatest_id():
    """The newest message is that with the greatest number, and what has none is passed over."""
    assert greatest_id([{"Id": "9"}, {"Id": 10}, {"Id": None}, {}, "x", {"Id": "9" * 5000}]) == "10"
    assert greatest_id([]) is None


def test_read_files(tmp_path):
    """Files come with their names, contents and media types, whichever way they are named."""
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"")
    first, second = ("a.txt", b"one", "text/plain"), ("b", b"", "application/octet-stream")
    paths = [str(tmp_path / "a.txt"), tmp_path / "b"]
    assert read_files(paths) == [first, second]
    assert read_files(paths[1]) == [second]
    assert read_files(None) == read_files([]) == []
    assert read_ticket_files(paths[0], tuple(paths)) == [("attachment", first), ("file", first), ("file", second)]


def test_files_too_large(tmp_path, monkeypatch):
    """The limit is on all files together, and no more than that is read."""
    monkeypatch.setattr(uploads, "MAX_ATTACHMENT_BYTES", 10)
    (tmp_path / "a").write_bytes(b"123456")
    (tmp_path / "b").write_bytes(b"1234")
    assert len(read_files([tmp_path / "a", tmp_path / "b"])) == 2
    with pytest.raises(OneboxConfigError, match=r"larger than 10 bytes in all \(at .*/a\), so nothing was sent"):
        read_files([tmp_path / "a", tmp_path / "a"])


def test_limit(tmp_path):
    """Onebox takes 20 MiB, so no more is sent."""
    with (tmp_path / "a").open("wb") as file:
        file.truncate(20 * 2**20 + 1)
    with pytest.raises(OneboxConfigError, match=r"larger than 20,971,520 bytes|larger than 20 MiB"):
        read_files(tmp_path / "a")


def test_unreadable_file(tmp_path):
    """A file that can't be read can be there at the next retry; a template that found nothing can't."""
    with pytest.raises(OneboxError, match="none can't be read, so nothing was sent: No such file") as caught:
        read_files(tmp_path / "none")
    assert caught.value.retryable
    for empty in ("None", " ", ["None"], [""]):
        with pytest.raises(OneboxConfigError, match="the template found nothing"):
            read_files(empty)
