"""The operators that read and write."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
from datetime import datetime
from inspect import get_annotations
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import pyarrow.parquet
import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowSkipException,
    Asset,
    ObjectStoragePath,
)
from support.polling import Log
from support.watermarks import Deployment

from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxUncertainWriteError,
    OneboxUnusableResultError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators import onebox
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator, OneboxSendMessageOperator
from airflow_provider_onebox.operators.onebox import (
    OneboxAuthenticateOperator,
    OneboxCreateTicketOperator,
    OneboxListOperator,
    OneboxRequestOperator,
)
from airflow_provider_onebox.sensors.onebox import OneboxRecordSensor

TICKET = {"full_name": "A", "contact": "a@example.com", "subject": "s", "category": "c", "content": "x"}


@pytest.fixture
def context(monkeypatch):
    """Make the context of a run; all runs share the Variables of an Airflow."""
    airflow = Deployment(monkeypatch)

    def make(*args, **names):
        return airflow.context(*args, **names)

    make.airflow = airflow
    return make


def render(task, values, *, native=False):
    """Render a task's fields as a worker does."""
    task.dag = DAG("d", schedule=None, render_template_as_native_obj=native)
    task.render_template_fields(values)
    return task


def queries(sandbox, path="/api/ticketrz"):
    """Return what was asked for below a path."""
    return [dict(parse_qsl(seen.query)) for seen in sandbox.state.seen if seen.path == path]


