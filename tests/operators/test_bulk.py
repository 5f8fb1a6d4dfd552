"""Many writes by one task: its arguments, its rows as people have them, and its result."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import DAG
from support.bulk import CONTACTS, TICKET, written
from support.polling import Log

from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxRequestError,
    OneboxUncertainWriteError,
)
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.operators.onebox import OneboxListOperator


def test_arguments():
    """Plain arguments are checked when the DAG is read, and nothing is looked up."""
    options = {"task_id": "t", "rows": [], "results_path": "x"}
    with pytest.raises(ValueError, match="kind='case' is none of ticket, contact, message"):
        OneboxBulkWriteOperator(kind="case", **options)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="is not a number from 0"):
            OneboxBulkWriteOperator(kind="ticket", max_failed_share=share, **options)
    with pytest.raises(ValueError, match="must name a different argument for each column"):
        OneboxBulkWriteOperator(kind="contact", columns={"Full Name": "full_name"}, **options)
    OneboxBulkWriteOperator(kind="ticket", columns={"Customer": "full_name"}, **options)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("contact", CONTACTS),
        ("ticket", [{**TICKET, "subject": str(n)} for n in range(5)]),
        ("message", [{"connection_id": "1", "body": str(n)} for n in range(5)]),
    ],
)
def test_all_done(connected, bulk, tmp_path, monkeypatch, kind, rows):
    """Each row has a line with its id, in the order of the rows, and the task returns and logs the sum of them."""
    logged = Log.of(monkeypatch, OneboxBulkWriteOperator)
    count = len(rows)
    result = {"path": str(tmp_path / "results.jsonl"), "count": count, "done": count, "rejected": 0, "uncertain": 0}
    assert bulk.run(rows, kind, parallelism="3") == result
    line = f"{result['path']}: of {count} rows, {count} are done, 0 rejected, 0 uncertain."
    assert logged[-1] == ("info", line)
    lines = bulk.results()
    assert [(line["row"], line["result"]) for line in lines] == [(n, "done") for n in range(count)]
    assert {tuple(line) for line in lines} == {("row", "result", "key", "id")}
    assert sorted(line["id"] for line in lines) == sorted(entry["id"] for entry in connected.state.books())
    assert connected.state.logins == 1
    assert os.listdir(tmp_path) == ["results.jsonl"]  # noqa: PTH208 - names are what is compared


def test_renderers():
    """Airflow's page shows rows that are a list as JSON."""
    assert OneboxBulkWriteOperator.template_fields_renderers == {"rows": "json"}


def test_no_rows(connected, bulk):
    """No rows are no failure."""
    assert bulk.run([])["count"] == 0
    assert bulk.results() == []


def test_rows_of_mapped_tasks(connected, bulk):
    """The lists of mapped tasks are one list of rows."""
    assert bulk.run([CONTACTS[:2], (CONTACTS[2],), [], CONTACTS[3]])["done"] == 4
    assert [line["row"] for line in bulk.results()] == [0, 1, 2, 3]
    assert written(connected) == [row["name"] for row in CONTACTS[:4]]


@pytest.mark.parametrize(("share", "fails"), [(0, True), (0.2, True), (0.25, False), (1, False)])
def test_share(connected, bulk, share, fails):
    """The task fails if more than a share of the rows is not done."""
    rows = [*CONTACTS[:3], {}]
    if fails:
        with pytest.raises(OneboxRequestError):
            bulk.run(rows, max_failed_share=share)
    else:
        assert bulk.run(rows, max_failed_share=share)["rejected"] == 1


def test_uncertain(connected, bulk):
    """A row whose response is lost is uncertain, fails the task for good, and is repeated only if asked to."""
    connected.state.fail("drop_after", path="contactrz", after=2)
    with pytest.raises(
        OneboxUncertainWriteError,
        match=r"8 are done, 0 rejected, 1 uncertain\. Row 2 is uncertain: .*\. Those uncertain may have",
    ):
        bulk.run(parallelism=1)
    (line,) = [line for line in bulk.results() if line["result"] == "uncertain"]
    assert line["row"] == 2
    assert "look in Onebox" in line["message"]
    assert bulk.run(max_failed_share=1)["uncertain"] == 1
    assert len(connected.state.books()) == 9
    assert bulk.run(repeat_uncertain=True)["done"] == 9
    assert written(connected).count("Contact 2") == 2


