"""An object store in memory, and incremental exports."""

from __future__ import annotations

import fsspec
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from support.watermarks import SCOPE, Deployment, ids, pages, upto

from airflow_provider_onebox.files.export import export_incremental
from airflow_provider_onebox.files.ids import ById
from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox.files.watermark import Watermark


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Make ``memory://`` an object store that Airflow knows; return its file system."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    (tmp_path / "worker").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "worker"))
    real = ObjectStoragePath.fs

    def get_fs(path):
        return fs if path.protocol == "memory" else real.fget(path)

    monkeypatch.setattr(ObjectStoragePath, "fs", property(get_fs))
    return fs


@pytest.fixture
def airflow(monkeypatch):
    """An Airflow whose Variables all runs of a test share."""
    return Deployment(monkeypatch)


@pytest.fixture
def run(airflow, tmp_path):
    """Run an incremental export of records 1 to a last one; return the ids in its file."""

    def execute(run_id, last, *, path=None, scope=SCOPE, start=0, overlap=0, most=None, **names):
        path = path or tmp_path / f"{run_id}{names.get('map_index', '')}.jsonl"
        listing = upto(last) if isinstance(last, int) else pages(*last)
        ti = airflow.ti(run_id, **names)
        watermark = Watermark(ti, scope, ById(listing, start, overlap, most))
        export_incremental(RecordFile(path, ti=ti), watermark, "ticketrz")
        return ids(path)

    return execute
