"""The file of records: its formats, and what is in it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import resource
import sys
from contextlib import contextmanager

import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.files import NAMES, ROWS, entries, write

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files import records as module
from airflow_provider_onebox.files.atomic import digest_at
from airflow_provider_onebox.files.records import RecordFile


@contextmanager
def small_disk(size):
    """Let no file grow beyond a size, as a full disk does: the kernel says so at every later try too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_written_as_json_lines(tmp_path, prefix, name):
    """A line a record, compressed by suffix with no name or time in it, in a folder that is made if need be."""
    target = tmp_path / "new" / "newer" / name
    digest = write(f"{prefix}{target}")
    raw = target.read_bytes()
    text = gzip.decompress(raw) if name.endswith(".gz") else raw
    assert [json.loads(line) for line in text.decode().splitlines()] == ROWS
    assert text is raw or raw[3:8] == bytes(5)
    assert digest == digest_at(str(target))
    assert write(f"{prefix}{target}") == digest
    assert entries(target.parent) == [name]


@pytest.mark.parametrize("pages", [0, 1])
def test_no_records(tmp_path, pages):
    """A file without records, of an empty page or of none, has its columns, if it is a table, and no blank line."""
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        with RecordFile(tmp_path / name, fields=["Id"]) as file:
            for _ in range(pages):
                file.write([])
            file.finish()
            file.publish()
    assert (tmp_path / "a.jsonl").read_text() == ""
    assert (tmp_path / "a.csv").read_text() == '"Id"\n'
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pydict() == {"Id": []}


MIXED = [
    {"Id": "1", "Text": 'a,"b"\r\né', "More": {"k": [1, None, "ø"]}, "Left": "out"},
    {"Id": 2, "Text": "", "More": True},
    {"More": 1.5, "Text": None},
]
COLUMNS = ["More", "Id", "Text", "Nowhere"]
AS_TEXT = [['{"k":[1,null,"ø"]}', "1", 'a,"b"\r\né', None], ["true", "2", "", None], ["1.5", None, None, None]]
"""What of MIXED is in these columns of a CSV or Parquet file."""


@pytest.mark.parametrize("name", NAMES)
def test_fields_that_no_record_has(tmp_path, caplog, name):
    """A name that is misspelt makes an empty column, and the log says so; one that few records have does not."""
    write(tmp_path / name, fields=["Id", "Subjct", "Rare", "Body"], rows=[*ROWS, {"Rare": None}])
    write(tmp_path / name, [], ["Id", "Absent"])
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    have = "Records have Id, Rare, Subject."
    assert logged == [f"No record has Subjct, Body: null in every row of {tmp_path / name}. {have}"]


def test_long_names_in_the_log(tmp_path, caplog):
    """The log does not grow with what the records hold, and has it on one line."""
    write(tmp_path / "a.jsonl", [{"Field0\n": 1, **{f"Field{n}": n for n in range(1000)}}], ["Absent"])
    (line,) = caplog.messages
    assert line.startswith(
        f"No record has Absent: null in every row of {tmp_path / 'a.jsonl'}. Records have Field0, Field0 , Field1, "
    )
    assert line.endswith("….")
    assert len(line) < 1500


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


def test_csv_of_one_column(tmp_path):
    """No line is empty, because readers skip such lines."""
    write(tmp_path / "a.csv", [{"Id": None}, {}, {"Id": ""}, {"Id": "x"}], ["Id"])
    assert (tmp_path / "a.csv").read_text() == '"Id"\n""\n""\n""\n"x"\n'


@settings(max_examples=30, deadline=None)
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


def row_groups(path, pages):
    """Write pages of ids as Parquet; return the row groups of the file."""
    with RecordFile(path, fields=["Id"]) as file:
        for page in pages:
            file.write([{"Id": row_id} for row_id in page])
        file.finish()
        file.publish()
    assert file.count == sum(map(len, pages))
    with pyarrow.parquet.ParquetFile(path) as found:
        return [found.read_row_group(index) for index in range(found.num_row_groups)]


def test_few_row_groups(tmp_path):
    """Some pages of records are one row group."""
    pages = [[f"{page}-{n}" for n in range(1000)] for page in range(5)]
    assert [group.num_rows for group in row_groups(tmp_path / "a.parquet", pages)] == [5000]


def test_row_groups(tmp_path, monkeypatch):
    """Pages are put together up to the bound, larger ones are split, and a record that is larger is a group alone."""
    monkeypatch.setattr(module, "ROW_GROUP_BYTES", 1000)
    sizes = [5000] + [100] * 20 + [5000] + [100] * 3
    ids = [f"{number:02}".ljust(size, ".") for number, size in enumerate(sizes)]
    groups = row_groups(tmp_path / "a.parquet", [ids[:1], ids[1:3], ids[3:4], ids[4:21], ids[21:]])
    assert [row_id for group in groups for row_id in group["Id"].to_pylist()] == ids
    assert [group.nbytes <= 1000 or group.num_rows == 1 for group in groups] == [True] * len(groups)
    assert groups[1].num_rows == 3, "two pages were not put together"
    assert all(group.num_rows for group in groups)


