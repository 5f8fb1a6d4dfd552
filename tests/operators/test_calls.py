"""The operators that read and write."""

from __future__ import annotations

import gzip
import json
import re
from datetime import datetime
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

TICKET = {"full_name": "A", "contact": "a@example.com", "subject": "s", "category": "c", "content": "x"}


@pytest.fixture
def context(monkeypatch):
    """Make the context of a run; all runs share the Variables of an Airflow."""
    airflow = Deployment(monkeypatch)

    def make(*args, **names):
        return airflow.context(*args, **names)

    make.airflow = airflow
    return make


def listing(**options):
    """Make a task that lists tickets."""
    return OneboxListOperator(**{"task_id": "t", "resource": "ticketrz", **options})


def render(task, values, *, native=False):
    """Render a task's fields as a worker does."""
    task.dag = DAG("d", schedule=None, render_template_as_native_obj=native)
    task.render_template_fields(values)
    return task


def queries(sandbox, path="/api/ticketrz"):
    """Return what was asked for below a path."""
    return [dict(parse_qsl(seen.query)) for seen in sandbox.state.seen if seen.path == path]


def records_in(path):
    """Read the records in a file."""
    content = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()]


def ids_in(path):
    """Read the ids of the records in a file."""
    return [record["Id"] for record in records_in(path)]


def test_xcom(connected, context, monkeypatch):
    """Records of as many bytes as an XCom may hold are returned; one byte more is rejected, with the way out."""
    task = listing(max_records=3, since_id="0", fields=["Id", "Subject"])
    records = task.execute(context())
    assert [record["Id"] for record in records] == connected.state.ids()[:3]
    size = len(json.dumps(records, ensure_ascii=False, separators=(",", ":")).encode())
    monkeypatch.setattr(onebox, "MAX_XCOM_BYTES", size)
    assert task.execute(context()) == records
    monkeypatch.setattr(onebox, "MAX_XCOM_BYTES", size - 1)
    message = f"the first 3 records are {size:,} bytes of JSON, but an XCom holds at most {size - 1:,} here: pass"
    with pytest.raises(OneboxConfigError, match=message):
        task.execute(context())


def test_list_to_a_file(connected, context, tmp_path, monkeypatch):
    """Many records go to a file, and the task and its log say what is in it; a failed listing leaves it as it was."""
    logged = Log.of(monkeypatch, OneboxListOperator)
    path = tmp_path / "out.jsonl.gz"
    ids = connected.state.ids()
    task = listing(output_path=str(path), page_size=33)
    where = {"path": str(path), "uri": f"file://{path}"}
    assert task.execute(context()) == {**where, "count": 250, "first_id": ids[0], "last_id": ids[-1]}
    assert ids_in(path) == ids
    assert logged[-1:] == [("info", f"Wrote 250 ticketrz records to {path}.")]
    connected.state.fail("html", path="ticketrz", after=2, times=9)
    with pytest.raises(OneboxError):
        task.execute(context())
    assert ids_in(path) == ids
    assert list(tmp_path.iterdir()) == [path]
    connected.state.calm()
    written = listing(output_path=str(path), since_id=ids[-1]).execute(context())
    assert written == {**where, "count": 0, "first_id": None, "last_id": ids[-1]}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"fields": "Id"}, "fields="),
        ({"output_path": "a.csv"}, "fields="),
        ({"fields": {"Id": "int64"}}, "has types, and only"),
        ({"output_path": "a.parquet", "fields": {"CreateDate": "timestamptz"}}, "The type timestamptz has a time zone"),
    ],
    ids=["xcom", "csv", "types", "zone"],
)
def test_bad_fields(connected, context, options, problem):
    """Fields that can't work, or are missing, are found out before anything is sent."""
    with pytest.raises(OneboxConfigError, match=problem):
        listing(**options).execute(context())
    assert not connected.state.requests


