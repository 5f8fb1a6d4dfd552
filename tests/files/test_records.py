"""The file of records: whole or not at all, as readable as its predecessor, and nothing left beside it."""

from __future__ import annotations

import csv
import fcntl
import gc
import gzip
import io
import json
import multiprocessing
import os
import resource
import signal
import stat
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files import atomic
from airflow_provider_onebox.files import records as module
from airflow_provider_onebox.files.atomic import digest_at
from airflow_provider_onebox.files.reading import read_rows
from airflow_provider_onebox.files.records import RecordFile
from airflow_provider_onebox.files.uploads import read_files

NAMES = ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.parquet"]
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


def write(path, rows=ROWS, fields=None):
    """Write a file as an export does."""
    with RecordFile(path, fields=fields) as file:
        file.write(rows)
        file.finish()
        digest = file.digest()
        file.publish()
    return digest


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_written_as_json_lines(tmp_path, prefix, name):
    """A line a record, compressed by suffix with no name or time in it, in a folder that is made if need be."""
    target = tmp_path / "new" / name
    digest = write(f"{prefix}{target}")
    raw = target.read_bytes()
    text = gzip.decompress(raw) if name.endswith(".gz") else raw
    assert [json.loads(line) for line in text.decode().splitlines()] == ROWS
    assert text is raw or raw[3:8] == bytes(5)
    assert digest == digest_at(str(target))
    assert write(f"{prefix}{target}") == digest
    assert entries(target.parent) == [name]


def test_no_records(tmp_path):
    """No records make an empty file, not a blank line."""
    write(tmp_path / "a.jsonl", [])
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def test_new_folder(tmp_path):
    """The folder of a file is made, with those above it."""
    write(tmp_path / "new" / "newer" / "a.jsonl", [])
    assert (tmp_path / "new" / "newer" / "a.jsonl").exists()


def test_on_the_disk(tmp_path, monkeypatch):
    """The disk has all of the file before it is put in place, and then the folder that names it."""
    target, sync, synced = tmp_path / "a.jsonl", os.fsync, []

    def fsync(number):
        sync(number)
        synced.append((os.fstat(number).st_ino, os.fstat(number).st_size, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(target)
    file, folder = target.stat(), tmp_path.stat()
    assert synced == [(file.st_ino, file.st_size, False), (folder.st_ino, folder.st_size, True)]


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", ""), ("a.csv", '"Id"\n')])
def test_nothing_written(tmp_path, name, text):
    """A file that is given nothing, not even a list without records, is the same as one of no records."""
    with RecordFile(tmp_path / name, fields=["Id"]) as file:
        file.finish()
        file.publish()
    assert (tmp_path / name).read_text() == text


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
    with pytest.raises(OneboxConfigError, match=f"output_path='.*{reason}"):
        RecordFile(path.format(tmp_path))
    assert entries(tmp_path) == []


def test_relative_path(tmp_path, monkeypatch):
    """On every Airflow a relative path is one of the working directory, for writing and for reading."""
    monkeypatch.chdir(tmp_path)
    name = "folder/a.jsonl"
    with RecordFile(name) as file:
        file.write([{"Id": "1"}])
        file.finish()
        digest = file.digest()
        file.publish()
    assert (tmp_path / name).read_text() == '{"Id":"1"}\n'
    assert digest_at(name) == digest
    assert list(read_rows(name)) == [{"Id": "1"}]
    ((title, content, _),) = read_files(name)
    assert (title, content) == ("a.jsonl", b'{"Id":"1"}\n')


MIXED = [
    {"Id": "1", "Text": 'a,"b"\r\né', "More": {"k": [1, None, "ø"]}, "Left": "out"},
    {"Id": 2, "Text": "", "More": True},
    {"More": 1.5, "Text": None},
]
COLUMNS = ["More", "Id", "Text", "Nowhere"]
AS_TEXT = [
    ['{"k":[1,null,"ø"]}', "1", 'a,"b"\r\né', None],
    ["true", "2", "", None],
    ["1.5", None, None, None],
]
"""What of MIXED is in these columns of a CSV or Parquet file."""


@pytest.mark.parametrize("name", NAMES)
def test_fields_that_no_record_has(tmp_path, caplog, name):
    """A name that is misspelt makes an empty column, and the log says so; one that few records have does not."""
    write(tmp_path / name, fields=["Id", "Subjct", "Rare", "Body"], rows=[*ROWS, {"Rare": None}])
    write(tmp_path / name, [], ["Id", "Absent"])
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"No record has Subjct, Body: null in every row of {tmp_path / name}."]


def test_fields(tmp_path):
    """JSON Lines have the wanted fields, in the wanted order; one that a record does not have is null."""
    write(tmp_path / "a.jsonl", MIXED, ["Text", "Id"])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert lines == ['{"Text":"a,\\"b\\"\\r\\né","Id":"1"}', '{"Text":"","Id":2}', '{"Text":null,"Id":null}']


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv(tmp_path, name):
    """A header and a line a record; all but null is quoted, values that are no text are JSON."""
    target = tmp_path / name
    digest = write(target, MIXED, COLUMNS)
    raw = target.read_bytes()
    raw = gzip.decompress(raw) if name.endswith(".gz") else raw
    assert raw.decode() == (
        '"More","Id","Text","Nowhere"\n"{""k"":[1,null,""ø""]}","1","a,""b""\r\né",\n"true","2","",\n"1.5",,,\n'
    )
    assert write(target, MIXED, COLUMNS) == digest


@pytest.mark.parametrize(
    ("rows", "text"), [([], '"Id"\n'), ([{"Id": None}, {}, {"Id": ""}, {"Id": "x"}], '"Id"\n""\n""\n""\n"x"\n')]
)
def test_csv_of_one_column(tmp_path, rows, text):
    """No records make a header alone, once; no line is empty, for readers skip these."""
    write(tmp_path / "a.csv", rows, ["Id"])
    assert (tmp_path / "a.csv").read_text() == text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.none() | st.text("\",\r\n\0 'ø=") | st.text(), min_size=2, max_size=2), min_size=1))