def lines(path):
    """Read the ids in a gzip file."""
    return [json.loads(line)["Id"] for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_list_returns_records(connected, context):
    """Few records come back as they are."""
    task = OneboxListOperator(task_id="t", resource="ticketrz", max_records=3, since_id="0")
    assert [row["Id"] for row in task.execute(context())] == connected.state.ids()[:3]


def test_list_too_large_for_xcom(connected, context, monkeypatch):
    """Records that are too many for an XCom are refused with the way out."""
    monkeypatch.setattr(onebox, "MAX_XCOM_BYTES", 20_000)
    with pytest.raises(OneboxConfigError, match=r"an XCom holds at most 20,000 here: pass output_path"):
        OneboxListOperator(task_id="t", resource="ticketrz").execute(context())


def test_records_that_just_fit_an_xcom(connected, context, monkeypatch):
    """Records of as many bytes as an XCom may hold are returned, and rejected if they are one byte more."""
    options = {"task_id": "t", "resource": "ticketrz", "max_records": 3, "fields": ["Id", "Subject"]}
    rows = OneboxListOperator(**options).execute(context())
    size = len(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode())
    monkeypatch.setattr(onebox, "MAX_XCOM_BYTES", size)
    assert OneboxListOperator(**options).execute(context()) == rows
    monkeypatch.setattr(onebox, "MAX_XCOM_BYTES", size - 1)
    with pytest.raises(OneboxConfigError, match=f"the first 3 records are {size:,} bytes of JSON"):
        OneboxListOperator(**options).execute(context())


def test_list_to_a_file(connected, context, tmp_path, monkeypatch):
    """Many records go to a file, and the task and its log tell what is in it."""
    log = Log()
    monkeypatch.setattr(OneboxListOperator, "log", log)
    path = tmp_path / "out.jsonl.gz"
    ids = connected.state.ids()
    task = OneboxListOperator(task_id="t", resource="ticketrz", output_path=str(path), page_size=33)
    where = {"path": str(path), "uri": f"file://{path}"}
    assert task.execute(context()) == {**where, "count": 250, "first_id": ids[0], "last_id": ids[-1]}
    assert lines(path) == ids
    assert log.lines[-1:] == [("info", f"Wrote 250 ticketrz records to {path}.")]
    task = OneboxListOperator(task_id="t", resource="ticketrz", output_path=str(path), since_id=ids[-1])
    assert task.execute(context()) == {**where, "count": 0, "first_id": None, "last_id": ids[-1]}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", None])
def test_fields(connected, context, tmp_path, suffix):
    """The path chooses the format, and fields what is kept, templates and XComs too."""
    path = suffix and f"{tmp_path}/out.{suffix}"
    task = OneboxListOperator(
        task_id="t", resource="ticketrz", max_records=2, fields=["Subject", "{{ params.more }}"], output_path=path
    )
    result = render(task, {"params": {"more": "Category"}}).execute(context())
    ids = connected.state.ids()
    if path:
        where = {"path": path, "uri": f"file://{path}"}
        assert result == {**where, "count": 2, "first_id": ids[0], "last_id": ids[1]}
    if suffix == "jsonl":
        result = [json.loads(line) for line in Path(path).read_text().splitlines()]
    elif suffix == "csv":
        with Path(path).open(newline="") as file:
            result = list(csv.DictReader(file))
    elif suffix == "parquet":
        result = pyarrow.parquet.read_table(path).to_pylist()
    assert [list(row) for row in result] == [["Subject", "Category"]] * 2
    assert all(row["Subject"] for row in result)


def test_fields_make_an_xcom_smaller(connected, context, monkeypatch):
    """What an XCom may hold is measured after the other fields are left out."""
    monkeypatch.setattr(onebox, "MAX_XCOM_BYTES", 20_000)
    assert len(OneboxListOperator(task_id="t", resource="ticketrz", fields=["Id"]).execute(context())) == 250


@pytest.mark.parametrize(
    "options",
    [{"fields": "Id"}, {"fields": [], "output_path": "{}/a.jsonl"}, {"output_path": "{}/a.csv"}],
    ids=["xcom", "jsonl", "csv"],
)
def test_bad_fields(connected, context, tmp_path, options):
    """Fields that can't work, or are missing, are found out before anything is sent."""
    options = {name: value.format(tmp_path) if name == "output_path" else value for name, value in options.items()}
    with pytest.raises(OneboxConfigError, match="fields="):
        OneboxListOperator(task_id="t", resource="ticketrz", **options).execute(context())
    assert not connected.state.requests


def test_failed_list_leaves_the_file(connected, context, tmp_path):
    """A listing that fails half-way leaves the earlier file and nothing else."""
    path = tmp_path / "out.jsonl.gz"
    task = OneboxListOperator(task_id="t", resource="ticketrz", output_path=str(path))
    task.execute(context())
    before = path.read_bytes()
    connected.state.fail("html", path="ticketrz", after=2, times=9)
    with pytest.raises(OneboxError):
        task.execute(context())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("options", "include"), [({}, False), ({"include_secrets": False}, False), ({"include_secrets": True}, True)]
)
def test_connection_secrets(connected, context, tmp_path, options, include):
    """Secrets of the customer's channels stay out of XCom and file unless asked for."""
    task = OneboxRequestOperator(task_id="t", endpoint="connection", query={"limit": 5}, **options)
    rows = task.execute(context())["data"]
    options = {"task_id": "t", "resource": "connection", "max_records": 5, **options}
    rows += OneboxListOperator(**options).execute(context())
    path = tmp_path / "c.jsonl.gz"
    OneboxListOperator(**options, output_path=str(path)).execute(context())
    rows += [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(rows) == 15
    for row in rows:
        assert ("Password" in row, "Token" in row) == (include, include)


@pytest.fixture
def run(context, tmp_path):
    """Run an incremental export into a file of the run's own; return the ids in it."""

    def execute(run_id, map_index=-1, **options):
        path = tmp_path / f"{run_id}_{map_index}.jsonl.gz"
        options = {"resource": "ticketrz", "output_path": str(path), "page_size": 50, **options}
        OneboxListOperator(task_id="t", incremental=True, **options).execute(context(run_id, map_index=map_index))
        return lines(path)

    return execute


def test_incremental(connected, context, run):
    """Runs around new records, a failed one and a repeated one: none lost, none twice."""
    old = connected.state.ids()
    assert run("r1") == old
    new = connected.state.add(60)
    connected.state.fail("html", path="ticketrz", after=1, times=9)
    with pytest.raises(OneboxError):
        run("r2")
    connected.state.calm()
    assert run("r2") == new
    assert run("r3") == []
    newest = connected.state.add(10)
    assert run("r2") == new
    assert run("r1") == old
    assert run("r3") == []
    assert run("r4", max_records=4) == newest[:4]
    assert run("r5") == newest[4:]
    assert list(context.airflow.variables) == ["onebox_watermark@d@t@onebox_default@169@ticketrz"]


def test_range_is_repeated_as_a_whole(connected, run):
    """A cleared run writes all that it wrote, also where the DAG has set max_records since then."""
    assert run("r1", max_records=7) == connected.state.ids()[:7]
    assert run("r1", max_records=3) == connected.state.ids()[:7]


def test_incremental_mapped(connected, context, run):
    """Sites that are expanded in another order go on where each was; a state_key tells apart what nothing else does."""
    old = {site: connected.state.ids(site=site) for site in ("169", "170")}
    for index, site in enumerate(old):
        assert run("r1", index, site_id=site) == old[site]
    (new,) = connected.state.add(1, site="170")
    assert [run("r2", index, site_id=site) for index, site in enumerate(reversed(old))] == [[new], []]
    with pytest.raises(OneboxConfigError, match=r"Give each its own state_key, such as {{ ti.map_index }}"):
        run("r2", 2, site_id="169")
    assert run("r2", 2, site_id="169", state_key=2) == old["169"]
    assert list(context.airflow.variables)[-1] == "onebox_watermark@d@t@onebox_default@169@ticketrz@2"


@pytest.mark.parametrize("incremental", [False, True])
def test_mapped_instances_with_one_path(connected, context, tmp_path, incremental):
    """Of instances that write one path, the second fails before it sends anything, at once and one after the other."""
    path = tmp_path / "a.jsonl.gz"
    options = {"resource": "ticketrz", "output_path": str(path), "incremental": incremental}
    first, second = ("d", "t", "r1", 0), ("d", "t", "r1", 1)

    def execute(site, index):
        return OneboxListOperator(task_id="t", site_id=site, **options).execute(context("r1", map_index=index))

    def execute_second():
        requests = len(connected.state.requests)
        with pytest.raises(OneboxConfigError, match="it was not replaced"):
            execute("170", 1)
        assert len(connected.state.requests) == requests

    context.airflow.running = {first, second}
    batches = OneboxListOperator._list

    def list_beside_a_sibling(task, *args, **names):
        for batch in batches(task, *args, **names):
            if task.site_id == "169":
                execute_second()
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OneboxListOperator, "_list", list_beside_a_sibling)
        execute("169", 0)
    context.airflow.running, context.airflow.succeeded = {second}, {first}
    execute_second()
    assert lines(path) == connected.state.ids()


