"""Operators: each takes templated fields, makes one call of the hook and returns a small result."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, BaseOperator

from airflow_provider_onebox.api.arguments import UNDATED
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, OneboxUnusableResultError, sanitize
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators._results import MAX_XCOM_BYTES, check_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_onebox.api.pagination import Batch
    from airflow_provider_onebox.files.watermark import Watermark


class _OneboxOperator(BaseOperator):
    """What all operators that call Onebox share: connection, site, and an upstream token.

    Not for use in DAGs.
    """

    template_fields: Sequence[str] = ("onebox_conn_id", "site_id", "token")
    ui_color = "#e5f3ff"

    def __init__(
        self,
        *,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id
        self.token = token

    @cached_property
    def hook(self) -> OneboxHook:
        """A hook with this operator's connection, site and token, as they are when it is first used."""
        return OneboxHook(self.onebox_conn_id, site_id=self.site_id, token=self.token)

    def _report_to_outlets(self, context: Context, result: dict[str, Any]) -> None:
        """Let what an outlet asset schedules know what was written, and where."""
        for outlet in self.outlets:
            with suppress(TypeError):  # An outlet can be something else than an asset.
                context["outlet_events"][outlet].extra.update(result)


class _WriteOperator(_OneboxOperator):
    """What operators that make a single write share: a journal, so that Airflow's retries never write twice.

    Not for use in DAGs.
    """

    # Not an __init__: Airflow wraps each of them, and the DAG's parser pays for it.
    def _set_journal(self, journal: bool) -> None:
        self.journal = journal
        if journal:
            for name in ("on_success_callback", "on_skipped_callback"):
                own = getattr(self, name) or []
                own = list(own) if isinstance(own, (list, tuple)) else [own]
                setattr(self, name, [*own, _forget_write])

    def _write_once(self, context: Context, write: Callable[[], Any], *, keep_result: bool = True) -> Any:
        ti: Any = context.get("ti")
        # Executed by hand, in another task or a test, an operator does not know which of that task's writes this is.
        if not self.journal or ti is None or ti.task_id != self.task_id:
            return write()
        from airflow_provider_onebox.writes.journal import write_once

        return write_once(context, self.hook, write, keep_result=keep_result)


def _forget_write(context: Context) -> None:
    from airflow_provider_onebox.writes.journal import forget_write

    forget_write(context)


class OneboxAuthenticateOperator(_OneboxOperator):
    """Log in to Onebox and publish the token for downstream tasks.

    The token is pushed to XCom as ``return_value``, along with ``expires_at`` (ISO 8601, UTC; ``None`` if the token
    does not say) and ``site_id``.

    Anyone who can read XComs, in the Airflow UI or through its API, can read the token and act as the connection's user
    until it expires. A task that uses :class:`~airflow_provider_onebox.hooks.onebox.OneboxHook` with the connection
    logs in by itself and needs no upstream token.

    With ``encrypt``, the token is encrypted with the deployment's Fernet key: people who read XComs see ciphertext, and
    :class:`OneboxHook` and every operator decrypt it when you pass it as ``token=``.

    API page: Authentication - Token, ``POST {host}/api/authenticate``.

    :param encrypt: whether to encrypt the token.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :raises TypeError: if a token is passed.
    """

    template_fields: Sequence[str] = ("onebox_conn_id", "site_id")

    def __init__(
        self,
        *,
        encrypt: bool = False,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        **kwargs: Any,
    ) -> None:
        if "token" in kwargs:
            raise TypeError(
                "OneboxAuthenticateOperator takes no token, because it logs in to get one: remove token, or use "
                "another operator."
            )
        super().__init__(onebox_conn_id=onebox_conn_id, site_id=site_id, token=None, **kwargs)
        self.encrypt = encrypt

    def execute(self, context: Context) -> str:
        """Log in.

        :param context: the task's context.
        :return: the token, encrypted with ``encrypt``.
        :raises OneboxConfigError: if the connection is invalid, or the token can't be encrypted; nothing is sent then.
        :raises OneboxAuthError: if Onebox rejects the e-mail, the password or the site.
        :raises OneboxError: if it can't get a token for another reason.
        """
        from airflow_provider_onebox._airflow.encryption import encrypt, get_fernet

        if self.encrypt:
            get_fernet()
        token, settings = self.hook.get_token_details(), self.hook.settings
        expires_at = token.expires_at.isoformat() if token.expires_at else None
        self.log.info(
            "Logged in to %s as %s for site %s; the token expires at %s.",
            settings.base_url,
            settings.email,
            settings.site_id,
            expires_at or "an unknown time",
        )
        context["ti"].xcom_push(key="expires_at", value=expires_at)
        context["ti"].xcom_push(key="site_id", value=settings.site_id)
        return encrypt(token.value) if self.encrypt else token.value


