"""Columns are arguments under other spellings and names; what could be two arguments is none."""

from __future__ import annotations

import pytest

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.writes.columns import ColumnMapping


def write(*, name=None, twitter_id=None):
    """What writes a row."""


@pytest.mark.parametrize(
    ("columns", "row", "renamed"),
    [
        (None, {"name": "A", "twitter_id": 1}, {"name": "A", "twitter_id": 1}),
        (None, {"Name": "A", "TwitterId": "b"}, {"name": "A", "twitter_id": "b"}),
        (None, {" NAME ": "A", "twitter-id": "b"}, {"name": "A", "twitter_id": "b"}),
        (None, {"Twitter Id": None}, {"twitter_id": None}),
        (None, {"Id": "7", "ID": "8", "Name": "A"}, {"name": "A"}),
        (None, {"Fullname": "A", 1: 2}, {"Fullname": "A", 1: 2}),
        (None, {"Name": "A", "name": "B"}, {"Name": "A", "name": "B"}),
        (None, {"Name": "A", "NAME": "B", "TwitterId": "b"}, {"Name": "A", "NAME": "B", "TwitterId": "b"}),
        ({"Full Name": "name"}, {"Full Name": "A", "TwitterId": "b"}, {"name": "A", "twitter_id": "b"}),
        ({"Full Name": "name"}, {"full name": "A"}, {"full name": "A"}),
        ({"Full Name": "name"}, {"Full Name": "A", "Name": "B"}, {"Full Name": "A", "Name": "B"}),
        ({"Full Name": "name", "Name": None}, {"Full Name": "A", "Name": "B"}, {"name": "A"}),
        ({"Id": "name"}, {"Id": "7"}, {"name": "7"}),
        ({"name": "twitter_id", "twitter_id": "name"}, {"name": "A"}, {"twitter_id": "A"}),
        ({}, ["A"], ["A"]),
        ({}, None, None),
    ],
)
def test_rename(columns, row, renamed):
    """A column is an argument by its name in any spelling, or as `columns` says; other columns keep their names."""
    before = dict(row) if isinstance(row, dict) else row
    assert ColumnMapping(write, columns).rename(row) == renamed
    assert row == before


@pytest.mark.parametrize("columns", [{"A": "nam"}, {"A": "name", "B": "name"}, {"A": "self"}, {"A": ""}])
def test_bad_columns(columns):
    """An argument that does not exist, or that two columns have, is rejected."""
    with pytest.raises(ValueError, match="must name a different argument for each column") as caught:
        ColumnMapping(write, columns)
    assert str(caught.value) == (
        f"columns={columns!r} must name a different argument for each column, or None to leave it out. The arguments: "
        "name, twitter_id."
    )
    ColumnMapping(write, {"A": "name", "B": None, "C": None})


def test_method():
    """A method's own instance is no argument."""

    class Writer:
        def write(self, *, name):
            pass

    assert ColumnMapping(Writer.write).rename({"self": 1, "Name": 2}) == {"self": 1, "name": 2}
    with pytest.raises(ValueError, match=r"The arguments: name\.$"):
        ColumnMapping(Writer.write, {"A": "self"})


@pytest.mark.parametrize(
    ("columns", "header"),
    [({}, ["Id", "Name", "", "Twitter Id", ""]), ({"Full Name": "name", "X": None}, ["X", "X", "Full Name"]), ({}, [])],
)
def test_header(columns, header):
    """A header whose columns are all arguments, or left out, fits."""
    ColumnMapping(write, columns).check(header)


@pytest.mark.parametrize(
    ("header", "problems"),
    [
        (["Nam", "Twitter"], "'Nam' is no argument; 'Twitter' is no argument"),
        (["Name", "NAME"], "'Name' and 'NAME' are both name"),
        (["Name", "Name", "Name"], "'Name' and 'Name' are both name; 'Name' and 'Name' are both name"),
    ],
)
def test_bad_header(header, problems):
    """Each column that does not fit is named."""
    with pytest.raises(OneboxConfigError) as caught:
        ColumnMapping(write).check(header)
    assert str(caught.value) == (
        f"The columns don't fit, so nothing was sent: {problems}. Set columns to the argument of each, None to leave "
        "one out. The arguments: name, twitter_id."
    )


def test_header_that_lacks_a_column():
    """A name in `columns` that the table lacks is a mistake."""
    columns = ColumnMapping(write, {"Full Name": "name", "Segment": None})
    with pytest.raises(OneboxConfigError, match="nothing was sent: 'Full Name' is missing; 'Segment' is missing; 'A"):
        columns.check(["A"])
