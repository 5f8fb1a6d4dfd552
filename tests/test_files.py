"""The file of records: whole or not at all, as readable as its predecessor, and nothing left beside it."""

from __future__ import annotations

import fcntl
import gc
import gzip
import json
import multiprocessing
import os
import resource
import signal
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox import files as module
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files import RecordFile, digest_at

ROWS = [{"Id": "1", "Subject": "é\n"}, {"Id": "2", "Subject": None}]


@contextmanager
def small_disk(size):
    """Let no file grow beyond a size, as a full disk does: the kernel says so at every later try too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def entries(folder):
    """Return all names in a folder, hidden ones too."""
    return sorted(os.listdir(folder))  # noqa: PTH208


def write(path, rows=ROWS):
    """Write a file as an export does."""
    with RecordFile(path) as file:
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
    assert entries(target.parent) == [name]


def test_no_records(tmp_path):
    """No records make an empty file, not a blank line."""
    write(tmp_path / "a.jsonl", [])
    assert (tmp_path / "a.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "names no file"),
        (" ", "names no file"),
        ("None", "names no file"),
        ("file:/" + "//x/y/", "is a folder"),
        ("{}/", "is a folder"),
        ("{}", "is a folder"),
        ("nosuch://bucket/a.jsonl", "provider for nosuch installed"),
    ],
)
def test_bad_path(tmp_path, monkeypatch, path, reason):
    """What can't be a file's path is rejected before anything is listed or written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OneboxConfigError, match=reason):
        RecordFile(path.format(tmp_path))
    assert entries(tmp_path) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_failure_leaves_the_earlier_file(tmp_path, name):
    """A block that fails changes nothing and leaves nothing behind."""
    target = tmp_path / name
    write(target)
    before = target.read_bytes()

    def fail():
        with RecordFile(target) as file:
            file.write([{"Id": "3"}] * 10000)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert target.read_bytes() == before
    assert entries(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("count", [1, 400])
def test_full_disk(tmp_path, name, count):
    """A disk that is full, while writing or at the end, is an error with path, count and remedy; nothing is left."""
    target = tmp_path / name
    write(target)
    before = target.read_bytes()
    rows = [{"Id": os.urandom(1000).hex()} for _ in range(100)]

    def fill():
        with RecordFile(target) as file:
            for _ in range(count):
                file.write(rows)
            file.finish()

    with small_disk(50_000), pytest.raises(OneboxError, match="room for the whole file") as caught:
        fill()
    assert str(target) in str(caught.value)
    assert "after 0" in str(caught.value) or "after 100" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.retryable
    assert target.read_bytes() == before
    assert entries(tmp_path) == [name]


def test_permissions(tmp_path):
    """The target is as readable as any new file, or as its predecessor was, and so is what is not finished yet."""
    umask = os.umask(0o027)
    try:
        write(tmp_path / "a.jsonl")
    finally:
        assert os.umask(umask) == 0o027
    assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o640
    (tmp_path / "a.jsonl").chmod(0o600)
    with RecordFile(tmp_path / "a.jsonl") as file:
        (unfinished,) = tmp_path.glob(".a.jsonl.*.tmp")
        assert stat.S_IMODE(unfinished.stat().st_mode) == 0o600
        file.finish()
        file.put_in_place()
    assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o600


def test_local_target_is_renamed(tmp_path):
    """The temporary file stands beside its target and becomes it: nothing is copied, so no reader sees half of it."""
    gc.collect()  # What earlier tests have left open is not to be closed meanwhile.
    opened = entries("/dev/fd")
    with RecordFile(tmp_path / "a.jsonl") as file:
        (unfinished,) = tmp_path.iterdir()
        number = unfinished.stat().st_ino
        file.finish()
        file.put_in_place()
    assert (tmp_path / "a.jsonl").stat().st_ino == number
    assert len(entries("/dev/fd")) == len(opened)
    assert entries(tmp_path) == ["a.jsonl"]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Make every path one of a remote store, which is this dictionary."""
    files = {}

    class Remote:
        """Stands in for a bucket's file system."""

        fails = None

        def exists(self, path):
            return path in files

        def put_file(self, source, target):
            if self.fails:
                raise self.fails
            assert stat.S_IMODE(Path(source).stat().st_mode) == 0o600
            files[target] = Path(source).read_bytes()

    remote = Remote()
    files["fs"] = remote
    (tmp_path / "worker").mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "worker"))
    monkeypatch.setattr(ObjectStoragePath, "protocol", property(lambda self: "s3"))
    monkeypatch.setattr(ObjectStoragePath, "fs", property(lambda self: remote))
    return files