@pytest.mark.parametrize(("overlap", "limits"), [(None, 1000), (0, 0), ("7", 7)])
def test_overlap(connected, run, overlap, limits):
    """So many ids before the watermark are asked for again."""
    run("r1", overlap=overlap)
    connected.state.seen.clear()
    run("r2", overlap=overlap)
    last = int(connected.state.ids()[-1])
    first = int(connected.state.ids()[0])
    assert int(queries(connected)[0]["sinceId"]) == max(last - limits, 0 if limits > last - first else last - limits)


@pytest.mark.parametrize("overlap", ["-1", "100001", "soon"])
def test_bad_overlap(connected, run, overlap):
    """An overlap that makes no sense is rejected before anything is sent."""
    with pytest.raises(OneboxConfigError, match=f"^overlap='{overlap}' is not a whole number from 0 to 100000"):
        run("r1", overlap=overlap)
    assert not connected.state.requests


@pytest.mark.parametrize("keep_nul", [False, True])
def test_nul(connected, context, caplog, tmp_path, keep_nul):
    """U+0000 is removed from XComs, and from files unless it is wanted; the log counts the records."""
    ids = connected.state.ids()
    connected.state.touch(ids[1:3], Subject="a\0b")
    options = {"resource": "ticketrz", "max_records": 3, "keep_nul": keep_nul, "fields": ["Subject"]}
    rows = OneboxListOperator(task_id="t", **options).execute(context())
    result = OneboxListOperator(task_id="t", output_path=tmp_path / "a.jsonl", **options).execute(context())
    written = [json.loads(line) for line in Path(result["path"]).read_text().splitlines()]
    assert [row["Subject"] for row in rows][1:] == ["ab"] * 2
    assert [row["Subject"] for row in written][1:] == ["a\0b" if keep_nul else "ab"] * 2
    warned = [record.getMessage() for record in caplog.records if "U+0000" in record.getMessage()]
    said = f"Removed U+0000 from the text of 2 records, the first with Id {ids[1]}."
    assert warned == [said] * (1 if keep_nul else 2)


class OutletEvents(dict):
    """The events of a task's outlets, as Airflow hands them out: made when they are asked for."""

    def __getitem__(self, outlet):
        """Return the event of an asset; Airflow knows none of anything else."""
        if not isinstance(outlet, Asset):
            raise TypeError(outlet)
        # By its URI, for an asset of Airflow 3.1 has no hash.
        return self.setdefault(outlet.uri, SimpleNamespace(extra={"of": "the user"}))


@pytest.mark.parametrize("outlets", [[], [Asset("one")], [Asset("one"), "no asset", Asset("two")]])
def test_outlet_events(connected, context, tmp_path, outlets):
    """The event of each outlet asset says what was written and where."""
    task = OneboxListOperator(task_id="t", resource="ticketrz", output_path=str(tmp_path / "a.jsonl"), outlets=outlets)
    events = OutletEvents()
    written = task.execute({**context(), "outlet_events": events})
    assert written["count"] == 250
    assert dict(events) == {
        outlet.uri: SimpleNamespace(extra={"of": "the user", **written})
        for outlet in outlets
        if isinstance(outlet, Asset)
    }


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (OneboxListConversationsOperator, {"tickets": ["12045"], "output_path": "a.jsonl"}),
        (OneboxBulkWriteOperator, {"kind": "contact", "rows": [{"name": "A"}], "results_path": "a.jsonl"}),
    ],
)
def test_outlet_events_of_others(connected, context, tmp_path, monkeypatch, kind, options):
    """Whatever writes a file tells its outlet assets where it is."""
    monkeypatch.chdir(tmp_path)
    events = OutletEvents()
    written = kind(task_id="t", outlets=[Asset("one"), "no asset"], **options).execute(
        {**context(), "outlet_events": events}
    )
    assert written["path"] == "a.jsonl"
    assert dict(events) == {Asset("one").uri: SimpleNamespace(extra={"of": "the user", **written})}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("incremental", [True, False, "changes"])
def test_skip_if_empty(connected, context, tmp_path, keep, incremental):
    """An empty run moves the watermark, is skipped, tells no event anything, and leaves no file unless asked."""
    last = connected.state.ids()[-1]
    path = tmp_path / "a.jsonl"
    options = {"resource": "ticketrz", "skip_if_empty": True, "outlets": [Asset("one")]}
    begin = {"last_update": "2030-01-01 00:00"} if incremental == "changes" else {"since_id": last}
    task = OneboxListOperator(
        task_id="t", incremental=incremental, output_path=str(path), keep_empty_file=keep, **begin, **options
    )
    events = OutletEvents()
    for try_number in (1, 2):
        with pytest.raises(AirflowSkipException, match=r"^There are no ticketrz records to list\.$"):
            task.execute({**context(try_number=try_number), "outlet_events": events})
        assert [file.name for file in tmp_path.iterdir()] == (["a.jsonl"] if keep else [])
        assert not keep or path.read_bytes() == b""
    assert events == {}
    if incremental is True:
        stored = context.airflow.watermark()
        assert (stored["known"], stored["path"]) == ({"last": int(last)}, str(path))
        assert stored["runs"]["r1"][:4] == [0, None, int(last), int(last)]


def test_skip_of_an_xcom(connected, context):
    """Without a file, an empty list is skipped, and one with a record is not."""
    options = {"task_id": "t", "resource": "ticketrz", "skip_if_empty": True}
    with pytest.raises(AirflowSkipException):
        OneboxListOperator(since_id=connected.state.ids()[-1], **options).execute(context())
    assert len(OneboxListOperator(max_records=1, **options).execute(context())) == 1


