"""Walks a list that changes while it is read: no row twice, none missed that was there all along.

Rows come in the order of their ids. The next page is asked for by the last id seen (``sinceId``), never by
a count of rows, because a count goes wrong as soon as a row is added or removed. Pages further ahead are
asked for by ``offset`` while the nearer ones are under way, each overlapping its predecessor by a row. Such a
page is a slice of the list without gaps, so it is used only if it begins at or before the last id given
out; else a row may have been removed in between, and the page is asked for again by id.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_onebox.exceptions import OneboxResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_MISSES = 3
"""Pages asked for by offset in vain, one after the other, before a listing goes on by id alone."""


@dataclass(frozen=True)
class Batch:
    """New rows, ready to be given out.

    :param rows: the rows, none of which was given out before.
    :param last_id: the id of the last of them.
    :param total: how many the listing will give in all, as far as is known now; ``None`` if it is not.
    """

    rows: list[dict[str, Any]]
    last_id: int
    total: int | None


@dataclass(frozen=True)
class Page:
    """One page as the server gave it.

    :param ids: the ids of its rows, ascending.
    :param rows: the rows.
    :param received: how many rows came; more than there are ids if one stood there twice.
    :param total: rows that match over all pages, ``None`` if the server does not say.
    """

    ids: list[int]
    rows: list[dict[str, Any]]
    received: int
    total: int | None


def walk(
    fetch: Callable[[int, int, int], Page],
    *,
    since_id: int,
    page_size: int,
    max_records: int | None,
    parallelism: int,
    call: str,
) -> Iterator[Batch]:
    """Yield the new rows of page after page.

    :param fetch: gets a page, given ``(since_id, offset, limit)``; is called from several threads.
    :param since_id: rows with greater ids are wanted.
    :param page_size: rows to ask for at once.
    :param max_records: rows after which to stop, ``None`` for all.
    :param parallelism: requests under way at the same time.
    :param call: who asks for what, to begin messages with.
    :return: batches of rows, ascending by id, none empty.
    :raises OneboxResponseError: if the server gives rows again that it has given, and no new ones.
    """
    last = since_id
    given = misses = 0
    if max_records is not None:
        page_size = min(page_size, max_records)
    pool = ThreadPoolExecutor(parallelism, thread_name_prefix="onebox-page")
    ahead: deque[tuple[int, Future[Page]]] = deque()
    try:
        while max_records is None or given < max_records:
            offset, page = 0, None
            if ahead:
                offset, future = ahead.popleft()
                page = future.result()
                if offset:
                    fits = page.ids and page.ids[0] <= last < page.ids[-1]
                    misses = 0 if fits else misses + 1
                    if not fits:
                        offset, page = 0, None
            if page is None:
                page = fetch(last, 0, page_size)
            if not page.ids:
                return
            new = next((i for i, row_id in enumerate(page.ids) if row_id > last), None)
            if new is None:
                raise OneboxResponseError(
                    f"{call}: asked for rows after Id {last}, Onebox repeats rows up to Id {page.ids[-1]}. "
                    "It seems to ignore sinceId for this resource, so the listing can't go on.",
                    retryable=False,
                )
            last = page.ids[-1]
            end = None if max_records is None else new + max_records - given
            rows = page.rows[new:end]
            given += len(rows)
            left = math.inf if page.total is None else page.total - offset - page.received
            wanted = left if max_records is None else min(left, max_records - given)
            # A server that gives smaller pages than it was asked for sets the stride, less the overlap.
            stride = page_size if page.received >= page_size + bool(offset) else page.received - 1
            width = parallelism if misses < MAX_MISSES and stride > 1 else 1
            # One more than can be under way, so that no thread waits until its page has been taken.
            depth = width + (width > 1)
            while len(ahead) < depth and len(ahead) * stride < wanted:
                skip = max(0, len(ahead) * stride - 1)
                ahead.append((skip, pool.submit(fetch, last, skip, page_size + bool(skip))))
            yield Batch(rows, page.ids[new:end][-1], None if wanted == math.inf else int(given + wanted))
            if left <= 0:
                return
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
