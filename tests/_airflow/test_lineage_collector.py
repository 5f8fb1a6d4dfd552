"""What is reported to Airflow's collector of hook lineage, in the tests' own process."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from urllib.parse import urlsplit

import pytest
from airflow.providers.common.compat import sdk
from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector
from airflow.providers.common.compat.sdk import ObjectStoragePath
from support.processes import PATIENCE
from support.watermarks import Deployment

from airflow_provider_onebox._airflow import lineage
from airflow_provider_onebox._airflow.lineage import report_file
from airflow_provider_onebox.exceptions import OneboxError
from airflow_provider_onebox.files.atomic import storage_path
from airflow_provider_onebox.files.reading import read_rows
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator
from airflow_provider_onebox.operators.onebox import OneboxListOperator

try:
    from airflow.sdk import lineage as core
except ImportError:  # Before Airflow 3.2.
    from airflow.lineage import hook as core


def collect_with(monkeypatch, get_collector):
    """Put something in the place of Airflow's collector, for its own paths and for common.compat, of 1.12 too."""
    for module in (core, sdk, sys.modules[ObjectStoragePath.__module__]):
        monkeypatch.setattr(module, "get_hook_lineage_collector", get_collector, raising=False)


@pytest.fixture
def reported(monkeypatch):
    """Let Airflow collect, as where a plugin reads it; return what it has: each URI, its extra, and how often."""
    collector = core.HookLineageCollector()
    collect_with(monkeypatch, lambda: collector)

    def found():
        collected = get_hook_lineage_collector().collected_assets
        return [
            [(info.asset.uri, info.asset.extra or {}, info.count) for info in infos]
            for infos in (collected.inputs, collected.outputs)
        ]

    return found


@pytest.fixture
def site(connected):
    """Return what all URIs of the sandbox's first site begin with."""
    return f"onebox://{urlsplit(connected.url).netloc}/169"


def test_listing(connected, site, reported):
    """A listing is one input, however many pages or records it has, with the number of records once it is complete."""
    records = OneboxHook().list_records("ticketrz", page_size=20)
    assert reported() == [[], []]
    assert len(list(records)) == 250
    assert list(OneboxHook().list_records("contactrz", since_id=connected.state.ids("contactrz")[-1])) == []
    assert reported() == [[(f"{site}/ticketrz", {"count": 250}, 1), (f"{site}/contactrz", {"count": 0}, 1)], []]


def test_abandoned_listing(connected, site, reported):
    """Of an abandoned listing, the records that arrived are reported."""
    batches = OneboxHook().list_batches("contactrz", page_size=20, parallelism=1)
    rows = sum(len(batch.rows) for batch in islice(batches, 2))
    batches.close()
    assert reported() == [[(f"{site}/contactrz", {"count": rows}, 1)], []]


def test_failed_listing(connected, reported):
    """What could not be listed at all was not read."""
    with pytest.raises(OneboxError):
        list(OneboxHook().list_records("no_such_list"))
    assert reported() == [[], []]


def test_conversations(connected, site, reported):
    """The conversations of many tickets are one input."""
    hook = OneboxHook()
    for ticket_id in connected.state.ids()[:3]:
        hook.list_conversations(ticket_id)
    assert reported() == [[(f"{site}/conversations", {}, 3)], []]


def test_files(tmp_path, reported):
    """A file has the URI that Airflow's own path reports when it is opened; a written one has its number of rows."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"Id":"1"}\n{"Id":"2"}\n')
    report_file(storage_path(str(path)), is_output=True, count=2)
    assert len(list(read_rows(str(path)))) == 2
    uri = f"file://{path}"
    assert reported() == [[(uri, {}, 1)], [(uri, {"count": 2}, 1)]]
    with ObjectStoragePath(uri).open("rb") as file:
        assert json.loads(file.read().splitlines()[0]) == {"Id": "1"}
    assert [(found, count) for found, _, count in reported()[0]] == [(uri, 1)] * 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (OneboxListOperator, {"resource": "contactrz", "max_records": 2, "output_path": "a.jsonl"}),
        (OneboxListConversationsOperator, {"tickets": [], "output_path": "a.jsonl"}),
        (OneboxBulkWriteOperator, {"kind": "contact", "rows": [{"name": "A"}], "results_path": "a.jsonl"}),
    ],
)
def test_operators(connected, tmp_path, monkeypatch, reported, kind, options):
    """Each operator that writes a file reports it once, with its number of rows."""
    monkeypatch.chdir(tmp_path)
    ti = Deployment(monkeypatch).ti()
    result = kind(task_id="t", **options).execute({"ti": ti})
    assert reported()[1] == [(f"file://{tmp_path}/a.jsonl", {"count": result["count"]}, 1)]


@pytest.mark.parametrize("written", ["a.jsonl", "x/../a.jsonl", "file://{}/x/../a.jsonl"])
def test_one_name_for_a_file(tmp_path, monkeypatch, reported, written):
    """However the path of a file is written, it is reported as the same absolute one."""
    monkeypatch.chdir(tmp_path)
    report_file(storage_path(written.format(tmp_path)), is_output=True)
    ((uri, _, _),) = reported()[1]
    assert uri == f"file://{tmp_path}/a.jsonl"


def test_object_store(reported):
    """An object is reported under its own URI, without the connection that its path names."""
    report_file(ObjectStoragePath("memory://my_conn@bucket/a.jsonl"), is_output=True, count=1)
    ((uri, extra, _),) = reported()[1]
    assert re.fullmatch(r"memory:/{1,3}bucket/a\.jsonl", uri)
    assert extra == {"count": 1}


def test_nobody_reads_it(monkeypatch, tmp_path, caplog):
    """Where no plugin reads lineage, Airflow's stand-in takes the reports and keeps none."""
    collector = core.NoOpCollector()
    collect_with(monkeypatch, lambda: collector)
    report_file(ObjectStoragePath(f"file://{tmp_path}/a"), is_output=True, count=1)
    assert not collector.has_collected
    assert caplog.text == ""


def test_collector_that_fails(monkeypatch, tmp_path, caplog):
    """What has been written stays written when Airflow or a plugin can't take the report."""

    def fail():
        raise RuntimeError("no collector\ntoday")

    collect_with(monkeypatch, fail)
    report_file(ObjectStoragePath(f"file://{tmp_path}/a"), is_output=True, count=1)
    assert [record.getMessage() for record in caplog.records] == [
        f"file://{tmp_path}/a is missing from the lineage: no collector today."
    ]


def test_fork(tmp_path, reported):
    """A process that is forked while a thread reports is not stuck when it reports, too."""

    def fork():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
            child = os.fork()
        if not child:
            signal.alarm(PATIENCE)
            report_file(ObjectStoragePath(f"{tmp_path}/a"), is_output=True)
            os._exit(len(reported()[1]))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with lineage._lock, ThreadPoolExecutor(1) as pool:
        assert pool.submit(fork).result() == 1