def test_skip_of_a_mapped_instance(connected, context, tmp_path):
    """A mapped instance that leaves no file leaves no claim either."""
    task = OneboxListOperator(
        task_id="t",
        resource="ticketrz",
        since_id=connected.state.ids()[-1],
        output_path=str(tmp_path / "a.jsonl"),
        skip_if_empty=True,
    )
    (tmp_path / "a.jsonl").write_text("of an earlier run")
    with pytest.raises(AirflowSkipException):
        task.execute(context(map_index=3))
    assert list(tmp_path.iterdir()) == []


def test_constant_path(connected, run, tmp_path):
    """A path that is the same for each run is rejected, with the remedy, before anything is sent."""
    path = tmp_path / "r1_-1.jsonl.gz"
    run("r1", output_path=str(path))
    connected.state.add(2)
    connected.state.seen.clear()
    task = {"resource": "ticketrz", "output_path": str(path)}
    with pytest.raises(OneboxConfigError, match="run_id"):
        run("r2", **task)
    assert not connected.state.seen
    assert len(lines(path)) == 250


@pytest.mark.parametrize("path", ["", "None", "file:/" + "//x/y/", "nosuch://bucket/a.jsonl"])
@pytest.mark.parametrize("incremental", [False, True])
def test_bad_path(connected, context, path, incremental):
    """A path that can't work is rejected before the first request."""
    options = {"resource": "ticketrz", "output_path": path, "incremental": incremental}
    with pytest.raises(OneboxConfigError, match="output_path="):
        OneboxListOperator(task_id="t", **options).execute(context())
    assert not connected.state.seen


class OwnPath:
    """A path of a user's own kind."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("kind", [str, Path, ObjectStoragePath, OwnPath])
@pytest.mark.parametrize("native", [False, True])
def test_path_is_rendered(connected, context, tmp_path, kind, native):
    """A template in a path is rendered, in whatever form the path is given."""
    path = kind(f"{tmp_path}/{{{{ run }}}}.jsonl.gz")
    task = OneboxListOperator(task_id="t", resource="ticketrz", output_path=path)
    result = render(task, {"run": "r7"}, native=native).execute(context())
    assert result["path"] == f"{tmp_path}/r7.jsonl.gz"
    assert lines(tmp_path / "r7.jsonl.gz") == connected.state.ids()


def test_one_instance_at_a_time():
    """Airflow runs one instance of an incremental task at a time, unless the DAG says otherwise."""
    options = {"task_id": "t", "resource": "ticketrz", "output_path": "x"}
    assert OneboxListOperator(**options, incremental=True).max_active_tis_per_dag == 1
    assert OneboxListOperator(**options).max_active_tis_per_dag is None
    options["max_active_tis_per_dag"] = 3
    assert OneboxListOperator(**options, incremental=True).max_active_tis_per_dag == 3
    del options["max_active_tis_per_dag"]
    options["default_args"] = {"max_active_tis_per_dag": 2}
    assert OneboxListOperator(**options, incremental=True).max_active_tis_per_dag == 2


def test_a_wait_goes_on_after_an_empty_export(connected, context, tmp_path):
    """The sensor takes what an export that found nothing returns."""
    last = connected.state.ids()[-1]
    task = OneboxListOperator(task_id="t", resource="ticketrz", output_path=str(tmp_path / "a.jsonl"), since_id=last)
    connected.state.add(1)
    task.execute(context())
    task = OneboxListOperator(
        task_id="t", resource="ticketrz", output_path=str(tmp_path / "b.jsonl"), since_id=connected.state.ids()[-1]
    )
    since_id = task.execute(context())["last_id"]
    (new,) = connected.state.add(1)
    sensor = OneboxRecordSensor(task_id="s", resource="ticketrz", since_id=since_id, poke_interval=1, timeout=1)
    assert sensor.execute(context()) == {"count": 1, "last_id": new}


@pytest.mark.parametrize("native", [False, True])
def test_numbers_are_templated(connected, context, native):
    """Numbers and ids may come from templates, as text or as native objects."""
    first = connected.state.ids()[0]
    values = {"size": 4, "most": 7, "width": 1, "since": int(first), "nothing": None}
    task = OneboxListOperator(
        task_id="t",
        resource="ticketrz",
        since_id="{{ since }}",
        page_size="{{ size }}",
        max_records="{{ most }}",
        parallelism="{{ width }}",
        **({"last_update": "{{ nothing }}", "site_id": "{{ nothing }}", "token": "{{ nothing }}"} if native else {}),
    )
    rows = render(task, values, native=native).execute(context())
    assert [row["Id"] for row in rows] == connected.state.ids()[1:8]
    assert queries(connected)[0]["limit"] == "4"


@pytest.mark.parametrize(("name", "value"), [("page_size", "0"), ("max_records", "many"), ("parallelism", "1.5")])
def test_bad_number(connected, context, name, value):
    """A number that a template has rendered wrongly is rejected, with its name, before anything is sent."""
    with pytest.raises(OneboxConfigError, match=f"{name}="):
        OneboxListOperator(task_id="t", resource="ticketrz", **{name: value}).execute(context())
    assert not connected.state.seen


def test_times_reach_onebox(connected, context):
    """What was created or changed since a time is asked for by that time, as text and as a datetime."""
    options = {"since": "2026-01-02 03:04", "last_update": datetime(2026, 5, 6, 7, 8)}
    OneboxListOperator(task_id="t", resource="ticketrz", max_records=1, **options).execute(context())
    assert queries(connected)[0].items() >= {"since": "2026-01-02 03:03", "lastUpdate": "2026-05-06 07:08"}.items()


def test_typed_columns(connected, context, connect, tmp_path):
    """A Parquet file has columns of the types that fields names."""
    connect(connected.url, login=connected.email, password=connected.password, timezone="Asia/Jakarta")
    task = OneboxListOperator(
        task_id="t",
        resource="ticketrz",
        fields={"Id": "int64", "CreateDate": "timestamptz", "Rating": "float64", "Subject": "string"},
        output_path=str(tmp_path / "a.parquet"),
    )
    assert task.execute(context())["count"] == 250
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert [str(kind) for kind in table.schema.types] == ["int64", "timestamp[us, tz=UTC]", "double", "string"]
    assert table["Id"].to_pylist() == list(map(int, connected.state.ids()))


@pytest.mark.parametrize(("rule", "count"), [("fail", None), ("null", 250)])
def test_misfits(connected, context, tmp_path, rule, count):
    """What does not fit fails the task before the file is published, or is null."""
    path = tmp_path / "a.parquet"
    task = OneboxListOperator(
        task_id="t", resource="ticketrz", fields={"Subject": "int64"}, output_path=path, on_misfit=rule
    )
    if count is None:
        with pytest.raises(OneboxConfigError, match="has a Subject that is not of the type int64"):
            task.execute(context())
    else:
        assert task.execute(context())["count"] == count
    assert path.exists() is (count is not None)


@pytest.mark.parametrize("options", [{}, {"output_path": "a.parquet", "fields": {"CreateDate": "timestamptz"}}])
def test_types_refused(connected, context, options):
    """An XCom has no types, and no zone is guessed: both are refused before anything is sent."""
    task = OneboxListOperator(task_id="t", resource="ticketrz", **{"fields": {"Id": "int64"}, **options})
    with pytest.raises(OneboxConfigError, match=r"has types, and only|The type timestamptz has a time zone"):
        task.execute(context())
    assert not connected.state.seen


@pytest.fixture
def run_changes(context, tmp_path):
    """Run an export of changes into a file of the run's own; return the records in it."""

    def execute(run_id, try_number=1, **options):
        path = tmp_path / f"{run_id}.jsonl"
        options = {"resource": "ticketrz", "output_path": str(path), "page_size": 50, **options}
        rendered = options.pop("rendered", options["resource"])
        task = OneboxListOperator(task_id="t", incremental="changes", **options)
        task.resource = rendered
        result = task.execute(context(run_id, try_number=try_number))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert result == {
            "path": str(path),
            "uri": f"file://{path}",
            "count": len(rows),
            "first_id": rows[0]["Id"] if rows else None,
            "last_id": rows[-1]["Id"] if rows else None,
        }
        return rows

    return execute


