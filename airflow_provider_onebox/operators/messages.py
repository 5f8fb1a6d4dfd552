"""Operators for what is said about tickets: conversations out, messages in."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_onebox.exceptions import (
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.onebox import _OneboxOperator, _path, _WriteOperator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

MIN_TICKETS = 20
"""The fewest tickets of which a share is taken while more are read."""

MAX_LOGGED = 100
"""The most tickets that the log names."""

log = logging.getLogger(__name__)


class OneboxListConversationsOperator(_OneboxOperator):
    """Write the messages of many tickets to one JSON Lines file, in the order of the tickets.

    Each message has the ticket's id as ``ticketId``. The messages of a thread replace the thread. The file is written
    atomically. At most twice ``parallelism`` conversations are in memory.

    A ticket that no longer exists (404) is skipped, counted as ``missing`` and named in the log. So is one whose
    conversation can't be read although Onebox works: it is counted as ``failed``. If ``max_failed_share`` is exceeded,
    or if no ticket can be read, the task fails.

    The task returns ``{"path", "count", "tickets", "missing", "failed"}``: the number of messages written, of tickets
    requested, of those that do not exist, and of those that can't be read.

    With ``attachments_path``, the messages' attachments are downloaded, each atomically, to
    ``<attachments_path>/<ticket id>/<message id>-<number>-<name>``. Each message then lists the paths of its files as
    ``attachmentFiles``. The result has ``attachments``, how many were downloaded, and ``attachments_failed``, how many
    were skipped because they failed at every try, are too large, missing, or on another host; the log names them. At
    most ``parallelism`` attachments are in memory.

    API page: Conversations of a ticket, ``GET {host}/api/ticket/conversations/<ticket-id>``.

    :param tickets: the tickets' ids, or records with an ``Id``: one of them, a list, what
        :class:`~airflow_provider_onebox.operators.onebox.OneboxListOperator` has returned, or the path of a JSON Lines
        file, gzip if it ends in ``.gz``. (templated)
    :param output_path: where to write, as for ``ObjectStoragePath``; gzip if it ends in ``.gz``. (templated)
    :param parallelism: the most requests in flight, 1 to 32; adapts, up to 4, if ``None``. (templated)
    :param max_failed_share: the share of the tickets that may fail without failing the task, from 0 to 1. It is also
        checked while the task runs, from the 20th ticket on.
    :param attachments_path: the folder for attachments, as for ``ObjectStoragePath``; ``None`` to download none.
        (templated)
    :param max_attachment_bytes: the maximum size of an attachment, in bytes, up to 64 MiB. (templated)
    :param max_failed_attachments: how many attachments may be skipped without failing the task, at its end; ``None``
        for any number. (templated)
    :param attachment_hosts: names of hosts to download from without the token. (templated)
    :param include_secrets: whether fields such as ``Password`` and ``access_token`` are kept.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :param token: a token from an upstream task; without it the task logs in by itself. (templated)
    """

    template_fields: Sequence[str] = (
        *_OneboxOperator.template_fields,
        "tickets",
        "output_path",
        "parallelism",
        "attachments_path",
        "max_attachment_bytes",
        "max_failed_attachments",
        "attachment_hosts",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"tickets": "json", "attachment_hosts": "json"}

    def __init__(
        self,
        *,
        tickets: Any,
        output_path: Any,
        parallelism: int | str | None = None,
        max_failed_share: float = 0.5,
        attachments_path: Any = None,
        max_attachment_bytes: int | str = 20 * 1024 * 1024,
        max_failed_attachments: int | str | None = None,
        attachment_hosts: Sequence[str] | str = (),
        include_secrets: bool = False,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(onebox_conn_id=onebox_conn_id, site_id=site_id, token=token, **kwargs)
        if not 0 <= max_failed_share <= 1:
            raise ValueError(f"max_failed_share={max_failed_share!r} is not a number from 0 (no ticket) to 1 (all).")
        self.tickets = _path(tickets)
        self.output_path = _path(output_path)
        self.parallelism = parallelism
        self.max_failed_share = max_failed_share
        self.attachments_path = _path(attachments_path)
        self.max_attachment_bytes = max_attachment_bytes
        self.max_failed_attachments = max_failed_attachments
        self.attachment_hosts = attachment_hosts
        self.include_secrets = include_secrets

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the conversations.

        :param context: the task's context.
        :return: what was written.
        :raises OneboxConfigError: if an argument is invalid.
        :raises OneboxError: if Onebox can't be used, too many tickets or attachments fail, or the file can't be
            written.
        """
        from airflow_provider_onebox._airflow.lineage import report_file
        from airflow_provider_onebox.api.arguments import whole_number
        from airflow_provider_onebox.api.parallel import in_parallel
        from airflow_provider_onebox.api.rate import RateController
        from airflow_provider_onebox.api.settings import MAX_CONNECTIONS
        from airflow_provider_onebox.api.turns import Turns
        from airflow_provider_onebox.files.attachments import Attachments
        from airflow_provider_onebox.files.reading import read_ids
        from airflow_provider_onebox.files.records import RecordFile

        # Made here: the threads below belong to no task.
        hook = self.hook
        settings = hook.settings
        most = self.parallelism
        rate = RateController(1, None if most is None else whole_number("parallelism", most, 1, MAX_CONNECTIONS))
        hook.client.turns = Turns(rate)
        skipped = _SkippedTickets(self.max_failed_share)
        tickets = downloaded = 0
        attachments = None
        if self.attachments_path is not None:
            attachments = Attachments(
                hook.client,
                self.attachments_path,
                max_bytes=self.max_attachment_bytes,
                max_failed=self.max_failed_attachments,
                hosts=self.attachment_hosts,
            )

        def conversation(ticket_id: str) -> tuple[str, list[dict[str, Any]] | OneboxError]:
            found = self._read(hook, ticket_id)
            if attachments and not isinstance(found, OneboxError):
                found = attachments.download(found)
            return ticket_id, found

        with RecordFile(self.output_path, ti=context.get("ti")) as file:
            for ticket_id, found in in_parallel(conversation, read_ids(self.tickets), rate.width, "tickets"):
                tickets += 1
                if isinstance(found, OneboxError):
                    skipped.add(ticket_id, found)
                    skipped.check_share(max(tickets, MIN_TICKETS))
                    continue
                file.write(found)
                if attachments:
                    downloaded += sum(len(message["attachmentFiles"]) for message in found)
            skipped.check_all(tickets)
            if attachments:
                attachments.check_failed()
            file.finish()
            file.publish()
        skipped.report(settings.site_id)
        self.log.info("Wrote %s messages of %s tickets to %s.", f"{file.count:,}", f"{tickets:,}", file.name)
        report_file(file.path, is_output=True, count=file.count)
        result = {
            "path": file.name,
            "uri": file.uri,
            "count": file.count,
            "tickets": tickets,
            **skipped.counts(),
        }
        if attachments:
            self.log.info("Downloaded %s attachments, skipped %s.", f"{downloaded:,}", f"{attachments.failed:,}")
            result |= {"attachments": downloaded, "attachments_failed": attachments.failed}
        self._report_to_outlets(context, result)
        return result

    def _read(self, hook: OneboxHook, ticket_id: str) -> list[dict[str, Any]] | OneboxError:
        """Return a ticket's messages, or why they can't be read if nothing is wrong with Onebox itself."""
        from airflow_provider_onebox.api.availability import check_available

        is_last = False
        while True:
            try:
                return hook.list_conversations(ticket_id, include_secrets=self.include_secrets)
            except (OneboxRequestError, OneboxResponseError, OneboxUnavailableError) as error:
                failure = error.with_traceback(None)
            if not failure.retryable:
                return failure
            check_available(hook.client)
            if is_last:
                return failure
            is_last = True


