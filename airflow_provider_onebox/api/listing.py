"""Lists of records: the arguments checked, the pages read, the records counted."""

from __future__ import annotations

import operator
import re
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_onebox.api.arguments import (
    MAX_ID,
    UNDATED,
    as_id,
    as_list,
    format_time,
    parse_id,
    whole_number,
)
from airflow_provider_onebox.api.interval import Interval
from airflow_provider_onebox.api.pagination import Batch, Fetch, Page, page_after, paginate
from airflow_provider_onebox.api.rate import RateController
from airflow_provider_onebox.api.secret_fields import without_secrets
from airflow_provider_onebox.api.settings import MAX_CONNECTIONS
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxResponseError, sanitize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from requests import Response

    from airflow_provider_onebox.api.settings import Settings
    from airflow_provider_onebox.exceptions import OneboxError


class Call(Protocol):
    """Makes a call to Onebox, with its retries."""

    def __call__(
        self,
        method: str,
        endpoint: str,
        *,
        abandoned: threading.Event | None = None,
        on_transient: Callable[[OneboxError], Mapping[str, Any]] | None = None,
        **body: Any,
    ) -> Any:
        """Return the parsed JSON.

        :param method: the HTTP method.
        :param endpoint: a path below ``{host}/api/``.
        :param abandoned: set when nobody waits for the call any more.
        :param on_transient: called before each retry with the error, whose ``retry_after`` is set; returns the query.
        :param body: what else :class:`requests.Request` takes.
        :return: the parsed JSON.
        """