@pytest.mark.parametrize(("options", "include"), [({}, False), ({"include_secrets": True}, True)])
def test_connection_secrets(connected, context, tmp_path, options, include):
    """Secrets of the customer's channels stay out of XCom and file unless asked for."""
    task = OneboxRequestOperator(task_id="t", endpoint="connection", query={"limit": 5}, **options)
    records = task.execute(context())["data"]
    options = {"resource": "connection", "max_records": 5, **options}
    records += listing(**options).execute(context())
    path = tmp_path / "c.jsonl"
    listing(**options, output_path=path).execute(context())
    records += records_in(path)
    assert [("Password" in record, "Token" in record) for record in records] == [(include, include)] * 15


@pytest.fixture
def run(context, tmp_path):
    """Run an incremental export into a file for each run; return the ids in it."""

    def execute(run_id, map_index=-1, try_number=1, **options):
        path = tmp_path / f"{run_id}_{map_index}.jsonl.gz"
        task = listing(**{"incremental": True, "output_path": str(path), "page_size": 50, **options})
        task.execute(context(run_id, map_index=map_index, try_number=try_number))
        return ids_in(path)

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
    assert run("r4", max_records=3) == newest[:4]
    assert run("r5") == newest[4:]
    assert list(context.airflow.variables) == ["onebox_watermark@d@t@onebox_default@169@ticketrz"]


def test_incremental_mapped(connected, context, run):
    """Sites expanded in another order go on where each was; a state_key distinguishes what nothing else does."""
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
    """Of instances that write one path, the second fails before it sends anything."""
    path = tmp_path / "a.jsonl.gz"
    first, second = ("d", "t", "r1", 0), ("d", "t", "r1", 1)

    def execute(site, index):
        task = listing(site_id=site, output_path=str(path), incremental=incremental)
        return task.execute(context("r1", map_index=index))

    context.airflow.running = {first, second}
    execute("169", 0)
    context.airflow.running, context.airflow.succeeded = {second}, {first}
    requests = len(connected.state.requests)
    with pytest.raises(OneboxConfigError, match="it was not replaced"):
        execute("170", 1)
    assert len(connected.state.requests) == requests
    assert ids_in(path) == connected.state.ids()


@pytest.mark.parametrize(("overlap", "limits"), [(None, 1000), (0, 0), ("7", 7)])
def test_overlap(connected, run, overlap, limits):
    """So many ids before the watermark are asked for again."""
    run("r1", overlap=overlap)
    connected.state.seen.clear()
    run("r2", overlap=overlap)
    assert int(queries(connected)[0]["sinceId"]) == int(connected.state.ids()[-1]) - limits


@pytest.mark.parametrize("overlap", ["-1", "100001"])
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
    options = {"max_records": 3, "keep_nul": keep_nul, "fields": ["Subject"]}
    records = listing(**options).execute(context())
    listing(output_path=tmp_path / "a.jsonl", **options).execute(context())
    written = records_in(tmp_path / "a.jsonl")
    assert [record["Subject"] for record in records][1:] == ["ab"] * 2
    assert [record["Subject"] for record in written][1:] == ["a\0b" if keep_nul else "ab"] * 2
    warned = [message for message in caplog.messages if "U+0000" in message]
    line = f"Removed U+0000 from the text of 2 records, the first with Id {ids[1]}."
    assert warned == [line] * (1 if keep_nul else 2)


class OutletEvents(dict):
    """The events of a task's outlets, as Airflow hands them out: made when they are asked for."""

    def __getitem__(self, outlet):
        """Return the event of an asset; Airflow knows none of anything else."""
        if not isinstance(outlet, Asset):
            raise TypeError(outlet)
        # By its URI, for an asset of Airflow 3.1 has no hash.
        return self.setdefault(outlet.uri, SimpleNamespace(extra={"of": "the user"}))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (OneboxListOperator, {"resource": "ticketrz", "output_path": "a.jsonl"}),
        (OneboxListConversationsOperator, {"tickets": ["12045"], "output_path": "a.jsonl"}),
        (OneboxBulkWriteOperator, {"kind": "contact", "rows": [{"name": "A"}], "results_path": "a.jsonl"}),
    ],
)
def test_outlet_events(connected, context, tmp_path, monkeypatch, kind, options):
    """The event of each outlet asset says what was written and where."""
    monkeypatch.chdir(tmp_path)
    events, assets = OutletEvents(), [Asset("one"), Asset("two")]
    task = kind(task_id="t", outlets=[assets[0], "no asset", assets[1]], **options)
    written = task.execute({**context(), "outlet_events": events})
    assert written["path"] == "a.jsonl"
    assert dict(events) == {asset.uri: SimpleNamespace(extra={"of": "the user", **written}) for asset in assets}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("incremental", [True, False, "changes"])
