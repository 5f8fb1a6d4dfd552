"""Rows that a task is given, in each form that Airflow hands them over, and the threads that work on them."""

from __future__ import annotations

import gzip
import json
import threading

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_onebox import rows
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError
from airflow_provider_onebox.rows import in_parallel, read_ids, read_rows

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
@pytest.mark.parametrize("form", ["text", "path", "object", "result", "rendered"])
def test_files(tmp_path, name, form):
    """A file is read line by line, named by its path or by what a listing has returned; empty lines are none."""
    path = tmp_path / name
    text = "".join(json.dumps(row) + "\n\n" for row in ROWS).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    forms = {"text": str(path), "path": path, "object": ObjectStoragePath(str(path)), "result": {"path": str(path)}}
    forms["rendered"] = str(forms["result"])
    assert list(read_rows(forms[form])) == ROWS


@pytest.mark.parametrize("source", [None, "", "None", " ", {}, {"count": 0}])
def test_nothing_handed_in(source):
    """A template that found nothing is told apart from an empty list."""
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


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_tables(tmp_path, name):
    """A table is rejected by its name, before its first row is asked for."""
    for source in (tmp_path / name, {"path": str(tmp_path / name)}):
        with pytest.raises(OneboxConfigError, match=rf"{name} is a table, and rows are read from JSON Lines"):
            read_rows(source)


def test_unreadable(tmp_path):
    """A file that is missing or cut off leaves the task to Airflow's retries."""
    with pytest.raises(OneboxError, match=r"can't be read \(after 0 lines\): No such file") as caught:
        list(read_rows(tmp_path / "none.jsonl"))
    assert caught.value.retryable
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"Id": "7"}\n' * 9)[:-9])
    with pytest.raises(OneboxError, match=r"cut\.jsonl\.gz can't be read"):
        list(read_rows(cut))


def test_ids():
    """Ids come from ids and from records, as text."""
    assert list(read_ids([7, "8 ", {"Id": "9"}, {"Id": 10}])) == ["7", "8", "9", "10"]


@pytest.mark.parametrize("row", ["x", "", None, True, -1, 1.5, {"id": "7"}, {"Id": None}, ["7"]])
def test_no_ids(row):
    """What is no id is rejected before Onebox is asked for it."""
    with pytest.raises(OneboxConfigError, match="is not an id and has none"):
        list(read_ids([row]))


def test_parallel_in_order():
    """All threads work at once, and the results come in the order of the items."""
    barrier = threading.Barrier(3, timeout=10)

    def call(item):
        barrier.wait()
        return -item

    assert list(in_parallel(call, range(9), 3)) == [-item for item in range(9)]


def test_parallel_reads_few_ahead():
    """Items are read as they are needed: no more than twice as many as there are threads."""
    read = []
    results = in_parallel(str, (read.append(n) or n for n in range(100)), 2)
    assert read == []
    assert next(results) == "0"
    assert len(read) == 4
    results.close()


def test_parallel_error():
    """An error ends the calls under way before it is raised, and begins no others."""
    begun, ended = [], []
    go_on = threading.Event()

    def call(item):
        begun.append(item)
        if item == 0:
            go_on.set()
            raise ValueError("no")
        go_on.wait(10)
        ended.append(item)

    with pytest.raises(ValueError, match="no"):
        list(in_parallel(call, range(100), 2))
    assert set(begun) == {0, *ended}
    assert len(begun) <= 4


def test_parallel_end(monkeypatch):
    """Calls that have not begun when the caller has enough are dropped, and those under way are waited for."""
    begun, ended, go_on = [], [], threading.Event()

    class Pool(rows.ThreadPoolExecutor):
        def shutdown(self, wait=True, **options):
            super().shutdown(wait=False, **options)
            go_on.set()
            super().shutdown(wait=wait)

    def call(item):
        begun.append(item)
        if item:
            go_on.wait(10)
        ended.append(item)

    monkeypatch.setattr(rows, "ThreadPoolExecutor", Pool)
    results = in_parallel(call, range(100), 2)
    next(results)
    results.close()
    assert set(begun) == set(ended) <= {0, 1, 2}


@pytest.mark.parametrize(("what", "named"), [((), "rows"), (("tickets",), "tickets")])
@pytest.mark.parametrize("seconds", [0, 60])
def test_progress(monkeypatch, caplog, seconds, what, named):
    """The log tells how far the work is, at a pace that can be read."""
    caplog.set_level("INFO")
    monkeypatch.setattr(rows, "PROGRESS_SECONDS", seconds)
    assert len(list(in_parallel(str, range(3), 1, *what))) == 3
    told = [] if seconds else [f"Done with {n} {named} so far." for n in (1, 2, 3)]
    assert [record.message for record in caplog.records] == told


@pytest.mark.parametrize("parallelism", [1, 32])
def test_parallelism(parallelism):
    """One thread is enough, and 32 are allowed."""
    assert list(in_parallel(str, range(2), parallelism)) == ["0", "1"]


@pytest.mark.parametrize("parallelism", [0, 33, True, "2", None])
def test_bad_parallelism(parallelism):
    """A number of threads that can't work is rejected at once."""
    with pytest.raises(OneboxConfigError, match="is not a whole number from 1 to 32"):
        in_parallel(str, [], parallelism)
