"""Rows that a task is given, in each form in which Airflow passes them."""

from __future__ import annotations

import gzip
import json

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from support.files import write

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.files.reading import BEYOND_HEADER, read_ids, read_rows


def save(path, text):
    """Write a file, compressed if its name ends in .gz; return its path."""
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


ROWS = [{"Id": "7", "Subject": "ø"}, {"Id": "8", "Subject": None}]


@pytest.mark.parametrize(
    "source",
    [ROWS, tuple(ROWS), iter(ROWS), json.dumps(ROWS), f"  {json.dumps(ROWS)} ", str(ROWS)],
    ids=["list", "tuple", "iterator", "json", "spaces", "repr"],
)
def test_lists(source):
    """A list is read as it is, and as the text that a template makes of it."""
    assert list(read_rows(source)) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_files(tmp_path, name):
    """A file is read line by line, named by its path or by what a listing has returned; empty lines are none."""
    path = save(tmp_path / name, "".join(json.dumps(row) + "\n\n" for row in ROWS))
    for source in (path, tmp_path / name, ObjectStoragePath(path), {"path": path}, str({"path": path})):
        assert list(read_rows(source)) == ROWS


@pytest.mark.parametrize("source", [None, "", "None", " ", {}, {"count": 0}])
def test_no_source(source):
    """A template that found nothing is distinguished from an empty list."""
    with pytest.raises(OneboxConfigError, match="the template found nothing"):
        read_rows(source)
    assert list(read_rows([])) == []


def test_text_that_is_no_list():
    """A text that begins like a list and is none is rejected with its beginning."""
    with pytest.raises(OneboxConfigError, match=r"The rows '\[DatasetAlias\(1\)' are neither JSON"):
        read_rows("[DatasetAlias(1)")


def test_bad_line(tmp_path):
    """A line that is not JSON is named; those before it were given."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"Id": "7"}\n{"Id"\n')
    found = read_rows(path)
    assert next(found) == {"Id": "7"}
    with pytest.raises(OneboxConfigError, match=r"rows\.jsonl, line 2, is not JSON"):
        next(found)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.JSONL.gz"])
def test_byte_order_mark(tmp_path, name):
    """A file that begins with a byte order mark is read as one without."""
    assert list(read_rows(save(tmp_path / name, '\ufeff{"Id": "7"}\n{"Id": "8"}\n'))) == [{"Id": "7"}, {"Id": "8"}]
    assert list(read_rows(save(tmp_path / name, "\ufeff\n"))) == []


CSV = 'Full Name, E-mail\r\n"Siti, R""a\nhma",a@example.com\r\n\r\n,,,\r\nBudi,\r\nA,b,,c,d\r\n'
CSV_ROWS = [
    {"Full Name": 'Siti, R"a\nhma', "E-mail": "a@example.com"},
    {"Full Name": "Budi"},
    {"Full Name": "A", "E-mail": "b", BEYOND_HEADER: ["c", "d"]},
]


@pytest.mark.parametrize("name", ["rows.csv", "rows.CSV.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv(tmp_path, name, mark):
    """A CSV file has a row for each line that is not empty, as text, without the cells that are empty."""
    headers = []
    path = save(tmp_path / name, mark + CSV)
    assert list(read_rows(path, headers.append)) == CSV_ROWS
    assert headers == [["Full Name", "E-mail"]]
    assert list(read_rows({"path": path})) == CSV_ROWS


def test_csv_header_first(tmp_path):
    """A header that does not fit is found before the first row."""

    def reject(header):
        raise OneboxConfigError(str(header))

    with pytest.raises(OneboxConfigError, match=r"^\['a', 'b'\]$"):
        next(read_rows(save(tmp_path / "rows.csv", "a,b\n1,2\n"), reject))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a;b\n1;2,5\n", [{"a": "1", "b": "2,5"}]),
        ("a,b;c\n1,2;5\n", [{"a": "1", "b;c": "2;5"}]),
        ("a\n1;2\n", [{"a": "1;2"}]),
        ("a,b\n", []),
        ("", []),
    ],
)
def test_csv_separator(tmp_path, text, rows):
    """A header that has semicolons and no comma is separated by them."""
    assert list(read_rows(save(tmp_path / "rows.csv", text))) == rows


def test_exported_csv(tmp_path):
    """What an export has written as CSV is read again."""
    write(tmp_path / "a.csv", [{"Id": "1", "Subject": 'é\n"x"'}, {"Id": "2", "Subject": None}], ["Id", "Subject"])
    assert list(read_rows(tmp_path / "a.csv")) == [{"Id": "1", "Subject": 'é\n"x"'}, {"Id": "2"}]
    assert list(read_ids(tmp_path / "a.csv")) == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'a,b\n1,2\n"1,2\n', "after line 2, is not CSV: unexpected end of data."),
        (b'"a"b,c\n1,2\n', "after line 0, is not CSV: ',' expected after '\"'."),
        ("a,b\n1,é\n".encode("latin-1"), "is not UTF-8: save it as UTF-8, which Excel calls CSV UTF-8."),
    ],
)
def test_bad_csv(tmp_path, text, problem):
    """What is no CSV is named, and not retried."""
    path = tmp_path / "rows.csv"
    path.write_bytes(text)
    with pytest.raises(OneboxConfigError) as caught:
        list(read_rows(path))
    assert str(caught.value) in (f"{path}, {problem}", f"{path} {problem}")


def test_parquet(tmp_path):
    """Parquet is rejected by its name, before its first row is asked for."""
    for source in (tmp_path / "rows.parquet", {"path": str(tmp_path / "rows.Parquet")}):
        with pytest.raises(OneboxConfigError, match=r"(?i)rows.parquet is Parquet, and rows are read from JSON Lines"):
            read_rows(source)


def test_unreadable(tmp_path):
    """A file that is missing or cut off leaves the task to Airflow's retries."""
    with pytest.raises(OneboxError, match=r"can't be read \(after 0 rows\): No such file") as caught:
        list(read_rows(tmp_path / "none.jsonl"))
    assert caught.value.retryable
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"Id": "7"}\n' * 9)[:-9])
    with pytest.raises(OneboxError, match=r"cut\.jsonl\.gz can't be read"):
        list(read_rows(cut))


def test_ids():
    """Ids come from ids and from records, as text."""
    assert list(read_ids([7, "8 ", {"Id": "9"}, {"Id": 10}])) == ["7", "8", "9", "10"]


@pytest.mark.parametrize("one", [7, "7", " 7\n", {"Id": "7"}, {"Id": 7, "path": "x"}])
def test_one_id(one):
    """One id is a list of one, and so is one record."""
    assert list(read_ids(one)) == ["7"]


@pytest.mark.parametrize("row", ["x", "", None, True, -1, 1.5, {"id": "7"}, {"Id": None}, [["7"]]])
def test_no_ids(row):
    """What is no id is rejected before Onebox is asked for it."""
    with pytest.raises(OneboxConfigError, match="is not an id and has none"):
        list(read_ids([row]))