def test_remote_target_is_one_upload(tmp_path, bucket):
    """A target that is not local is written once, from a whole and private local file, which is removed."""
    write("/bucket/a.jsonl.gz")
    assert len(gzip.decompress(bucket["/bucket/a.jsonl.gz"]).splitlines()) == 2
    assert entries(tmp_path / "worker") == []


def test_failed_upload(tmp_path, bucket):
    """An upload that fails, with whatever error its library has, is told with path and count."""
    bucket["fs"].fails = RuntimeError("AccessDenied")
    with pytest.raises(OneboxError, match=r"/bucket/a.jsonl was not written: AccessDenied \(after 2 records"):
        write("/bucket/a.jsonl")
    assert entries(tmp_path / "worker") == []


def test_digest_of_nothing(tmp_path):
    """Where nothing is, there is no digest."""
    assert digest_at(str(tmp_path / "none")) is None


def test_no_false_lineage(tmp_path, monkeypatch):
    """Our own output is read without ObjectStoragePath.open, which reports what it reads as an input of the task."""
    digest = write(tmp_path / "a.jsonl")
    monkeypatch.setattr(ObjectStoragePath, "open", lambda *_, **__: pytest.fail("reported to lineage"))
    assert digest_at(str(tmp_path / "a.jsonl")) == digest


def die_while_writing(path, ready):
    """Begin a file and be killed."""
    file = RecordFile(path)
    file.__enter__()
    file.write(ROWS * 1000)
    ready.set()
    signal.pause()


@pytest.fixture
def killed():
    """Kill a process in the midst of writing a file."""

    def kill(path):
        spawn = multiprocessing.get_context("fork")
        ready = spawn.Event()
        process = spawn.Process(target=die_while_writing, args=(path, ready), daemon=True)
        process.start()
        assert ready.wait(30)
        yield
        process.kill()
        process.join()
        yield

    return kill


def test_leftovers(tmp_path, killed):
    """What a killed process has left is removed by the next for its target, but nothing in use and no other's."""
    target = tmp_path / "a.jsonl"
    other, ours = killed(f"{target}.gz"), killed(target)
    for step in (next(other), next(ours), next(other)):
        assert step is None
    assert len(entries(tmp_path)) == 2
    write(target)
    assert len(entries(tmp_path)) == 3, "a file in use was removed"
    next(ours)
    write(target)
    (left, _) = entries(tmp_path)
    assert left.startswith(".a.jsonl.gz.")
    write(f"{target}.gz")
    assert entries(tmp_path) == ["a.jsonl", "a.jsonl.gz"]


def test_leftovers_without_locks(tmp_path, monkeypatch, killed):
    """Where there are no locks, files are written and none is removed: it could be in use."""
    ours = killed(tmp_path / "a.jsonl")
    next(ours)
    next(ours)

    def flock(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    write(tmp_path / "a.jsonl")
    assert len(entries(tmp_path)) == 2


def test_taken_for_a_leftover(tmp_path, monkeypatch):
    """A file that another process removes in the moment before it is locked is made anew."""
    removed = []

    def flock(file, how):
        if not removed:
            removed.extend(tmp_path.glob(".a.jsonl.*"))
            removed[0].unlink()
            # The next try makes a file of the same name.

    monkeypatch.setattr(fcntl, "flock", flock)
    write(tmp_path / "a.jsonl")
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
    assert len(removed) == 1
