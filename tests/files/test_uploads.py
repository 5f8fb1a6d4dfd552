"""Files that a write sends: which may be named, and what is wrong with one alone."""

from __future__ import annotations

import pytest
from support.bulk import TICKET

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files import uploads
from airflow_provider_onebox.files.uploads import read_files, read_ticket_files


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
    """The limit of Onebox, 20 MiB, is on all files together, and no more than that is read."""
    with (tmp_path / "a").open("wb") as file:
        file.truncate(20 * 2**20 + 1)
    with pytest.raises(OneboxConfigError, match="larger than 20,971,520 bytes"):
        read_files(tmp_path / "a")
    monkeypatch.setattr(uploads, "MAX_ATTACHMENT_BYTES", 10)
    (tmp_path / "a").write_bytes(b"123456")
    (tmp_path / "b").write_bytes(b"1234")
    assert len(read_files([tmp_path / "a", tmp_path / "b"])) == 2
    with pytest.raises(OneboxConfigError, match=r"larger than 10 bytes in all \(at .*/a\), so nothing was sent"):
        read_files([tmp_path / "a", tmp_path / "a"])


def test_unreadable_file(tmp_path):
    """A file that can't be read can be there at the next retry; a template that found nothing can't."""
    with pytest.raises(OneboxError, match="none can't be read, so nothing was sent: No such file") as caught:
        read_files(tmp_path / "none")
    assert caught.value.retryable
    for empty in ("None", " ", ["None"], [""]):
        with pytest.raises(OneboxConfigError, match="the template found nothing"):
            read_files(empty)


def test_files_that_are_missing(connected, bulk, tmp_path, monkeypatch):
    """A row whose file can't exist is rejected and harms no others; a file that can't be read now stops the task."""
    (tmp_path / "there").write_text("x")
    names = ("absent", ".", "there/absent", "n" * 300, "\0", "there")
    rows = [{**TICKET, "attachment": f"{tmp_path}/./{name}"} for name in names]
    root = {"attachments_root": tmp_path.parent}
    assert bulk.run(rows, "ticket", max_failed_share=1, **root)["rejected"] == 5
    assert [line["result"] for line in bulk.results()] == ["rejected"] * 5 + ["done"]
    assert [line.get("message", "").partition("nothing was sent: ")[2] for line in bulk.results()] == [
        "No such file or directory.",
        "Is a directory.",
        "Not a directory.",
        "File name too long.",
        "embedded null byte.",
        "",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "storage_path", lambda path: (_ for _ in ()).throw(FileNotFoundError("of a storage")))
        assert bulk.run(rows, "ticket", max_failed_share=1, **root)["rejected"] == 5
    assert bulk.results()[0]["message"].endswith("/absent can't be read, so nothing was sent: of a storage.")
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "storage_path", lambda path: 1 / 0)
        with pytest.raises(OneboxError, match="can't be read") as caught:
            bulk.run(rows, "ticket", max_failed_share=1, **root)
    assert type(caught.value) is OneboxError
    assert caught.value.retryable


def test_unknown_scheme(connected, bulk):
    """A row whose file is in a storage that Airflow does not know is rejected."""
    row = {**TICKET, "file": ["unheard://bucket/a"]}
    assert bulk.run([row, TICKET], "ticket", max_failed_share=1, attachments_root="unheard://bucket/")["done"] == 1
    assert bulk.results()[0]["message"].startswith("unheard://bucket/a can't be read, so nothing was sent: ")


@pytest.mark.parametrize(("kind", "name"), [("ticket", "attachment"), ("ticket", "file"), ("message", "attachments")])
def test_files_of_the_worker(connected, bulk, tmp_path, kind, name):
    """Rows name files below attachments_root alone, whatever links and dots there are; without one, none."""
    root, outside = tmp_path / "root", tmp_path / "rootless"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "a.txt").write_text("geheim")
    (root / "link").symlink_to(outside)
    (root / "here").symlink_to("a.txt")
    fields = TICKET if kind == "ticket" else {"connection_id": "3", "body": "x"}
    allowed = [f"{root}/a.txt", f"{root}/x/../a.txt", f"file://{root}/here", [f"{root}/a.txt", f"{root}/here"]]
    rejected = ["/proc/self/environ", f"{root}/link/a.txt", f"{root}/../rootless/a.txt", f"{outside}/a.txt", str(root)]
    rejected += [f"file://{outside}/a.txt", f"{root}/x://../../rootless/a.txt", "s3://bucket/a.txt", {"a": 1}]
    rejected += [[f"{root}/a.txt", f"{outside}/a.txt"]]
    rows = [{**fields, name: path} for path in (*allowed, *rejected)]
    assert bulk.run(rows, kind, max_failed_share=1, attachments_root=root)["done"] == len(allowed)
    assert [line["result"] for line in bulk.results()] == ["done"] * len(allowed) + ["rejected"] * len(rejected)
    assert bulk.results()[len(allowed)]["message"] == (
        f"The row names the file '/proc/self/environ', and that is not below attachments_root {root}: nothing was "
        "sent. Set attachments_root to the folder whose files rows may attach."
    )
    assert len(connected.state.books()) == len(allowed)
    for nothing in (None, "", "None"):
        (tmp_path / "results.jsonl").unlink()
        assert bulk.run(rows, kind, max_failed_share=1, attachments_root=nothing)["rejected"] == len(rows)
        assert "', and attachments_root is not set: nothing was sent." in bulk.results()[0]["message"]
    assert len(connected.state.books()) == len(allowed)


@pytest.mark.parametrize("path", ["s3://c@b/f/a", "s3://c@b/f/x/../a"])
def test_resolve_remote(path):
    """In an object storage, dots are resolved as well; a path that names another storage inside is rejected."""
    assert uploads.resolve_below("s3://c@b/f", path) == ["s3://c@b/f/a"]
    assert uploads.resolve_below("s3://c@b/f/", [path]) == ["s3://c@b/f/a"]
    for other in ("s3://c@b/f/../g/a", "s3://c@b/fa", "s3://b/f/a", "gs://c@b/f/a", "s3://c@b/f/a::file://passwd"):
        with pytest.raises(OneboxConfigError, match="is not below attachments_root s3://c@b/f"):
            uploads.resolve_below("s3://c@b/f", [other])
