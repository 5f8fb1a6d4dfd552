"""Frames of records: their columns, their types, and what is missing."""

from __future__ import annotations

import sys

import pytest

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.files.frames import FRAMES, frame_of, require
from airflow_provider_onebox.hooks.onebox import OneboxHook

RECORDS = [{"Id": "1", "Tags": ["a", "b"], "Rating": 4}, {"Id": "2", "Rating": None, "Name": "Ada"}]


def rows_of(frame, library):
    """Return the rows of a frame, with None for what is null."""
    if library == "polars":
        return frame.to_dicts()
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


@pytest.mark.parametrize("library", FRAMES)
def test_columns(library):
    """Without fields, each field that a record has is a column of text; a list is JSON."""
    assert rows_of(frame_of(iter(RECORDS), library), library) == [
        {"Id": "1", "Tags": '["a","b"]', "Rating": "4", "Name": None},
        {"Id": "2", "Tags": None, "Rating": None, "Name": "Ada"},
    ]


@pytest.mark.parametrize("library", FRAMES)
def test_fields(library):
    """With fields, these are the columns, in their order, even of no records."""
    frame = frame_of(RECORDS, library, ["Name", "Id"])
    assert rows_of(frame, library) == [{"Name": None, "Id": "1"}, {"Name": "Ada", "Id": "2"}]
    assert list(frame_of([], library, ["Name", "Id"]).columns) == ["Name", "Id"]


@pytest.mark.parametrize("library", FRAMES)
def test_hook(connected, library):
    """The hook makes a frame of a list."""
    frame = OneboxHook().get_df("ticketrz", df_type=library, fields=["Id"], max_records=3)
    assert list(frame["Id"]) == connected.state.ids()[:3]
    assert len(OneboxHook().get_df("contactrz", df_type=library, since_id=connected.state.ids("contactrz")[9])) == 240


@pytest.mark.parametrize(("library", "missing"), [("pandas", "pandas"), ("polars", "polars"), ("polars", "pyarrow")])
def test_missing_library(connected, monkeypatch, library, missing):
    """What is not installed is named with the command that installs it, before anything is sent."""
    for name in ("pyarrow", "pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else pytest)
    with pytest.raises(OneboxConfigError, match=f"^A frame of {library} needs {missing}: pip install {missing}$"):
        OneboxHook().get_df("ticketrz", df_type=library)
    assert connected.state.logins == 0


def test_required_is_there(monkeypatch):
    """Nothing is raised where both are installed."""
    monkeypatch.setitem(sys.modules, "pyarrow", pytest)
    monkeypatch.setitem(sys.modules, "pandas", pytest)
    assert require("pandas") is None


def test_unknown_library(connected):
    """Another kind of frame is refused before anything is sent."""
    with pytest.raises(OneboxConfigError, match=r"^df_type='spark' is none of pandas, polars\.$"):
        OneboxHook().get_df("ticketrz", df_type="spark")
    assert connected.state.logins == 0