def test_target(connected, bulk):
    """The same row at another site is another row."""
    bulk.run()
    assert bulk.run(site_id="170")["done"] == 9
    assert len(written(connected)) == 18


def test_templates_in_paths(tmp_path):
    """A template in a Path is rendered as in a text."""
    folder = Path("{{ folder }}")
    task = OneboxBulkWriteOperator(task_id="t", kind="ticket", rows=folder / "r", results_path=folder / "{{ run_id }}")
    task.dag = DAG("d", schedule=None)
    task.render_template_fields({"folder": str(tmp_path), "run_id": "r1"})
    assert (task.rows, task.results_path) == (f"{tmp_path}/r", f"{tmp_path}/r1")


def test_rows_that_end_with_an_error(connected, bulk, tmp_path):
    """A file of rows with a bad line ends the task after the rows before it, which are not written again."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CONTACTS[:3]) + "{\n")
    with pytest.raises(OneboxConfigError, match="line 4, is not JSON"):
        bulk.run(str(path), parallelism=1)
    assert bulk.run(CONTACTS)["done"] == 9
    assert written(connected) == [row["name"] for row in CONTACTS]


def test_csv(connected, bulk, tmp_path):
    """A table from a spreadsheet is written, its columns named by `columns` or by the arguments in any spelling.

    A row is recognized by what is sent.
    """
    path, columns = tmp_path / "rows.csv", {"Full Name": "name", "Segment": None}
    path.write_text("Full Name;E-mail;Segment;Id\r\nSiti;siti@example.com;A;1\r\nBudi;;B;2\r\n")
    assert bulk.run(str(path), columns=columns)["done"] == 2
    bodies = [entry["body"] for entry in connected.state.books()]
    assert sorted(map(sorted, map(dict.items, bodies))) == [
        [("Email", "siti@example.com"), ("Name", "Siti")],
        [("Name", "Budi")],
    ]
    path.write_text(path.read_text().replace(";A;1", ";B;3"))
    assert bulk.run(str(path), columns=columns)["done"] == 2
    assert len(connected.state.books()) == 2


def test_csv_that_does_not_fit(connected, bulk, tmp_path):
    """Columns that are no arguments are named before anything is sent."""
    path = tmp_path / "rows.csv"
    path.write_text("Name,Segment\nSiti,A\n")
    with pytest.raises(OneboxConfigError, match=r"nothing was sent: 'Segment' is no argument\..*name, phone, fax"):
        bulk.run(str(path))
    assert connected.state.books() == []


def test_cells_beyond_the_header(connected, bulk, tmp_path):
    """A row with more cells than columns is rejected and harms no others."""
    path = tmp_path / "rows.csv"
    path.write_text("name\nSiti\nBudi,Santoso\n")
    assert bulk.run(path, max_failed_share=1)["rejected"] == 1
    assert bulk.results()[1]["message"].endswith("got an unexpected keyword argument 'cells beyond the header'.")
    assert written(connected) == ["Siti"]


@pytest.mark.parametrize("name", [None, "a.csv"])
def test_another_site(connected, bulk, tmp_path, name):
    """Contacts that a list operator has read at one site are written to another."""
    path = name and str(tmp_path / name)
    fields = ["Id", "Name", "Phone", "Fax", "Email", "Mobile", "TwitterId", "FacebookId", "Media"]
    options = {"task_id": "l", "resource": "contactrz", "max_records": 5, "fields": fields}
    assert bulk.run(OneboxListOperator(**options, output_path=path).execute({}), site_id="170")["done"] == 5
    new = [int(entry["id"]) for entry in connected.state.books()]
    copies = OneboxListOperator(**options, site_id="170", since_id=min(new) - 1).execute({})
    originals = OneboxListOperator(**options).execute({})
    without_id = [{**record, "Id": None} for record in (*copies, *originals)]
    assert sorted(without_id[:5], key=str) == sorted(without_id[5:], key=str)


def test_ambiguous(connected, bulk):
    """A row of which two columns could be the name is rejected."""
    assert bulk.run([{"Name": "A", "name": "B"}, {"Name": "C"}], max_failed_share=1)["rejected"] == 1
    assert bulk.results()[0]["message"].endswith("got an unexpected keyword argument 'Name'.")
    assert written(connected) == ["C"]