class _SkippedTickets:
    """The tickets that were not read, and when they are too many.

    :param max_failed_share: the share of the tickets that may fail.
    """

    def __init__(self, max_failed_share: float) -> None:
        self._share = max_failed_share
        self._missing: list[str] = []
        self._failed: list[str] = []
        self._reasons: dict[str, OneboxError] = {}

    def add(self, ticket_id: str, reason: OneboxError) -> None:
        is_missing = "404" in (str(reason.status), reason.code)
        (self._missing if is_missing else self._failed).append(ticket_id)
        self._reasons.setdefault("missing" if is_missing else "failed", reason)

    def check_share(self, tickets: int) -> None:
        if len(self._failed) > self._share * tickets:
            reason = self._reasons["failed"]
            excess = (
                f"{len(self._failed):,} of the tickets can't be read, more than max_failed_share={self._share} allows"
            )
            reason.args = (f"{str(reason).rstrip('.')}. {excess}.",)
            raise reason

    def check_all(self, tickets: int) -> None:
        self.check_share(tickets)
        if tickets and len(self._missing) + len(self._failed) == tickets:
            raise self._reasons.get("failed") or self._reasons["missing"]

    def report(self, site_id: str) -> None:
        for tickets, words in (
            (self._missing, f"No longer at site {site_id}"),
            (self._failed, f"Skipped because they can't be read ({self._reasons.get('failed')})"),
        ):
            if tickets:
                log.warning("%s: tickets %s.", words, ", ".join(tickets[:MAX_LOGGED]))

    def counts(self) -> dict[str, int]:
        return {"missing": len(self._missing), "failed": len(self._failed)}


