"""Reads a list page by page while it changes: no record twice, and none missed that exists from start to end.

Records come in the order of their ids. The next page is asked for by the last id seen (``sinceId``), never by a count
of records, because a count is wrong as soon as a record is added or removed. Pages further ahead are asked for by
``offset`` while the nearer ones are in flight, each overlapping its predecessor by a record. Such a page is a slice of
the list without gaps, so it is used only if the last id given out is where it has to be in it. If not, a record was
added or removed in between, or the server ignores ``offset``: the pages ahead are dropped, and the next one is asked
for by id. Only a page asked for by id ends a list.

None of this depends on how many records a page is asked for, or when.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_right
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_onebox.api.turns import Turns
from airflow_provider_onebox.exceptions import OneboxRequestError, OneboxResponseError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from airflow_provider_onebox.api.rate import RateController
    from airflow_provider_onebox.exceptions import OneboxError

MAX_MISSES = 3
"""Times in a row that pages asked for by offset were of no use, before a listing goes on by id alone."""


@dataclass(frozen=True)
class Batch:
    """New records.

    :param rows: the records, none of which was given out before.
    :param last_id: the id of the last of them.
    :param total: how many the listing will give in all, ``None`` if that is not known.
    """

    rows: list[dict[str, Any]]
    last_id: int
    total: int | None


@dataclass(frozen=True)
class Page:
    """One page as the server gave it.

    :param ids: the ids of its records, ascending.
    :param rows: the records.
    :param received: how many records arrived; more than there are ids if one was repeated.
    :param total: records that match over all pages, ``None`` if the server does not say.
    :param asked: how many records it was asked for.
    :param size: bytes of the response, 0 if that is not known.
    """

    ids: list[int]
    rows: list[dict[str, Any]]
    received: int
    total: int | None
    asked: int
    size: int = 0


Get: TypeAlias = "Callable[[int, int, int], Page]"
"""Gets a page, given ``(since_id, offset, limit)``."""

Fetch: TypeAlias = "Callable[[int, int, int, Callable[[OneboxError], int]], Page]"
"""The same, given ``on_transient`` too: called with each error after which the page is asked for again, it returns for
how many records."""


class _Fetcher:
    """Gets pages when their turn has come; safe to share between threads."""

    def __init__(self, fetch: Fetch, turns: Turns) -> None:
        self._fetch = fetch
        self._turns = turns

    def get(self, since_id: int, offset: int, limit: int) -> Page:
        """Get a page when its turn has come; with fewer records if the server can't give as many."""
        rate = self._turns.rate
        while True:
            with self._turns.turn() as turn:

                def on_transient(error: OneboxError) -> int:
                    nonlocal limit
                    if not turn.is_rejected(error):
                        with self._turns.changed:
                            limit = rate.shrink(limit)
                    return limit

                try:
                    page = self._fetch(since_id, offset, limit, on_transient)
                except (OneboxRequestError, OneboxResponseError) as error:
                    # A page larger than any so far failed, so its size is to blame, whichever error it is.
                    if limit == 1 or not (error.status == 413 or 0 < rate.largest < limit):
                        raise
                    with self._turns.changed:
                        limit = rate.shrink(limit, is_too_large=True)
                else:
                    more = page.total is None or page.total > offset + page.received
                    turn.arrived(asked=limit, received=page.received, size=page.size, more=more)
                    return page


def page_after(get: Get, last: int, limit: int, call: str, largest: int = 0) -> Page | None:
    """Get the page after an id. If it has nothing new, make sure that the list ends there.

    :param get: gets a page.
    :param last: the id.
    :param limit: how many records to ask for.
    :param call: who asks for what, to begin messages with.
    :param largest: the most records that a page had so far.
    :return: a page with records after the id; ``None`` at the end of the list.
    :raises OneboxResponseError: if the page repeats earlier records, or its own total contradicts it.
    """
    page = get(last, 0, limit)
    # Where sinceId includes the record itself, a page of one record says nothing of the next.
    if (page.ids == [last] and page.asked == 1) or _contradicting_total(page, last):
        page = get(last, 0, max(limit, 2))
    is_alone = page.ids == [last]
    if is_alone and largest <= 1 and page.total != page.received:
        # Either the list ends, or pages have one record and sinceId is ignored or includes the record itself.
        page = get(last, 1, 2)
        is_alone = False
    if page.ids and page.ids[-1] > last:
        return page
    if page.ids and not is_alone:
        raise OneboxResponseError(
            f"{call}: asked for records after Id {last}, Onebox repeats records up to Id {page.ids[-1]}. It seems to "
            "ignore sinceId for this resource, so the listing can't go on: set max_records to list a single page.",
            retryable=False,
        )
    if total := _contradicting_total(page, last):
        # Where the total counts the records before the id too, the last one of all is no later than it.
        newest = get(0, total - 1, 2)
        if len(newest.ids) != 1 or newest.ids[0] > last:
            raise OneboxResponseError(
                f"{call}: asked twice for records after Id {last}, Onebox returned none and a total of "
                f"{total:,}, so records are missing. Run the task again; if it fails again, ask Onebox's support "
                "why that total and its data differ."
            )
    return None


