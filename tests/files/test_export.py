"""An export writes a whole file, and says what is in it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from support.watermarks import ids, upto

from airflow_provider_onebox.exceptions import OneboxError
from airflow_provider_onebox.files.export import export
from airflow_provider_onebox.files.records import RecordFile


@pytest.mark.parametrize("kind", [str, Path, ObjectStoragePath])
def test_kinds_of_path(tmp_path, kind):
    """A path may be text, a Path or an ObjectStoragePath; the result names it as text."""
    result = export(RecordFile(kind(f"{tmp_path}/a.jsonl")), upto(5)(0, None), None, "ticketrz")
    path = f"{tmp_path}/a.jsonl"
    assert result == {"path": path, "uri": f"file://{path}", "count": 5, "first_id": "1", "last_id": "5"}
    assert ids(result["path"]) == [1, 2, 3, 4, 5]


def test_no_permission(tmp_path):
    """A folder that is none is found out before anything is listed, with its path."""
    (tmp_path / "file").write_text("")
    asked = []
    with pytest.raises(OneboxError, match=f"{tmp_path}/file/a.jsonl was not written"):
        export(RecordFile(tmp_path / "file" / "a.jsonl"), (asked.append(n) for n in range(3)), None, "ticketrz")
    assert asked == []


def test_nothing_listed(tmp_path):
    """Without records, the last id is the one where the listing began."""
    result = export(RecordFile(tmp_path / "a.jsonl"), [], "7", "ticketrz")
    assert (result["count"], result["first_id"], result["last_id"]) == (0, None, "7")


def test_log(tmp_path, caplog):
    """The log says how many records were listed."""
    with caplog.at_level(logging.INFO):
        export(RecordFile(tmp_path / "a.jsonl"), upto(5)(0, None), None, "ticketrz")
    assert [line.partition(" in ")[0] for line in caplog.messages] == ["5 ticketrz records"]


@pytest.mark.parametrize("count", [0, 2])
def test_keep_empty(tmp_path, count):
    """Where an empty file is not wanted, one that exists is removed; a file with records is written."""
    path = tmp_path / "a.jsonl"
    path.write_text("before")
    export(RecordFile(path), upto(count)(0, None), None, "ticketrz", keep_empty=False)
    assert path.exists() == bool(count)
    assert count == 0 or ids(path) == [1, 2]


def test_file_that_cannot_be_removed(tmp_path, monkeypatch):
    """A file that can't be removed fails the task, which can be retried."""
    file = RecordFile(tmp_path / "a.jsonl")

    def rm_file(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(file._fs, "rm_file", rm_file)
    with pytest.raises(OneboxError, match=r"a\.jsonl was not removed: Permission denied") as caught:
        export(file, [], None, "ticketrz", keep_empty=False)
    assert caught.value.retryable
