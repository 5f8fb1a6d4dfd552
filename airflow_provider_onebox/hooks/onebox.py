"""The hook: turns an Airflow Connection into a Onebox client, with one token per task try."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence  # noqa: TC003 - agents' tools read types at run time
from datetime import datetime  # noqa: TC003 - likewise
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException, BaseHook

from airflow_provider_onebox._airflow.masking import mask, mask_token
from airflow_provider_onebox._airflow.metrics import count_metric
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
    sanitize,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType
    from typing import NoReturn
    from zoneinfo import ZoneInfo

    import requests
    from typing_extensions import Self

    from airflow_provider_onebox.api.client import OneboxClient
    from airflow_provider_onebox.api.pagination import Batch
    from airflow_provider_onebox.api.settings import Settings
    from airflow_provider_onebox.api.token import Token

TEST_SECONDS = 10.0
"""Seconds that the Test button waits at most."""

RESOURCES = ("ticketrz", "contactrz", "prospectrz", "message", "connection")

_VALUE_HINT = (
    "In a URI, percent-encode / # ? @ : and % in user and password. In JSON and YAML, write login and password in "
    "quotes and extra as an object, put no comma after the last field, and use only the names conn_type, description, "
    "host, login, password, schema, port and extra."
)

log = logging.getLogger(__name__)

# Task run -> (connection, site) -> client. Holds the current task try alone.
_runs: dict[Hashable, dict[tuple[str, str | None], OneboxClient]] = {}
# Of several threads that need a client, one makes it.
_lock = threading.RLock()


class OneboxHook(BaseHook):
    """Log in to Onebox and make calls with the token.

    The hook looks nothing up and sends nothing until a method needs it. Within a task try, all hooks for the same
    connection and site share one token; outside a task try, each hook has its own, which its copies share. You can use
    a hook in several threads and copy it, but not pickle it: it can hold a password and tokens.

    This process's logs mask the password, the proxies' passwords, each token that :meth:`get_token` returns, and a
    token passed as ``token``. Other tokens never leave the provider's own requests.

    :param onebox_conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    :param token: a token from an upstream task, encrypted or not. When it expires, the hook logs in to the token's
        site by itself.
    :param time_limit: seconds that a call may take in total, including the login; calls are then not retried. By
        default, the connection's ``timeout`` and ``max_retries`` apply.
    """

    conn_name_attr = "onebox_conn_id"
    default_conn_name = "onebox_default"
    conn_type = "onebox"
    hook_name = "Onebox"

    def __init__(
        self,
        onebox_conn_id: str = default_conn_name,
        *,
        site_id: str | int | None = None,
        token: str | None = None,
        time_limit: float | None = None,
    ) -> None:
        super().__init__()
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id
        self._token = token
        self._time_limit = time_limit
        self.before_send: Callable[[str], None] | None = None
        """Called with method and endpoint before a call is sent, for a journal; if it raises, nothing is sent."""
        # The client, and the task try, connection and site that it is for.
        self._client: tuple[tuple[Any, ...], OneboxClient] | None = None
        # (connection, site) -> client, outside of a task try; copies of this hook share it.
        self._clients: dict[tuple[str, str | None], OneboxClient] = {}

    def __copy__(self) -> OneboxHook:
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> OneboxHook:
        # Airflow copies tasks with all their attributes: a copy with its own login would repeat a wrong password.
        return self.__copy__()

    def __enter__(self) -> Self:
        """Use the hook in a ``with`` block, at whose end its connections are closed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to Onebox; the next call opens one again. Within a task try, hooks share them."""
        if self._client:
            self._client[1].close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A OneboxHook is not pickled, because it can hold a password and tokens: make one from the same "
            "onebox_conn_id where it is needed."
        )

    @property
    def client(self) -> OneboxClient:
        """The client behind this hook; made again in another task try, or for another connection or site.

        :raises OneboxConfigError: if the connection or the upstream token is invalid.
        :raises OneboxUnavailableError: if Airflow can't look the connection up.
        """
        run = _task_try()
        # Both attributes can be set after the first use, also on a copy, as HookToolset of common.ai does.
        wanted = (run, self.onebox_conn_id, self.site_id)
        made = self._client
        if made is None or made[0] != wanted:
            with _lock:
                made = self._client
                if made is None or made[0] != wanted:
                    made = self._client = (wanted, self._make_client(run))
        return made[1]

    @property
    def settings(self) -> Settings:
        """The checked connection, with the site that is used. Nothing is sent.

        :raises OneboxConfigError: if the connection or the upstream token is invalid.
        :raises OneboxUnavailableError: if Airflow can't look the connection up.
        """
        return self.client.settings

    def get_token(self) -> str:
        """Return a token that is valid now, logging in if there is none.

        The first 50 tokens of a process are masked in its logs. To make calls you need no token: use :meth:`request` or
        :meth:`get_conn`.

        API page: Authentication - Token, ``POST {host}/api/authenticate``.

        :return: the bearer token.
        :raises OneboxAuthError: if Onebox rejects the e-mail, the password or the site.
        :raises OneboxError: if it can't get a token for another reason.
        """
        return self.get_token_details().value

    def get_token_details(self) -> Token:
        """Return the token of :meth:`get_token` with its expiry and site.

        :return: its ``value``, ``expires_at`` and ``site_id``; the last two are ``None`` if the token does not say.
        :raises OneboxAuthError: if Onebox rejects the e-mail, the password or the site.
        :raises OneboxError: if it can't get a token for another reason.
        """
        token = self.client.tokens.get()
        mask_token(token.value)
        return token

    def get_conn(self) -> requests.Session:
        """Return a session that logs in by itself and renews an expired token.

        It sends only to this Onebox (get URLs from :meth:`url_for`) and follows no redirects. As with :mod:`requests`,
        the caller checks the status and Onebox's error envelope.

        :return: the session; all hooks of the same task try, connection and site share it.
        :raises OneboxConfigError: if the connection is invalid.
        """
        return self.client.session

    def url_for(self, endpoint: str) -> str:
        """Put an endpoint behind the connection's ``{host}/api/``.

        :param endpoint: a path such as ``ticketrz/12250``.
        :return: the whole URL, for use with :meth:`get_conn`.
        :raises OneboxConfigError: if the endpoint is absolute or leads elsewhere.
        """
        return self.client.url_for(endpoint)

    def request(
        self,
        method: str,
        endpoint: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: Mapping[str, Any] | str | bytes | None = None,
        files: Mapping[str, Any] | None = None,
        include_secrets: bool = False,
    ) -> Any:
        """Make one call and return Onebox's response.

        Transient errors are retried; a write is sent again only if Onebox can't have acted on it.

        :param method: the HTTP method.
        :param endpoint: a path below ``{host}/api/``, such as ``ticket/create``.
        :param params: the query.
        :param json: a body to send as JSON.
        :param data: a form, or a raw body.
        :param files: files to upload, as for :func:`requests.request`.
        :param include_secrets: whether fields such as ``Password`` and ``access_token`` are kept.
        :return: the parsed JSON.
        :raises OneboxError: the subclass that fits what went wrong.
        """
        from airflow_provider_onebox.api.secret_fields import without_secrets

        if self.before_send:
            # A login that fails, or during which the process dies, has written nothing.
            self.client.tokens.get()
            self.before_send(f"{method} {endpoint}")
        response = self.client.request(method, endpoint, params=params, json=json, data=data, files=files)
        return response if include_secrets else without_secrets(response)

    def list_records(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        last_update: datetime | str | None = None,
        page_size: int | None = None,
        max_records: int | None = None,
        parallelism: int | None = None,
        include_secrets: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """List the records of a resource, ascending by id, a few pages in memory at a time.

        Never repeats a record, and misses none that exists from start to end, even if others come and go meanwhile.

        API pages: List of tickets, contacts, prospects, messages, connections, ``GET {host}/api/<resource>``.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param since_id: only records with a greater id.
        :param since: only records created at this time or later. Text such as ``2026-11-24 08:30`` or a ``datetime``,
            in Onebox's own time zone, or with an offset if the connection has a time zone.
        :param until: only records created before this time, by each record's ``CreateDate``. Onebox has no such
            filter, so later records are read too and left out; the log says how many.
        :param last_update: only records changed after this time, to the minute; not with ``until``.
        :param page_size: the most records per page; adapts if ``None``.
        :param max_records: the most records to return; all if ``None``.
        :param parallelism: the most requests in flight, 1 to 32; adapts, up to 4, if ``None``.
        :param include_secrets: whether fields such as ``Password`` and ``access_token`` are kept.
        :return: an iterator over the records.
        :raises OneboxConfigError: at once, if an argument is invalid.
        :raises OneboxError: while iterating, if a page can't be fetched.
        """
        batches = self.list_batches(
            resource,
            since_id=since_id,
            since=since,
            until=until,
            last_update=last_update,
            page_size=page_size,
            max_records=max_records,
            parallelism=parallelism,
            include_secrets=include_secrets,
        )
        return (record for batch in batches for record in batch.rows)

    def get_records(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        last_update: datetime | str | None = None,
        max_records: int = 1000,
        newest: int | None = None,
    ) -> list[dict[str, Any]]:
        """Get records of a resource as a list: the first ones, or the newest. Secrets in them are left out.

        API pages: those of :meth:`list_records`.

        :param resource: ``ticketrz`` (tickets), ``contactrz`` (contacts), ``prospectrz`` (prospects), ``message`` or
            ``connection`` (channels).
        :param since_id: only records with a greater id.
        :param since: only records created at this time or later. Text such as ``2026-11-24 08:30`` or a ``datetime``,
            in Onebox's own time zone, or with an offset if the connection has a time zone.
        :param until: only records created before this time, by each record's ``CreateDate``. Onebox has no such
            filter, so later records are read too and left out; the log says how many.
        :param last_update: only records changed after this time, to the minute; not with ``until``.
        :param max_records: the most records to return.
        :param newest: return this many records from the end of the list, ``max_records`` at most.
        :return: the records, ascending by id.
        :raises OneboxConfigError: if an argument is invalid.
        :raises OneboxError: if the list can't be read.
        """
        from airflow_provider_onebox.api.arguments import whole_number

        query: dict[str, Any] = {"since_id": since_id, "last_update": last_update}
        most = whole_number("max_records", max_records, 0)
        if newest is None:
            return list(self.list_records(resource, **query, since=since, until=until, max_records=most))
        most = min(most, whole_number("newest", newest, 1))
        if since is until is None:
            query["since_id"] = self.client.lists.id_before_newest(resource, most, **query)
        return list(deque(self.list_records(resource, **query, since=since, until=until), maxlen=most))

    def get_df(
        self,
        resource: str,
        *,
        df_type: Literal["pandas", "polars"] = "pandas",
        fields: Sequence[str] | Mapping[str, str] | None = None,
        on_misfit: Literal["fail", "null"] = "fail",
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        last_update: datetime | str | None = None,
        max_records: int | None = None,
        include_secrets: bool = False,
    ) -> Any:
        """Get records of a resource as a data frame, all of it in memory.

        API pages: those of :meth:`list_records`.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param df_type: ``"pandas"`` or ``"polars"``; the one that you name has to be installed, and pyarrow.
        :param fields: the columns, in this order, as a list or as a dictionary with their types: ``string``, ``int64``,
            ``float64``, ``bool``, ``timestamp`` (as Onebox writes it, in its own zone) or ``timestamptz`` (an instant;
            the connection needs a time zone). All fields that a record has, as text, if ``None``.
        :param on_misfit: what happens to a value that is not of its column's type: the call fails, or null takes its
            place and is counted in the log.
        :param since_id: only records with a greater id.
        :param since: only records created at this time or later. Text such as ``2026-11-24 08:30`` or a ``datetime``,
            in Onebox's own time zone, or with an offset if the connection has a time zone.
        :param until: only records created before this time, by each record's ``CreateDate``. Onebox has no such
            filter, so later records are read too and left out; the log says how many.
        :param last_update: only records changed after this time, to the minute; not with ``until``.
        :param max_records: the most records to get; all if ``None``.
        :param include_secrets: whether fields such as ``Password`` and ``access_token`` are kept.
        :return: the frame. A column without a type is text, as Onebox sends it; lists and objects are JSON.
        :raises OneboxConfigError: if an argument is invalid, or a library is missing.
        :raises OneboxError: if the list can't be read.
        """
        from airflow_provider_onebox.files.columns import check_fields
        from airflow_provider_onebox.files.frames import FRAMES, frame_of, require

        if df_type not in FRAMES:
            raise OneboxConfigError(f"df_type={sanitize(df_type, 60)!r} is none of {', '.join(FRAMES)}.")
        require(df_type)
        types, zone = check_fields(fields, can_have_types=True), self.zone_for(fields)
        records = self.list_records(
            resource,
            since_id=since_id,
            since=since,
            until=until,
            last_update=last_update,
            max_records=max_records,
            include_secrets=include_secrets,
        )
        return frame_of(records, df_type, types, zone, on_misfit)

    def zone_for(self, fields: Sequence[str] | Mapping[str, str] | None) -> ZoneInfo | None:
        """Return Onebox's own zone where the types of fields need it.

        :param fields: the names, with or without types.
        :return: the zone if one is a ``timestamptz``.
        :raises OneboxConfigError: if the connection does not name it.
        """
        from airflow_provider_onebox.files.columns import needs_zone

        return self.settings.zone_for("The type timestamptz", "use timestamp") if needs_zone(fields) else None

    def list_batches(self, resource: str, **query: Any) -> Iterator[Batch]:
        """List the records of a resource as they come, page by page.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param query: the other arguments of :meth:`list_records`.
        :return: an iterator over batches of records, none empty, with the last id and the total so far known.
        :raises OneboxConfigError: at once, if an argument is invalid.
        :raises OneboxError: while iterating, if a page can't be fetched.
        """
        from airflow_provider_onebox._airflow.lineage import report_listing

        batches, settings = self.client.lists.pages(resource, **query), self.settings

        def checked() -> Iterator[Batch]:
            count, is_whole = 0, False
            try:
                for batch in batches:
                    count += len(batch.rows)
                    yield batch
                is_whole = True
            except OneboxRequestError as error:
                raise _with_known_resources(error, resource) from None
            finally:
                if count:
                    count_metric("records_listed", count)
                if count or is_whole:
                    report_listing(self, settings, resource, count)

        return checked()

    def count_records(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        last_update: datetime | str | None = None,
    ) -> tuple[int, int | None]:
        """Count the records that match, with one or two small requests; with ``until``, by listing them.

        API pages: those of :meth:`list_records`.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param since_id: only records with a greater id.
        :param since: only records created after this time, to the minute; with ``until``, at this time or later. The
            form is that of :meth:`list_records`.
        :param until: only records created before this time.
        :param last_update: only records changed after this time, to the minute; not with ``until``.
        :return: how many there are, and the id of the last one, ``None`` if there is none.
        :raises OneboxConfigError: if an argument is invalid.
        :raises OneboxError: if the call fails.
        """
        try:
            return self.client.lists.count(
                resource, since_id=since_id, since=since, until=until, last_update=last_update
            )
        except OneboxRequestError as error:
            raise _with_known_resources(error, resource) from None

    def create_ticket(
        self,
        *,
        full_name: str,
        contact: str,
        subject: str,
        category: str,
        content: str,
        coordinate: str | None = None,
        attachment: Sequence[str] | str | None = None,
        file: Sequence[str] | str | None = None,
    ) -> str:
        """Open a ticket.

        API page: Create a ticket, ``POST {host}/api/ticket/create``.

        :param full_name: who reports.
        :param contact: that person's e-mail address.
        :param subject: the subject.
        :param category: the category, one that the site has.
        :param content: the text.
        :param coordinate: where, ``latitude,longitude``.
        :param attachment: paths of files to attach, as for ``ObjectStoragePath``; 20 MiB in all, those of ``file``
            included.
        :param file: paths of files for Onebox's second field of files.
        :return: the ticket's id.
        :raises OneboxConfigError: if a field is empty, or the files are too large; nothing is sent then.
        :raises OneboxUncertainWriteError: if the ticket may have been opened and no id came back.
        :raises OneboxError: if Onebox rejects it or can't be reached.
        """
        fields = _texts(fullName=full_name, contact=contact, subject=subject, category=category, content=content)
        missing = [name for name, text in fields.items() if not (text or "").strip()]
        if missing:
            raise OneboxConfigError(f"A ticket needs {', '.join(fields)}, but empty: {', '.join(missing)}.")
        if isinstance(coordinate, (tuple, list)):  # What render_template_as_native_obj makes of it.
            coordinate = ",".join(map(str, coordinate))
        if coordinate:
            fields |= _texts(coordinate=coordinate)
        if not attachment and not file:
            return self._written("ticket/create", "ticketId", json=fields)
        from airflow_provider_onebox.files.uploads import read_ticket_files

        return self._written("ticket/create", "ticketId", data=fields, files=read_ticket_files(attachment, file))

    def create_contact(
        self,
        *,
        name: str | None = None,
        phone: str | None = None,
        fax: str | None = None,
        email: str | None = None,
        mobile: str | None = None,
        twitter_id: str | None = None,
        facebook_id: str | None = None,
        media: str | None = None,
    ) -> str:
        """Create a contact; at least one field is needed.

        API page: Create a contact, ``POST {host}/api/contactrz``.

        :param name: the person's name.
        :param phone: a telephone number.
        :param fax: a fax number.
        :param email: an e-mail address.
        :param mobile: a mobile number.
        :param twitter_id: an account at Twitter.
        :param facebook_id: an account at Facebook.
        :param media: the channel through which the contact came, such as ``Email``.
        :return: the contact's id.
        :raises OneboxConfigError: if there is no field; nothing is sent then.
        :raises OneboxUncertainWriteError: if the contact may have been created and no id came back.
        :raises OneboxError: if Onebox rejects it or can't be reached.
        """
        fields = _texts(
            Name=name,
            Phone=phone,
            Fax=fax,
            Email=email,
            Mobile=mobile,
            TwitterId=twitter_id,
            FacebookId=facebook_id,
            Media=media,
        )
        given = {key: text for key, text in fields.items() if text and text.strip()}
        if not given:
            raise OneboxConfigError("A contact needs a name, an e-mail address, a number or an account.")
        return self._written("contactrz", "Id", json=given)

    def send_message(
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
    ) -> str | None:
        """Send a message: a new one, or a reply to a private conversation or a public comment.

        API page: Send a message, ``POST {host}/api/message``, which says that the format may still change. So only the
        message's id is read from the response.

        :param connection_id: the channel to send through: the id of a ``connection`` record.
        :param body: the text, in the format of ``content_type``.
        :param body_text: the same as plain text.
        :param content_type: the media type of ``body``, such as ``text/html``.
        :param subject: the subject.
        :param sender: the sender.
        :param to: the recipient, in the channel's own format, such as an e-mail address.
        :param cc: who gets a copy.
        :param bcc: who gets a blind copy.
        :param method_id: ``DIRECT``, ``POST``, ``MENTION``, ``COMMENT``, or ``None``.
        :param conversation_id: the private conversation to reply to.
        :param previous_id: the public comment to reply to.
        :param attachments: paths of files to send, as for ``ObjectStoragePath``; 20 MiB in all.
        :param users: the participants: dictionaries with ``IdentityId``, ``Name`` and ``RoleId`` (``MSR1`` to
            ``MSR4``).
        :return: the message's id; ``None`` if Onebox accepted the message but returned no id.
        :raises OneboxConfigError: if an argument is invalid; nothing is sent then.
        :raises OneboxUncertainWriteError: if the message may have been sent, and the response does not say.
        :raises OneboxError: if Onebox rejects it or can't be reached.
        """
        from airflow_provider_onebox.api.arguments import as_list
        from airflow_provider_onebox.api.messages import greatest_id, message_body
        from airflow_provider_onebox.files.uploads import read_files

        fields = _texts(
            ConnectionId=connection_id,
            MethodId=method_id,
            Subject=subject,
            From=sender,
            To=to,
            Cc=cc,
            Bcc=bcc,
            ConversationId=conversation_id,
            PreviousId=previous_id,
        )
        content = _texts(Body=body, BodyText=body_text, ContentType=content_type, Encoding="utf-8")
        message = message_body({**fields, "Content": content, "Users": users}, lambda: read_files(attachments))
        response = self.request("POST", "message", json=message)
        rows = as_list(response.get("data")) if isinstance(response, dict) else None
        if rows is None:
            raise self._uncertain("message", "page of messages")
        return greatest_id(rows)

    def list_conversations(self, ticket_id: int | str, *, include_secrets: bool = False) -> list[dict[str, Any]]:
        """Return the messages of a ticket in Onebox's order, each thread's messages in its place.

        API page: Conversations of a ticket, ``GET {host}/api/ticket/conversations/<ticket-id>``.

        :param ticket_id: the ticket.
        :param include_secrets: whether fields such as ``Password`` and ``access_token`` are kept.
        :return: the messages, each with the ticket's id as ``ticketId``.
        :raises OneboxConfigError: if the id can't be one.
        :raises OneboxError: if they can't be fetched, or there is no such ticket.
        """
        from airflow_provider_onebox._airflow.lineage import report_listing
        from airflow_provider_onebox.api.arguments import as_id
        from airflow_provider_onebox.api.messages import messages_in

        ticket_id = str(as_id("ticket_id", str(ticket_id)))
        endpoint = f"ticket/conversations/{ticket_id}"
        messages = messages_in(self.request("GET", endpoint, include_secrets=include_secrets), ticket_id)
        if messages is None:
            raise OneboxResponseError(
                f"Connection {self.onebox_conn_id!r}: GET {endpoint}: the response is not a conversation: it, or a "
                "thread in it, has no list 'data' of messages.",
                status=200,
            )
        report_listing(self, self.settings, "conversations")
        return messages

    def _written(self, endpoint: str, id_field: str, **body: Any) -> str:
        """Make a write and return the id in its response."""
        from airflow_provider_onebox.api.arguments import parse_id

        response = self.request("POST", endpoint, **body)
        row_id = parse_id(response.get(id_field)) if isinstance(response, dict) else None
        if not row_id:
            raise self._uncertain(endpoint, id_field)
        return str(row_id)

    def _uncertain(self, endpoint: str, missing: str) -> OneboxUncertainWriteError:
        return OneboxUncertainWriteError(
            f"Connection {self.onebox_conn_id!r}: POST {endpoint}: the response holds no {missing}. "
            f"{OneboxUncertainWriteError.remedy}.",
            status=200,
        )

    def test_connection(self) -> tuple[bool, str]:
        """Log in again, even if there is a valid token, for the Test button of the Connections page.

        Tries once, for at most :data:`TEST_SECONDS`.

        :return: whether it worked, and a message: where, as whom and for how long, or what to change.
        """
        try:
            client = self._new_client(self.look_up(), TEST_SECONDS)
            token = client.login()
        except OneboxError as error:
            # Airflow tests a copy of the connection under a random name, which would only puzzle the reader.
            return False, str(error).replace(f"Connection {self.onebox_conn_id!r}", "This connection")
        settings = client.settings
        life = "for an unknown time" if token.life is None else f"{token.life / 60:.4g} minutes"
        return True, (
            f"Logged in to {settings.base_url} as {settings.email} for site {settings.site_id}; tokens live {life}."
        )

    def look_up(self) -> Settings:
        """Look the connection up in Airflow, at each call, and check it. Sends nothing to Onebox.

        :return: the checked connection, with this hook's site if it has one.
        :raises OneboxConfigError: if there is no such connection, or it is invalid.
        :raises OneboxUnavailableError: if Airflow can't be asked for it.
        """
        from airflow_provider_onebox.api.settings import settings_from_connection

        where = f"Connection {self.onebox_conn_id!r}"
        variable = f"AIRFLOW_CONN_{str(self.onebox_conn_id).upper()}"
        failure: OneboxError
        try:
            conn = self.get_connection(str(self.onebox_conn_id))
        except (AirflowNotFoundException, PermissionError):
            if os.environ.get(variable):
                failure = OneboxConfigError(
                    f"{where} can't be read: Airflow can't parse the value of the environment variable {variable}. "
                    f"{_VALUE_HINT}"
                )
            else:
                failure = OneboxConfigError(
                    f"{where} can't be found. Airflow reports this if there is no such connection (create it under "
                    "that id in Admin > Connections, or correct onebox_conn_id), if this task may not read it, if the "
                    f"secrets backend fails, and if it can't parse the stored value. {_VALUE_HINT}"
                )
        except Exception as error:  # noqa: BLE001 - each Airflow and each secrets backend has its own errors here
            # Their messages can contain parts of a secret.
            failure = OneboxUnavailableError(
                f"{where} can't be looked up, because Airflow or its secrets backend does not respond "
                f"({type(error).__name__}); a retry can help."
            )
        else:
            settings = settings_from_connection(conn, self.token_site())
            mask(settings.secrets)
            return settings
        # Raised here, it does not keep the other error and its frames alive.
        raise failure

    def look_up_again(self) -> None:
        """Look the connection up again, during a long wait, and make a new client if it has changed.

        :raises OneboxConfigError: if there is no such connection any more, or it is invalid. It is ``retryable``:
            Airflow reports the same while its secrets backend is down, and the connection existed before.
        :raises OneboxUnavailableError: if Airflow can't be asked for it.
        """
        try:
            settings = self.look_up()
        except OneboxConfigError as error:
            error.retryable = True
            raise
        if settings != self.settings:
            run = _task_try()
            (self._clients if run is None else _runs[run]).clear()
            self._client = None

    def token_site(self) -> str | int | None:
        """Return the site that the hook was given; nothing is looked up.

        :return: the site of the upstream token, else ``site_id``, else ``None`` for the connection's own.
        :raises OneboxConfigError: if the upstream token is invalid, or is for another site than ``site_id``.
        """
        token = self._read_token()
        if not token or not token.site_id:
            return self.site_id
        if self.site_id is not None and str(self.site_id).strip() != token.site_id:
            raise OneboxConfigError(
                f"The token is for site {token.site_id}, but site_id is {self.site_id!r}: leave site_id out, or pass "
                "the token of that site."
            )
        return token.site_id

    def _make_client(self, run: Hashable) -> OneboxClient:
        if self._time_limit is not None:
            client = self._new_client(self.look_up(), self._time_limit)
        else:
            clients = self._clients if run is None else _runs.setdefault(run, {})
            for other in set(_runs) - {run} if run is not None else ():
                del _runs[other]
            site_id = self.token_site()
            key = (self.onebox_conn_id, None if site_id is None else str(site_id))
            if key not in clients:
                settings = self.look_up()
                of_site = (self.onebox_conn_id, settings.site_id)
                clients[key] = clients[of_site] = clients.get(of_site) or self._new_client(settings)
            client = clients[key]
        token = self._read_token()
        return client if token is None else client.with_token(token)

    @staticmethod
    def _new_client(settings: Settings, time_limit: float | None = None) -> OneboxClient:
        from airflow_provider_onebox.api.client import OneboxClient

        return OneboxClient(settings, time_limit=time_limit, count=count_metric)

    def _read_token(self) -> Token | None:
        if self._token is None:
            return None
        import time

        from airflow_provider_onebox._airflow.encryption import decrypt
        from airflow_provider_onebox.api.token import Token

        # With render_template_as_native_obj, a token of digits arrives as a number.
        if not isinstance(self._token, (str, int)) or isinstance(self._token, bool):
            raise OneboxConfigError(
                f"The upstream token is a {type(self._token).__name__}: pass the string that a task returned."
            )
        token = decrypt(str(self._token))
        # A template that finds no XCom renders as an empty string or as None.
        if token in ("", "None"):
            raise OneboxConfigError(
                "The upstream token is empty: the upstream task pushed none, the template names the wrong task or "
                "key, or this task does not depend on the upstream one (a template does not create a dependency)."
            )
        mask_token(token)
        try:
            return Token.read(token, now=time.monotonic(), wall=time.time())
        except ValueError:
            raise OneboxConfigError(
                "The upstream token is not a bearer token: pass the string that the upstream task returned, unchanged."
            ) from None

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return how the connection form of Airflow 2.11 to 3.1 shows the standard fields.

        :return: labels, placeholders and hidden fields.
        """
        from airflow_provider_onebox._airflow.connection_form import field_behaviour

        return field_behaviour()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the extra fields of the connection form of Airflow 2.11 to 3.1.

        :return: a WTForms field for each, by its name.
        """
        from airflow_provider_onebox._airflow.connection_form import form_widgets

        return form_widgets()


@cache
def _context_getter() -> Callable[[], Mapping[str, Any]]:
    # Resolving the name costs more than the call, and a DAG file that only imports operators needs neither.
    from airflow.providers.common.compat.sdk import get_current_context

    return get_current_context


def _task_try() -> Hashable:
    """Identify the task try that this process is in, ``None`` outside of one."""
    try:
        ti = _context_getter()()["ti"]
    except (AirflowException, RuntimeError, KeyError):
        return None
    return (getattr(ti, "id", None), ti.dag_id, ti.task_id, ti.run_id, ti.map_index, ti.try_number)


def _texts(**fields: Any) -> dict[str, str | None]:
    """Make text again of what render_template_as_native_obj has made a number, a list or a dictionary."""
    return {name: None if value is None else _text(name, value) for name, value in fields.items()}


def _text(name: str, value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
        except (TypeError, ValueError) as error:
            raise OneboxConfigError(f"{name} can't be written as JSON text: {sanitize(error)}.") from None
    if isinstance(value, float) and not isfinite(value):
        raise OneboxConfigError(f"{name}={value} is not a number, so nothing was sent.")
    return str(value)


def _with_known_resources(error: OneboxRequestError, resource: str) -> OneboxRequestError:
    """Help with a misspelt resource; a router of Onebox serves more than the documented ones, so ask it first."""
    if error.status == 404 and resource not in RESOURCES:
        error.args = (f"{error} Check the resource {resource!r}; the documented ones are {', '.join(RESOURCES)}.",)
    return error


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
