"""The forms of conversations and messages in requests and responses."""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.api.arguments import as_list, parse_id
from airflow_provider_onebox.exceptions import OneboxConfigError, sanitize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

METHODS = ("DIRECT", "POST", "MENTION", "COMMENT")


ROLES = ("MSR1", "MSR2", "MSR3", "MSR4")


def messages_in(response: Any, ticket_id: str) -> list[dict[str, Any]] | None:
    """Flatten a conversation: the messages of a thread replace the thread.

    :param response: the response.
    :param ticket_id: the ticket's id, for each message's ``ticketId``.
    :return: the messages, or ``None`` if the response is no conversation.
    """
    messages: list[dict[str, Any]] = []
    pending: deque[Any] = deque([response])
    while pending:
        element = pending.popleft()
        if not isinstance(element, dict):
            return None
        thread = as_list(element.get("data"))
        if thread is not None:
            pending.extendleft(reversed(thread))
        elif element is response:
            return None
        else:
            messages.append({**element, "ticketId": ticket_id})
    return messages


def message_body(
    fields: dict[str, Any], read_attachments: Callable[[], Iterable[tuple[str, bytes, str]]]
) -> dict[str, Any]:
    """Make the body of a message, with the files as base64.

    :param fields: its fields by Onebox's own names; those that are ``None`` or empty are left out.
    :param read_attachments: called when the fields are valid; returns the name, content and media type of each file.
    :return: the body.
    :raises OneboxConfigError: if a field is invalid.
    """
    if not str(fields["ConnectionId"] or "").strip() or not str(fields["Content"]["Body"] or "").strip():
        raise OneboxConfigError("A message needs connection_id and body, and one of them is empty.")
    if fields["ConversationId"] and fields["PreviousId"]:
        raise OneboxConfigError(
            "A message has either conversation_id (replies to a private conversation) or previous_id (replies to a "
            "public comment)."
        )
    if fields["MethodId"] not in (None, *METHODS):
        raise OneboxConfigError(f"method_id={sanitize(fields['MethodId'])!r} is none of {', '.join(METHODS)} or None.")
    users = fields["Users"] or []
    if not isinstance(users, (list, tuple)) or not all(isinstance(u, dict) and u.get("RoleId") in ROLES for u in users):
        raise OneboxConfigError(
            f"users={sanitize(users, 60)!r} is not a list of dictionaries with IdentityId, Name and a RoleId of "
            f"{', '.join(ROLES)}."
        )
    files = [
        {"Description": name, "File": {"Name": name, "Content": b64encode(content).decode()}}
        for name, content, _ in read_attachments()
    ]
    content = {name: value for name, value in fields["Content"].items() if value}
    body = {**fields, "Content": content, "Attachments": files}
    return {name: value for name, value in body.items() if value not in (None, "", [], ())}


def greatest_id(rows: Iterable[Any]) -> str | None:
    """Find the greatest id of some records, that of the newest one.

    :param rows: the records.
    :return: the id; ``None`` if no record has one.
    """
    ids = [parse_id(row.get("Id")) for row in rows if isinstance(row, dict)]
    greatest = max((number for number in ids if number is not None), default=None)
    return None if greatest is None else str(greatest)
