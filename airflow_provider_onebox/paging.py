"""Paginates a list that changes while it is read: no row twice, none missed that was there all along.

Rows come in the order of their ids. The next page is asked for by the last id seen (``sinceId``), never by
a count of rows, because a count goes wrong as soon as a row is added or removed. Pages further ahead are
asked for by ``offset`` while the nearer ones are under way, each overlapping its predecessor by a row. Such a
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


MAX_MISSES = 3
"""Times in a row that pages asked for by offset were of no use, before a listing goes on by id alone."""

FIRST_ROWS, MAX_ROWS = 100, 1600
"""Rows asked for at first and at the most; a page is not made smaller than the first for being slow."""

FIRST_WIDTH, MAX_WIDTH = 2, 4
"""Requests under way at first and at the most: one is worked on while the next is on its way."""

PAGE_BYTES = 1024 * 1024
"""What a reply may measure before fewer rows are asked for, so that a listing's memory is bounded in bytes."""

GAIN = 1.15
"""How much faster rows have to come for a larger page, or one more request under way, to be kept."""

FIRST_REST, LOST_TRIAL = 2, 16
"""Pages between trials at first, and pages after which a trial without a result is given up."""

SETTLED, SETTLED_SECONDS = 64, 15.0
"""Pages that have to come, and seconds that have to pass, after a rejection before the pace is raised again. The
seconds double each time that raising it led to another one."""


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
    :param size: bytes of the reply, 0 if that is not known.
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