def test_skip_if_empty(connected, context, tmp_path, keep, incremental):
    """An empty run moves the watermark, is skipped, changes no event, and leaves no file unless asked."""
    last = connected.state.ids()[-1]
    path = tmp_path / "a.jsonl"
    begin = {"last_update": "2030-01-01 00:00"} if incremental == "changes" else {"since_id": last}
    options = {"incremental": incremental, "output_path": str(path), "keep_empty_file": keep, **begin}
    task = listing(skip_if_empty=True, outlets=[Asset("one")], **options)
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
    with pytest.raises(AirflowSkipException):
        listing(since_id=connected.state.ids()[-1], skip_if_empty=True).execute(context())
    assert len(listing(max_records=1, skip_if_empty=True).execute(context())) == 1


def test_skip_of_a_mapped_instance(connected, context, tmp_path):
    """A mapped instance that leaves no file leaves no claim either."""
    path = tmp_path / "a.jsonl"
    path.write_text("of an earlier run")
    task = listing(since_id=connected.state.ids()[-1], output_path=path, skip_if_empty=True)
    with pytest.raises(AirflowSkipException):
        task.execute(context(map_index=3))
    assert list(tmp_path.iterdir()) == []


class OwnPath:
    """A path of a user's own kind."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("kind", [str, Path, ObjectStoragePath, OwnPath])
def test_path_is_rendered(connected, context, tmp_path, kind):
    """A template in a path is rendered, in every form of path."""
    task = listing(output_path=kind(f"{tmp_path}/{{{{ run }}}}.jsonl.gz"))
    result = render(task, {"run": "r7"}).execute(context())
    assert result["path"] == f"{tmp_path}/r7.jsonl.gz"
    assert ids_in(tmp_path / "r7.jsonl.gz") == connected.state.ids()


def test_one_instance_at_a_time():
    """Airflow runs one instance of an incremental task at a time, unless the DAG says otherwise."""
    assert listing(output_path="x").max_active_tis_per_dag is None
    most = {"max_active_tis_per_dag": 3}
    for options, expected in (({}, 1), (most, 3), ({"default_args": most}, 3)):
        assert listing(output_path="x", incremental=True, **options).max_active_tis_per_dag == expected


@pytest.mark.parametrize("native", [False, True])
def test_numbers_are_templated(connected, context, native):
    """Numbers and ids may come from templates, as text or as native objects."""
    first = connected.state.ids()[0]
    values = {"size": 4, "most": 7, "width": 1, "since": int(first), "nothing": None}
    task = listing(
        since_id="{{ since }}",
        page_size="{{ size }}",
        max_records="{{ most }}",
        parallelism="{{ width }}",
        **({"last_update": "{{ nothing }}", "site_id": "{{ nothing }}", "token": "{{ nothing }}"} if native else {}),
    )
    rows = render(task, values, native=native).execute(context())
    assert [row["Id"] for row in rows] == connected.state.ids()[1:8]
    assert queries(connected)[0]["limit"] == "4"


def test_times_reach_onebox(connected, context):
    """What was created or changed since a time is asked for by that time, as text and as a datetime."""
    options = {"since": "2026-01-02 03:04", "last_update": datetime(2026, 5, 6, 7, 8)}
    listing(max_records=1, **options).execute(context())
    assert queries(connected)[0].items() >= {"since": "2026-01-02 03:03", "lastUpdate": "2026-05-06 07:08"}.items()


def test_typed_columns(connected, context, reconnect, tmp_path):
    """A Parquet file has columns of the types that fields names; what does not fit is null, if the task says so."""
    reconnect(timezone="Asia/Jakarta")
    fields = {"Id": "int64", "CreateDate": "timestamptz", "Rating": "float64", "Subject": "int64"}
    task = listing(fields=fields, output_path=str(tmp_path / "a.parquet"), on_misfit="null")
    assert task.execute(context())["count"] == 250
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert [str(kind) for kind in table.schema.types] == ["int64", "timestamp[us, tz=UTC]", "double", "int64"]
    assert table["Id"].to_pylist() == list(map(int, connected.state.ids()))
    with pytest.raises(OneboxConfigError, match="has a Subject that is not of the type int64"):
        listing(fields=fields, output_path=str(tmp_path / "b.parquet")).execute(context())


@pytest.mark.parametrize("inclusive", [False, True])
def test_changes(connected, context, run, tmp_path, inclusive):
    """What was added and changed comes in the next run and in no other, however the server compares times."""
    state, changes = connected.state, {"incremental": "changes"}
    state.configure(times_inclusive=inclusive)
    ids = state.ids()
    assert run("r1", **changes) == ids
    assert run("r2", **changes) == []
    state.touch(ids[4:6], Subject="changed")
    new = state.add(2)
    assert run("r3", **changes) == [*ids[4:6], *new]
    written = records_in(tmp_path / "r3_-1.jsonl.gz")
    assert [record["Subject"] for record in written[:2]] == ["changed"] * 2
    state.touch(ids[4], written[0]["ModifyDate"], Subject="in the same second")
    state.delete([ids[5]])
    assert run("r4", **changes) == [ids[4]]
    assert records_in(tmp_path / "r4_-1.jsonl.gz")[0]["Subject"] == "in the same second"
    run("r3", try_number=2, **changes)
    assert records_in(tmp_path / "r3_-1.jsonl.gz") == written
    assert run("r5", **changes) == []
    assert list(context.airflow.variables) == ["onebox_changes@d@t@onebox_default@169@ticketrz"]


def test_changes_after_a_time(connected, run):
    """The first run begins at last_update, and the next ones where the one before has ended."""
    ids = connected.state.ids()
    connected.state.touch(ids[:5])
    changes = {"incremental": "changes", "last_update": f"{connected.state.local():%Y-%m-%d} 00:00"}
    assert run("r1", **changes) == ids[:5]
    connected.state.touch(ids[7], Subject="changed")
    assert run("r2", **changes) == [ids[7]]


def test_changes_after_no_time(connected, run):
    """What is no time is rejected under the name of the argument, before anything is sent."""
    with pytest.raises(OneboxConfigError, match=r"^last_update='soon' is not a time"):
        run("r1", incremental="changes", last_update="soon")
    assert not connected.state.requests


@pytest.mark.parametrize("resource", ["prospectrz", "ContactRZ"])
def test_resources_without_dates(resource):
    """Contacts and prospects have no dates, so their changes are rejected when the DAG is parsed."""
    with pytest.raises(ValueError, match=f"can't work for {resource}, whose records have no dates"):
        listing(resource=resource, incremental="changes", output_path="x")


@pytest.mark.parametrize(
    ("incremental", "options", "reason"),
    [
        ("changes", {}, "incremental='changes' needs output_path"),
        ("changes", {"output_path": "x", "since_id": 1}, "begin with last_update"),
        ("changes", {"output_path": "x", "since": "2026-01-01 00:00"}, "begin with last_update"),
        ("changes", {"output_path": "x", "max_records": 1}, "begin with last_update"),
        ("changes", {"output_path": "x", "until": "2026-01-01"}, "incremental='changes' uses a watermark"),
        ("change", {"output_path": "x"}, "incremental='change' is none of"),
        (True, {}, "incremental=True needs output_path"),
        (True, {"output_path": "x", "last_update": "2026-01-01 00:00"}, "incremental=True selects by id"),
        (True, {"output_path": "x", "until": "{{ data_interval_end }}"}, "incremental=True uses a watermark"),
    ],
)
def test_bad_incremental(incremental, options, reason):
    """Arguments that don't fit an incremental export are rejected when the DAG is parsed."""
    with pytest.raises(ValueError, match=reason):
        listing(incremental=incremental, **options)


