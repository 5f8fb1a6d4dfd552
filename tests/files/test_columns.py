"""Typed columns: what fits is a value of its type, and what does not is named or counted."""

from __future__ import annotations

import datetime as dt
import logging
from zoneinfo import ZoneInfo

import pyarrow
import pyarrow.parquet
import pytest
from support.files import write

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.files.columns import TYPES, Columns
from airflow_provider_onebox.files.records import RecordFile

JAKARTA = ZoneInfo("Asia/Jakarta")
UTC = dt.timezone.utc


def column(kind, *values, **options):
    """Return the values of a column as Python has them."""
    rows = [{"Id": str(number), "x": value} for number, value in enumerate(values, 1)]
    return Columns({"x": kind}, **options).batch(rows).to_pydict()["x"]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (None, ["a", 4, None, [1]], ["a", "4", None, "[1]"]),
        ("string", ["a", True, {"b": 1}], ["a", "true", '{"b":1}']),
        ("int64", ["12250", 7, None, "-1", str(2**63 - 1)], [12250, 7, None, -1, 2**63 - 1]),
        ("float64", ["1.5", 2, None, "1e3"], [1.5, 2.0, None, 1000.0]),
        ("bool", [True, "false", 1, "0", None], [True, False, True, False, None]),
        (
            "timestamp",
            ["2026-11-24 08:30:00", "2026-11-24", None, "3000-01-01 00:00:00"],
            [dt.datetime(2026, 11, 24, 8, 30), dt.datetime(2026, 11, 24), None, dt.datetime(3000, 1, 1)],
        ),
    ],
)
def test_types(kind, values, expected):
    """Text, numbers and booleans of JSON become values of the type; null stays null."""
    assert column(kind, *values) == expected


@pytest.mark.parametrize(
    ("zone", "local", "instant"),
    [
        (JAKARTA, "2026-11-24 08:30:00", dt.datetime(2026, 11, 24, 1, 30, tzinfo=UTC)),
        # When clocks are set back, an hour comes twice; when they are set forward, one is missing.
        (ZoneInfo("Europe/Berlin"), "2026-10-25 02:30:00", dt.datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (ZoneInfo("Europe/Berlin"), "2026-03-29 02:30:00", dt.datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
    ],
)
def test_instants(zone, local, instant):
    """With Onebox's zone known, times can be instants."""
    assert column("timestamptz", local, None, zone=zone) == [instant, None]


MISFITS = [
    ("int64", ["", "1.5", "1_000", " 7", "\uff17", 1.5, True, [1], str(2**63)]),
    ("float64", ["", "1,5", "many", False]),
    ("bool", ["", "yes", 2]),
    ("timestamp", ["", "0000-00-00 00:00:00", "2026-02-30", "2026-11-24T08:30:00Z", 20261124]),
    ("timestamptz", ["", "2026-11-24 08:30:00+07:00"]),
]


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in MISFITS for value in values])
def test_misfit_fails(kind, value):
    """The first value that does not fit is named by record and field, and not shown."""
    good = {"int64": 1, "float64": 1, "bool": 1, "timestamp": "2026-11-24", "timestamptz": "2026-11-24"}[kind]
    with pytest.raises(OneboxConfigError) as caught:
        column(kind, good, None, good, value, value, zone=JAKARTA)
    assert str(caught.value) == (
        f"The record with Id 4 has a x that is not of the type {kind}: correct the type in fields, or write null for "
        'such values with on_misfit="null".'
    )


def test_misfits_are_counted(caplog):
    """With on_misfit="null", null takes the place of what does not fit; the log counts it, and names the first."""
    columns = Columns({"Id": "int64", "When": "timestamp"}, on_misfit="null")
    pages = [
        [{"Id": str(number), "When": "soon" if number % 5 == 0 else "2026-11-24"} for number in range(page, page + 9)]
        for page in (1, 10)
    ]
    dates = [date for page in pages for date in columns.batch(page).to_pydict()["When"]]
    assert [number for number, date in enumerate(dates, 1) if date is None] == [5, 10, 15]
    assert set(dates) == {None, dt.datetime(2026, 11, 24)}
    with caplog.at_level(logging.WARNING):
        columns.report()
    assert caplog.messages == [
        "Wrote null for 3 values of When that are not of the type timestamp; the first is in the record with Id 5."
    ]


