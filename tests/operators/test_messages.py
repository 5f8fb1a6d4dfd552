"""Conversations into a file, and messages out."""

from __future__ import annotations

import gzip
import json
import re
import threading
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_onebox.api.rate import RateController
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxServiceHoursError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator, OneboxSendMessageOperator
from airflow_provider_onebox.sandbox.app import QUOTA


@pytest.fixture
def path(tmp_path):
    """Where the conversations go."""
    return tmp_path / "messages.jsonl.gz"


@pytest.fixture
def logged(caplog, capsys):
    """Return the log, wherever this Airflow keeps it."""
    caplog.set_level("INFO")
    return lambda: caplog.text + capsys.readouterr().out


def execute(tickets, path, **options):
    """Run the operator."""
    return OneboxListConversationsOperator(task_id="t", tickets=tickets, output_path=str(path), **options).execute({})


def lines(path):
    """Read the messages in a file."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.parametrize("parallelism", ["1", 4])
def test_conversations(connected, path, logged, monkeypatch, parallelism):
    """All messages of all tickets are in one file, ticket by ticket and in order, and the log says how far it is."""
    monkeypatch.setattr("airflow_provider_onebox.api.progress.LOG_SECONDS", 0)
    ids = connected.state.ids()[:40]
    result = execute(ids, path, parallelism=parallelism)
    messages = lines(path)
    where = {"path": str(path), "uri": f"file://{path}"}
    assert result == {**where, "count": len(messages), "tickets": 40, "missing": 0, "failed": 0}
    assert [m["Id"] for m in messages] == [f"{i}{n}" for i in ids for n in range(int(i) % 4 + 1)]
    assert [m["ticketId"] for m in messages] == [m["Id"][:-1] for m in messages]
    log = logged()
    assert "40 tickets so far (" in log
    assert f"Wrote {len(messages)} messages of 40 tickets to {path}." in log
    assert connected.state.logins == 1


def test_no_tickets(connected, path):
    """No tickets make an empty file, and no calls."""
    where = {"path": str(path), "uri": f"file://{path}"}
    assert execute([], path) == {**where, "count": 0, "tickets": 0, "missing": 0, "failed": 0}
    assert lines(path) == []
    assert not connected.state.requests


def test_missing_tickets(connected, path, logged):
    """A ticket that was deleted meanwhile is left out, counted and named; if all are, something else is wrong."""
    first, second = connected.state.ids()[:2]
    connected.state.delete([first])
    assert execute([first, second], path)["missing"] == 1
    assert {m["ticketId"] for m in lines(path)} == {second}
    assert f"No longer at site 169: tickets {first}." in logged()
    before = path.read_bytes()
    with pytest.raises(OneboxRequestError, match=f"{first} not found"):
        execute([first], path)
    assert path.read_bytes() == before
    connected.state.fail("envelope", path="conversations", status=200, code="404", message="no such ticket")
    assert execute([second, second], path, parallelism=1)["missing"] == 1  # Onebox's code counts, under any status.


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "empty"},
        {"kind": "status", "status": 503},
        {"kind": "envelope", "status": 403},
        {"kind": "envelope_200"},
        {"kind": "html"},
        {"kind": "redirect"},
        {"kind": "wrong_type", "value": {"data": ["x"]}},
        {"kind": "wrong_type", "value": None},
    ],
    ids=lambda fault: f"{fault['kind']} {fault.get('status', fault.get('value', ''))}",
)
def test_unreadable_tickets(connected, reconnect, path, logged, fault):
    """A ticket whose conversation can't be read is left out, counted and named, as a missing one is."""
    reconnect(max_retries=0)
    first, second, third = connected.state.ids()[:3]
    connected.state.delete([third])
    connected.state.fail(**fault, path=f"conversations/{first}$", times=99)
    result = execute([first, second, third], path, parallelism=1)
    assert (result["tickets"], result["missing"], result["failed"]) == (3, 1, 1)
    assert {m["ticketId"] for m in lines(path)} == {second}
    log = logged()
    assert re.search(
        rf"Skipped because they can't be read \(Connection .*GET ticket/conversations/{first}: .*\): tickets {first}\.",
        log,
    )
    assert f"No longer at site 169: tickets {third}." in log
    # A rejection is final; any other failure is asked for twice, when Onebox has shown that it works.
    is_final = fault["kind"] == "redirect" or fault.get("status") == 403
    assert connected.state.requests["GET conversations"] == (3 if is_final else 4)
    assert connected.state.requests["GET list"] == (0 if is_final else 2)
    assert connected.state.logins == 1


