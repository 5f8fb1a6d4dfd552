"""How many records to ask for in a page, and how many requests to have in flight."""

from __future__ import annotations

import math

FIRST_ROWS, MAX_ROWS = 100, 1600
"""Records that a page is asked for at first, and at most."""


MAX_WIDTH = 4
"""Requests in flight at most."""


PAGE_BYTES = 1024 * 1024
"""The most bytes of a page, which bounds the memory of a listing of any records."""


GAIN = 1.15
"""How much faster records have to arrive for a larger page to be kept."""


QUICK_SECONDS = 0.15
"""After a page that took less, the size grows by six and not by two, and is kept even if records arrive a little
slower: they cost fewer requests."""


REST = 32
"""Measurements after which a larger page is tried again; twice as many after each trial that does not pay."""


MARGIN = 1.05
"""How much further apart requests start than a limit seems to allow, so that one that is late meets no rejection."""


LATE_SECONDS = 0.03
"""How much of its lateness a request may pass on, by starting the next one after less than the distance."""


HOLD_SECONDS = 60.0
"""How long requests start as far apart as after the last rejection."""


class RateController:
    """Decides how large a page is and when a request may start.

    **Size of a page.** It begins with 100 records, and grows while records arrive faster by :data:`GAIN`. The speed is
    that of all records that arrive until ``width`` pages of the new size have, and only time with a request in flight
    counts, so that a slow reader of the listing changes nothing. Nor may the quickest of them take longer for a record
    by :data:`GAIN` than before: more requests in flight can hide that. If a larger page does not pay, the size before
    is kept for :data:`REST` measurements. A page that comes with fewer records than it was asked for shows the server's
    own limit, which is kept as long. :data:`PAGE_BYTES` bounds all this.

    **Start of a request.** Up to ``width`` are in flight. After a rejection (429, 503), none starts until the rejected
    one is sent again, and then they start at equal distances: :data:`MARGIN` times that of those which were accepted
    before the rejection. Each further rejection makes the distance 5 to 20 % larger. It is kept for
    :data:`HOLD_SECONDS` and then shrinks slowly.

    Uses no thread and no clock: times are seconds on the caller's.

    :param page_size: the records to begin with and never to exceed; found out if ``None``.
    :param parallelism: how many requests may be in flight; :data:`MAX_WIDTH` if ``None``.
    """

    def __init__(self, page_size: int | None = None, parallelism: int | None = None) -> None:
        self.rows = page_size or FIRST_ROWS
        self.width = parallelism or MAX_WIDTH
        self.gap = 0.0  # seconds between two starts
        self.largest = 0  # records of a page that arrived
        self._most = page_size or MAX_ROWS
        # A size, the records a second with it, and the seconds a record of its quickest page.
        self._proven, self._speed, self._seconds = self.rows, 0.0, math.inf
        self._rest, self._next_rest = 0, REST
        self._in_flight = 0
        self._busy = self._now = 0.0  # seconds with a request in flight, up to now
        self._next_start = -math.inf
        self._first, self._accepted = math.inf, 0  # the first start since the last rejection, and pages since
        self._burst, self._burst_end = 0, -math.inf  # pages before the first rejection, and its time
        self._measure()

    def _measure(self) -> None:
        """Begin to measure the speed."""
        self._begun, self._arrived, self._pages, self._quickest = self._busy, 0, 0, math.inf

    def delay(self, now: float) -> float:
        """Return how long the next request has to wait.

        :param now: the time.
        :return: seconds; infinite if another request has to end before.
        """
        return math.inf if self._in_flight >= self.width else max(0.0, self._next_start - now)

    def start(self, now: float) -> None:
        """Note that a request starts.

        :param now: the time.
        """
        self._advance(now)
        self._in_flight += 1
        self._next_start = max(self._next_start, now - min(self.gap, LATE_SECONDS)) + self.gap
        self._first = min(self._first, now)

    def end(self, now: float) -> None:
        """Note that a request has ended, with or without a page.

        :param now: the time.
        """
        self._advance(now)
        self._in_flight -= 1

    def record_page(self, *, asked: int, received: int, size: int, more: bool, started: float, now: float) -> None:
        """Learn from a page.

        :param asked: the records that it was asked for.
        :param received: the records in it.
        :param size: its bytes, 0 if that is not known.
        :param more: whether the list goes on after it.
        :param started: when it was asked for.
        :param now: the time.
        """
        self._advance(now)
        if started < self._burst_end:  # Accepted before the rejection, and not known then.
            self.gap *= self._burst / (self._burst + 1)
            self._burst += 1
        else:
            self._accepted += 1
        if now - self._first > HOLD_SECONDS:
            self.gap *= 0.995
        self.largest = max(self.largest, received)
        self._arrived += received
        bound = max(1, PAGE_BYTES * received // size) if size and received else self._most
        if 0 < received < min(asked, self.rows) and more:
            self._proven = self.rows = received
            self._settle()
        elif asked == self.rows and received >= asked:
            self._pages += 1
            self._quickest = min(self._quickest, (now - started) / received)
            if self._pages >= (self.width if self._speed else 1) and self._busy > self._begun:
                self._judge(min(bound, self._most), is_quick=now - started < QUICK_SECONDS)
        self.rows = min(self.rows, bound)

    def _judge(self, bound: int, *, is_quick: bool) -> None:
        """Compare the speed with that of the size before."""
        speed = self._arrived / (self._busy - self._begun)
        self._rest -= 1
        is_trial = self.rows > self._proven
        is_slower = speed < self._speed * (1 / GAIN if is_quick else GAIN)
        if is_trial and (is_slower or self._quickest > self._seconds * GAIN):
            self.rows = self._proven
            self._settle()
        elif is_trial or self._rest <= 0:
            self._proven, self._speed, self._seconds = self.rows, speed, self._quickest
            self.rows = max(self.rows, min((6 if is_quick else 2) * self.rows, bound))
        self._measure()

    def _settle(self) -> None:
        """Keep the size for a while."""
        self._rest, self._next_rest = self._next_rest, 2 * self._next_rest
        self._measure()

    def rejected(self, *, started: float, now: float, wait: float) -> None:
        """Learn that Onebox asks to slow down.

        :param started: when the request was sent.
        :param now: the time.
        :param wait: seconds until it is sent again, in which no other request starts.
        """
        if self._accepted and started >= self._first:  # else it was sent before the rate was lowered
            seconds = now - self._first
            if self.gap:
                self.gap *= min(max(MARGIN, seconds / self._accepted / self.gap), 1.2)
            else:
                # No limit of many pages is on less than a second.
                seconds = max(seconds, 1.0) if self._accepted > self.width else seconds
                self.gap = MARGIN * seconds / self._accepted
                self._burst, self._burst_end = self._accepted, now
            self._first, self._accepted, self._speed = math.inf, 0, 0.0
            self._measure()
        self._next_start = max(self._next_start, now + wait) + self.gap

    def shrink(self, asked: int, *, is_too_large: bool = False) -> int:
        """Ask for fewer records, because a page did not arrive.

        :param asked: the records that it was asked for.
        :param is_too_large: whether its size is to blame; else it is not made smaller than a first page.
        :return: the records to ask for instead.
        """
        rows = max(asked // 4, min(asked, 1 if is_too_large else FIRST_ROWS))
        if is_too_large and 0 < self.largest < asked:
            rows = self._most = self.largest
        self._proven = self.rows = min(rows, self.rows)
        self._settle()
        return rows

    def _advance(self, now: float) -> None:
        self._busy += (now - self._now) * bool(self._in_flight)
        self._now = now