@pytest.fixture
def call(context):
    """Make a call, as a task does."""
    return lambda **options: OneboxRequestOperator(task_id="t", **options).execute(context())


def test_request(connected, call, monkeypatch):
    """One call, its JSON returned and logged in one line; `data` is sent as a form, `json` as JSON."""
    logged = Log.of(monkeypatch, OneboxRequestOperator)
    first = connected.state.ids()[0]
    assert call(endpoint=f"ticketrz/{first}")["Id"] == first
    assert logged[-1:] == [("info", f"GET ticketrz/{first} succeeded.")]
    assert call(endpoint="ticketrz", query={"limit": 2})["limit"] == "2"
    assert call(method="POST", endpoint="message", json={"Subject": "s"})
    form = {"fullName": "A", "contact": "a@example.com", "subject": "s", "category": "c", "content": "x"}
    created = call(method="POST", endpoint="ticket/create", data=form)
    (ticket,) = connected.state.tickets
    assert (created["ticketId"], ticket["subject"]) == (ticket["ticketId"], "s")


@pytest.mark.parametrize("method", ["POST", "post"])
def test_response_filter_that_fails(connected, call, method):
    """The write is done, so a filter that fails afterwards must not have Airflow repeat it."""
    message = r"contactrz succeeded, but response_filter failed: KeyError: 'data'\. The write"
    with pytest.raises(OneboxUnusableResultError, match=message) as caught:
        call(endpoint="contactrz", method=method, json={"Name": "A"}, response_filter=lambda found: found["data"])
    assert caught.value.uncertain
    assert len([entry for entry in connected.state.books() if entry["id"]]) == 1


