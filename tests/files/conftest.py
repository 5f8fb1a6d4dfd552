"""An object store in memory."""

from __future__ import annotations

import fsspec
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath


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
