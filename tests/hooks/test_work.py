"""What the hook reads of conversations and writes of tickets, messages and contacts."""

from __future__ import annotations

import hashlib
from datetime import date, datetime

import pytest
from support.bulk import TICKET

from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxUncertainWriteError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook

MESSAGE = {"connection_id": "3", "body": "<p>x</p>"}


@pytest.fixture
def hook(connected):
    """A hook of the sandbox."""
    return OneboxHook()


def body(sandbox):
    """Return the only write's body."""
    (entry,) = sandbox.state.books()
    return entry["body"]


def test_conversations(connected, hook):
    """The messages of a ticket come flat and in order, threads within threads included."""
    ticket = next(i for i in connected.state.ids() if int(i) % 4 == 3)
    found = hook.list_conversations(int(ticket))
    assert [message["Id"] for message in found] == [f"{ticket}{n}" for n in range(4)]
    assert {message["ticketId"] for message in found} == {ticket}
    assert [message["Contents"] for message in found] == [[f"message {n}"] for n in range(4)]


def test_conversation_of_no_ticket(connected, hook):
    """What is no id is asked for nowhere; a ticket that is not there is distinguished from one without messages."""
    for wrong in ("None", "1/2", -1, None):
        with pytest.raises(OneboxConfigError, match="is not an id: pass up to 20 digits"):
            hook.list_conversations(wrong)
    assert not connected.state.requests
    with pytest.raises(OneboxRequestError) as caught:
        hook.list_conversations(1)
    assert caught.value.status == 404


def test_odd_conversation(connected, hook):
    """A response that is no conversation is an error that names the call, and no empty list."""
    connected.state.fail("wrong_type", path="conversations", value={"data": ["x"]})
    with pytest.raises(
        OneboxResponseError, match="GET ticket/conversations/12: the response is not a conversation"
    ) as caught:
        hook.list_conversations("12")
    assert caught.value.status == 200


def test_secrets_in_a_conversation(connected, hook):
    """A conversation comes without secrets, unless they are asked for."""
    value = {"data": {"0": {"Id": "7", "Connection": {"Token": "t"}}, "2": {"Id": "8"}}}
    connected.state.fail("wrong_type", path="conversations", value=value, times=2)
    messages = [{"Id": "7", "Connection": {}, "ticketId": "12"}, {"Id": "8", "ticketId": "12"}]
    assert hook.list_conversations("12") == messages
    messages[0]["Connection"] = {"Token": "t"}
    assert hook.list_conversations("12", include_secrets=True) == messages


def test_new_message(connected, hook):
    """A new message is sent by Onebox's names, without what was not given; its id comes back."""
    fields = {"subject": "S", "sender": "care@example.com", "to": "a@example.com", "cc": "c", "bcc": "b"}
    fields |= {"method_id": "DIRECT", "body_text": "x", "content_type": "text/html"}
    fields["users"] = [{"IdentityId": "5", "Name": "A", "RoleId": "MSR1"}]
    assert hook.send_message(**MESSAGE, **fields) == connected.state.books()[0]["id"]
    content = {"Body": "<p>x</p>", "BodyText": "x", "ContentType": "text/html", "Encoding": "utf-8"}
    assert body(connected) == {
        "ConnectionId": "3",
        "MethodId": "DIRECT",
        "Subject": "S",
        "From": "care@example.com",
        "To": "a@example.com",
        "Cc": "c",
        "Bcc": "b",
        "Content": content,
        "Users": fields["users"],
    }


@pytest.mark.parametrize("how", ["conversation_id", "previous_id"])
def test_answer(connected, hook, how):
    """A reply to a conversation or to a comment, of plain text by default, arrives in the ticket's conversation."""
    connected.state.configure(message_page=2)
    ticket = connected.state.ids()[0]
    target = ticket if how == "conversation_id" else hook.list_conversations(ticket)[0]["Id"]
    message_id = hook.send_message(**MESSAGE, **{how: target})
    last = hook.list_conversations(ticket)[-1]
    assert (last["Id"], last["Content"]) == (message_id, "<p>x</p>")
    assert set(body(connected)) == {"ConnectionId", "Content", {"c": "ConversationId", "p": "PreviousId"}[how[0]]}
    assert body(connected)["Content"]["ContentType"] == "text/plain"