@pytest.mark.parametrize("inclusive", [False, True])
def test_changes(connected, context, run_changes, inclusive):
    """What was added and changed comes in the next run and in no other, whatever the server takes for later."""
    state = connected.state
    state.configure(times_inclusive=inclusive)
    ids = state.ids()
    assert [row["Id"] for row in run_changes("r1")] == ids
    assert run_changes("r2") == []
    state.touch(ids[4:6], Subject="changed")
    new = state.add(2)
    rows = run_changes("r3")
    assert [row["Id"] for row in rows] == [*ids[4:6], *new]
    assert [row["Subject"] for row in rows[:2]] == ["changed"] * 2
    state.touch(ids[4], rows[0]["ModifyDate"], Subject="in the same second")
    state.delete([ids[5]])
    assert [(row["Id"], row["Subject"]) for row in run_changes("r4")] == [(ids[4], "in the same second")]
    assert run_changes("r3", 2) == rows
    assert run_changes("r5") == []
    assert list(context.airflow.variables) == ["onebox_changes@d@t@onebox_default@169@ticketrz"]


def test_changes_while_listing(connected, run_changes):
    """Records that change between two pages come in their last state in the end, and no state comes twice."""
    connected.state.configure(churn=20)
    runs = [run_changes(f"r{n}", parallelism=1) for n in range(3)]
    connected.state.configure(churn=0)
    runs.append(run_changes("r4"))
    assert run_changes("r5") == []
    states = [json.dumps(row) for rows in runs for row in rows]
    assert len(set(states)) == len(states)
    last = {row["Id"]: row for rows in runs for row in rows}
    task = OneboxListOperator(task_id="t", resource="ticketrz")
    assert list(last.values()) == task.execute({})
    assert len(states) > len(last)


def test_changes_after_a_time(connected, run_changes):
    """The first run begins at last_update, and the next ones where the one before has ended."""
    ids = connected.state.ids()
    connected.state.touch(ids[:5])
    since = connected.state.local()
    assert [row["Id"] for row in run_changes("r1", last_update=f"{since:%Y-%m-%d} 00:00")] == ids[:5]
    connected.state.touch(ids[7], Subject="changed")
    assert [row["Id"] for row in run_changes("r2", last_update=f"{since:%Y-%m-%d} 00:00")] == [ids[7]]


def test_changes_after_no_time(connected, run_changes):
    """What is no time is rejected under the name of the argument, before anything is sent."""
    with pytest.raises(OneboxConfigError, match=r"^last_update='soon' is not a time"):
        run_changes("r1", last_update="soon")
    assert not connected.state.requests


