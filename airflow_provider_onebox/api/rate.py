"""How many records to ask for in a page, and how many requests to have in flight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_onebox.api.pagination import Page

FIRST_ROWS, MAX_ROWS = 100, 1600
"""Rows asked for at first and at the most; a page is not made smaller than the first for being slow."""


FIRST_WIDTH, MAX_WIDTH = 2, 4
"""Requests in flight at first and at the most: one is worked on while the next is on its way."""


PAGE_BYTES = 1024 * 1024
"""What a response may measure before fewer rows are asked for, so that a listing's memory is bounded in bytes."""


GAIN = 1.15
"""How much faster rows have to come for a larger page, or one more request in flight, to be kept."""


FIRST_REST, LOST_TRIAL = 2, 16
"""Pages between trials at first, and pages after which a trial without a result is given up."""


SETTLED, SETTLED_SECONDS = 64, 15.0
"""Pages that have to come, and seconds that have to pass, after a rejection before the pace is raised again. The
seconds double each time that raising it led to another one."""


class RateController:
    """Finds how many rows to ask for in a page and how many requests to have in flight.

    The rule: ask for one page of twice the rows; if rows come faster by :data:`GAIN`, keep that and try again. If not,
    try one request more in flight, judged alike. When neither pays, rest for some pages, each time for twice as
    many, and begin anew. Two pages in a row at less than half the usual speed: half the rows, one request fewer.
    A page with fewer rows than it was asked for shows the server's own limit, and a heavy one leads to fewer rows.

    A rejection (429, 503): one request fewer in flight. If there was but one, a gap between the starts of requests, as
    if those that came through since the last rejection had been spread evenly. Both are kept until the pace is
    :data:`SETTLED`; then the gap shrinks, faster and faster.

    Knows no thread and no clock: times are seconds on the caller's.

    :param page_size: the rows to begin with and never to exceed; found out if ``None``.
    :param parallelism: the same for the requests in flight.
    """

    def __init__(self, page_size: int | None = None, parallelism: int | None = None) -> None:
        self._set(-math.inf, page_size or FIRST_ROWS, parallelism or FIRST_WIDTH)
        self.gap = 0.0
        self.largest = 0  # rows of a page that came
        self._max_rows = self._bound = page_size or MAX_ROWS
        self._max_width = parallelism or MAX_WIDTH
        self._speed = 0.0  # rows a second in one request
        self._rest = FIRST_REST
        self._in_flight = 0
        self._next_start = -math.inf
        self._has_been_rejected = False
        self._raised = -math.inf  # when one more was put in flight after a rejection
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
        return math.inf if self._in_flight >= self.width else max(0.0, self._next_start - now)

    def start(self, now: float) -> None:
        """Take note that a request starts.

        :param now: the time.
        """
        self._in_flight += 1
        self._next_start = now + self.gap
        self._starts += 1
        if self._trial == "width" and self._starts == self.width:
            self._changed = now  # only now are there as many in flight as are tried
        self._rejected = min(self._rejected, now)

    def end(self) -> None:
        """Take note that a request is over, whatever became of it."""
        self._in_flight -= 1

    def record_page(self, page: Page, *, asked: int, more: bool, started: float, now: float) -> None:
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

    def shrink(self, asked: int, least: int, now: float) -> int:
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
