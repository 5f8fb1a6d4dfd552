"""A file: whole or not at all, as readable as its predecessor, and nothing left beside it."""

from __future__ import annotations

import fcntl
import gc
import gzip
import multiprocessing
import os
import re
import signal
import stat
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from support.files import ROWS, entries, write
from support.processes import PATIENCE

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files import atomic
from airflow_provider_onebox.files.atomic import digest_at
from airflow_provider_onebox.files.reading import read_rows
from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox.files.uploads import read_files


def test_on_the_disk(tmp_path, monkeypatch):
    """The disk has all of the file before it is published, and then the folder that names it."""
    target, sync, synced = tmp_path / "a.jsonl", os.fsync, []

    def fsync(number):
        sync(number)
        synced.append((os.fstat(number).st_ino, os.fstat(number).st_size, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(target)
    file, folder = target.stat(), tmp_path.stat()
    assert synced == [(file.st_ino, file.st_size, False), (folder.st_ino, folder.st_size, True)]


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
        ("file://nosuch@/folder/a.jsonl", "names a host"),
        ("~/a.jsonl", "so write the whole path"),
        ("file://x/a.jsonl", "names a host: write file:// and then"),
        ("{}/a.jsonl\n", "has white space at an end, or a line break"),
        (" {}/a.jsonl", "has white space at an end"),
        ("{}/a\x7f.jsonl", "or a line break"),
        ("{}/a\x1f.jsonl", "or a line break"),
        ("/dev/null", "is a device or a pipe"),
    ],
)
def test_bad_path(tmp_path, monkeypatch, path, reason):
    """A path that can't be a file's is rejected before anything is listed or written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OneboxConfigError, match=f"output_path='.*{reason}"):
        RecordFile(path.format(tmp_path))
    assert entries(tmp_path) == []


def test_pipe(tmp_path):
    """A named pipe is not replaced by a file, through a link neither."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OneboxConfigError, match="is a device or a pipe, which can't be replaced"):
            RecordFile(tmp_path / name)