@pytest.mark.parametrize("fields", ["Id", b"Id", 7, [], [""], [" "], ["Id", "Id"], ["Id", None], {"Id": 1}.items()])
def test_bad_fields(tmp_path, fields):
    """Names that can't be columns are rejected before anything is listed or written."""
    with pytest.raises(OneboxConfigError, match="is not a list of different names: pass, for example"):
        RecordFile(tmp_path / "a.jsonl", fields=fields)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("a.csv", None, r"results_path='.*a\.csv' is a table and needs columns"),
        ("a.parquet", None, "is a table and needs columns"),
        ("a.parquet.gz", ["Id"], r"results_path='.*a\.parquet\.gz': Parquet is compressed in itself"),
        ("A.CSV", None, "is a table and needs columns"),
        ("a.Parquet.GZ", ["Id"], "Parquet is compressed in itself"),
        ("a.tsv", ["Id"], r"results_path='.*a\.tsv': \.tsv is not a format that is written here: use \.jsonl"),
        ("a.TSV.gz", ["Id"], r"\.tsv is not a format"),
        ("a.csv.bz2", ["Id"], r"\.bz2 is not a format"),
        ("a.jsonl.zst", None, r"\.zst is not a format"),
        ("a.xlsx", ["Id"], r"\.xlsx is not a format"),
        ("a.7z", None, r"\.7z is not a format"),
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
@pytest.mark.parametrize("count", [1, 400])
def test_full_disk(tmp_path, monkeypatch, name, count):
    """A disk that is full, while writing or at the end, is an error with path, count and remedy.

    The earlier file stays as it was, and nothing else is left.
    """
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
    # Python 3.14 buffers more before the disk is reached.
    assert re.search(r"after (0|[1-4]00) records", str(caught.value))
    assert "\n" not in str(caught.value)
    assert caught.value.retryable
    assert target.read_bytes() == before
    assert entries(tmp_path) == [name]


@pytest.mark.parametrize("name", ["A.JSONL.GZ", "a.CSV", "A.Csv.Gz", "a.PARQUET"])
def test_suffix_in_any_case(tmp_path, name):
    """A suffix means the same in upper case."""
    write(tmp_path / name, fields=["Id", "Subject"])
    write(tmp_path / name.lower(), fields=["Id", "Subject"])
    assert (tmp_path / name).read_bytes() == (tmp_path / name.lower()).read_bytes()


@pytest.mark.parametrize("name", ["a", "a.b", "manual__2026-11-30T07:10:00.123+00:00", "a.json", "tsv"])
def test_other_suffixes(tmp_path, name):
    """Any other name is JSON Lines."""
    write(tmp_path / name)
    assert [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] == ROWS


NUL = [
    {"Id": "1", "Subject": "a\0b\0"},
    {"Id": "2", "Subject": "\\u0000"},
    {"Id": "3", "Subject": {"k\0": ["\0", None, 1.5, True]}},
]


@pytest.mark.parametrize("name", NAMES)
def test_nul(tmp_path, caplog, name):
    """U+0000 is removed from text at any depth; the log counts the records and names the first."""
    write(tmp_path / name, NUL[1:2] + NUL, ["Id", "Subject"])
    cleaned = [{"Id": "1", "Subject": "ab"}, NUL[1], {"Id": "3", "Subject": {"k": ["", None, 1.5, True]}}]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["Removed U+0000 from the text of 2 records, the first with Id 1."]
    write(tmp_path / f"b{name}", NUL[1:2] + cleaned, ["Id", "Subject"])
    assert (tmp_path / name).read_bytes() == (tmp_path / f"b{name}").read_bytes()
    assert NUL[0]["Subject"] == "a\0b\0"


def test_nul_over_pages(tmp_path, caplog):
    """All pages count, and the first record of the first one is named."""
    with RecordFile(tmp_path / "a.jsonl") as file:
        for _ in range(2):
            file.write(NUL)
        file.finish()
    assert "from the text of 4 records, the first with Id 1." in caplog.text


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_nul_is_kept(tmp_path, caplog, name):
    """With keep_nul the file holds what Onebox sent."""
    write(tmp_path / name, NUL, ["Id", "Subject"], keep_nul=True)
    assert (tmp_path / name).read_text() == {
        "a.jsonl": "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in NUL),
        "a.csv": '"Id","Subject"\n"1","a\0b\0"\n"2","\\u0000"\n"3","{""k\\u0000"":[""\\u0000"",null,1.5,true]}"\n',
    }[name]
    assert caplog.messages == []