@pytest.mark.parametrize(("options", "error"), [({}, KeyError), ({"method": "POST", "json": {}}, AirflowSkipException)])
def test_response_filter_that_decides(connected, call, options, error):
    """After a read, what the filter raises is the task's to be retried; a skip is a skip, and is not repeated."""

    def response_filter(_):
        raise error("x")

    with pytest.raises(error):
        call(endpoint="contactrz", response_filter=response_filter, **options)


def test_response_filter(connected, call):
    """What the filter makes of a response is what goes to the XCom: JSON, or what Airflow itself can serialize."""
    options = {"endpoint": "ticketrz", "query": {"limit": 3}}
    ids = call(**options, response_filter=lambda found: [record["Id"] for record in found["data"]])
    assert ids == connected.state.ids()[:3]
    assert call(**options, response_filter=lambda _: {1, 2}) == {1, 2}


@pytest.mark.parametrize("native", [False, True])
def test_native_export(connected, reconnect, context, tmp_path, native):
    """A connection, a site, a path and fields that look like numbers or are lists work in every export."""
    reconnect("7")
    values = {"conn": 7, "site": 170, "names": ["Id", "Subject"], "folder": tmp_path, "run": "20260101"}
    task = listing(
        onebox_conn_id="{{ conn }}",
        site_id="{{ site }}",
        incremental=True,
        fields="{{ names }}" if native else ["Id", "{{ names[1] }}"],
        output_path="{{ folder }}/{{ run }}",
    )
    result = render(task, values, native=native).execute(context())
    assert result["count"] == 250
    assert list(records_in(tmp_path / "20260101")[0]) == ["Id", "Subject"]
    assert list(context.airflow.variables) == ["onebox_watermark@d@t@7@170@ticketrz"]


@pytest.mark.parametrize("native", [False, True])
def test_path_of_nothing(connected, context, native):
    """An incremental export whose path is rendered from nothing is rejected, and does not go to the XCom instead."""
    task = listing(incremental=True, output_path="{{ none }}")
    with pytest.raises(OneboxConfigError, match="names no file"):
        render(task, {}, native=native).execute(context())
    assert not connected.state.requests


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