def test_second_try(connected, path):
    """A conversation that could not be read once is asked for again."""
    first, second = connected.state.ids()[:2]
    connected.state.fail("status", path=f"conversations/{first}", status=500)
    connected.state.fail("truncated", path=f"conversations/{second}", variant="json")
    assert execute([first, second], path)["failed"] == 0


@pytest.mark.parametrize(
    ("failing", "tickets", "share", "is_allowed"),
    [
        (1, 2, 0.5, True),
        (2, 3, 0.5, False),
        (1, 1, 1, False),
        (2, 3, 1, True),
        (1, 3, 0, False),
        (2, 20, 0.1, True),
        (3, 20, 0.1, False),
        (12, 24, 0.5, False),
    ],
)
def test_share_of_failed_tickets(connected, path, failing, tickets, share, is_allowed):
    """More than the share fail the task, and so does a run in which nothing can be read; the file stays as it was."""
    ids = connected.state.ids()[:tickets]
    path.write_bytes(b"before")
    for ticket in ids[:failing]:
        connected.state.fail("envelope", path=f"conversations/{ticket}$", status=403, message=f"not {ticket}")
    if is_allowed:
        assert execute(ids, path, max_failed_share=share)["failed"] == failing
        return
    with pytest.raises(OneboxRequestError) as caught:
        execute(ids, path, max_failed_share=share, parallelism=1)
    reported = f"rejected the call (403): 'not {ids[0]}'."
    if not (failing == tickets and share == 1):
        # A share is also taken while tickets are read, of at least 20.
        counted = next(
            n for n in range(1, failing + 1) if n > share * max(n, 20) or (n == failing and n > share * tickets)
        )
        reported += f" {counted} of the tickets can't be read, more than max_failed_share={share} allows."
    assert str(caught.value).endswith(reported)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_missing_and_failed(connected, path):
    """Where some tickets are missing and the others can't be read, it is the others that matter."""
    first, second = connected.state.ids()[:2]
    connected.state.delete([first])
    connected.state.fail("envelope", path=f"conversations/{second}", status=403, message="not allowed")
    with pytest.raises(OneboxRequestError, match=r"'not allowed'\.$"):
        execute([first, second], path)


def test_invalid_share():
    """A share that can't be one is found when the DAG is parsed."""
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"max_failed_share={share} is not a number from 0"):
            OneboxListConversationsOperator(task_id="t", tickets=[], output_path="x", max_failed_share=share)


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "empty"}])
def test_onebox_is_down(connected, reconnect, path, fault):
    """Where Onebox itself can't be used, the task fails at once, for Airflow to retry it."""
    reconnect(max_retries=0)
    connected.state.fail(**fault, path="conversations|ticketrz", after=5, times=999)
    with pytest.raises(OneboxError, match="GET ticketrz: ") as caught:
        execute(connected.state.ids(), path, parallelism=1)
    assert caught.value.retryable
    # The next one can be in flight by then.
    assert connected.state.requests["GET conversations"] in (6, 7)


def test_service_hours(connected, path):
    """Outside of the service hours nothing is skipped."""
    connected.state.fail("envelope", path="conversations", status=401, code="401", message=QUOTA)
    with pytest.raises(OneboxServiceHoursError):
        execute(connected.state.ids()[:3], path)


@pytest.mark.parametrize(("most", "is_allowed"), [(None, True), (2, True), ("2", True), (1, False), (0, False)])
def test_failed_attachments(connected, path, tmp_path, most, is_allowed):
    """An argument says whether skipped attachments fail the task, at its end, with all others downloaded."""
    ids = [ticket for ticket in connected.state.ids() if int(ticket) % 4][:2]
    options = {"attachments_path": tmp_path / "f", "max_failed_attachments": most}
    if is_allowed:
        assert execute(ids, path, **options)["attachments_failed"] == 2
        return
    with pytest.raises(OneboxError) as caught:
        execute(ids, path, **options)
    assert str(caught.value) == (
        f"2 attachments were skipped, more than max_failed_attachments={most} allows. The log has the reasons."
    )
    assert caught.value.retryable
    assert not path.exists()
    assert len(list((tmp_path / "f").rglob("*.txt"))) == 2


