"""JSON Lines files: whole or not at all, and nothing left behind."""

from __future__ import annotations

import gzip
import json
import logging
import os
import stat

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox import output
from airflow_provider_onebox.output import JsonLinesFile, digest_at, with_progress, without_secrets
from airflow_provider_onebox.paging import Batch

ROWS = [{"Id": "1", "Subject": "é\n"}, {"Id": "2", "Subject": None}]


def write(path, rows=ROWS):
    """Write a file the way the operator does."""
    with JsonLinesFile(str(path)) as file:
        file.write(rows)
        file.finish()
        digest = file.digest()
        file.put_in_place()
    return digest


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_written_as_json_lines(tmp_path, prefix, name):
    """A line a record, compressed by suffix, in a folder that is made if need be."""
    target = tmp_path / "new" / name
    digest = write(f"{prefix}{target}")
    raw = target.read_bytes()
    text = gzip.decompress(raw) if name.endswith(".gz") else raw
    assert [json.loads(line) for line in text.decode().splitlines()] == ROWS
    assert digest == digest_at(str(target))
    assert write(f"{prefix}{target}") == digest
    assert os.listdir(target.parent) == [name]  # noqa: PTH208 - hidden files count


def test_no_records(tmp_path):
    """No records make an empty file, not a blank line."""
    write(tmp_path / "a.jsonl", [])
    assert (tmp_path / "a.jsonl").read_bytes() == b""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_failure_leaves_the_earlier_file(tmp_path, name):
    """A block that fails changes nothing and leaves nothing behind."""
    target = tmp_path / name
    write(target)
    before = target.read_bytes()

    def fail():
        with JsonLinesFile(str(target)) as file:
            file.write([{"Id": "3"}] * 10000)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 - hidden files count


def test_permissions(tmp_path):
    """The target is as readable as any new file, or as its predecessor was."""
    umask = os.umask(0o027)
    try:
        write(tmp_path / "a.jsonl")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o640
    (tmp_path / "a.jsonl").chmod(0o604)
    write(tmp_path / "a.jsonl")
    assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o604


def test_remote_target_is_one_upload(tmp_path, monkeypatch):
    """A target that is not local is written once, from a whole local file, which is removed."""
    uploads = []

    class Remote:
        """Stands in for a bucket's file system."""

        def put_file(self, source, target):
            with open(source, "rb") as file:  # noqa: PTH123 - as a file system would
                uploads.append((target, gzip.decompress(file.read())))

    monkeypatch.setattr(output.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ObjectStoragePath, "protocol", property(lambda self: "s3"))
    monkeypatch.setattr(ObjectStoragePath, "fs", property(lambda self: Remote()))
    write("/bucket/a.jsonl.gz")
    assert [(target, len(text.splitlines())) for target, text in uploads] == [("/bucket/a.jsonl.gz", 2)]
    assert list(tmp_path.iterdir()) == []


def test_digest_of_nothing(tmp_path):
    """Where nothing is, there is no digest."""
    assert digest_at(str(tmp_path / "none")) is None


def test_without_secrets():
    """Secrets go, however they are spelled; the record itself stays as it is."""
    record = {"Id": "1", "Password": "p", "token": "t", "TokenName": "n"}
    assert without_secrets(record) == {"Id": "1", "TokenName": "n"}
    assert record["Password"] == "p"


def test_progress(monkeypatch, caplog):
    """The log tells how far it is every now and then, and at the end."""
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(output.time, "monotonic", lambda: float(next(now)))
    batches = [Batch(ROWS, 2 * n, 100 if n < 4 else None) for n in range(1, 7)]
    with caplog.at_level(logging.INFO):
        assert list(with_progress(batches, "ticketrz")) == batches
    assert [record.getMessage() for record in caplog.records] == [
        "Listed 6 of 100 ticketrz records (0/s).",
        "Listed 12 of an unknown number of ticketrz records (0/s).",
        "Listed 12 ticketrz records in 28.0 s.",
    ]