def test_last_update_is_ignored(connected, run_changes, tmp_path):
    """A server that ignores lastUpdate is found out by the first page, with the remedy; nothing is written."""
    connected.state.configure(last_update_ignored=True)
    with pytest.raises(OneboxConfigError, match="ignores lastUpdate for this resource"):
        run_changes("r1")
    assert {query["lastUpdate"] for query in queries(connected)} == {queries(connected)[0]["lastUpdate"]}
    assert list(tmp_path.iterdir()) == []


def test_records_without_dates(connected, run_changes, tmp_path):
    """A resource without dates that is named only when the task runs is rejected with the remedy."""
    with pytest.raises(OneboxConfigError, match=r"^contactrz: record \d+ has no ModifyDate, .*incremental=True"):
        run_changes("r1", resource="{{ x }}", rendered="contactrz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resource", ["contactrz", "prospectrz", "ContactRZ"])
def test_resources_without_dates(resource):
    """Contacts and prospects have no dates, so their changes are rejected when the DAG is parsed."""
    with pytest.raises(ValueError, match=f"can't work for {resource}, whose records have no dates"):
        OneboxListOperator(task_id="t", resource=resource, incremental="changes", output_path="x")


def test_first_log_line(connected, run_changes, caplog):
    """The first run says that nothing was written yet, the next one until when all was."""
    with caplog.at_level("INFO"):
        run_changes("r1")
        run_changes("r2")
    said = [line.partition(": ")[2] for line in caplog.messages if line.startswith("The watermark onebox_changes@")]
    assert said[0] == "nothing was written yet; this run lists all changes."
    assert re.fullmatch(r"everything changed before \d{4}-\d\d-\d\d \d\d:\d\d:00 was written\.", said[1])


@pytest.mark.parametrize(
    ("incremental", "options", "reason"),
    [
        ("changes", {}, "incremental='changes' needs output_path"),
        ("changes", {"output_path": "x", "since_id": 1}, "begin with last_update"),
        ("changes", {"output_path": "x", "since": "2026-01-01 00:00"}, "begin with last_update"),
        ("changes", {"output_path": "x", "max_records": 1}, "begin with last_update"),
        ("changes", {"output_path": "x", "until": "2026-01-01"}, "incremental='changes' uses a watermark"),
        ("change", {"output_path": "x"}, "incremental='change' is none of"),
    ],
)
def test_bad_changes(incremental, options, reason):
    """Arguments that don't fit changes are rejected when the DAG is parsed."""
    with pytest.raises(ValueError, match=reason):
        OneboxListOperator(task_id="t", resource="ticketrz", incremental=incremental, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_path": "x", "last_update": "2026-01-01 00:00"},
        {"output_path": "x", "until": "{{ data_interval_end }}"},
    ],
)
def test_incremental_refused(options):
    """What can't be incremental is refused when the DAG is parsed."""
    with pytest.raises(ValueError, match="incremental=True"):
        OneboxListOperator(task_id="t", resource="ticketrz", incremental=True, **options)


def test_request(connected, context):
    """One call, its JSON returned."""
    first = connected.state.ids()[0]
    task = OneboxRequestOperator(task_id="t", endpoint=f"ticketrz/{first}")
    assert task.execute(context())["Id"] == first
    task = OneboxRequestOperator(task_id="t", endpoint="ticketrz", query={"limit": 2})
    assert task.execute(context())["limit"] == "2"
    task = OneboxRequestOperator(task_id="t", method="POST", endpoint="message", json={"Subject": "s"})
    assert task.execute(context())


@pytest.mark.parametrize("method", ["POST", "post"])
def test_response_filter_that_fails(connected, context, method):
    """The write is done, so a filter that fails afterwards must not have Airflow repeat it."""
    options = {"task_id": "t", "endpoint": "contactrz", "json": {"Name": "A"}}
    task = OneboxRequestOperator(**options, method=method, response_filter=lambda reply: reply["data"])
    with pytest.raises(
        OneboxUnusableResultError,
        match=r"contactrz succeeded, but response_filter failed: KeyError: 'data'\. The write",
    ) as caught:
        task.execute(context())
    assert caught.value.uncertain
    assert len([entry for entry in connected.state.books() if entry["id"]]) == 1


@pytest.mark.parametrize(("method", "error"), [("GET", KeyError), ("POST", AirflowSkipException)])
def test_response_filter_that_decides(connected, context, method, error):
    """After a read, what the filter raises is the task's to be retried; a skip is a skip, and is not repeated."""

    def response_filter(_):
        raise error("x")

    body = None if method == "GET" else {"Name": "A"}
    task = OneboxRequestOperator(
        task_id="t", endpoint="contactrz", method=method, json=body, response_filter=response_filter
    )
    with pytest.raises(error):
        task.execute(context())


def test_response_filter(connected, context):
    """What the filter makes of an answer is what goes to the XCom: JSON, or what Airflow itself can serialize."""
    options = {"task_id": "t", "endpoint": "ticketrz", "query": {"limit": 3}}
    task = OneboxRequestOperator(**options, response_filter=lambda reply: [row["Id"] for row in reply["data"]])
    assert task.execute(context()) == connected.state.ids()[:3]
    assert OneboxRequestOperator(**options, response_filter=lambda _: {1, 2}).execute(context()) == {1, 2}