def test_parquet(tmp_path, caplog):
    """The file has columns of these types, in this order; U+0000 in a field that is left out is not counted."""
    rows = [{"Id": "1", "CreateDate": "2026-11-24 08:30:00", "Subject": "a\0b", "Rest": "\0"}]
    rows += [{"Id": "2", "Rest": "\0", "ModifyDate": "2026-11-24"}]
    fields = {"Subject": "string", "CreateDate": "timestamptz", "ModifyDate": "timestamp", "Id": "int64"}
    write(tmp_path / "a.parquet", rows, fields, zone=JAKARTA)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert {name: str(table.schema.field(name).type) for name in table.schema.names} == {
        "Subject": "string",
        "CreateDate": "timestamp[us, tz=UTC]",
        "ModifyDate": "timestamp[us]",
        "Id": "int64",
    }
    assert table.to_pydict() == {
        "Subject": ["ab", None],
        "CreateDate": [dt.datetime(2026, 11, 24, 1, 30, tzinfo=UTC), None],
        "ModifyDate": [None, dt.datetime(2026, 11, 24)],
        "Id": [1, 2],
    }
    assert caplog.messages == ["Removed U+0000 from the text of 1 records, the first with Id 1."]


def test_nul_elsewhere(tmp_path, caplog):
    """Nothing is logged where only fields that are left out have U+0000."""
    write(tmp_path / "a.parquet", [{"Id": "1", "Rest": "\0"}], {"Id": "int64"})
    assert caplog.messages == []


def test_misfit_in_a_file(tmp_path, caplog):
    """A value that does not fit keeps the file from being published, or is counted when it is complete."""
    rows, fields = [{"Id": "7", "Rating": "good"}], {"Rating": "int64"}
    with pytest.raises(OneboxConfigError, match="The record with Id 7 has a Rating that is not of"):
        write(tmp_path / "a.parquet", rows, fields)
    assert (list(tmp_path.iterdir()), caplog.messages) == ([], [])
    write(tmp_path / "a.parquet", rows, fields, on_misfit="null")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pydict() == {"Rating": [None]}
    assert "Wrote null for 1 values of Rating" in caplog.messages[0]


def test_types_elsewhere(tmp_path):
    """Only Parquet has types: elsewhere they are rejected, so that nobody takes text for numbers."""
    with pytest.raises(OneboxConfigError) as caught:
        RecordFile(tmp_path / "a.csv", fields={"Id": "int64"})
    assert str(caught.value) == (
        "fields=\"{'Id': 'int64'}\" has types, and only Parquet files and frames do: pass a list of names, or name a "
        ".parquet file in output_path."
    )


@pytest.mark.parametrize("kind", ["int", "INT64", None, 64, ["int64"]])
def test_unknown_type(tmp_path, kind):
    """A type that can't be used is rejected, with those that can."""
    with pytest.raises(OneboxConfigError) as caught:
        RecordFile(tmp_path / "a.parquet", fields={"Id": kind})
    assert str(caught.value) == f"fields: Id has the type {str(kind)!r}: use one of {', '.join(TYPES)}."


def test_bad_rule():
    """What happens to misfits is one of two."""
    with pytest.raises(OneboxConfigError, match='is neither "fail" nor "null"'):
        Columns({"Id": "int64"}, on_misfit="drop")


def test_zone_that_arrow_lacks():
    """Arrow does not read the time zones of Python; where it lacks one, this is found before anything is listed."""

    class Nowhere:
        key = "Nowhere/Land"

    with pytest.raises(OneboxConfigError) as caught:
        Columns({"CreateDate": "timestamptz"}, Nowhere())
    assert str(caught.value) == (
        "pyarrow does not find the time zone Nowhere/Land, which timestamptz needs: install the worker's time zones, "
        "as the package tzdata of its operating system."
    )