@pytest.mark.parametrize("exists", [True, False])
def test_symbolic_link(tmp_path, exists):
    """A link stays, and what it names is replaced or made."""
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "b.jsonl"
    if exists:
        target.write_text("old")
    (tmp_path / "a.jsonl").symlink_to(target)
    digest = write(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").is_symlink()
    assert len(target.read_text().splitlines()) == 2
    assert digest == digest_at(str(tmp_path / "a.jsonl"))
    assert entries(tmp_path / "real") == ["b.jsonl"]


def test_uri(tmp_path, store, monkeypatch):
    """The plain URI has no connection in it; a bucket alone is rejected, and a connection that does not exist."""
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", "aws://")
    assert RecordFile(tmp_path / "x" / ".." / "a.jsonl").uri == f"file://{tmp_path}/a.jsonl"
    assert re.fullmatch(r"memory:/{1,3}bucket/a\.jsonl", RecordFile("memory://lake@bucket/a.jsonl").uri)
    with pytest.raises(OneboxConfigError, match="names a bucket and no file in it"):
        RecordFile("memory://lake@bucket")
    with pytest.raises(OneboxConfigError, match="there is no connection 'nosuch': create it"):
        RecordFile("memory://nosuch@bucket/a.jsonl")


def test_connection_that_cannot_be_looked_up(store, monkeypatch):
    """Where Airflow can't be asked for the connection, a retry helps; what its backend said is not shown."""

    def fail(conn_id):
        raise RuntimeError("s3cret")

    monkeypatch.setattr(atomic.BaseHook, "get_connection", fail)
    with pytest.raises(OneboxError, match=r"'lake' can't be looked up \(RuntimeError\)\.$") as caught:
        RecordFile("memory://lake@bucket/a.jsonl")
    assert caught.value.retryable
    assert caught.value.__context__ is None


def test_relative_path(tmp_path, monkeypatch):
    """On every Airflow a relative path is one of the working directory, for writing and for reading."""
    monkeypatch.chdir(tmp_path)
    name = "folder/a.jsonl"
    digest = write(name, [{"Id": "1"}])
    assert (tmp_path / name).read_text() == '{"Id":"1"}\n'
    assert digest_at(name) == digest
    assert list(read_rows(name)) == [{"Id": "1"}]
    ((title, content, _),) = read_files(name)
    assert (title, content) == ("a.jsonl", b'{"Id":"1"}\n')


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
        file.publish()
    assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o600


def test_local_target_is_renamed(tmp_path):
    """The temporary file is beside its target and becomes it: nothing is copied, so no reader sees half of it."""
    gc.collect()  # What earlier tests have left open is not to be closed meanwhile.
    opened = entries("/dev/fd")
    with RecordFile(tmp_path / "a.jsonl") as file:
        (unfinished,) = tmp_path.iterdir()
        number = unfinished.stat().st_ino
        file.finish()
        file.publish()
    assert (tmp_path / "a.jsonl").stat().st_ino == number
    assert len(entries("/dev/fd")) <= len(opened)  # a thread of an earlier test may have closed one
    assert entries(tmp_path) == ["a.jsonl"]


def test_remote_target_is_one_upload(tmp_path, store, monkeypatch):
    """A target that is not local is written once, from a whole and private local file, which is removed."""
    put, modes = store.put_file, []

    def put_file(source, target):
        modes.append(stat.S_IMODE(Path(source).stat().st_mode))
        put(source, target)

    monkeypatch.setattr(store, "put_file", put_file)
    write("memory://bucket/a.jsonl.gz")
    assert len(gzip.decompress(store.cat_file("/bucket/a.jsonl.gz")).splitlines()) == 2
    assert modes == [0o600]
    assert entries(tmp_path / "worker") == []


def test_failed_upload(tmp_path, store, monkeypatch):
    """An upload that fails, with any error of its library, is reported with path and count."""

    def put_file(source, target):
        raise RuntimeError("AccessDenied")

    monkeypatch.setattr(store, "put_file", put_file)
    with pytest.raises(OneboxError, match=r"bucket/a.jsonl was not written: AccessDenied \(after 2 records"):
        write("memory://bucket/a.jsonl")
    assert entries(tmp_path / "worker") == []


def test_digest(tmp_path, monkeypatch):
    """Other content has another digest, and no file has none.

    Our own output is read without ObjectStoragePath.open, which reports what it reads as an input of the task.
    """
    monkeypatch.setattr(ObjectStoragePath, "open", lambda *_, **__: pytest.fail("reported to lineage"))
    digest = write(tmp_path / "a.jsonl")
    assert digest_at(str(tmp_path / "a.jsonl")) == digest != write(tmp_path / "a.jsonl", [])
    assert digest_at(str(tmp_path / "none")) is None


def die_while_writing(path, ready):
    """Begin a file and be killed."""
    file = RecordFile(path, fields=["Id"])
    file.__enter__()
    file.write(ROWS * 1000)
    ready.set()
    signal.alarm(PATIENCE)  # if the test has ended before it could kill this process
    signal.pause()


@pytest.fixture
def killed():
    """Kill a process in the midst of writing a file."""

    def kill(path):
        spawn = multiprocessing.get_context("fork")
        ready = spawn.Event()
        process = spawn.Process(target=die_while_writing, args=(path, ready), daemon=True)
        process.start()
        assert ready.wait(PATIENCE)
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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_leftovers_of_uploads(tmp_path, store, killed, name):
    """What is to be uploaded is in this machine's temporary folder: of two live processes, then of none."""
    target, left = f"memory://bucket/{name}", []
    one, two = killed(target), killed(target)
    next(one)
    next(two)
    for step in (None, one, two):
        if step:
            next(step)
        write(target, fields=["Id"])
        left.append(len(entries(tmp_path / "worker")))
    assert left == [2, 1, 0]


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