def test_request_with_a_form(connected, context):
    """`data` is sent as a form, and the log says in one line what was done."""
    form = {"fullName": "A", "contact": "a@example.com", "subject": "s", "category": "c", "content": "x"}
    task = OneboxRequestOperator(task_id="t", method="POST", endpoint="ticket/create", data=form)
    assert task.execute(context())["ticketId"] == connected.state.tickets[0]["ticketId"]
    assert connected.state.tickets[0]["subject"] == "s"


def test_log_lines(connected, context, caplog, capsys):
    """A call and a ticket leave one line each in the log, wherever this Airflow keeps that."""
    caplog.set_level(logging.INFO)
    OneboxRequestOperator(task_id="t", endpoint="ticketrz").execute(context())
    ticket_id = OneboxCreateTicketOperator(task_id="t", **TICKET).execute(context())
    out = capsys.readouterr().out
    text = caplog.text if "answered" in caplog.text else out
    assert text.count("GET ticketrz succeeded.") == 1
    assert text.count(f"Opened ticket {ticket_id} in category c.") == 1


def test_native_ticket(connected, context):
    """What a template renders as a native object is sent as the text that it was."""
    values = {"content": "42", "subject": "0"}
    fields = {**TICKET, "content": "{{ content }}", "subject": "{{ subject }}", "coordinate": "-6.2,106.8"}
    task = render(OneboxCreateTicketOperator(task_id="t", **fields), values, native=True)
    assert task.content == 42
    task.execute(context())
    (ticket,) = connected.state.tickets
    assert (ticket["content"], ticket["subject"], ticket["coordinate"]) == ("42", "0", "-6.2,106.8")


@pytest.mark.parametrize("native", [False, True])
def test_native_export(connected, connect, context, tmp_path, native):
    """A connection, a site, a path and fields that look like numbers or are lists work in every export."""
    connect(connected.url, "7", login=connected.email, password=connected.password)
    values = {"conn": 7, "site": 170, "names": ["Id", "Subject"], "folder": tmp_path, "run": "20260101"}
    task = OneboxListOperator(
        task_id="t",
        resource="ticketrz",
        onebox_conn_id="{{ conn }}",
        site_id="{{ site }}",
        incremental=True,
        fields="{{ names }}" if native else ["Id", "{{ names[1] }}"],
        output_path="{{ folder }}/{{ run }}",
    )
    result = render(task, values, native=native).execute(context())
    assert result["count"] == 250
    assert list(json.loads((tmp_path / "20260101").read_text().splitlines()[0])) == ["Id", "Subject"]
    assert list(context.airflow.variables) == ["onebox_watermark@d@t@7@170@ticketrz"]


@pytest.mark.parametrize("native", [False, True])
def test_path_of_nothing(connected, context, native):
    """An incremental export whose path is rendered from nothing is rejected, and does not go to the XCom instead."""
    task = OneboxListOperator(task_id="t", resource="ticketrz", incremental=True, output_path="{{ none }}")
    with pytest.raises(OneboxConfigError, match="names no file"):
        render(task, {}, native=native).execute(context())
    assert not connected.state.requests


@pytest.mark.parametrize("native", [False, True])
def test_native_message(connected, context, native):
    """A number that a template renders in a message is sent as the text that it was, nothing is not sent, zero is."""
    fields = {"connection_id": "{{ 3 }}", "body": "{{ 0 }}", "to": "{{ 628123 }}", "subject": "{{ 1.5 }}"}
    fields |= {"conversation_id": "{{ ticket }}", "cc": ["{{ 'a' }}"]} | ({"sender": "{{ none }}"} if native else {})
    ticket = connected.state.ids()[0]
    values = {"ticket": int(ticket)}
    render(OneboxSendMessageOperator(task_id="t", **fields), values, native=native).execute(context())
    body = connected.state.books()[0]["body"]
    assert (body["ConnectionId"], body["To"], body["Subject"], body["ConversationId"]) == ("3", "628123", "1.5", ticket)
    assert (body["Content"]["Body"], body["Cc"]) == ("0", '["a"]')
    assert not body.get("From")


@pytest.mark.parametrize("native", [False, True])
def test_native_conversations(connected, context, tmp_path, native):
    """Ids, numbers and hosts of conversations work as text and as native objects."""
    ids = [int(row_id) for row_id in connected.state.ids()[:3]]
    task = OneboxListConversationsOperator(
        task_id="t",
        tickets="{{ ids }}",
        output_path="{{ folder }}/7",
        parallelism="{{ 2 }}",
        attachments_path="{{ folder }}/8",
        max_attachment_bytes="{{ 10 ** 6 }}",
        attachment_hosts="{{ hosts }}" if native else ["localhost"],
    )
    result = render(task, {"ids": ids, "folder": tmp_path, "hosts": ["localhost"]}, native=native).execute(context())
    assert (result["tickets"], result["attachments_failed"]) == (3, 0)


@pytest.mark.parametrize("native", [False, True])
def test_native_rows(connected, context, tmp_path, native):
    """Rows whose fields a template renders are written as text, whether Airflow renders text or numbers."""
    task = OneboxBulkWriteOperator(
        task_id="t",
        kind="contact",
        rows=[{"name": "A", "phone": "{{ 628123 }}"}],
        results_path="{{ folder }}/v",
        parallelism="{{ 2 }}",
    )
    assert render(task, {"folder": tmp_path}, native=native).execute(context())["done"] == 1
    (entry,) = connected.state.books()
    assert entry["body"]["Phone"] == "628123"