@pytest.mark.parametrize(
    ("kind", "fields", "find", "sent"),
    [
        (
            OneboxCreateTicketOperator,
            {**TICKET, "content": "{{ 42 }}", "subject": "{{ 0 }}"},
            lambda state: [(ticket["content"], ticket["subject"]) for ticket in state.tickets],
            [("42", "0")],
        ),
        (
            OneboxSendMessageOperator,
            {"connection_id": "{{ 3 }}", "body": "{{ 0 }}", "to": "{{ 628123 }}", "cc": ["{{ 'a' }}"]}
            | {"conversation_id": "{{ 12045 }}", "subject": "{{ 1.5 }}", "sender": "{{ none }}"},
            lambda state: state.books()[0]["body"],
            {"ConnectionId": "3", "To": "628123", "Cc": '["a"]', "ConversationId": "12045", "Subject": "1.5"}
            | {"Content": {"Body": "0", "ContentType": "text/plain", "Encoding": "utf-8"}},
        ),
        (
            OneboxBulkWriteOperator,
            {"kind": "contact", "rows": [{"name": "A", "phone": "{{ 628123 }}"}], "parallelism": "{{ 2 }}"}
            | {"results_path": "{{ folder }}/v"},
            lambda state: state.books()[0]["body"],
            {"Name": "A", "Phone": "628123"},
        ),
        (
            OneboxRequestOperator,
            {"endpoint": "ticketrz", "query": {"limit": "{{ 2 }}"}, "site_id": "{{ 170 }}"},
            lambda state: (state.logins_by_site, state.seen[-1].query),
            ({"170": 1}, "limit=2"),
        ),
        (
            OneboxRequestOperator,
            {"endpoint": "ticketrz", "token": "{{ 123 }}"},
            lambda state: state.seen[0].headers["authorization"],
            "Bearer 123",
        ),
    ],
    ids=["ticket", "message", "bulk", "request", "token"],
)
def test_native(connected, context, tmp_path, kind, fields, find, sent):
    """A number that a template renders as a native object is sent as the text that it was, and nothing is not sent."""
    render(kind(task_id="t", **fields), {"folder": tmp_path}, native=True).execute(context())
    assert find(connected.state) == sent


def test_token_from_upstream(connected, context):
    """An upstream token saves the login."""
    token = OneboxHook(site_id="170").get_token()
    task = listing(token=token, max_records=1)
    assert task.execute(context())[0]["SiteId"] == "170"
    assert connected.state.logins == 1


def test_create_ticket(connected, context, tmp_path, monkeypatch):
    """The ticket's id is returned and logged, and fields and files, whose paths templates may render, arrive."""
    logged = Log.of(monkeypatch, OneboxCreateTicketOperator)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    fields = {**TICKET, "attachment": ["{{ folder }}/a.txt"], "file": "{{ folder }}/b.txt"}
    task = render(OneboxCreateTicketOperator(task_id="t", **fields), {"folder": str(tmp_path)})
    ticket_id = task.execute(context())
    assert logged[-1:] == [("info", f"Opened ticket {ticket_id} in category c.")]
    (ticket,) = connected.state.tickets
    assert (ticket["ticketId"], ticket["fullName"]) == (ticket_id, "A")
    assert [file["filename"] for file in ticket["attachment"] + ticket["file"]] == ["a.txt", "b.txt"]


def test_authenticate_takes_no_token():
    """The operator that logs in is no place for a token, also if the DAG's other tasks have one by default."""
    message = "takes no token, because it logs in to get one: remove token, or use another operator."
    with pytest.raises(TypeError, match=f"^OneboxAuthenticateOperator {re.escape(message)}$"):
        OneboxAuthenticateOperator(task_id="t", token="a secret")
    assert OneboxAuthenticateOperator(task_id="t", default_args={"token": "x"}).token is None