def _contradicting_total(page: Page, last: int) -> int:
    """Return the total of a page that has nothing after an id, though by that total it would have; else 0."""
    total = page.total or 0
    return total if page.ids in ([], [last]) and total > page.received else 0


@dataclass(frozen=True)
class _Prefetch:
    """A page asked for before its turn: where it begins and ends, counted in records given out."""

    future: Future[Page | None]
    offset: int
    begin: int
    end: int


def paginate(
    fetch: Fetch,
    *,
    since_id: int,
    max_records: int | None,
    rate: RateController,
    call: str,
    abandoned: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Batch]:
    """Yield the new records of page after page.

    :param fetch: gets a page; is called from several threads.
    :param since_id: records with greater ids are wanted.
    :param max_records: records after which to stop, ``None`` for all.
    :param rate: decides how large pages are and when requests start.
    :param call: who asks for what, to begin messages with.
    :param abandoned: set when the iterator ends, for requests that are in flight then.
    :param clock: the monotonic clock, in seconds.
    :return: batches of records, ascending by id, none empty.
    :raises OneboxResponseError: if a page repeats earlier records and has no new ones, or contradicts itself.
    """
    turns = Turns(rate, abandoned, clock)
    fetcher = _Fetcher(fetch, turns)
    pool = ThreadPoolExecutor(rate.width, thread_name_prefix="onebox-page")
    ahead: deque[_Prefetch] = deque()
    last, given, most = since_id, 0, sys.maxsize if max_records is None else max_records
    misses = largest = 0
    is_total_right, left = True, None
    try:
        while given < most:
            head = ahead.popleft() if ahead else None
            if head is None:
                page = page_after(fetcher.get, last, min(rate.rows, most - given), call, largest)
            else:
                page = head.future.result()
            if page is None:
                return
            offset = head.offset if head else 0
            if head and offset:
                known = given - head.begin
                if not (0 < known < len(page.ids) and page.ids[known - 1] == last):
                    misses += 1
                    while ahead:
                        ahead.pop().future.cancel()
                    continue
                misses = 0
            # A total is not to be believed if more records arrive than it says, then or later.
            total = page.total
            is_total_right = is_total_right and left != 0 and total is not None and total >= offset + page.received
            left = total - offset - page.received if total is not None and is_total_right else None
            is_full = page.received >= min(page.asked, largest or page.asked)
            largest = max(largest, page.received)
            new = bisect_right(page.ids, last)
            rows, ids = page.rows[new:][: most - given], page.ids[new:][: most - given]
            last = page.ids[-1]
            given += len(rows)
            wanted = most - given if left is None else min(most - given, left)
            depth = rate.width + (rate.width > 1) if misses < MAX_MISSES else 1
            # One more than can be in flight, so that no thread waits until its page has been taken.
            while len(ahead) < depth and (planned := ahead[-1].end - given if ahead else 0) < wanted:
                overlap = int(planned > 0)
                limit = min(rate.rows, most - given - planned + overlap)
                if overlap and min(limit, planned) == 1:
                    break
                skip = planned - overlap
                future: Future[Any]
                if skip:
                    future = pool.submit(fetcher.get, last, skip, limit)
                else:
                    future = pool.submit(page_after, fetcher.get, last, limit, call, largest)
                ends = given + skip + (page.received if page.received > page.asked else limit)
                ahead.append(_Prefetch(future, skip, given + skip, ends))
            yield Batch(rows, ids[-1], None if left is None and max_records is None else given + wanted)
            if left == 0 and not is_full:
                return
    finally:
        turns.close()
        pool.shutdown(wait=False, cancel_futures=True)