class OneboxSendMessageOperator(_WriteOperator):
    """Send a message or a reply and return its id.

    If the response is lost, the message may have been sent: the task then fails at once, and Airflow does not retry it
    either. A try that follows a killed one finds in the journal what became of the message. So no message is sent
    twice, until you clear the task.

    API page: Send a message, ``POST {host}/api/message``.

    :param connection_id: the channel to send through: the id of a ``connection`` record. (templated)
    :param body: the text, in the format of ``content_type``. (templated)
    :param body_text: the same as plain text. (templated)
    :param content_type: the media type of ``body``, such as ``text/html``. (templated)
    :param subject: the subject. (templated)
    :param sender: the sender. (templated)
    :param to: the recipient, in the channel's own format, such as an e-mail address. (templated)
    :param cc: who gets a copy. (templated)
    :param bcc: who gets a blind copy. (templated)
    :param method_id: ``DIRECT``, ``POST``, ``MENTION``, ``COMMENT``, or ``None``. (templated)
    :param conversation_id: the private conversation to reply to. (templated)
    :param previous_id: the public comment to reply to. (templated)
    :param attachments: paths of files to send, as for ``ObjectStoragePath``; 20 MiB in all. (templated)
    :param users: the participants: dictionaries with ``IdentityId``, ``Name`` and ``RoleId`` (``MSR1`` to ``MSR4``).
        (templated)
    :param journal: whether to note the write where it outlives the process, so that a retry never repeats it.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :param token: a token from an upstream task; without it the task logs in by itself. (templated)
    """

    message_fields: ClassVar[tuple[str, ...]] = (
        "connection_id",
        "body",
        "body_text",
        "content_type",
        "subject",
        "sender",
        "to",
        "cc",
        "bcc",
        "method_id",
        "conversation_id",
        "previous_id",
        "attachments",
        "users",
    )
    template_fields: Sequence[str] = (*_OneboxOperator.template_fields, *message_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {"attachments": "json", "users": "json"}

    def __init__(
        self,
        *,
        connection_id: str | int,
        body: str,
        body_text: str | None = None,
        content_type: str = "text/plain",
        subject: str | None = None,
        sender: str | None = None,
        to: str | None = None,
        cc: str | None = None,
        bcc: str | None = None,
        method_id: str | None = None,
        conversation_id: str | int | None = None,
        previous_id: str | int | None = None,
        attachments: Sequence[str] | str | None = None,
        users: Sequence[dict[str, Any]] | None = None,
        journal: bool = True,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(onebox_conn_id=onebox_conn_id, site_id=site_id, token=token, **kwargs)
        self._set_journal(journal)
        self.connection_id = connection_id
        self.body = body
        self.body_text = body_text
        self.content_type = content_type
        self.subject = subject
        self.sender = sender
        self.to = to
        self.cc = cc
        self.bcc = bcc
        self.method_id = method_id
        self.conversation_id = conversation_id
        self.previous_id = previous_id
        self.attachments = attachments
        self.users = users

    def execute(self, context: Context) -> str | None:
        """Send the message.

        :param context: the task's context.
        :return: the message's id; ``None`` if Onebox accepted the message but returned no id.
        :raises OneboxConfigError: if an argument is invalid; nothing is sent then.
        :raises OneboxUncertainWriteError: if it may have been sent, in this try or an earlier one.
        :raises OneboxError: if Onebox rejects it or can't be reached.
        """
        fields = {name: getattr(self, name) for name in self.message_fields}
        message_id: str | None = self._write_once(context, lambda: self.hook.send_message(**fields))
        self.log.info(
            "Sent message %s through connection %s.", message_id or "(Onebox returned no id)", self.connection_id
        )
        return message_id