class OneboxListOperator(_OneboxOperator):
    """Copy the records of a resource to an XCom or, if there are many, to a file.

    Without ``output_path`` the task returns the records, up to 1 MiB of JSON. With it, the task
    streams them to a file and returns ``{"path", "uri", "count", "first_id", "last_id"}``; ``uri`` is the path without
    a connection in it. The file is written atomically: a run that fails or is killed leaves an existing file unchanged.
    Of two tasks or mapped instances that write one path at once, at most one succeeds; the other fails before anything
    is replaced.

    With ``incremental=True``, a run starts after the last id that an earlier run of the task wrote. It also writes
    older ids that have become visible since, if they are among the last ``overlap`` ones. This watermark moves only
    after the file is published, and a repeated run writes the same records again, so no record is lost or duplicated.
    With ``incremental="changes"``, a run writes what is new *or changed* since an earlier one, by ``lastUpdate`` and
    ``ModifyDate``, and a repeated run keeps its file. There is one watermark for each connection, site and resource, in
    the Variable ``onebox_watermark@<dag_id>@<task_id>@<connection>@<site>@<resource>``, followed by ``@<state_key>`` if
    there is one; for changes, its name begins with ``onebox_changes``. Use a different path for each run, such as one
    with ``{{ run_id }}``: a run that would replace another run's file is rejected. One run is in flight at a time: the
    operator sets ``max_active_tis_per_dag=1`` unless you set it, and a second run waits for up to a minute, then fails.

    In a mapped task (``partial().expand()``), Airflow ignores that ``max_active_tis_per_dag``; the exports are safe
    without it, and instances of one run work side by side. Their watermarks differ by connection, site and resource, so
    it doesn't matter in which order they are expanded. Instances that have all three in common need a ``state_key``;
    without one, the second fails.

    Each outlet asset's event carries the result as its ``extra``, so that a DAG scheduled on the asset knows which file
    to read.

    Fields that hold secrets, such as ``Password`` and ``Token`` of connections, are left out.

    API pages: List of tickets, contacts, prospects, messages, connections, ``GET {host}/api/<resource>``.

    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``. (templated)
    :param since_id: only records with a greater id; with ``incremental``, where the first run starts. (templated)
    :param since: only records created at this time or later, such as ``{{ data_interval_start }}``. Without an offset,
        the time is in Onebox's own zone; with one, the connection needs a time zone. (templated)
    :param until: only records created before this time, such as ``{{ data_interval_end }}``, by each record's
        ``CreateDate``. Onebox has no such filter, so later records are read too and left out; the log says how many.
        Not for contacts and prospects, which have no dates. (templated)
    :param last_update: only records changed after this time, to the minute; with ``incremental="changes"``, where
        the first run starts. Not with ``until``. (templated)
    :param page_size: the most records per page; adapts if ``None``. (templated)
    :param max_records: the most records to list; all if ``None``. (templated)
    :param parallelism: the most requests in flight, 1 to 32; adapts, up to 4, if ``None``. (templated)
    :param output_path: where to write: a string, a ``Path`` or an ``ObjectStoragePath``. CSV if it ends in ``.csv`` or
        ``.csv.gz``, Parquet if it ends in ``.parquet``, otherwise JSON Lines; gzip if it ends in ``.gz``. (templated)
    :param overlap: how far before the watermark an incremental run lists again, for records that become visible late:
        ids (1,000 by default) or, with ``"changes"``, minutes (10 by default); 0 for not at all. (templated)
    :param state_key: what distinguishes the watermarks of mapped instances, such as ``{{ ti.map_index }}``, where
        connection, site and resource don't. (templated)
    :param keep_nul: whether text in the file keeps U+0000, which PostgreSQL rejects; by default it is removed and
        counted in the log. XComs never have it.
    :param fields: the fields to keep, in this order; all if ``None``. Required for CSV and Parquet. A field that a
        record lacks is null. For Parquet, a dictionary gives their types: ``string``, ``int64``, ``float64``, ``bool``,
        ``timestamp`` (as Onebox writes it, in its own zone) or ``timestamptz`` (an instant; the connection needs a time
        zone). (templated)
    :param on_misfit: what happens to a value that is not of its field's type: the task fails before the file is
        published, or, with ``"null"``, null takes its place and the log says how many there were.
    :param incremental: ``True`` for what is new since an earlier run, ``"changes"`` for what is new or changed; needs
        ``output_path``.
    :param include_secrets: whether fields such as ``Password`` and ``access_token`` are kept.
    :param skip_if_empty: whether a run that finds no records ends as skipped, so that what follows is skipped too. It
        moves the watermark, and leaves no file at ``output_path``.
    :param keep_empty_file: whether such a run leaves an empty file all the same.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :param token: a token from an upstream task; without it the task logs in by itself. (templated)
    """

    template_fields: Sequence[str] = (
        *_OneboxOperator.template_fields,
        "resource",
        "since_id",
        "since",
        "until",
        "last_update",
        "page_size",
        "max_records",
        "parallelism",
        "output_path",
        "fields",
        "overlap",
        "state_key",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"fields": "json"}

    def __init__(
        self,
        *,
        resource: str,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        last_update: datetime | str | None = None,
        page_size: int | str | None = None,
        max_records: int | str | None = None,
        parallelism: int | str | None = None,
        output_path: str | os.PathLike[str] | ObjectStoragePath | None = None,
        fields: Sequence[str] | Mapping[str, str] | None = None,
        on_misfit: Literal["fail", "null"] = "fail",
        incremental: bool | Literal["changes"] = False,
        overlap: int | str | None = None,
        state_key: str | int | None = None,
        keep_nul: bool = False,
        include_secrets: bool = False,
        skip_if_empty: bool = False,
        keep_empty_file: bool = False,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(onebox_conn_id=onebox_conn_id, site_id=site_id, token=token, **kwargs)
        self.resource = resource
        self.since_id = since_id
        self.since = since
        self.until = until
        self.last_update = last_update
        self.page_size = page_size
        self.max_records = max_records
        self.parallelism = parallelism
        self.output_path = _path(output_path)
        self.fields = fields
        self.on_misfit = on_misfit
        self.incremental = incremental
        self.overlap = overlap
        self.state_key = state_key
        self.keep_nul = keep_nul
        self.include_secrets = include_secrets
        self.skip_if_empty = skip_if_empty
        self.keep_empty_file = keep_empty_file
        if incremental not in (False, True, "changes"):
            raise ValueError(f'incremental={incremental!r} is none of False, True (what is new) and "changes".')
        if incremental and output_path is None:
            raise ValueError(f"{incremental=} needs output_path: the watermark moves when the file is published.")
        if incremental and until is not None:
            raise ValueError(
                f"{incremental=} uses a watermark, and until the run's interval: use one of them, for example "
                'since="{{ data_interval_start }}" and until="{{ data_interval_end }}".'
            )
        if incremental == "changes" and str(resource).lower() in UNDATED:
            raise ValueError(
                f'incremental="changes" can\'t work for {resource}, whose records have no dates: use incremental=True.'
            )
        if incremental is True and last_update is not None:
            raise ValueError(
                'incremental=True selects by id, and last_update finds older ids again: use one of them, or "changes".'
            )
        if incremental == "changes" and not since_id is since is max_records is None:
            raise ValueError(
                'incremental="changes" selects by the time of the last change: begin with last_update, and without '
                "since_id, since and max_records."
            )
        if incremental and self.max_active_tis_per_dag is None:
            # Of all runs, backfills too; max_active_runs does not bind those.
            self.max_active_tis_per_dag = 1

    def execute(self, context: Context) -> list[dict[str, Any]] | dict[str, Any]:
        """List the records.

        :param context: the task's context.
        :return: the records; with ``output_path``, what was written.
        :raises AirflowSkipException: if there are none and ``skip_if_empty`` is set.
        :raises OneboxConfigError: if an argument is invalid, or there are too many records for an XCom.
        :raises OneboxError: if the list can't be read completely.
        """
        if self.output_path is None and not self.incremental:
            records = self._return_records()
            self._skip_if_empty(len(records))
            return records
        from airflow_provider_onebox._airflow.lineage import report_file
        from airflow_provider_onebox.files.export import export, export_incremental
        from airflow_provider_onebox.files.records import RecordFile

        ti = context.get("ti")
        options: dict[str, Any] = {"keep_nul": self.keep_nul, "on_misfit": self.on_misfit}
        zone = self.hook.zone_for(self.fields)
        file = RecordFile(self.output_path, fields=self.fields, ti=ti, zone=zone, **options)
        keep_empty = self.keep_empty_file or not self.skip_if_empty
        if self.incremental:
            written = export_incremental(file, self._watermark(ti), self.resource, keep_empty=keep_empty)
        else:
            batches = self._list(self.since_id, self.max_records)
            written = export(file, batches, self.since_id, self.resource, keep_empty=keep_empty)
        if written["count"] or keep_empty:
            report_file(file.path, is_output=True, count=written["count"])
            self.log.info("Wrote %s %s records to %s.", f"{written['count']:,}", self.resource, written["path"])
        self._skip_if_empty(written["count"])
        self._report_to_outlets(context, written)
        return written

    def _skip_if_empty(self, count: int) -> None:
        if self.skip_if_empty and not count:
            raise AirflowSkipException(f"There are no {self.resource} records to list.")

    def _watermark(self, ti: Any) -> Watermark[Any]:
        from airflow_provider_onebox.api.arguments import as_id, whole_number
        from airflow_provider_onebox.files import changes, ids
        from airflow_provider_onebox.files.watermark import Watermark

        settings = self.hook.settings
        scope: tuple[str, ...] = (str(self.onebox_conn_id), settings.site_id, self.resource)
        if self.state_key not in (None, ""):
            scope = (*scope, str(self.state_key))
        policy: Any
        if self.incremental == "changes":
            begin = settings.local_time("last_update", self.last_update)
            overlap = self._overlap(changes.DEFAULT_OVERLAP, changes.MAX_OVERLAP)
            policy = changes.ByChanges(
                self._list_since, self.resource, begin.isoformat(" ", "seconds") if begin else "", overlap
            )
        else:
            most = None if self.max_records is None else whole_number("max_records", self.max_records, 0)
            overlap = self._overlap(ids.DEFAULT_OVERLAP, ids.MAX_OVERLAP)
            policy = ids.ById(self._list, as_id("since_id", self.since_id), overlap, most)
        return Watermark(ti, scope, policy)

    def _overlap(self, default: int, most: int) -> int:
        from airflow_provider_onebox.api.arguments import whole_number

        return default if self.overlap is None else whole_number("overlap", self.overlap, 0, most)

    def _list_since(self, time: datetime | None, most: int | None) -> Iterator[Batch]:
        return self._list(None, most, last_update=time)

    def _list(self, since_id: int | str | None, most: int | str | None, **times: Any) -> Iterator[Batch]:
        return self.hook.list_batches(
            self.resource,
            since_id=since_id,
            page_size=self.page_size,
            max_records=most,
            parallelism=self.parallelism,
            include_secrets=self.include_secrets,
            **(times or {"since": self.since, "until": self.until, "last_update": self.last_update}),
        )

    def _return_records(self) -> list[dict[str, Any]]:
        import msgspec

        from airflow_provider_onebox.files.columns import check_fields
        from airflow_provider_onebox.files.records import log_nul, project, remove_nul

        records: list[dict[str, Any]] = []
        fields, size, with_nul = check_fields(self.fields), 0, []
        for batch in self._list(self.since_id, self.max_records):
            rows = project(batch.rows, fields)
            encoded = msgspec.json.encode(rows)
            size += len(encoded)
            rows, found = remove_nul(rows, encoded)
            with_nul += [batch.rows[index]["Id"] for index in found]
            records += rows
            if size > MAX_XCOM_BYTES:
                raise OneboxConfigError(
                    f"{self.resource}: the first {len(records)} records are {size:,} bytes of JSON, but an XCom "
                    f"holds at most {MAX_XCOM_BYTES:,} here: pass output_path to write them to a file, or keep fewer "
                    "with fields or max_records."
                )
        log_nul(len(with_nul), *with_nul[:1] or [None])
        remedy = "Leave out the field with fields, or pass output_path to write the records to a file."
        check_result(f"GET {self.resource}", records, is_write=False, remedy=remedy)
        return records


class OneboxRequestOperator(_WriteOperator):
    """Make one call to Onebox and return its JSON.

    A read is retried after transient errors. A write is sent again only if Onebox can't have acted on it; if it may
    have been made and no response came, the task fails at once, and Airflow does not retry it either. A try that
    follows a killed one finds in the journal what became of the write.

    The response becomes an XCom if Airflow can store it and it is at most 1 MiB of JSON. Fields that hold
    secrets, such as ``Password`` and ``access_token``, are left out.

    :param endpoint: a path below ``{host}/api/``, such as ``ticketrz/12250``. (templated)
    :param method: the HTTP method. (templated)
    :param query: the query string's parameters; every Airflow operator has its own ``params``. (templated)
    :param json: a body to send as JSON. (templated)
    :param data: a form, or a raw body. (templated)
    :param include_secrets: whether fields such as ``Password`` and ``access_token`` are kept.
    :param response_filter: takes the parsed JSON and returns what to store in the XCom instead.
    :param journal: whether to note the write where it outlives the process, so that a retry never repeats it.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :param token: a token from an upstream task; without it the task logs in by itself. (templated)
    """

    template_fields: Sequence[str] = (
        *_OneboxOperator.template_fields,
        "endpoint",
        "method",
        "query",
        "json",
        "data",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"query": "json", "json": "json", "data": "json"}

    def __init__(
        self,
        *,
        endpoint: str,
        method: str = "GET",
        query: dict[str, Any] | None = None,
        json: Any = None,
        data: dict[str, Any] | str | None = None,
        include_secrets: bool = False,
        response_filter: Callable[[Any], Any] | None = None,
        journal: bool = True,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(onebox_conn_id=onebox_conn_id, site_id=site_id, token=token, **kwargs)
        self._set_journal(journal)
        self.endpoint = endpoint
        self.method = method
        self.query = query
        self.json = json
        self.data = data
        self.include_secrets = include_secrets
        self.response_filter = response_filter

    def execute(self, context: Context) -> Any:
        """Make the call.

        :param context: the task's context.
        :return: the parsed JSON, or what ``response_filter`` makes of it.
        :raises OneboxUnusableResultError: if Airflow can't store that, or ``response_filter`` fails after a write; the
            call has been made then.
        :raises OneboxUncertainWriteError: if a write may have been made, in this try or an earlier one.
        :raises OneboxError: the subclass that fits what went wrong.
        """
        from airflow_provider_onebox.api.transport import READS

        if str(self.method).upper() in READS:
            return self._call(is_write=False)
        return self._write_once(context, lambda: self._call(is_write=True), keep_result=not self.include_secrets)

    def _call(self, *, is_write: bool) -> Any:
        body = {"params": self.query, "json": self.json, "data": self.data}
        result = self.hook.request(self.method, self.endpoint, **body, include_secrets=self.include_secrets)
        call = f"{self.method} {self.endpoint}"
        self.log.info("%s succeeded.", call)
        if self.response_filter:
            try:
                result = self.response_filter(result)
            except Exception as error:
                decides = isinstance(error, (AirflowSkipException, AirflowFailException))
                # An error of this provider's says nothing of the write that was made before it.
                if not is_write or (decides and not isinstance(error, OneboxError)):
                    raise
                # Airflow would retry the task, and so write again.
                raise OneboxUnusableResultError(
                    f"{call} succeeded, but response_filter failed: {type(error).__name__}: {sanitize(error)}. The "
                    "write was made: correct response_filter, and do not clear the task.",
                    uncertain=True,
                ) from error
        if self.do_xcom_push:
            remedy = "Pass a response_filter that returns plain JSON, or set do_xcom_push=False."
            check_result(call, result, is_write=is_write, remedy=remedy)
        return result


class OneboxCreateTicketOperator(_WriteOperator):
    """Open a ticket and return its id.

    If the response is lost, the ticket may have been opened: the task then fails at once, and Airflow does not retry it
    either. A try that follows a killed one finds in the journal what became of the ticket. So no ticket is opened
    twice, until you clear the task.

    API page: Create a ticket, ``POST {host}/api/ticket/create``.

    :param full_name: who reports. (templated)
    :param contact: that person's e-mail address. (templated)
    :param subject: the subject. (templated)
    :param category: the category, one that the site has. (templated)
    :param content: the text. (templated)
    :param coordinate: where, ``latitude,longitude``. (templated)
    :param attachment: paths of files to attach, as for ``ObjectStoragePath``; 20 MiB in all. (templated)
    :param file: paths of files for Onebox's second field of files. (templated)
    :param journal: whether to note the write where it outlives the process, so that a retry never repeats it.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :param token: a token from an upstream task; without it the task logs in by itself. (templated)
    """

    ticket_fields: ClassVar[tuple[str, ...]] = (
        "full_name",
        "contact",
        "subject",
        "category",
        "content",
        "coordinate",
        "attachment",
        "file",
    )
    template_fields: Sequence[str] = (*_OneboxOperator.template_fields, *ticket_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {"attachment": "json", "file": "json"}

    def __init__(
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
        journal: bool = True,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(onebox_conn_id=onebox_conn_id, site_id=site_id, token=token, **kwargs)
        self._set_journal(journal)
        self.full_name = full_name
        self.contact = contact
        self.subject = subject
        self.category = category
        self.content = content
        self.coordinate = coordinate
        self.attachment = attachment
        self.file = file

    def execute(self, context: Context) -> str:
        """Open the ticket.

        :param context: the task's context.
        :return: the ticket's id.
        :raises OneboxConfigError: if a field is empty; nothing is sent then.
        :raises OneboxUncertainWriteError: if the ticket may have been opened, in this try or an earlier one.
        :raises OneboxError: if Onebox rejects it or can't be reached.
        """
        fields = {name: getattr(self, name) for name in self.ticket_fields}
        ticket_id: str = self._write_once(context, lambda: self.hook.create_ticket(**fields))
        self.log.info("Opened ticket %s in category %s.", ticket_id, self.category)
        return ticket_id


def _path(value: Any) -> Any:
    """Take a local path as text, so that a template in it is rendered; Airflow renders its ObjectStoragePath itself."""
    return os.fspath(value) if isinstance(value, os.PathLike) and not hasattr(value, "fs") else value