def test_csv_is_read_as_written(rows):
    """The standard library reads every text as it was, and a reader that knows of nulls finds these too."""
    raw = io.BytesIO()
    form = module._Csv(raw, ["a", "b"])
    for one, two in rows:
        form.write([{"a": one, "b": two}])
    form.close()
    text = raw.getvalue().decode()
    if "\0" not in text:  # Python 3.10 can't read that.
        found = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        assert found == [["a", "b"], *([value or "" for value in row] for row in rows)]
    table = pyarrow.csv.read_csv(
        io.BytesIO(raw.getvalue()),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pyarrow.string() for name in "ab"},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    assert [list(row.values()) for row in table.to_pylist()] == rows


def test_parquet(tmp_path):
    """All columns are nullable strings, in the wanted order; the same records give the same bytes."""
    target = tmp_path / "a.parquet"
    digest = write(target, MIXED, COLUMNS)
    table = pyarrow.parquet.read_table(target)
    assert table.schema == pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    assert [list(row.values()) for row in table.to_pylist()] == AS_TEXT
    assert write(target, MIXED, COLUMNS) == digest == digest_at(str(target))


def test_parquet_without_records(tmp_path):
    """No records make a file with the columns."""
    write(tmp_path / "a.parquet", [], ["Id"])
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pydict() == {"Id": []}


def test_few_row_groups(tmp_path):
    """Some pages of records are one row group."""
    with RecordFile(tmp_path / "a.parquet", fields=["Id"]) as file:
        for page in range(5):
            file.write([{"Id": f"{page}-{n}"} for n in range(1000)])
        file.finish()
        file.publish()
    with pyarrow.parquet.ParquetFile(tmp_path / "a.parquet") as found:
        assert [found.read_row_group(index).num_rows for index in range(found.num_row_groups)] == [5000]


def test_row_groups(tmp_path, monkeypatch):
    """Pages are put together up to the bound, larger ones are split, and a record that is larger stands alone."""
    monkeypatch.setattr(module, "ROW_GROUP_BYTES", 1000)
    sizes = [5000] + [100] * 20 + [5000] + [100] * 3
    pages = [sizes[:1], sizes[1:3], sizes[3:4], sizes[4:21], sizes[21:]]
    number = iter(range(100))
    pages = [[{"Id": f"{next(number):02}".ljust(size, ".")} for size in page] for page in pages]
    with RecordFile(tmp_path / "a.parquet", fields=["Id"]) as file:
        for page in pages:
            file.write(page)
        file.finish()
        file.publish()
    assert file.count == 25
    with pyarrow.parquet.ParquetFile(tmp_path / "a.parquet") as found:
        groups = [found.read_row_group(index) for index in range(found.num_row_groups)]
    assert [row for group in groups for row in group.to_pylist()] == [row for page in pages for row in page]
    assert [group.nbytes <= 1000 or group.num_rows == 1 for group in groups] == [True] * len(groups)
    assert groups[1].num_rows == 3, "two pages were not put together"
    assert all(group.num_rows for group in groups)