@pytest.mark.parametrize("native", [False, True])
def test_native_site(connected, context, native):
    """A login for a site that a template renders, and a call with what else it renders, work either way."""
    task = OneboxAuthenticateOperator(task_id="t", site_id="{{ 170 }}")
    pushed = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    assert render(task, {}, native=native).execute({"ti": ti})
    assert pushed["site_id"] == "170"
    task = OneboxRequestOperator(task_id="t", endpoint="ticketrz", query={"limit": "{{ 2 }}"}, site_id="{{ 170 }}")
    reply = render(task, {}, native=native).execute(context())
    assert [row["SiteId"] for row in reply["data"]] == ["170"] * 2


def test_native_token(connected, context):
    """A token of digits, which a native template makes a number, is used as the text that it was."""
    task = render(OneboxRequestOperator(task_id="t", endpoint="ticketrz", token="{{ t }}"), {"t": "123"}, native=True)
    assert task.token == 123
    task.execute(context())
    asked = [seen.headers["authorization"] for seen in connected.state.seen if seen.path == "/api/ticketrz"]
    assert asked[0] == "Bearer 123"


def test_token_from_upstream(connected, context):
    """An upstream token saves the login."""
    token = OneboxHook(site_id="170").get_token()
    task = OneboxListOperator(task_id="t", resource="ticketrz", token=token, max_records=1)
    assert task.execute(context())[0]["SiteId"] == "170"
    assert connected.state.logins == 1


def test_create_ticket(connected, context):
    """The ticket's id comes back, and the fields arrive under Onebox's names."""
    task = OneboxCreateTicketOperator(task_id="t", coordinate="-6.2,106.8", **TICKET)
    ticket_id = task.execute(context())
    (ticket,) = connected.state.tickets
    assert ticket["ticketId"] == ticket_id
    assert (ticket["fullName"], ticket["coordinate"]) == ("A", "-6.2,106.8")


def test_ticket_with_files(connected, context, tmp_path):
    """Files are attached by their paths, which templates may render."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    fields = {**TICKET, "attachment": ["{{ folder }}/a.txt"], "file": "{{ folder }}/b.txt"}
    task = render(OneboxCreateTicketOperator(task_id="t", **fields), {"folder": str(tmp_path)})
    task.execute(context())
    (ticket,) = connected.state.tickets
    assert [file["filename"] for file in ticket["attachment"] + ticket["file"]] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("field", TICKET)
@pytest.mark.parametrize("value", ["", "  ", None])
def test_ticket_without_a_field(connected, context, field, value):
    """A ticket with an empty field is refused before anything is sent."""
    with pytest.raises(OneboxConfigError, match="but empty: "):
        OneboxCreateTicketOperator(task_id="t", **{**TICKET, field: value}).execute(context())
    assert not connected.state.requests


@pytest.mark.parametrize(("kind", "options"), [("drop_after", {}), ("wrong_type", {"value": [1], "processed": True})])
def test_ticket_in_doubt(connected, context, kind, options):
    """A lost answer fails the task for good, and the ticket is there once."""
    connected.state.fail(kind, path="create", times=9, **options)
    with pytest.raises(OneboxUncertainWriteError, match="look in Onebox"):
        OneboxCreateTicketOperator(task_id="t", **TICKET).execute(context())
    assert len(connected.state.tickets) == 1


@pytest.mark.parametrize(
    ("operator", "renderers"),
    [
        (OneboxAuthenticateOperator, {}),
        (OneboxListOperator, {"fields": "json"}),
        (OneboxRequestOperator, {"query": "json", "json": "json", "data": "json"}),
        (OneboxCreateTicketOperator, {"attachment": "json", "file": "json"}),
        (OneboxListConversationsOperator, {"tickets": "json", "attachment_hosts": "json"}),
        (OneboxSendMessageOperator, {"attachments": "json", "users": "json"}),
        (OneboxBulkWriteOperator, {"rows": "json"}),
        (OneboxRecordSensor, {}),
    ],
)
def test_renderers(operator, renderers):
    """Airflow's page shows each templated field that can be a list or a dictionary as JSON."""
    assert operator.template_fields_renderers == renderers
    assert set(renderers) <= set(operator.template_fields)
    assert re.fullmatch("#[0-9a-f]{6}", operator.ui_color)
    assert "incremental" not in operator.template_fields
    hints = get_annotations(operator.__init__)
    structured = {
        name for name in operator.template_fields if re.search(r"\b(Sequence|list|dict|Any)\b", hints.get(name, ""))
    }
    assert structured - {"output_path", "results_path", "attachments_path", "attachments_root"} == set(renderers)


@pytest.mark.parametrize("operator", [OneboxListOperator, OneboxRequestOperator, OneboxCreateTicketOperator])
def test_fields_are_templated(operator):
    """Whatever a user would template is, numbers too; what shapes the task itself is not."""
    fields = set(operator.template_fields)
    assert {"onebox_conn_id", "site_id", "token"} <= fields
    assert "incremental" not in fields


def test_authenticate_takes_no_token():
    """The operator that logs in is no place for a token, also if the DAG's other tasks have one by default."""
    words = "takes no token, because it logs in to get one: remove token, or use another operator."
    with pytest.raises(TypeError, match=f"^OneboxAuthenticateOperator {re.escape(words)}$"):
        OneboxAuthenticateOperator(task_id="t", token="a secret")
    assert OneboxAuthenticateOperator(task_id="t", default_args={"token": "x"}).token is None