class Pace:
    """Finds how many rows to ask for in a page and how many requests to have under way.

    The rule: ask for one page of twice the rows; if rows come faster by :data:`GAIN`, keep that and try again. If not,
    try one request more under way, judged alike. When neither pays, rest for some pages, each time for twice as
    many, and begin anew. Two pages in a row at less than half the usual speed: half the rows, one request fewer.
    A page with fewer rows than it was asked for shows the server's own limit, and a heavy one leads to fewer rows.

    A rejection (429, 503): one request fewer under way. If there was but one, a gap between the starts of requests, as
    if those that came through since the last rejection had been spread evenly. Both are kept until the pace is
    :data:`SETTLED`; then the gap shrinks, faster and faster.

    Knows no thread and no clock: times are seconds on the caller's.

    :param page_size: the rows to begin with and never to exceed; found out if ``None``.
    :param parallelism: the same for the requests under way.
    """

    def __init__(self, page_size: int | None = None, parallelism: int | None = None) -> None:
        self._set(-math.inf, page_size or FIRST_ROWS, parallelism or FIRST_WIDTH)
        self.gap = 0.0
        self.largest = 0  # rows of a page that came
        self._max_rows = self._bound = page_size or MAX_ROWS
        self._max_width = parallelism or MAX_WIDTH
        self._speed = 0.0  # rows a second in one request
        self._rest = FIRST_REST
        self._under_way = 0
        self._next_start = -math.inf
        self._has_been_rejected = False
        self._raised = -math.inf  # when one more was put under way after a rejection
        self._patience = SETTLED_SECONDS
        self._rejected = math.inf  # when it was, or when the first request started
        self._accepted = self._calm = 0  # pages since the rejection, and since the pace was settled

    def _set(self, now: float, rows: int, width: int) -> None:
        """Change the pace, and end a trial."""
        self.rows, self.width, self._changed = rows, width, now
        self._trial = ""
        self._probe = 0  # rows of the page that is tried
        self._age = 0  # pages since the trial, or the rest, began
        self._slow = 0  # pages in a row
        self._starts = 0  # requests since the pace was changed

    def next_rows(self) -> int:
        """Say how large the next page shall be.

        :return: the rows to ask for: once in a trial more than usual.
        """
        if self._trial == "rows" and not self._probe:
            self._probe = min(2 * self.rows, self._bound)
            return self._probe
        return self.rows

    def delay(self, now: float) -> float:
        """Say how long the next request has to wait.

        :param now: the time.
        :return: seconds; infinite if another request has to end before.
        """
        return math.inf if self._under_way >= self.width else max(0.0, self._next_start - now)

    def start(self, now: float) -> None:
        """Take note that a request starts.

        :param now: the time.
        """
        self._under_way += 1
        self._next_start = now + self.gap
        self._starts += 1
        if self._trial == "width" and self._starts == self.width:
            self._changed = now  # only now are there as many under way as are tried
        self._rejected = min(self._rejected, now)

    def end(self) -> None:
        """Take note that a request is over, whatever became of it."""
        self._under_way -= 1

    def came(self, page: Page, *, asked: int, more: bool, started: float, now: float) -> None:
        """Learn from a page.

        :param page: the page.
        :param asked: the rows that it was asked for.
        :param more: whether the list goes on after it.
        :param started: when it was asked for.
        :param now: the time.
        """
        self._accepted += 1
        if self._is_settled(now):
            self._calm += 1
            self.gap *= max(0.5, 1 - self._calm / 5000)
        # The page may have come of a second try, which started later than the request.
        self._next_start = max(self._next_start, now - page.seconds + self.gap)
        if not page.received:
            return
        self.largest = max(self.largest, page.received)
        if page.size:
            self._bound = min(self._max_rows, max(1, PAGE_BYTES * page.received // page.size))
            self.rows = min(self.rows, self._bound)
        if page.seconds and (page.received >= asked or more):
            self._weigh(page.received / page.seconds, page.received, asked, started, now)

    def rejected(self, *, started: float, now: float) -> None:
        """Learn that Onebox asks to slow down.

        :param started: when the request was sent.
        :param now: the time.
        """
        if started < self._rejected or (self.width == 1 and not self._accepted):
            return  # it was sent at the pace of before, or nothing has come since
        if self._raised > self._rejected or (self.gap and self._is_settled(now)):
            self._patience *= 2
        if self.width == 1:
            even = (now - self._rejected) / (self._accepted + 1)
            self.gap = 1.1 * self.gap or even
        self._set(now, self.rows, max(1, self.width - 1))
        self._has_been_rejected = True
        self._rejected, self._accepted, self._calm = now, 0, 0

    def fewer(self, asked: int, least: int, now: float) -> int:
        """Ask for fewer rows, because a page did not come.

        :param asked: the rows that it was asked for.
        :param least: a page of so many rows is not made smaller.
        :param now: the time.
        :return: the rows to ask for instead.
        """
        rows = max(asked // 4, min(asked, least))
        if least == 1 and 0 < self.largest < asked:
            rows = self._max_rows = self._bound = self.largest
        self._set(now, min(rows, self.rows), self._usual_width)
        return rows

    @property
    def _usual_width(self) -> int:
        return self.width - (self._trial == "width")

    def _is_settled(self, now: float) -> bool:
        return self._accepted > SETTLED and now - max(self._rejected, self._raised) > self._patience

    def _weigh(self, speed: float, received: int, asked: int, started: float, now: float) -> None:
        """Compare the rows a second of a page with what is usual."""
        self._age += 1
        if not self._speed:
            self._speed = speed
            self.rows = min(self.rows, received)
            self._advance("rows", now)
        elif asked == self._probe:
            if received < asked:  # the server's own limit: more is asked for no more
                self._max_rows = self._bound = max(received, self.rows)
            self._judge(speed, min(asked, received), now)
        elif started < self._changed or asked < self.rows:
            pass  # it was asked for at the pace of before
        elif received < asked:
            self._set(now, received, self._usual_width)
        elif self._trial == "width":
            self._judge(speed, self.rows, now)
        elif speed >= self._speed / 2:
            self._slow = 0
            self._speed += (speed - self._speed) / 4
        else:
            self._slow += 1
            if self._slow == 2:
                self._speed = speed
                self._set(now, max(self.rows // 2, min(self.rows, FIRST_ROWS)), max(1, self.width - 1))
        if self._trial and self._age >= LOST_TRIAL:
            self._judge(0, self.rows, now)
        elif self._age >= self._rest and not self._trial:
            self._advance("rows", now)

    def _judge(self, speed: float, rows: int, now: float) -> None:
        """End a trial: keep what was tried, or leave it."""
        trial, before = self._trial, self._usual_width
        # A server that does one thing at a time lets the pages beside a larger one wait for it.
        if speed * (rows + (self.width - 1) * self.rows) >= GAIN * self._speed * before * rows:
            self._set(now, rows, self.width)
            self._speed, self._rest = speed, FIRST_REST
            if self._has_been_rejected and trial == "width":
                # Whether that is too much shows later: an account may have its limit for any second, or minute.
                self._raised = now
            self._advance(trial, now)
        else:
            self._set(now, self.rows, before)
            self._advance("width" if trial == "rows" else "", now)
            if not self._trial:
                self._rest *= 2

    def _advance(self, trial: str, now: float) -> None:
        """Begin a trial if there is room for it, else the next one, else a rest."""
        if trial == "rows" and 2 * self._bound < 3 * self.rows:
            trial = "width"
        is_free = not self._has_been_rejected or (self._is_settled(now) and self.gap * self._speed < self.rows)
        if trial == "width" and (self.width >= self._max_width or not is_free):
            trial = ""
        self._set(now, self.rows, self.width + (trial == "width"))
        self._trial = trial


class _Fetcher:
    """Gets pages at the pace; safe to share between threads."""

    def __init__(self, fetch: Fetch, pace: Pace, clock: Callable[[], float]) -> None:
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
                        limit = pace.fewer(limit, FIRST_ROWS, now)
                    started = now
                    return limit

            try:
                page = self._fetch(since_id, offset, limit, on_transient)
            except (OneboxRequestError, OneboxResponseError) as error:
                # Whatever a server says of a page larger than any that it gave: the size is to blame.
                if limit == 1 or not (error.status == 413 or 0 < pace.largest < limit):
                    raise
                with turn:
                    limit = pace.fewer(limit, 1, self._clock())
            else:
                more = page.total is None or page.total > offset + page.received
                with turn:
                    pace.came(page, asked=limit, more=more, started=started, now=self._clock())
                return page, limit
            finally:
                with turn:
                    pace.end()
                    turn.notify_all()


@dataclass(frozen=True)
class _Ahead:
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
    :param parallelism: the most requests under way at the same time; found out if ``None``.
    :param call: who asks for what, to begin messages with.
    :param clock: the monotonic clock, in seconds.
    :return: batches of rows, ascending by id, none empty.
    :raises OneboxResponseError: if the server gives rows again that it has given, and no new ones.
    """
    pace = Pace(page_size, parallelism)
    fetcher = _Fetcher(fetch, pace, clock)
    pool = ThreadPoolExecutor(parallelism or MAX_WIDTH, thread_name_prefix="onebox-page")
    ahead: deque[_Ahead] = deque()
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
            # One more than can be under way, so that no thread waits until its page has been taken.
            while len(ahead) < depth and (planned := ahead[-1].end - given if ahead else 0) < wanted:
                overlap = int(planned > 0)
                limit = min(fetcher.next_rows(), most - given - planned + overlap)
                if limit == overlap:
                    break
                skip = planned - overlap
                future = pool.submit(fetcher.get, last, skip, limit)
                ends = given + skip + (page.received if page.received > asked else limit)
                ahead.append(_Ahead(future, skip, given + skip, ends))
            yield Batch(rows, ids[-1], None if left is None and max_records is None else given + wanted)
            if left == 0 and not is_full:
                return
    finally:
        fetcher.close()
        pool.shutdown(wait=False, cancel_futures=True)
