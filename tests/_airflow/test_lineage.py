"""What OpenLineage makes of assets, and of tasks in a real Airflow with its provider and its file transport."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.airflow_home import AirflowHome

from airflow_provider_onebox.assets.onebox import convert_asset_to_openlineage, create_asset
from airflow_provider_onebox.sandbox import Sandbox


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Run the DAG; return the sandbox, the folder of its files, and its events as they are in OpenLineage's file."""
    folder = tmp_path_factory.mktemp("lineage")
    events = folder / "events.jsonl"
    with Sandbox(records=20) as sandbox:
        fields = {"conn_type": "onebox", "host": sandbox.url, "login": sandbox.email, "password": sandbox.password}
        with AirflowHome(
            folder / "home",
            [Path(__file__).parents[1] / "dags" / "lineage.py"],
            connections={"onebox_default": json.dumps({**fields, "extra": {"site_id": "169"}})},
            env={"LINEAGE_FOLDER": str(folder)},
            config={
                ("openlineage", "transport"): json.dumps({"type": "file", "log_file_path": str(events), "append": True})
            },
        ) as home:
            run = home.test_dag("lineage")
            assert run.state == "success", run.output
            yield sandbox, folder, run, events.read_text()


def named(data):
    """Return a dataset's names, and the number of rows that it has as an input."""
    statistics = data.get("inputFacets", {}).get("inputStatistics", {})
    return data["namespace"], data["name"], statistics.get("rowCount")


def test_inputs_and_outputs(reported):
    """Each task has read what it listed, with the number of its rows, and written its files, and nothing else."""
    sandbox, folder, run, text = reported
    events = map(json.loads, text.splitlines())
    ended = {event["job"]["name"]: event for event in events if event["eventType"] == "COMPLETE"}
    found, before = {}, [[], []]
    for task_id in ("listing", "conversations", "own_code"):
        event = ended[f"lineage.{task_id}"]
        both = [event["inputs"], event["outputs"]]
        # `dags test` has one process, and so one collector, for all tasks: what a task adds is its own.
        found[task_id] = [
            [named(data) for data in new if data not in old] for new, old in zip(both, before, strict=True)
        ]
        before = both
    onebox = f"onebox://{urlsplit(sandbox.url).netloc}"
    tickets = run.xcoms["listing", -1, "return_value"]["path"]
    assert found == {
        "listing": [[(onebox, "169/ticketrz", 3)], [("file", tickets, None)]],
        "conversations": [
            [("file", tickets, None), (onebox, "169/conversations", None)],
            [("file", f"{folder}/conversations.jsonl", None)],
        ],
        "own_code": [[(onebox, "169/contactrz", 5)], [("file", f"{folder}/own.json", None)]],
    }


def test_no_secret(reported):
    """No event holds the password, the e-mail or a token."""
    sandbox, _, _, text = reported
    assert sandbox.state.tokens
    assert not [secret for secret in (sandbox.password, sandbox.email, *sandbox.state.tokens) if secret in text]


@pytest.mark.parametrize(("extra", "count"), [({"count": 0}, 0), ({}, None)])
def test_listed(extra, count):
    """What a hook has listed is an input with the number of its rows."""
    asset = create_asset(host="cloud.onebox.co.id", site_id="169", resource="ticketrz", extra=extra)
    dataset = convert_asset_to_openlineage(asset, object())
    assert (dataset.namespace, dataset.name) == ("onebox://cloud.onebox.co.id", "169/ticketrz")
    counts = {name: facet.rowCount for name, facet in dataset.inputFacets.items()}
    assert counts == ({} if count is None else {"inputStatistics": count})


def test_declared():
    """What a task declares is a dataset of neither kind; whatever its extra holds is the user's own."""
    asset = create_asset(host="cloud.onebox.co.id", site_id="169", resource="ticketrz", extra={"count": 7})
    dataset = convert_asset_to_openlineage(asset, None)
    assert (dataset.namespace, dataset.name) == ("onebox://cloud.onebox.co.id", "169/ticketrz")
    assert not hasattr(dataset, "inputFacets")


def test_older_openlineage(monkeypatch):
    """A client that has no such facet gets the names alone."""
    monkeypatch.setitem(sys.modules, "openlineage.client.generated.input_statistics_input_dataset", None)
    asset = create_asset(host="cloud.onebox.co.id", site_id="169", resource="ticketrz", extra={"count": 7})
    dataset = convert_asset_to_openlineage(asset, object())
    assert (dataset.name, dataset.inputFacets) == ("169/ticketrz", {})
