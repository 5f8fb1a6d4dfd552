"""What a conversation, a message and an attachment are on the wire."""

from __future__ import annotations

import mimetypes
import re
from base64 import b64encode
from collections import deque
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, sanitize
from airflow_provider_onebox.files import storage_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_ATTACHMENT_BYTES = 20 * 1024 * 1024
"""The most bytes of files that one call sends; they are in memory, as the call may be sent again."""

METHODS = ("DIRECT", "POST", "MENTION", "COMMENT")
ROLES = ("MSR1", "MSR2", "MSR3", "MSR4")


def messages_in(reply: Any, ticket_id: str) -> list[dict[str, Any]] | None:
    """Flatten a conversation: the messages of threads come where their thread stands.

    :param reply: what Onebox said.
    :param ticket_id: the ticket's id, for each message's ``ticketId``.
    :return: the messages, or ``None`` if the reply is no conversation.
    """
    messages: list[dict[str, Any]] = []
    left: deque[Any] = deque([reply])
    while left:
        element = left.popleft()
        if not isinstance(element, dict):
            return None
        thread = element.get("data")
        if isinstance(thread, list):
            left.extendleft(reversed(thread))
        elif element is reply:
            return None
        else:
            messages.append({**element, "ticketId": ticket_id})
    return messages


def read_files(paths: Sequence[Any] | str | None) -> list[tuple[str, bytes, str]]:
    """Read files to send, up to :data:`MAX_ATTACHMENT_BYTES` in all.

    :param paths: a path or several, as for ``ObjectStoragePath``.
    :return: name, content and media type of each, as :mod:`requests` takes them.
    :raises OneboxConfigError: if a path is empty, or the files are too large; nothing was sent then.
    :raises OneboxError: if a file can't be read; nothing was sent then.
    """
    files = []
    left = MAX_ATTACHMENT_BYTES
    for path in map(str, _as_list(paths)):
        if path.strip() in ("", "None"):
            raise OneboxConfigError("A path of a file to send is empty: the template found nothing.")
        try:
            with storage_path(path).open("rb") as file:
                content = file.read(left + 1)
        except Exception as error:
            problem = sanitize(getattr(error, "strerror", None) or error)
            raise OneboxError(f"{path} can't be read, so nothing was sent: {problem}.", retryable=True) from error
        left -= len(content)
        if left < 0:
            raise OneboxConfigError(
                f"The files to send are larger than {MAX_ATTACHMENT_BYTES:,} bytes in all (at {path}), so nothing was "
                "sent: send fewer or smaller ones."
            )
        media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        files.append((path.rpartition("/")[2], content, media_type))
    return files


def read_ticket_files(
    attachment: Sequence[Any] | str | None, file: Sequence[Any] | str | None
) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Read the files of a ticket, up to :data:`MAX_ATTACHMENT_BYTES` in all.

    :param attachment: paths for the field ``attachment``.
    :param file: paths for the field ``file``.
    :return: fields and files, as :mod:`requests` takes them.
    :raises OneboxConfigError: if a path is empty, or the files are too large; nothing was sent then.
    :raises OneboxError: if a file can't be read; nothing was sent then.
    """
    first, second = _as_list(attachment), _as_list(file)
    names = ["attachment"] * len(first) + ["file"] * len(second)
    return list(zip(names, read_files([*first, *second]), strict=True))


def _as_list(paths: Sequence[Any] | str | None) -> list[Any]:
    return list(paths) if isinstance(paths, (list, tuple)) else [paths] if paths else []


def message_body(fields: dict[str, Any], attachments: Sequence[Any] | str | None) -> dict[str, Any]:
    """Make the body of a message, with the files as base64.

    :param fields: its fields by Onebox's own names; those that are ``None`` or empty are left out.
    :param attachments: paths of files.
    :return: the body.
    :raises OneboxConfigError: if a field is invalid.
    :raises OneboxError: if a file can't be read.
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
        for name, content, _ in read_files(attachments)
    ]
    content = {name: value for name, value in fields["Content"].items() if value}
    body = {**fields, "Content": content, "Attachments": files}
    return {name: value for name, value in body.items() if value not in (None, "", [], ())}


def greatest_id(rows: Iterable[Any]) -> str | None:
    """Find the newest of some records.

    :param rows: the records.
    :return: its id, ``None`` if none has one.
    """
    ids = [str(row["Id"]) for row in rows if isinstance(row, dict) and re.fullmatch("[0-9]{1,18}", str(row.get("Id")))]
    return max(ids, key=int, default=None)
