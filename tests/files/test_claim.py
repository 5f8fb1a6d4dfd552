"""The claim on a path: of two task instances that write it at once, at most one succeeds."""

from __future__ import annotations

import json
import re

import pytest
from support.files import write

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files.atomic import storage_path
from airflow_provider_onebox.files.reading import read_rows
from airflow_provider_onebox.files.records import RecordFile


@pytest.fixture(params=["local", "store"])
def path(request, tmp_path):
    """The path of a file, on a disk and in an object store."""
    if request.param == "local":
        return str(tmp_path / "out" / "a.jsonl")
    request.getfixturevalue("store")
    return "memory://bucket/a.jsonl"


def names(path):
    """Return the names in the folder of a file."""
    folder = storage_path(path).parent
    return sorted(found.rpartition("/")[2] for found in folder.fs.find(folder.path))


def begin(path, ti, rows=()):
    """Enter a file and write to it."""
    file = RecordFile(path, ti=ti)
    file.__enter__()
    file.write([{"Id": str(row)} for row in rows])
    file.finish()
    return file


def end(file):
    """Publish a file and leave it."""
    try:
        file.publish()
    finally:
        file.__exit__()


def lines(path):
    """Read the ids in a file."""
    return [row["Id"] for row in read_rows(path)]


ONE, TWO = ("d", "t", "r1", 0), ("d", "t", "r1", 1)


@pytest.mark.parametrize("other", [TWO, ("d", "u", "r1", -1), ("d", "u", "r1", 0)])
def test_two_of_one_run(airflow, path, other):
    """The second of two instances of one run fails for good, with the remedy, before it replaces anything."""
    airflow.running = {ONE, other}
    first = begin(path, airflow.ti(map_index=0), [1])
    dag_id, task_id, run_id, map_index = other
    with pytest.raises(OneboxConfigError, match=r"also written by task 't', map index 0, of 'd'; it was not replaced"):
        begin(path, airflow.ti(run_id, task_id, dag_id, map_index))
    end(first)
    assert lines(path) == ["1"]


def test_two_runs(airflow, path):
    """A task of another run fails in a way that a retry mends, and leaves no claim."""
    airflow.running = {("d", "t", "r1", -1), ("d", "t", "r2", -1)}
    first = begin(path, airflow.ti("r1"), [1])
    with pytest.raises(OneboxError, match="it was not replaced") as caught:
        begin(path, airflow.ti("r2"))
    assert not isinstance(caught.value, OneboxConfigError)
    assert caught.value.retryable
    end(first)
    end(begin(path, airflow.ti("r2"), [2]))
    assert lines(path) == ["2"]
    assert names(path) == ["a.jsonl"]


def test_both_at_the_same_moment(airflow, path, monkeypatch):
    """Where both find no claim, the earlier notices before it publishes."""
    airflow.running = {ONE, TWO}
    first = begin(path, airflow.ti(map_index=0), [1])
    with monkeypatch.context() as patch:
        patch.setattr("airflow_provider_onebox.files.claim.Claim._read", lambda claim: None)
        second = begin(path, airflow.ti(map_index=1), [2])
    with pytest.raises(OneboxConfigError, match="also written by task 't', map index 1"):
        end(first)
    assert "a.jsonl" not in names(path)
    end(second)
    assert lines(path) == ["2"]


def test_claim_that_is_gone(airflow, path):
    """A claim that another one has replaced and removed is noticed, too."""
    file = begin(path, airflow.ti(), [1])
    file._claim._fs.rm_file(file._claim._path)
    with pytest.raises(OneboxError, match="also written by another task; it was not replaced") as caught:
        end(file)
    assert caught.value.retryable
    assert names(path) == []


def test_one_after_the_other(airflow, path):
    """A sibling that begins after an instance of its run has succeeded replaces nothing; another task or run may."""
    airflow.running = {ONE}
    end(begin(path, airflow.ti(map_index=0), [1]))
    airflow.running, airflow.succeeded = {TWO}, {ONE}
    with pytest.raises(OneboxConfigError, match="map index 0"):
        begin(path, airflow.ti(map_index=1))
    assert lines(path) == ["1"]
    assert re.fullmatch(r"\.a\.jsonl\.\w+\.claim", names(path)[0])
    for ti in (airflow.ti(map_index=0), airflow.ti("r2", map_index=1), airflow.ti("r2", "u")):
        end(begin(path, ti, [2]))
    assert lines(path) == ["2"]
    assert names(path) == ["a.jsonl"]


def test_cleared_in_another_order(airflow, path):
    """What an instance wrote that has been cleared since, its sibling may write."""
    end(begin(path, airflow.ti(map_index=0), [1]))
    end(begin(path, airflow.ti(map_index=1), [2]))
    assert lines(path) == ["2"]


def test_failed_instance(airflow, path):
    """An instance that fails leaves no claim, mapped or not."""
    for index in (-1, 0):
        begin(path, airflow.ti(map_index=index)).__exit__()
    assert names(path) == []


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"owner": ["d"], "process": "x"}'])
def test_claim_of_nobody(airflow, path, content):
    """The claim of an instance that no longer runs is replaced, and so is what is no claim."""
    file = begin(path, airflow.ti("r1"))
    if content is not None:
        file._claim._fs.pipe_file(file._claim._path, content)
    file._raw.close()
    end(begin(path, airflow.ti("r2"), [2]))
    assert lines(path) == ["2"]
    assert [name for name in names(path) if name.endswith(".claim")] == []


def test_superseded_process(airflow, path):
    """A process that its own retry has superseded leaves the retry's claim in place."""
    airflow.running = {ONE, TWO}
    old = begin(path, airflow.ti(map_index=0), [1])
    new = begin(path, airflow.ti(map_index=0, try_number=2), [1])
    old.__exit__()
    with pytest.raises(OneboxConfigError):
        begin(path, airflow.ti(map_index=1))
    end(new)


def test_claim_that_cannot_be_removed(airflow, path, caplog, monkeypatch):
    """A claim that can't be removed fails no task; the log says so."""
    file = begin(path, airflow.ti(), [1])

    def fail(path):
        raise OSError("read-only")

    monkeypatch.setattr(type(file._fs), "rm_file", staticmethod(fail))
    with caplog.at_level("INFO"):
        end(file)
    assert [line.partition(".claim ")[2] for line in caplog.messages] == [
        "could not be removed; the next task that writes the path replaces it."
    ]
    assert lines(path) == ["1"]


def test_no_task(path):
    """Without a task instance, nothing is claimed."""
    write(path)
    assert names(path) == ["a.jsonl"]


def test_probe(airflow, store, monkeypatch):
    """A bucket that does not exist, or no permission, is found before anything is listed."""
    asked = []

    def fail(path, content):
        asked.append((path, json.loads(content)["owner"]))
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(store, "pipe_file", fail)
    with pytest.raises(OneboxError, match=r"a\.jsonl was not written: The specified bucket does not exist") as caught:
        RecordFile("memory://bucket/folder/a.jsonl", ti=airflow.ti()).__enter__()
    assert caught.value.retryable
    ((path, owner),) = asked
    assert path.startswith("/bucket/folder/.a.jsonl.")
    assert owner == ["d", "t", "r1", -1]


def test_stale_listing(airflow, store, monkeypatch):
    """A listing that the file system has kept is not relied on."""
    calls = []
    monkeypatch.setattr(store, "invalidate_cache", lambda: calls.append("invalidate"), raising=False)
    end(begin("memory://bucket/a.jsonl", airflow.ti(), [1]))
    assert calls == ["invalidate"] * 3
