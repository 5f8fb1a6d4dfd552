"""The hook: an Airflow Connection in, a client of Onebox out, with one token per task run."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowException, BaseHook

from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, OneboxUncertainWriteError
from airflow_provider_onebox.provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping
    from datetime import datetime

    import requests

    from airflow_provider_onebox.auth import Token
    from airflow_provider_onebox.client import OneboxClient

MIN_MASKED = 5
"""Characters of the shortest secret that Airflow masks in logs."""

# Task run -> (connection, site) -> client. Holds the current task run alone.
_runs: dict[Hashable, dict[tuple[str, str | None], OneboxClient]] = {}


class OneboxHook(BaseHook):
    """Sign in to Onebox and make calls with the token.

    Nothing is looked up or sent before a method needs it. In one task run, all hooks for the same connection
    and site share one token; outside of a task run each hook has its own.

    :param onebox_conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    :param token: a token from an upstream task, sealed or not, used while it lives; afterwards the hook signs in
        by itself, to the token's own site. It is masked in this process's logs from its first use.
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
    ) -> None:
        super().__init__()
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id
        self._token = token
        self._client: tuple[Hashable, OneboxClient] | None = None

    @property
    def client(self) -> OneboxClient:
        """The client behind this hook, made at first use and anew in another task run.

        :raises OneboxConfigError: if the connection or the handed-in token can't work.
        """
        run = _task_run()
        if self._client is None or self._client[0] != run:
            self._client = (run, self._make_client(run))
        return self._client[1]

    def get_token(self) -> str:
        """Return a token that is valid now, signing in if there is none.

        API page: Authentication - Token, ``POST {host}/api/authenticate``.

        :return: the bearer token.
        :raises OneboxAuthError: if Onebox refuses the e-mail, the password or the site.
        :raises OneboxError: if a token can't be had for another reason.
        """
        token = self.client.tokens.get().value
        _mask(token)
        return token

    def get_conn(self) -> requests.Session:
        """Return a session that signs in by itself and renews a dead token.

        It sends to this Onebox alone (addresses from :meth:`url_for`), follows no redirects, and answers as
        :mod:`requests` does: statuses and Onebox's error envelope are the caller's to check.

        :return: the session; all hooks of the same task run, connection and site share it.
        :raises OneboxConfigError: if the connection can't work.
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
    ) -> Any:
        """Make one call and return what Onebox says.

        Passing faults are retried; a write is sent again only if Onebox can't have acted on it.

        :param method: the HTTP method.
        :param endpoint: a path below ``{host}/api/``, such as ``ticket/create``.
        :param params: the query.
        :param json: a body to send as JSON.
        :param data: a form, or a body as it stands.
        :param files: files to upload, as for :func:`requests.request`.
        :return: the parsed JSON.
        :raises OneboxError: the member of the family that fits what went wrong.
        """
        return self.client.request(method, endpoint, params=params, json=json, data=data, files=files)

    def list_records(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        last_update: datetime | str | None = None,
        page_size: int = 100,
        max_records: int | None = None,
        parallelism: int = 2,
    ) -> Iterator[dict[str, Any]]:
        """List the records of a resource, ascending by id, a few pages in memory at a time.

        Gives no record twice and misses none that was there from start to end, also while others come and go.

        API pages: List of tickets, contacts, prospects, messages, connections, ``GET {host}/api/<resource>``.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param since_id: only records with a greater id.
        :param since: only records created after this time, ``YYYY-MM-DD HH:MM`` in Onebox's own time zone.
        :param last_update: only records changed after this time, in the same form.
        :param page_size: records a page.
        :param max_records: the most records to return; all if ``None``.
        :param parallelism: requests under way at once, 1 to 32.
        :return: an iterator over the records.
        :raises OneboxConfigError: at once, if an argument can't work.
        :raises OneboxError: while iterating, if a page can't be had.
        """
        batches = self.client.list_pages(
            resource,
            since_id=since_id,
            since=since,
            last_update=last_update,
            page_size=page_size,
            max_records=max_records,
            parallelism=parallelism,
        )
        return (record for batch in batches for record in batch.rows)

    def count_records(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        last_update: datetime | str | None = None,
    ) -> tuple[int, int | None]:
        """Count the records that match, with one or two small requests.

        API pages: those of :meth:`list_records`.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param since_id: only records with a greater id.
        :param since: only records created after this time, ``YYYY-MM-DD HH:MM`` in Onebox's own time zone.
        :param last_update: only records changed after this time, in the same form.
        :return: how many there are, and the id of the last one, ``None`` if there is none.
        :raises OneboxConfigError: if an argument can't work.
        :raises OneboxError: if Onebox can't be asked.
        """
        return self.client.count_records(resource, since_id=since_id, since=since, last_update=last_update)

    def create_ticket(
        self,
        *,
        full_name: str,
        contact: str,
        subject: str,
        category: str,
        content: str,
        coordinate: str | None = None,
    ) -> str:
        """Open a ticket.

        API page: Create a ticket, ``POST {host}/api/ticket/create``.

        :param full_name: who reports.
        :param contact: that person's e-mail address.
        :param subject: the subject.
        :param category: the category, one that the site has.
        :param content: the text.
        :param coordinate: where, ``latitude,longitude``.
        :return: the ticket's id.
        :raises OneboxConfigError: if a field is empty; nothing is sent then.
        :raises OneboxUncertainWriteError: if the ticket may have been opened and no id came back.
        :raises OneboxError: if Onebox refuses it or can't be reached.
        """
        fields = {
            "fullName": full_name,
            "contact": contact,
            "subject": subject,
            "category": category,
            "content": content,
        }
        missing = [name for name, value in fields.items() if not str(value or "").strip()]
        if missing:
            raise OneboxConfigError(f"A ticket needs {', '.join(fields)}, but empty: {', '.join(missing)}.")
        if coordinate:
            fields["coordinate"] = coordinate
        reply = self.request("POST", "ticket/create", json=fields)
        ticket_id = reply.get("ticketId") if isinstance(reply, dict) else None
        if not ticket_id:
            raise OneboxUncertainWriteError(
                f"Connection {self.onebox_conn_id!r}: POST ticket/create: the answer holds no ticketId. "
                f"{OneboxUncertainWriteError.remedy}.",
                status=200,
            )
        return str(ticket_id)

    def test_connection(self) -> tuple[bool, str]:
        """Sign in for real, past every cache, for the Test button of the Connections page.

        :return: whether it worked, and a sentence: where, as whom and for how long, or what to change.
        """
        try:
            client = self._new_client(self.site_id)
            token = client.login()
        except OneboxError as error:
            # Airflow tests a copy of the connection under a random name, which would only puzzle the reader.
            return False, str(error).replace(f"Connection {self.onebox_conn_id!r}", "This connection", 1)
        settings = client.settings
        life = "for a time that they do not tell" if token.life is None else f"{token.life / 60:.4g} minutes"
        return True, (
            f"Signed in to {settings.base_url} as {settings.email} for site {settings.site_id}; tokens live {life}."
        )

    def _make_client(self, run: Hashable) -> OneboxClient:
        token = self._read_token()
        site_id = self.site_id
        if token and token.site_id:
            if site_id is not None and str(site_id).strip() != token.site_id:
                raise OneboxConfigError(
                    f"The token is for site {token.site_id}, but site_id is {site_id!r}: leave site_id out, or pass "
                    "the token of that site."
                )
            site_id = token.site_id
        clients = {} if run is None else _runs.setdefault(run, {})
        for other in set(_runs) - {run}:
            _runs.pop(other, None)
        key = (self.onebox_conn_id, None if site_id is None else str(site_id))
        client = clients.get(key)
        if client is None:
            client = self._new_client(site_id)
            # Of several threads that come here at once, all get the client of the first.
            client = clients[key] = clients.setdefault((self.onebox_conn_id, client.settings.site_id), client)
        if token is None:
            return client
        return client.with_token(token)

    def _new_client(self, site_id: str | int | None) -> OneboxClient:
        from airflow_provider_onebox.client import OneboxClient
        from airflow_provider_onebox.settings import settings_from_connection

        settings = settings_from_connection(self.get_connection(self.onebox_conn_id), site_id)
        _mask(settings.password)
        for _, proxy in settings.proxies:
            _mask(urlsplit(proxy).password or "")
        return OneboxClient(settings)

    def _read_token(self) -> Token | None:
        if self._token is None:
            return None
        import time

        from airflow_provider_onebox.auth import Token
        from airflow_provider_onebox.seal import unseal

        token = unseal(self._token)
        _mask(token)
        # A template that finds no XCom renders as an empty string or as None.
        if token in ("", "None"):
            raise OneboxConfigError(
                "The token handed in is empty: the upstream task has pushed none, or the template names another "
                "task or key."
            )
        try:
            return Token.read(token, now=time.monotonic(), wall=time.time())
        except ValueError:
            raise OneboxConfigError(
                "The token handed in is no bearer token: pass the string that the upstream task returned, as it is."
            ) from None

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Tell Airflow 2.11 to 3.1 how to show the standard fields; later ones read the provider info.

        :return: the same declaration in the older spelling.
        """
        return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Give Airflow 2.11 to 3.1 the extra fields of the form; later ones read the provider info.

        :return: a WTForms field for each entry of the declaration, by its name.
        """
        # Only names and arguments that Airflow 3.0 and 3.1 have stand-ins for. Airflow 2 has one form for all
        # connection types, so a field that is required here would be required everywhere.
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import BooleanField, IntegerField, StringField
        from wtforms.validators import Optional

        text = BS3TextFieldWidget()

        # Airflow 2 puts stored JSON values into the fields as they are and saves what it shows: an object would
        # come back as Python's text for it, and the text "false" as true. It takes no field classes but its own.
        def show_text(field: Any, **attributes: Any) -> Any:
            if field.data is not None and not isinstance(field.data, str):
                attributes["value"] = json.dumps(field.data)
            return text(field, **attributes)

        def show_switch(field: Any, **attributes: Any) -> Any:
            field.data = str(field.data).strip().lower() == "true"
            return type(field).widget(field, **attributes)

        fields = {"integer": IntegerField, "boolean": BooleanField}
        widgets: dict[str, Any] = {}
        for name, declared in CONN_FIELDS.items():
            kind = declared["schema"]["type"]
            kind = kind if isinstance(kind, str) else kind[0]
            widgets[name] = fields.get(kind, StringField)(
                declared["label"],
                validators=[Optional()],
                description=declared["description"],
                widget=show_switch if kind == "boolean" else show_text,
            )
        return widgets


@cache
def _context_getter() -> Callable[[], Mapping[str, Any]]:
    # Resolving the name costs more than the call, and a DAG file that only imports operators needs neither.
    from airflow.providers.common.compat.sdk import get_current_context

    return get_current_context


def _task_run() -> Hashable:
    """Identify the task run that this process is in, ``None`` outside of one."""
    try:
        ti = _context_getter()()["ti"]
    except (AirflowException, RuntimeError, KeyError):
        return None
    return (getattr(ti, "id", None), ti.dag_id, ti.task_id, ti.run_id, ti.map_index, ti.try_number)


def _mask(secret: str) -> None:
    """Have Airflow replace a secret in this process's logs from now on."""
    try:
        from airflow.sdk.log import mask_secret
    except ImportError:
        from airflow.utils.log.secrets_masker import mask_secret  # type: ignore[import-not-found,no-redef]
    # Airflow 3 skips shorter ones by itself; Airflow 2 would punch holes into every log.
    if len(secret) >= MIN_MASKED:
        mask_secret(secret)