class Listing:
    """Lists and counts the records of a site.

    :param call: makes a call to Onebox.
    :param name: names a call for messages, given method and endpoint.
    :param settings: the connection, for its zone.
    """

    def __init__(self, call: Call, name: Callable[[str, str], str], settings: Settings) -> None:
        self._call = call
        self._name = name
        self._settings = settings

    def pages(
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
    ) -> Iterator[Batch]:
        """List the records of a resource page by page; the arguments are those of ``OneboxHook.list_records``.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param since_id: only records with a greater id.
        :param since: only records created at this time or later.
        :param until: only records created before this time.
        :param last_update: only records changed after this time.
        :param page_size: the most records per page; adapts if ``None``.
        :param max_records: the most records to return; all if ``None``.
        :param parallelism: the most requests in flight, 1 to 32; 4 if ``None``.
        :param include_secrets: whether fields such as ``Password`` and ``access_token`` are kept.
        :return: an iterator over batches of records, none empty, with the last id and the total if it is known.
        :raises OneboxConfigError: at once, if an argument is invalid.
        :raises OneboxError: while iterating, if a page can't be fetched.
        """
        _check_resource(resource)
        interval = self._interval(resource, since, until, last_update)
        asked = interval.asked if interval else self._settings.local_time("since", since)
        changed = self._settings.local_time("last_update", last_update)
        if page_size is not None:
            page_size = whole_number("page_size", page_size, 1)
        if max_records is not None:
            max_records = whole_number("max_records", max_records, 0)
        if parallelism is not None:
            parallelism = whole_number("parallelism", parallelism, 1, MAX_CONNECTIONS)

        def list_after(since_id: int, most: int | None) -> Iterator[Batch]:
            # Without this, pages in flight would be retried after the caller has stopped.
            abandoned = threading.Event()
            return paginate(
                self._fetcher(
                    resource, since=asked, last_update=changed, abandoned=abandoned, include_secrets=include_secrets
                ),
                since_id=since_id,
                max_records=most,
                rate=RateController(page_size, parallelism),
                call=self._name("GET", resource),
                abandoned=abandoned,
            )

        after = as_id("since_id", since_id)
        return list_after(after, max_records) if interval is None else _within(interval, list_after, after, max_records)

    def count(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        last_update: datetime | str | None = None,
    ) -> tuple[int, int | None]:
        """Count the records that match, with one or two small requests; with ``until``, by listing them.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param since_id: only records with a greater id.
        :param since: only records created after this time, to the minute; with ``until``, at this time or later.
        :param until: only records created before this time.
        :param last_update: only records changed after this time.
        :return: how many there are, and the id of the last one, ``None`` if there is none.
        :raises OneboxConfigError: if an argument is invalid.
        :raises OneboxError: if the call fails, or Onebox's total and its data differ.
        """
        if until is not None:
            return self._count_listed(resource, since_id=since_id, since=since, until=until, last_update=last_update)
        _check_resource(resource)
        local = self._settings.local_time
        fetch = self._fetcher(resource, since=local("since", since), last_update=local("last_update", last_update))
        after = as_id("since_id", since_id)

        def get(since_id: int, offset: int, limit: int) -> Page:
            return fetch(since_id, offset, limit, lambda _: limit)

        first = page_after(get, after, 1, self._name("GET", resource))
        if first is None:
            return 0, None
        if first.total == len(first.ids):
            return first.total, first.ids[-1]
        if first.total is not None:
            newest = get(after, first.total - 1, 1)
            if newest.ids and newest.ids[0] > first.ids[-1]:
                return first.total, newest.ids[-1]
        # A total that leads nowhere, or an offset that does, is not one to trust.
        return self._count_listed(resource, since_id=since_id, since=since, last_update=last_update)

    def _count_listed(self, resource: str, **query: Any) -> tuple[int, int | None]:
        count, last = 0, None
        for batch in self.pages(resource, **query):
            count, last = count + len(batch.rows), batch.last_id
        return count, last

    def id_before_newest(
        self,
        resource: str,
        number: int,
        *,
        since_id: int | str | None = None,
        last_update: datetime | str | None = None,
    ) -> int:
        """Find where the newest records begin, with two small requests.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param number: how many records are wanted.
        :param since_id: only records with a greater id.
        :param last_update: only records changed after this time.
        :return: an id after which at least so many records come, if there are so many: that of the record before them,
            or where the list begins if Onebox does not say how many there are.
        :raises OneboxConfigError: if an argument is invalid.
        :raises OneboxError: if a call fails.
        """
        _check_resource(resource)
        after = as_id("since_id", since_id)
        changed = self._settings.local_time("last_update", last_update)
        fetch = self._fetcher(resource, since=None, last_update=changed)
        first = fetch(after, 0, 1, lambda _: 1)
        if first.total is None or first.total <= number:
            return after
        before = fetch(after, first.total - number - 1, 1, lambda _: 1)
        # A server that ignores offset returns the first records: then the whole list is read.
        return before.ids[0] if len(before.ids) == 1 else after

    def _interval(
        self,
        resource: str,
        since: datetime | str | None,
        until: datetime | str | None,
        last_update: datetime | str | None,
    ) -> Interval | None:
        end = self._settings.local_time("until", until)
        if end is None and (since is None or str(resource).lower() in UNDATED):
            return None
        if end and last_update is not None:
            raise OneboxConfigError(
                "until selects by the time of creation, and last_update by that of the last change: use one of them. "
                'What changed since the last run is what incremental="changes" writes.'
            )
        return Interval(resource, self._settings.local_time("since", since), end, self._settings.timezone)

    def _fetcher(
        self,
        resource: str,
        *,
        since: datetime | None,
        last_update: datetime | None,
        abandoned: threading.Event | None = None,
        include_secrets: bool = False,
    ) -> Fetch:
        query = {"since": format_time(since), "lastUpdate": format_time(last_update)}

        def fetch(after: int, offset: int, limit: int, on_transient: Callable[[OneboxError], int]) -> Page:
            size, objects = 0, sys.maxsize

            def params() -> dict[str, Any]:
                return {"sinceId": after or None, "limit": limit, "offset": offset or None, **query}

            def with_fewer(error: OneboxError) -> dict[str, Any]:
                nonlocal limit
                limit = on_transient(error)
                return params()

            def measure(response: Response, **_: Any) -> None:
                nonlocal size, objects
                # Texts can hold braces too, so there are no more objects than that.
                size, objects = len(response.content), response.content.count(b"{")

            response = self._call(
                "GET",
                resource,
                abandoned=abandoned,
                on_transient=with_fewer,
                params=params(),
                hooks={"response": measure},
            )
            page = self._page(resource, response, limit, size)
            # Here, because the records are still in the processor's cache. The first object holds them all.
            return page if include_secrets else replace(page, rows=without_secrets(page.rows, objects - 1))

        return fetch

    def _page(self, resource: str, response: Any, asked: int, size: int) -> Page:
        call = self._name("GET", resource)
        rows = as_list(response.get("data")) if isinstance(response, dict) else None
        if rows is None:
            raise OneboxResponseError(f"{call}: the response is not a page: {_instead_of_a_list(response)}.")
        ids = []
        for row in rows:
            value = row.get("Id") if isinstance(row, dict) else None
            number = parse_id(value)
            if number is None:
                raise OneboxResponseError(
                    f"{call}: a record has the Id {sanitize(value, 60)!r}, and ids are whole numbers up to {MAX_ID}, "
                    "so the list can't be read by id. Read it page by page with OneboxRequestOperator.",
                    retryable=False,
                )
            ids.append(number)
        received = len(rows)
        total = parse_id(response.get("total"))
        if any(map(operator.ge, ids, ids[1:])):
            if total != received and any(map(operator.gt, ids, ids[1:])):
                raise OneboxResponseError(
                    f"{call}: the records are not in the order of their ids, so reading it page by page could miss "
                    "some. Read it as a single page with OneboxRequestOperator.",
                    retryable=False,
                )
            by_id = dict(zip(ids, rows, strict=True))
            ids = sorted(by_id)
            rows = [by_id[number] for number in ids]
        return Page(ids, rows, received, total, asked, size)


def _check_resource(resource: Any) -> None:
    if not re.fullmatch("[A-Za-z0-9_]+", str(resource)):
        raise OneboxConfigError(f"Resource {sanitize(resource)!r} is not a name such as 'ticketrz'.")


def _within(
    interval: Interval, list_after: Callable[[int, int | None], Iterator[Batch]], last: int, wanted: int | None
) -> Iterator[Batch]:
    """Yield the records of an interval, no more than wanted."""
    try:
        most = wanted
        while True:
            read = 0
            for batch in list_after(last, most):
                read, last = read + len(batch.rows), batch.last_id
                rows = interval.select(batch.rows)[:wanted]
                if rows:
                    yield Batch(rows, int(rows[-1]["Id"]), None)
                if wanted is not None:
                    wanted -= len(rows)
                    if not wanted:
                        return
            if not most or read < most:
                return
            most = None  # Records were left out, so there are more to ask for.
    finally:
        interval.report()


def _instead_of_a_list(response: Any) -> str:
    """Say what a response is that should be a page."""
    if not isinstance(response, dict):
        return f"it is of the type {type(response).__name__}, not an object with a list 'data'"
    if "data" in response:
        return f"its 'data' is of the type {type(response['data']).__name__}, not a list"
    keys = sanitize(", ".join(map(str, response)), 60)
    return f"it has no list 'data', but {keys or 'nothing'}; usually the resource is not a list"
