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
def result_of(airflow, tmp_path):
    """Run an incremental export; return its result."""

    def execute(run_id, policy, *, path=None, scope=SCOPE, keep_empty=True, **names):
        ti = airflow.ti(run_id, **names)
        file = RecordFile(path or tmp_path / f"{run_id}{names.get('map_index', '')}.jsonl", ti=ti)
        return export_incremental(file, Watermark(ti, scope, policy), "ticketrz", keep_empty=keep_empty)

    return execute


@pytest.fixture
def run(result_of):
    """Run an incremental export of records 1 to a last one, or of some; return the ids in its file."""

    def execute(run_id, last, *, start=0, overlap=0, **options):
        listing = upto(last) if isinstance(last, int) else pages(*last)
        return ids(result_of(run_id, ById(listing, start, overlap), **options)["path"])

    return execute