def test_message_attachments(connected, hook, tmp_path):
    """Files are sent whole, as base64."""
    content = bytes(range(256)) * 999
    (tmp_path / "a b.bin").write_bytes(content)
    hook.send_message(**MESSAGE, attachments=[str(tmp_path / "a b.bin")])
    (sent,) = body(connected)["Attachments"]
    assert sent["Description"] == "a b.bin"
    assert sent["File"] == {"Name": "a b.bin", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"body": " "}, "needs connection_id and body"),
        ({"connection_id": None}, "needs connection_id and body"),
        ({"conversation_id": "1", "previous_id": "2"}, "either conversation_id"),
        ({"method_id": "direct"}, "method_id='direct' is none of DIRECT, POST, MENTION, COMMENT or None"),
        ({"users": [{"RoleId": "MSR5"}]}, "RoleId of MSR1, MSR2, MSR3, MSR4"),
        ({"users": ["x"]}, "is not a list of dictionaries"),
        ({"users": 5}, "users='5' is not a list of dictionaries"),
    ],
)
def test_message_that_cannot_work(connected, hook, fields, match):
    """Arguments that can't work are rejected before anything is sent."""
    with pytest.raises(OneboxConfigError, match=match):
        hook.send_message(**{**MESSAGE, **fields})
    assert not connected.state.requests


def test_message_without_an_id(connected, hook):
    """Onebox may still change the response's body: a page without an id is one, after anything else it is uncertain."""
    connected.state.fail("wrong_type", path="message", value={"data": [{"Subject": "x"}]})
    assert hook.send_message(**MESSAGE) is None
    connected.state.fail("wrong_type", path="message", value={"data": {"1": {"Id": "8"}, "3": {"Id": "9"}}})
    assert hook.send_message(**MESSAGE) == "9"
    for odd in ([], "x", {"data": {"a": {}}}, {"data": None}, {}):
        connected.state.fail("wrong_type", path="message", value=odd)
        with pytest.raises(
            OneboxUncertainWriteError, match=r"POST message: the response holds no page of messages\. It may have"
        ):
            hook.send_message(**MESSAGE)


def test_create_contact(connected, hook):
    """A contact is created by Onebox's names, and its id comes back."""
    fields = {"name": "A", "phone": "1", "fax": "2", "email": "a@example.com", "mobile": "3", "twitter_id": "4"}
    assert hook.create_contact(**fields, facebook_id="5", media="") == connected.state.books()[0]["id"]
    names = {"Name": "A", "Phone": "1", "Fax": "2", "Email": "a@example.com", "Mobile": "3", "TwitterId": "4"}
    assert body(connected) == {**names, "FacebookId": "5"}


def test_blank_contact(connected, hook):
    """A contact of which nothing is known is not created; white space is no field."""
    for fields in ({"name": "", "phone": None}, {"name": " ", "email": ""}):
        with pytest.raises(OneboxConfigError, match="A contact needs a name"):
            hook.create_contact(**fields)
    assert not connected.state.requests
    hook.create_contact(name="A", email=" ")
    assert body(connected) == {"Name": "A"}


def test_ticket_with_files(connected, hook, tmp_path):
    """Files of both fields arrive whole beside the ticket's other fields."""
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 1000)
    paths = [str(tmp_path / f"{name}.txt") for name in "abc"]
    ticket = hook.create_ticket(**TICKET, coordinate="-6.2,106.8", attachment=paths[:2], file=paths[2])
    sent = body(connected)
    files = {key: [(f["filename"], f["size"]) for f in sent.pop(key)] for key in ("attachment", "file")}
    assert files == {"attachment": [("a.txt", 1000), ("b.txt", 1000)], "file": [("c.txt", 1000)]}
    assert sent.pop("coordinate") == "-6.2,106.8"
    assert list(sent.values()) == list(TICKET.values())
    assert list(sent) == ["fullName", "contact", "subject", "category", "content"]
    assert ticket == connected.state.books()[0]["id"]


