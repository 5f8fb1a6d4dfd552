"""The operators that read and write."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import pytest

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, OneboxUncertainWriteError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators import onebox
from airflow_provider_onebox.operators.onebox import (
    OneboxCreateTicketOperator,
    OneboxListOperator,
    OneboxRequestOperator,
)

TICKET = {"full_name": "A", "contact": "a@example.com", "subject": "s", "category": "c", "content": "x"}


class Store(dict):
    """The state store of an outlet asset, as Airflow 3.3 has it."""

    def set(self, key, value):
        self[key] = value


@pytest.fixture
def context():
    """Make the context of a run; all runs share a store."""
    store = Store()

    def make(run_id="r1"):
        ti = SimpleNamespace(dag_id="d", task_id="t", run_id=run_id, map_index=-1, try_number=1)
        return {"ti": ti, "asset_state_store": {"asset": store}}

    return make


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
    with pytest.raises(OneboxConfigError, match=r"an XCom takes 20,000 here: pass output_path"):
        OneboxListOperator(task_id="t", resource="ticketrz").execute(context())


def test_list_to_a_file(connected, context, tmp_path):
    """Many records go to a file, and the task tells what is in it."""
    path = tmp_path / "out.jsonl.gz"
    ids = connected.state.ids()
    task = OneboxListOperator(task_id="t", resource="ticketrz", output_path=str(path), page_size=33)
    assert task.execute(context()) == {"path": str(path), "count": 250, "first_id": ids[0], "last_id": ids[-1]}
    assert lines(path) == ids
    task = OneboxListOperator(task_id="t", resource="ticketrz", output_path=str(path), since_id=ids[-1])
    assert task.execute(context()) == {"path": str(path), "count": 0, "first_id": None, "last_id": None}


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


@pytest.mark.parametrize("include", [False, True])
def test_connection_secrets(connected, context, tmp_path, include):
    """Secrets of the customer's channels stay out of XCom and file unless asked for."""
    options = {"task_id": "t", "resource": "connection", "max_records": 5, "include_secrets": include}
    rows = OneboxListOperator(**options).execute(context())
    path = tmp_path / "c.jsonl.gz"
    OneboxListOperator(**options, output_path=str(path)).execute(context())
    rows += [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(rows) == 10
    assert all(("Password" in row and "Token" in row) is include for row in rows)


def test_incremental(connected, context, tmp_path):
    """Runs around new records, a failed one and a repeated one: none lost, none twice."""

    def run(run_id, **options):
        path = tmp_path / f"{run_id}.jsonl.gz"
        task = OneboxListOperator(
            task_id="t", resource="ticketrz", output_path=str(path), incremental=True, page_size=50, **options
        )
        task.outlets = ["asset"]
        task.execute(context(run_id))
        return lines(path)

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


@pytest.mark.parametrize("options", [{}, {"output_path": "x", "last_update": "2026-01-01 00:00"}])
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


def test_token_from_upstream(connected, context):
    """A token from upstream saves the login."""
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


@pytest.mark.parametrize("operator", [OneboxListOperator, OneboxRequestOperator, OneboxCreateTicketOperator])
def test_fields_are_templated(operator):
    """Whatever a user would template is; numbers that shape the call are not."""
    fields = set(operator.template_fields)
    assert {"onebox_conn_id", "site_id", "token"} <= fields
    assert not fields & {"page_size", "max_records", "parallelism", "incremental"}
