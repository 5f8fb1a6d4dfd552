"""Rows come as people have them, and the columns of a table are checked before anything is sent."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import DAG
from support.bulk import CONTACTS, Bulk, written

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.operators.onebox import OneboxListOperator


@pytest.fixture
def run(tmp_path):
    """Run an operator into a file of the test's own; return its result."""
    return Bulk(tmp_path).run


@pytest.fixture
def results(tmp_path):
    """Return what is in that file."""
    return Bulk(tmp_path).results


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv(connected, run, results, tmp_path, mark):
    """A table from a spreadsheet is written, its columns named by `columns` or by the arguments in any spelling."""
    path = tmp_path / "rows.csv"
    path.write_text(
        f"{mark}Full Name;E-mail;Segment;Id\r\nSiti;siti@example.com;A;1\r\nBudi;;B;2\r\n", encoding="utf-8"
    )
    assert run(str(path), columns={"Full Name": "name", "Segment": None})["done"] == 2
    bodies = [entry["body"] for entry in connected.state.books()]
    assert sorted(map(sorted, map(dict.items, bodies))) == [
        [("Email", "siti@example.com"), ("Name", "Siti")],
        [("Name", "Budi")],
    ]
    path.write_text(path.read_text(encoding="utf-8").replace(";A;1", ";B;3"))
    assert run(str(path), columns={"Full Name": "name", "Segment": None})["done"] == 2
    assert len(connected.state.books()) == 2


def test_csv_that_does_not_fit(connected, run, tmp_path):
    """Columns that are no arguments are named before anything is sent."""
    path = tmp_path / "rows.csv"
    path.write_text("Name,Segment\nSiti,A\n")
    with pytest.raises(OneboxConfigError, match=r"nothing was sent: 'Segment' is no argument\..*name, phone, fax"):
        run(str(path))
    assert connected.state.books() == []


def test_cells_beyond_the_header(connected, run, results, tmp_path):
    """A row with more cells than columns is rejected and harms no others."""
    path = tmp_path / "rows.csv"
    path.write_text("name\nSiti\nBudi,Santoso\n")
    assert run(path, max_failed_share=1)["rejected"] == 1
    assert results()[1]["message"].endswith("got an unexpected keyword argument 'cells beyond the header'.")
    assert written(connected) == ["Siti"]


@pytest.mark.parametrize("name", [None, "a.jsonl.gz", "a.csv"])
def test_another_site(connected, run, tmp_path, name):
    """Contacts that a list operator has read at one site are written to another."""
    path = name and str(tmp_path / name)
    fields = ["Id", "Name", "Phone", "Fax", "Email", "Mobile", "TwitterId", "FacebookId", "Media"]
    listing = OneboxListOperator(task_id="l", resource="contactrz", max_records=5, output_path=path, fields=fields)
    listed = listing.execute({})
    result = run(listed, site_id="170")
    assert result["done"] == 5
    new = [entry["id"] for entry in connected.state.books()]
    copies = OneboxListOperator(task_id="l", resource="contactrz", site_id="170", since_id=min(map(int, new)) - 1)
    originals = OneboxListOperator(task_id="l", resource="contactrz", max_records=5).execute({})
    without_id = [{key: record[key] for key in record if key != "Id"} for record in (*copies.execute({}), *originals)]
    assert sorted(without_id[:5], key=str) == sorted(without_id[5:], key=str)


def test_ambiguous(connected, run, results):
    """A row of which two columns could be the name is rejected."""
    assert run([{"Name": "A", "name": "B"}, {"Name": "C"}], max_failed_share=1)["rejected"] == 1
    assert results()[0]["message"].endswith("got an unexpected keyword argument 'Name'.")
    assert written(connected) == ["C"]


def test_same_row_in_another_spelling(connected, run):
    """A row is recognized by what is sent, not by the names of its columns."""
    run()
    assert run([{"Full Name": row["name"]} for row in CONTACTS], columns={"Full Name": "name"})["done"] == 9
    assert len(written(connected)) == 9


def test_bad_columns():
    """Columns that are no arguments are found when the DAG is parsed."""
    options = {"task_id": "t", "kind": "contact", "rows": [], "results_path": "x"}
    with pytest.raises(ValueError, match="must name a different argument for each column"):
        OneboxBulkWriteOperator(columns={"Full Name": "full_name"}, **options)
    with DAG("d", schedule=None):
        OneboxBulkWriteOperator(**{**options, "kind": "ticket"}, columns={"Customer": "full_name"})