def test_secrets(connected, path, tmp_path):
    """Secrets are left out of the file, unless they are asked for."""
    value = {"data": [{"Id": "7", "Connection": {"Token": "t"}, "attachmentFiles": 7}]}
    connected.state.fail("wrong_type", path="conversations", value=value, times=9)
    for include in (False, True):
        execute("12", path, include_secrets=include)
        (message,) = lines(path)
        assert message["Connection"] == ({"Token": "t"} if include else {})
    assert execute("12", path, attachments_path=tmp_path / "f")["attachments"] == 0
    assert lines(path)[0]["attachmentFiles"] == []


def test_defaults():
    """An attachment may have the 20 MiB that the documentation promises."""
    task = OneboxListConversationsOperator(task_id="t", tickets=[], output_path="x")
    assert task.max_attachment_bytes == 20_971_520


@pytest.mark.parametrize("parallelism", [None, 4])
def test_parallelism(connected, path, monkeypatch, parallelism):
    """As many requests are in flight at once as were asked for, and few conversations wait."""
    barrier = threading.Barrier(4, timeout=10)
    ahead = []
    read = OneboxHook.list_conversations

    def list_conversations(self, ticket_id, **options):
        ahead.append(ticket_id)
        barrier.wait()
        return read(self, ticket_id, **options)

    monkeypatch.setattr(OneboxHook, "list_conversations", list_conversations)
    assert execute(connected.state.ids()[:16], path, parallelism=parallelism)["tickets"] == 16
    with pytest.raises(OneboxConfigError, match="parallelism='many'"):
        execute([1], path, parallelism="many")


def test_rejection_slows_down(connected, path, monkeypatch):
    """When Onebox rejects a conversation for being one too many, the others wait with it."""
    waits = []
    monkeypatch.setattr(RateController, "rejected", lambda rate, **details: waits.append(details["wait"]))
    headers = {"Retry-After": "0"}
    connected.state.fail("status", path="ticket/conversations", after=6, status=429, headers=headers)
    assert execute(connected.state.ids()[:16], path)["tickets"] == 16
    assert waits == [0]


def test_templates(connected, path, tmp_path):
    """Tickets, paths and the number of requests can come from templates."""
    (tmp_path / "ids.jsonl").write_text("\n".join(connected.state.ids()[:3]))
    folder = Path("{{ params.folder }}")
    task = OneboxListConversationsOperator(
        task_id="t", tickets=folder / "ids.jsonl", output_path=folder / path.name, parallelism="{{ 3 }}"
    )
    task.dag = DAG("d", schedule=None)
    task.render_template_fields({"params": {"folder": str(tmp_path)}})
    result = task.execute({})
    assert (result["tickets"], result["path"]) == (3, str(path))


def send(**fields):
    """Run the operator that sends."""
    return OneboxSendMessageOperator(task_id="t", **{"connection_id": "3", "body": "x", **fields}).execute({})


def test_send(connected, tmp_path, logged):
    """A message is sent with all that it has, and its id is returned."""
    (tmp_path / "a.txt").write_text("a")
    fields = {"subject": "s", "sender": "f", "to": "t", "cc": "c", "bcc": "b", "method_id": "POST", "body_text": "y"}
    users = [{"IdentityId": "5", "Name": "A", "RoleId": "MSR4"}]
    ticket = connected.state.ids()[0]
    message = send(**fields, users=users, attachments=str(tmp_path / "a.txt"), conversation_id=ticket)
    (entry,) = connected.state.books()
    assert message == entry["id"]
    body = entry["body"]
    assert (body["From"], body["ConversationId"], body["Users"]) == ("f", ticket, users)
    assert body["Content"] == {"Body": "x", "BodyText": "y", "ContentType": "text/plain", "Encoding": "utf-8"}
    assert body["Attachments"][0]["File"]["size"] == 1
    assert f"Sent message {message} through connection 3." in logged()
    assert send(previous_id=message)
    connected.state.fail("wrong_type", path="message", value={"data": []})
    assert send() is None
    assert "Sent message (Onebox returned no id) through connection 3." in logged()


def test_send_templates():
    """Each field of a message is a template, and lists are shown as JSON."""
    assert OneboxListConversationsOperator.template_fields_renderers == {"tickets": "json", "attachment_hosts": "json"}
    assert OneboxSendMessageOperator.template_fields_renderers == {"attachments": "json", "users": "json"}
    assert set(OneboxSendMessageOperator.message_fields) < set(OneboxSendMessageOperator.template_fields)
