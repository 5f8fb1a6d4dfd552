"""Frames of records: their columns, their types, and what is missing."""

from __future__ import annotations

import sys
from datetime import datetime, timezone

import pytest

from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.files.frames import FRAMES, frame_of
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
    frame = frame_of(RECORDS, library, {"Name": None, "Id": None})
    assert rows_of(frame, library) == [{"Name": None, "Id": "1"}, {"Name": "Ada", "Id": "2"}]
    assert list(frame_of([], library, {"Name": None, "Id": None}).columns) == ["Name", "Id"]


@pytest.mark.parametrize("library", FRAMES)
def test_hook(connected, library):
    """The hook makes a frame of a list."""
    frame = OneboxHook().get_df("ticketrz", df_type=library, fields=["Id"], max_records=3)
    assert list(frame["Id"]) == connected.state.ids()[:3]
    assert len(OneboxHook().get_df("contactrz", df_type=library, since_id=connected.state.ids("contactrz")[9])) == 240
    new = [connected.state.table("ticketrz").add(1, datetime(2090, 11, day))[0] for day in (23, 24, 25)]
    frame = OneboxHook().get_df("ticketrz", df_type=library, since="2090-11-24", until="2090-11-25")
    assert list(frame["Id"]) == new[1:2]


@pytest.mark.parametrize(("library", "missing"), [("pandas", "pandas"), ("polars", "polars"), ("polars", "pyarrow")])
def test_missing_library(connected, monkeypatch, library, missing):
    """What is not installed is named with the command that installs it, before anything is sent."""
    for name in ("pyarrow", "pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else pytest)
    with pytest.raises(OneboxConfigError, match=f"^A frame of {library} needs {missing}: pip install {missing}$"):
        OneboxHook().get_df("ticketrz", df_type=library)
    assert connected.state.logins == 0


def test_unknown_library(connected):
    """Another kind of frame is rejected before anything is sent."""
    with pytest.raises(OneboxConfigError, match=r"^df_type='spark' is none of pandas, polars\.$"):
        OneboxHook().get_df("ticketrz", df_type="spark")
    assert connected.state.logins == 0


@pytest.mark.parametrize("library", FRAMES)
def test_typed(connected, connect, library, caplog):
    """Columns can have types; a large number survives a null beside it."""
    connect(connected.url, login=connected.email, password=connected.password, timezone="Asia/Jakarta")
    table = connected.state.table("ticketrz")
    (new,) = table.add(1, datetime(2090, 11, 24), Rating=2**60, SiteId=True)
    table.add(1, datetime(2090, 11, 24, 8, 30), Rating="none", SiteId=None)
    fields = {"Id": "int64", "Rating": "int64", "SiteId": "bool", "CreateDate": "timestamptz"}
    options = {"since": "2090-11-24", "df_type": library}
    frame = OneboxHook().get_df("ticketrz", fields=fields, on_misfit="null", **options)
    first, second = rows_of(frame, library)
    assert (first["Id"], first["Rating"], first["SiteId"]) == (int(new), 2**60, True)
    assert (second["Rating"], second["SiteId"]) == (None, None)
    assert "Wrote null for 1 values of Rating that are not of the type int64" in caplog.text
    assert first["CreateDate"] == datetime(2090, 11, 23, 17, tzinfo=timezone.utc)
    with pytest.raises(OneboxConfigError, match="has a Subject that is not of the type int64"):
        OneboxHook().get_df("ticketrz", fields={"Subject": "int64"}, **options)


def test_instants_without_a_zone(connected):
    """Where Onebox's zone is not known, times can't be instants; nothing is listed."""
    with pytest.raises(OneboxConfigError) as caught:
        OneboxHook().get_df("ticketrz", fields={"CreateDate": "timestamptz"})
    assert str(caught.value) == (
        "The type timestamptz has a time zone, and Onebox's times have none: enter the zone of this Onebox, such as "
        "Asia/Jakarta, as Time zone of connection 'onebox_default' (extra field 'timezone'), or use timestamp."
    )
    assert not connected.state.seen