@pytest.mark.parametrize("fields", ["Id", b"Id", 7, [], [""], [" "], ["Id", "Id"], ["Id", None], {"Id": 1}.items()])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_bad_fields(tmp_path, name, fields):
    """Names that can't be columns are rejected in every format, before anything is listed or written."""
    with pytest.raises(OneboxConfigError, match="is not a list of different names: pass, for example"):
        RecordFile(tmp_path / name, fields=fields)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("a.csv", None, r"results_path='.*a\.csv' is a table and needs columns"),
        ("a.csv.gz", None, "is a table and needs columns"),
        ("a.parquet", None, "is a table and needs columns"),
        ("a.parquet.gz", ["Id"], r"results_path='.*a\.parquet\.gz': Parquet is compressed in itself"),
        ("a.parquet.gz", None, "Parquet is compressed in itself"),
    ],
)
def test_bad_table(tmp_path, name, fields, reason):
    """A table without columns, and a form that no reader expects, are rejected at once."""
    with pytest.raises(OneboxConfigError, match=reason):
        RecordFile(tmp_path / name, "results_path", fields)


def test_without_pyarrow(tmp_path, monkeypatch):
    """Only Parquet needs pyarrow; where it is missing, the message says how to get it."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(OneboxConfigError, match=r"needs pyarrow \(.+pip install 'airflow-provider-onebox\[parquet\]'"):
        RecordFile(tmp_path / "a.parquet", fields=["Id"])
    write(tmp_path / "a.csv", ROWS, ["Id"])
    assert entries(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("name", NAMES)
def test_failure_leaves_the_earlier_file(tmp_path, name):
    """A block that fails changes nothing and leaves nothing behind."""
    target = tmp_path / name
    write(target, fields=["Id"])
    before = target.read_bytes()

    def fail():
        with RecordFile(target, fields=["Id"]) as file:
            file.write([{"Id": "3"}] * 10000)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert target.read_bytes() == before
    assert entries(tmp_path) == [name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 400])
def test_full_disk(tmp_path, monkeypatch, name, count):
    """A disk that is full, while writing or at the end, is an error with path, count and remedy; nothing is left."""
    monkeypatch.setattr(module, "ROW_GROUP_BYTES", 250_000)  # So that Parquet is written when a second page comes.
    target = tmp_path / name
    write(target, fields=["Id"])
    before = target.read_bytes()
    rows = [{"Id": os.urandom(1000).hex()} for _ in range(100)]

    def fill():
        with RecordFile(target, fields=["Id"]) as file:
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
        file.publish()
    assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o600


def test_local_target_is_renamed(tmp_path):
    """The temporary file stands beside its target and becomes it: nothing is copied, so no reader sees half of it."""
    gc.collect()  # What earlier tests have left open is not to be closed meanwhile.
    opened = entries("/dev/fd")
    with RecordFile(tmp_path / "a.jsonl") as file:
        (unfinished,) = tmp_path.iterdir()
        number = unfinished.stat().st_ino
        file.finish()
        file.publish()
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
    monkeypatch.setattr(atomic.tempfile, "tempdir", str(tmp_path / "worker"))
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
    file = RecordFile(path, fields=["Id"])
    file.__enter__()
    file.write(ROWS * 1000)
    ready.set()
    signal.alarm(60)  # if the test has ended before it could kill this process
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


@pytest.mark.parametrize("name", NAMES)
def test_leftovers_of_uploads(tmp_path, bucket, killed, name):
    """What is to be uploaded lies in this machine's temporary folder: two live processes, then none, in every form."""
    one, two = killed(f"/bucket/{name}"), killed(f"/bucket/{name}")
    next(one)
    next(two)
    write(f"/bucket/{name}", fields=["Id"])
    assert len(entries(tmp_path / "worker")) == 2, "a file in use was removed"
    next(one)
    write(f"/bucket/{name}", fields=["Id"])
    assert len(entries(tmp_path / "worker")) == 1
    next(two)
    write(f"/bucket/{name}", fields=["Id"])
    assert entries(tmp_path / "worker") == []


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
