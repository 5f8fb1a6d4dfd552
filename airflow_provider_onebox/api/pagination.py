"""Paginates a list that changes while it is read: no row twice, none missed that was there all along.

Rows come in the order of their ids. The next page is asked for by the last id seen (``sinceId``), never by
a count of rows, because a count goes wrong as soon as a row is added or removed. Pages further ahead are
asked for by ``offset`` while the nearer ones are in flight, each overlapping its predecessor by a row. Such a
page is a slice of the list without gaps, so it is used only if the last id given out stands in it where it has
to stand; else a row came or went in between, or the server ignores ``offset``: then the pages ahead are dropped, and
the next one is asked for by id.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from bisect import bisect_right
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_onebox.exceptions import OneboxRequestError, OneboxResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_onebox.exceptions import OneboxError
from airflow_provider_onebox.api.rate import FIRST_ROWS, MAX_WIDTH, RateController

MAX_MISSES = 3
"""Times in a row that pages asked for by offset were of no use, before a listing goes on by id alone."""


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
    :param seconds: how long the server took for it, 0 if that is not known.
    :param size: bytes of the response, 0 if that is not known.
    """

    ids: list[int]
    rows: list[dict[str, Any]]
    received: int
    total: int | None
    seconds: float = 0
    size: int = 0


Fetch: TypeAlias = "Callable[[int, int, int, Callable[[OneboxError], int]], Page]"
"""Gets a page, given ``(since_id, offset, limit, on_transient)``. Tells ``on_transient`` of each error after which
it tries again, and asks for as many rows as that returns."""


class _Fetcher:
    """Gets pages at the pace; safe to share between threads."""

    def __init__(self, fetch: Fetch, pace: RateController, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._pace = pace
        self._clock = clock
        self._turn = threading.Condition()
        self._is_closed = False

    def close(self) -> None:
        """Let no request start any more."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()

    def next_rows(self) -> int:
        """Return the rows to ask for in the next page."""
        with self._turn:
            return self._pace.next_rows()

    def get(self, since_id: int, offset: int, limit: int) -> tuple[Page, int]:
        """Get a page when its turn has come; return it, and for how many rows it was asked in the end."""
        pace, turn = self._pace, self._turn
        while True:
            with turn:
                while (delay := pace.delay(self._clock())) and not self._is_closed:
                    turn.wait(None if delay == math.inf else delay)
                if self._is_closed:
                    raise CancelledError
                started = self._clock()
                pace.start(started)

            def on_transient(error: OneboxError) -> int:
                nonlocal limit, started
                with turn:
                    now = self._clock()
                    if {str(error.status), error.code} & {"429", "503"}:
                        pace.rejected(started=started, now=now)
                    else:
                        limit = pace.shrink(limit, FIRST_ROWS, now)
                    started = now
                    return limit

            try:
                page = self._fetch(since_id, offset, limit, on_transient)
            except (OneboxRequestError, OneboxResponseError) as error:
                # Whatever a server says of a page larger than any that it gave: the size is to blame.
                if limit == 1 or not (error.status == 413 or 0 < pace.largest < limit):
                    raise
                with turn:
                    limit = pace.shrink(limit, 1, self._clock())
            else:
                more = page.total is None or page.total > offset + page.received
                with turn:
                    pace.record_page(page, asked=limit, more=more, started=started, now=self._clock())
                return page, limit
            finally:
                with turn:
                    pace.end()
                    turn.notify_all()


@dataclass(frozen=True)
class _Prefetch:
    """A page asked for before its turn: where it begins and ends, counted in rows given out."""

    future: Future[tuple[Page, int]]
    offset: int
    begin: int
    end: int


def paginate(
    fetch: Fetch,
    *,
    since_id: int,
    page_size: int | None,
    max_records: int | None,
    parallelism: int | None,
    call: str,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Batch]:
    """Yield the new rows of page after page.

    :param fetch: gets a page; is called from several threads.
    :param since_id: rows with greater ids are wanted.
    :param page_size: the most rows to ask for at once; found out if ``None``.
    :param max_records: rows after which to stop, ``None`` for all.
    :param parallelism: the most requests in flight at the same time; found out if ``None``.
    :param call: who asks for what, to begin messages with.
    :param clock: the monotonic clock, in seconds.
    :return: batches of rows, ascending by id, none empty.
    :raises OneboxResponseError: if the server gives rows again that it has given, and no new ones.
    """
    pace = RateController(page_size, parallelism)
    fetcher = _Fetcher(fetch, pace, clock)
    pool = ThreadPoolExecutor(parallelism or MAX_WIDTH, thread_name_prefix="onebox-page")
    ahead: deque[_Prefetch] = deque()
    last, given, most = since_id, 0, sys.maxsize if max_records is None else max_records
    misses = largest = 0
    is_total_right, left = True, None
    try:
        while given < most:
            page, offset = None, 0
            if ahead:
                head = ahead.popleft()
                page, asked = head.future.result()
                if head.offset:
                    known, offset = given - head.begin, head.offset
                    fits = 0 < known < len(page.ids) and page.ids[known - 1] == last
                    misses = 0 if fits else misses + 1
                    if not fits:
                        page, offset = None, 0
                        while ahead:
                            ahead.pop().future.cancel()
            if page is None:
                page, asked = fetcher.get(last, 0, min(pace.rows, most - given))
            new = bisect_right(page.ids, last)
            if new == len(page.ids):
                # Where sinceId includes the row itself, the list ends with that row.
                if not page.ids or (page.ids == [last] and asked > 1 and largest != 1):
                    return
                raise OneboxResponseError(
                    f"{call}: asked for rows after Id {last}, Onebox repeats rows up to Id {page.ids[-1]}. "
                    "It seems to ignore sinceId for this resource, so the listing can't go on.",
                    retryable=False,
                )
            # A total is not to be believed if more rows come than it says, then or later.
            total = page.total
            is_total_right = is_total_right and left != 0 and total is not None and total >= offset + page.received
            left = total - offset - page.received if total is not None and is_total_right else None
            is_full = page.received >= min(asked, largest or asked)
            largest = max(largest, page.received)
            rows, ids = page.rows[new:][: most - given], page.ids[new:][: most - given]
            last = page.ids[-1]
            given += len(rows)
            wanted = most - given if left is None else min(most - given, left)
            depth = pace.width + (pace.width > 1) if misses < MAX_MISSES else 1
            # One more than can be in flight, so that no thread waits until its page has been taken.
            while len(ahead) < depth and (planned := ahead[-1].end - given if ahead else 0) < wanted:
                overlap = int(planned > 0)
                limit = min(fetcher.next_rows(), most - given - planned + overlap)
                if limit == overlap:
                    break
                skip = planned - overlap
                future = pool.submit(fetcher.get, last, skip, limit)
                ends = given + skip + (page.received if page.received > asked else limit)
                ahead.append(_Prefetch(future, skip, given + skip, ends))
            yield Batch(rows, ids[-1], None if left is None and max_records is None else given + wanted)
            if left == 0 and not is_full:
                return
    finally:
        fetcher.close()
        pool.shutdown(wait=False, cancel_futures=True)