def test_ticket_with_files_is_sent_again(connected, hook, tmp_path):
    """A rejected token renews the login, and the files are sent anew and whole."""
    (tmp_path / "a.txt").write_text("a" * 100_000)
    hook.client.tokens.get()
    connected.state.revoke()
    hook.create_ticket(**TICKET, file=str(tmp_path / "a.txt"))
    assert connected.state.books()[-1]["body"]["file"][0]["size"] == 100_000
    assert len(connected.state.tickets) == 1


NUMBERS = [(5, "5"), (1.5, "1.5"), (True, "True"), (datetime(2026, 11, 24), "2026-11-24 00:00:00")]
CONTAINERS = [({"order": 5, "\u00e9": None}, '{"order": 5, "\u00e9": null}'), ([1, "a"], '[1, "a"]'), ((1,), "[1]")]


@pytest.mark.parametrize(("value", "text"), [*NUMBERS, *CONTAINERS, ({"a": date(2026, 1, 2)}, '{"a": "2026-01-02"}')])
def test_text_is_text(connected, hook, value, text):
    """What a native template makes of a text is sent as text in every text field; containers as JSON."""
    hook.create_ticket(**dict.fromkeys(TICKET, value))
    hook.create_contact(name=value, media=value)
    names = ("body", "body_text", "subject", "sender", "to", "cc", "bcc", "connection_id")
    hook.send_message(**dict.fromkeys(names, value))
    ticket, contact, message = (entry["body"] for entry in connected.state.books())
    assert ticket == dict.fromkeys(("fullName", "contact", "subject", "category", "content"), text)
    assert contact == {"Name": text, "Media": text}
    content = message.pop("Content")
    assert (content["Body"], content["BodyText"]) == (text, text)
    assert message == dict.fromkeys(("ConnectionId", "Subject", "From", "To", "Cc", "Bcc"), text)


@pytest.mark.parametrize("value", [(-6.2, 106.8), [-6.2, 106.8], "-6.2,106.8"])
def test_coordinate(connected, hook, value):
    """A coordinate is text, also where a native template makes a pair of it."""
    hook.create_ticket(**TICKET, coordinate=value)
    assert body(connected)["coordinate"] == "-6.2,106.8"


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (float("nan"), r"^Email=nan is not a number, so nothing was sent\.$"),
        (-float("inf"), "^Email=-inf is not a number"),
        ({"a": float("nan")}, r"^Email can't be written as JSON text: .+\.$"),
        ({("a", 1): 2}, "^Email can't be written as JSON text: "),
    ],
)
def test_no_text(connected, hook, value, match):
    """A number that is not finite, as an empty cell of a data frame is, is not sent as a word."""
    with pytest.raises(OneboxConfigError, match=match):
        hook.create_contact(name="A", email=value)
    assert not connected.state.requests


@pytest.mark.parametrize(
    "row_id", ["9" * 21, "7" * 2**20, ["7"], {"a": 1}, "7\nForged log line", "-1", 1.5, True, "0", "", None]
)
def test_id_of_a_response(connected, hook, row_id):
    """An id is digits: anything else in its place leaves the write uncertain, and is in no message."""
    connected.state.fail("wrong_type", path="create", value={"ticketId": row_id})
    with pytest.raises(OneboxUncertainWriteError) as caught:
        hook.create_ticket(**TICKET)
    assert str(caught.value) == (
        "Connection 'onebox_default': POST ticket/create: the response holds no ticketId. It may have been done: look "
        "in Onebox before you clear the task."
    )
    assert caught.value.status == 200
    connected.state.fail("wrong_type", path="contactrz", value={"Id": row_id})
    with pytest.raises(OneboxUncertainWriteError, match="the response holds no Id"):
        hook.create_contact(name="A")
    connected.state.fail("wrong_type", path="message", value={"data": [{"Id": row_id}]})
    assert hook.send_message(**MESSAGE) in (None, "0")
