"""Lists of records: the arguments checked, the pages read, the records counted."""

from __future__ import annotations

import operator
import re
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.api.arguments import as_id, format_time, parse_id, whole_number
from airflow_provider_onebox.api.pagination import Batch, Fetch, Page, paginate
from airflow_provider_onebox.api.settings import MAX_CONNECTIONS
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxResponseError, sanitize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from requests import Response

    from airflow_provider_onebox.exceptions import OneboxError


class OneboxLists(ABC):
    """The part of a client that lists and counts; the client adds the calls."""

    @abstractmethod
    def _call(
        self,
        method: str,
        endpoint: str,
        *,
        abandoned: threading.Event | None = None,
        on_transient: Callable[[OneboxError], Mapping[str, Any]] | None = None,
        **body: Any,
    ) -> Any: ...

    @abstractmethod
    def _name(self, method: str, endpoint: str) -> str: ...

    def list_pages(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        last_update: datetime | str | None = None,
        page_size: int | None = None,
        max_records: int | None = None,
        parallelism: int | None = None,
    ) -> Iterator[Batch]:
        """List the records of a resource page by page; the arguments are those of ``OneboxHook.list_records``.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param since_id: only records with a greater id.
        :param since: only records created after this time, ``YYYY-MM-DD HH:MM`` in Onebox's own time zone.
        :param last_update: only records changed after this time, in the same form.
        :param page_size: the most records per page; adapts if ``None``.
        :param max_records: the most records to return; all if ``None``.
        :param parallelism: the most requests in flight, 1 to 32; adapts, up to 4, if ``None``.
        :return: an iterator over batches of records, none empty, with the last id and the total so far known.
        :raises OneboxConfigError: at once, if an argument is invalid.
        :raises OneboxError: while iterating, if a page can't be fetched.
        """
        abandoned = threading.Event()
        get_page = self._pager(resource, since=since, last_update=last_update, abandoned=abandoned)
        if page_size is not None:
            page_size = whole_number("page_size", page_size, 1)
        if max_records is not None:
            max_records = whole_number("max_records", max_records, 0)
        if parallelism is not None:
            parallelism = whole_number("parallelism", parallelism, 1, MAX_CONNECTIONS)
        batches = paginate(
            get_page,
            since_id=as_id("since_id", since_id),
            page_size=page_size,
            max_records=max_records,
            parallelism=parallelism,
            call=self._name("GET", resource),
        )

        def until_abandoned() -> Iterator[Batch]:
            try:
                yield from batches
            finally:
                # Else pages that are in flight would be tried again and again behind the caller's back.
                abandoned.set()

        return until_abandoned()

    def count_records(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        last_update: datetime | str | None = None,
    ) -> tuple[int, int | None]:
        """Count the records that match, with one or two small requests.

        :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
        :param since_id: only records with a greater id.
        :param since: only records created after this time, ``YYYY-MM-DD HH:MM`` in Onebox's own time zone.
        :param last_update: only records changed after this time, in the same form.
        :return: how many there are, and the id of the last one, ``None`` if there is none.
        :raises OneboxConfigError: if an argument is invalid.
        :raises OneboxError: if the call fails.
        """
        get_page = self._pager(resource, since=since, last_update=last_update)
        after = as_id("since_id", since_id)
        first = get_page(after, 0, 1, lambda _: 1)
        if not first.ids or first.total == len(first.ids):
            return len(first.ids), max(first.ids, default=None)
        if first.total is not None:
            newest = get_page(after, first.total - 1, 1, lambda _: 1)
            if newest.ids and newest.ids[0] > first.ids[-1]:
                return first.total, newest.ids[-1]
        # A total that leads nowhere, or an offset that does, is not one to trust.
        count, last = 0, None
        for batch in self.list_pages(resource, since_id=since_id, since=since, last_update=last_update):
            count, last = count + len(batch.rows), batch.last_id
        return count, last

    def _pager(
        self,
        resource: str,
        *,
        since: datetime | str | None,
        last_update: datetime | str | None,
        abandoned: threading.Event | None = None,
    ) -> Fetch:
        if not re.fullmatch("[A-Za-z0-9_]+", str(resource)):
            raise OneboxConfigError(f"Resource {sanitize(resource)!r} is not a name such as 'ticketrz'.")
        query = {"since": format_time("since", since), "lastUpdate": format_time("last_update", last_update)}

        def get_page(after: int, offset: int, limit: int, on_transient: Callable[[OneboxError], int]) -> Page:
            def params(rows: int) -> dict[str, Any]:
                return {"sinceId": after or None, "limit": rows, "offset": offset or None, **query}

            cost: list[Any] = []

            def weigh(response: Response, **_: Any) -> None:
                cost[:] = response.elapsed.total_seconds(), len(response.content)

            response = self._call(
                "GET",
                resource,
                abandoned=abandoned,
                on_transient=lambda error: params(on_transient(error)),
                params=params(limit),
                hooks={"response": weigh},
            )
            return self._page(resource, response, *cost)

        return get_page

    def _page(self, resource: str, response: Any, seconds: float, size: int) -> Page:
        rows = response.get("data") if isinstance(response, dict) else None
        if not isinstance(rows, list):
            raise OneboxResponseError(
                f"{self._name('GET', resource)}: the response is not a page: it has no list 'data'."
            )
        try:
            found = [parse_id(row["Id"]) for row in rows]
        except (TypeError, KeyError):
            found = [None]
        ids = [number for number in found if number is not None]
        if len(ids) < len(found):
            raise OneboxResponseError(f"{self._name('GET', resource)}: the page has a row without a numeric 'Id'.")
        received = len(rows)
        total = parse_id(response.get("total"))
        if any(map(operator.ge, ids, ids[1:])):
            if total != received and any(map(operator.gt, ids, ids[1:])):
                raise OneboxResponseError(
                    f"{self._name('GET', resource)}: the rows are not in the order of their ids, so reading it page "
                    "by page could miss some.",
                    retryable=False,
                )
            by_id = {int(row["Id"]): row for row in rows}
            ids = sorted(by_id)
            rows = [by_id[number] for number in ids]
        return Page(ids, rows, received, total, seconds, size)
