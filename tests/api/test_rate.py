"""The pace of a listing, against simulated servers and a clock that nobody waits for."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

import pytest

from airflow_provider_onebox.api.pagination import Page, _Fetcher
from airflow_provider_onebox.api.rate import FIRST_ROWS, GAIN, MAX_ROWS, PAGE_BYTES, RateController
from airflow_provider_onebox.exceptions import OneboxResponseError


class Fixed:
    """A pace that never changes."""

    def __init__(self, rows, width, gap=0.0):
        self.rows, self.width, self.gap = rows, width, gap
        self.in_flight, self.next_start = 0, 0.0

    def next_rows(self):
        return self.rows

    def delay(self, now):
        return math.inf if self.in_flight >= self.width else max(0.0, self.next_start - now)

    def start(self, now):
        self.in_flight += 1
        self.next_start = now + self.gap

    def end(self):
        self.in_flight -= 1

    def record_page(self, page, **facts):
        pass

    def rejected(self, **facts):
        pass


@dataclass
class Outcome:
    """What a simulated listing came to."""

    seconds: float = 0.0
    most_in_flight: int = 0
    pages: list[tuple[float, int, int, float]] = field(default_factory=list)  # start, asked, received, seconds
    rejections: list[float] = field(default_factory=list)

    def committed(self, share=0.5):
        """Rows a second, and the share of requests rejected, after so much of the time."""
        begin = share * self.seconds
        pages = [page for page in self.pages if page[0] >= begin]
        rejected = sum(moment >= begin for moment in self.rejections)
        return sum(page[2] for page in pages) / (self.seconds - begin), rejected / (len(pages) + rejected)

    def slowest(self):
        """How much longer a page took than the fastest of its size before it."""
        fastest, worst = {}, 0.0
        for _, asked, _, seconds in self.pages:
            worst = max(worst, seconds / fastest.get(asked, math.inf))
            fastest[asked] = min(fastest.get(asked, math.inf), seconds)
        return worst


def play(pace, server, rows, row_bytes=500):
    """List so many rows from a server: a function of time and rows to seconds, rows or None, and seconds to wait."""
    outcome, now, left = Outcome(), 0.0, rows
    head = asked = in_flight = 0
    done, events = set(), []

    def send(at, number, limit):
        seconds, received, wait = server(at, limit)
        heapq.heappush(events, (at + seconds, number, at, limit, received, wait))

    while left > 0 or events:
        # Rows are given out in order, so no more pages are asked for than that ahead of the first that is missing.
        is_room = left > 0 and asked - head < pace.width + (pace.width > 1)
        delay = pace.delay(now) if is_room else math.inf
        if not delay:
            limit = pace.next_rows()
            pace.start(now)
            send(now, asked, limit)
            asked, left, in_flight = asked + 1, left - limit, in_flight + 1
            outcome.most_in_flight = max(outcome.most_in_flight, in_flight)
        elif events and events[0][0] <= now + delay:
            now, number, at, limit, received, wait = heapq.heappop(events)
            if received is None:
                outcome.rejections.append(now)
                pace.rejected(started=at, now=now)
                send(now + wait, number, limit)
                continue
            pace.end()
            in_flight -= 1
            left += limit - received
            outcome.pages.append((at, limit, received, now - at))
            page = Page([], [], received, None, now - at, row_bytes * received)
            pace.record_page(page, asked=limit, more=left > 0, started=at, now=now)
            done.add(number)
            while head in done:
                head += 1
        else:
            now += delay
    outcome.seconds = now
    return outcome


def steady(latency, a_row, cap=math.inf):
    """A server with latency that takes so long for a row, and never gives more rows than its limit."""
    return lambda at, rows: (latency + a_row * min(rows, cap), min(rows, cap), 0)


def bent(at, rows):
    """A server that takes 0.2 s for 100 rows and 2 s for 500."""
    return 0.2 * max(rows / 100, (rows / 100) ** 1.43), rows, 0


class Serial:
    """A server that does one thing at a time."""

    def __init__(self, server):
        self.server, self.free = server, 0.0

    def __call__(self, at, rows):
        seconds, rows, wait = self.server(at, rows)
        self.free = max(at, self.free) + seconds
        return self.free - at, rows, wait


class Limited:
    """A server that answers so many requests in any span of so many seconds, and rejects all others."""

    def __init__(self, requests, span, wait):
        self.requests, self.span, self.wait = requests, span, wait
        self.answered = deque()

    def __call__(self, at, rows):
        while self.answered and self.answered[0] <= at - self.span:
            self.answered.popleft()
        if len(self.answered) >= self.requests:
            return 0.02, None, self.wait
        self.answered.append(at)
        return 0.021, min(rows, 100), 0


class Narrow:
    """A server that rejects what comes while so many requests are in flight."""

    def __init__(self, width):
        self.width, self.ends = width, []

    def __call__(self, at, rows):
        self.ends = [end for end in self.ends if end > at]
        if len(self.ends) >= self.width:
            return 0.05, None, 1.0
        self.ends.append(at + 0.05)
        return 0.05, min(rows, 100), 0


SERVERS = {
    "2 ms": lambda: steady(0.002, 8e-6),
    "20 ms": lambda: steady(0.02, 8e-6),
    "100 ms": lambda: steady(0.1, 8e-6),
    "limit of 50": lambda: steady(0.02, 8e-6, 50),
    "limit of 100": lambda: steady(0.02, 8e-6, 100),
    "limit of 150": lambda: steady(0.02, 8e-6, 150),
    "slow for large pages": lambda: bent,
    "one at a time": lambda: Serial(steady(0.02, 1e-4)),
    "one at a time, slow for large pages": lambda: Serial(bent),
}


@pytest.mark.parametrize("name", SERVERS)
def test_never_slower_than_a_fixed_pace_of_100_rows_and_two_requests(name):
    """No server is slower to list than at a cautious fixed pace; trying costs no more than 5 % where nothing pays."""
    server = SERVERS[name]
    outcome = play(RateController(), server(), 20_000)
    assert outcome.seconds <= 1.05 * play(Fixed(100, 2), server(), 20_000).seconds
    assert outcome.most_in_flight <= 4


@pytest.mark.parametrize(("name", "share"), [("20 ms", 1.25), ("100 ms", 1.3), ("limit of 100", 1.02)])
def test_as_good_as_tuned(name, share):
    """100,000 rows take little longer than at the best fixed pace, with what finding the pace costs."""
    server = SERVERS[name]
    best = min(
        play(Fixed(rows, width), server(), 100_000).seconds for rows in (100, 400, 1600) for width in (1, 2, 3, 4)
    )
    assert play(RateController(), server(), 100_000).seconds <= share * best


def test_slow_server_is_spared():
    """Where large pages are slow, pages stay small, and none takes twice the time of the fastest of its size."""
    pace = RateController()
    outcome = play(pace, bent, 10_000)
    assert pace.rows == FIRST_ROWS
    assert sum(asked > FIRST_ROWS for _, asked, _, _ in outcome.pages) <= 5
    assert outcome.slowest() <= 2


@pytest.mark.parametrize("cap", [1, 7, 99, 100, 150, 399, 1000])
def test_limit_of_the_server_is_learnt(cap):
    """What the server gives at the most is what is asked for in the end; asking for more is rare."""
    pace = RateController()
    outcome = play(pace, steady(0.02, 1e-6, cap), 400 * cap)
    assert pace.rows == min(cap, 800)  # a page of 1,000 is not worth the trouble then
    assert sum(asked > received for _, asked, received, _ in outcome.pages) <= 5


@pytest.mark.parametrize("wait", [1.0, 2.0])
@pytest.mark.parametrize(("requests", "span"), [(2, 1), (10, 1), (25, 1), (50, 1), (200, 10)])
def test_rejections(requests, span, wait):
    """At an account with a limit the pace settles near it: 0.8 of the best, fewer than 2 % of the requests rejected."""
    outcome = play(RateController(), Limited(requests, span, wait), 200_000)
    speed, rejected = outcome.committed()
    assert speed >= 0.8 * 100 * requests / span
    assert rejected < 0.02


@pytest.mark.parametrize("width", [1, 2, 3])
def test_rejections_of_what_is_in_flight(width):
    """Where a limit is on requests in flight, as many are in flight as there may be."""
    outcome = play(RateController(), Narrow(width), 100_000)
    speed, rejected = outcome.committed()
    assert speed >= 0.8 * width * 100 / 0.05
    assert rejected < 0.02


def test_what_was_passed_is_where_it_begins_and_ends():
    """A page size and a parallelism are the first and the most."""
    pace = RateController(300, 6)
    outcome = play(pace, steady(0.1, 1e-6), 100_000)
    assert {asked for _, asked, _, _ in outcome.pages} == {300}
    assert outcome.most_in_flight == pace.width == 6


def test_server_that_slows_down():
    """Two pages in a row at half the speed: half the rows and one request fewer; a single one changes nothing."""
    pace = RateController(800, 4)
    came(pace, 800, 0.1)
    came(pace, 800, 0.3)
    came(pace, 800, 0.1)
    came(pace, 800, 0.3)
    assert (pace.rows, pace.width) == (800, 4)
    came(pace, 800, 0.3)
    assert (pace.rows, pace.width) == (400, 3)
    for seconds in (0.4, 0.4, 1.0, 1.0, 4.0, 4.0, 16.0, 16.0, 64.0, 64.0):
        came(pace, pace.rows, seconds)
    assert (pace.rows, pace.width) == (100, 1)


def came(pace, rows, seconds, size=0, more=True, asked=None):
    """Let a page come that was asked for just now."""
    pace.record_page(
        Page([], [], rows, None, seconds, size), asked=asked or rows, more=more, started=math.inf, now=1000.0
    )


@pytest.mark.parametrize(("row_bytes", "rows"), [(PAGE_BYTES // 4, 4), (2 * PAGE_BYTES, 1), (PAGE_BYTES // 250, 250)])
def test_bytes_bound_the_rows(row_bytes, rows):
    """Rows that are large lead to pages of fewer, however fast they come."""
    pace = RateController()
    outcome = play(pace, steady(0.1, 1e-9), 5000, row_bytes)
    assert max(asked for _, asked, _, _ in outcome.pages[10:]) <= rows
    assert pace.rows >= rows * 0.6


def test_rows_grow_again_when_they_are_small():
    """A heavy page bounds the rows as long as they are heavy."""
    pace = RateController()
    came(pace, 100, 0.1, size=100 * PAGE_BYTES)
    assert pace.rows == 1
    play(pace, steady(0.1, 1e-9), 100_000)
    assert pace.rows == MAX_ROWS


def test_fewer():
    """A page that did not come is asked for with a quarter of the rows, down to the least."""
    pace = RateController(1000)
    assert pace.shrink(1000, 100, 0.0) == 250 == pace.rows
    assert pace.shrink(250, 100, 0.0) == 100 == pace.rows
    assert pace.shrink(100, 100, 0.0) == 100 == pace.rows
    assert pace.shrink(40, 100, 0.0) == 40 == pace.rows
    assert pace.shrink(40, 1, 0.0) == 10 == pace.rows
    assert pace.shrink(3, 1, 0.0) == 1 == pace.rows
    assert pace.shrink(1000, 1, 0.0) == 250
    assert pace.rows == 1


def test_lost_trial_is_given_up():
    """A larger page that never comes, because it was dropped, does not stop the trials for ever."""
    pace = RateController()
    came(pace, 100, 0.1)
    assert pace.next_rows() == 200
    for _ in range(200):
        assert pace.width <= 4
        came(pace, 100, 0.1)
        if pace.next_rows() == 200:
            break
    else:
        pytest.fail("no other trial")


def test_rejections_of_one_moment_count_once():
    """What was sent before the pace was changed does not change it again."""
    pace = RateController(100, 4)
    for _ in range(4):
        pace.start(0.0)
    for _ in range(4):
        pace.rejected(started=0.0, now=1.0)
    assert pace.width == 3
    pace.rejected(started=1.0, now=2.0)
    assert pace.width == 2


def test_rejections_before_anything_came():
    """With one request in flight there is nothing to learn as long as nothing comes."""
    pace = RateController(100, 1)
    pace.start(0.0)
    pace.rejected(started=0.0, now=1.0)
    assert (pace.width, pace.gap) == (1, 0.0)
    pace.end()
    pace.record_page(Page([], [], 100, None, 0.1), asked=100, more=True, started=2.0, now=2.0)
    pace.start(2.0)
    pace.rejected(started=2.0, now=3.0)
    assert pace.gap == 1.5
    pace.end()
    pace.start(10.0)
    pace.end()
    assert pace.delay(11.0) == 0.5
    assert pace.delay(11.5) == 0


def trying_a_third():
    """A pace that has found 200 rows not worth it, and tries three requests in flight."""
    pace = RateController()
    came(pace, 100, 0.1)
    assert pace.next_rows() == 200
    assert pace.next_rows() == 100
    came(pace, 200, 0.5)
    assert (pace.rows, pace.width) == (100, 3)
    return pace


@pytest.mark.parametrize(
    ("cut", "rows"),
    [(lambda pace: came(pace, 60, 0.1, asked=100), 60), (lambda pace: pace.shrink(100, 1, 1000.0), 25)],
    ids=["limit", "lost"],
)
def test_trial_that_is_cut_short_leaves_nothing_behind(cut, rows):
    """A request more in flight is kept only if it was judged: a limit found meanwhile, or a page lost, ends that."""
    pace = trying_a_third()
    for _ in range(2):
        cut(pace)
        assert (pace.rows, pace.width) == (rows, 2)


def test_width_is_judged_when_it_is_reached():
    """The first pages of a trial have fewer beside them, so the one counts that made the number full."""
    pace = trying_a_third()
    for now in (1000.1, 1000.2, 1000.3):
        pace.start(now)
    for started in (1000.1, 1000.2):
        pace.record_page(Page([], [], 100, None, 9.0), asked=100, more=True, started=started, now=1001.0)
        assert pace.width == 3
    pace.record_page(Page([], [], 100, None, 0.1), asked=100, more=True, started=1000.3, now=1001.0)
    assert pace.width == 4


@pytest.mark.parametrize(("seconds", "width"), [(0.1 * 1.5 / GAIN * 0.999, 4), (0.1 * 1.5 / GAIN * 1.001, 2)])
def test_gain_of_width(seconds, width):
    """Three requests in flight are kept if all three bring so much more than two."""
    pace = trying_a_third()
    came(pace, 100, seconds)
    assert pace.width == width


@pytest.mark.parametrize(("seconds", "rows"), [(0.1 * 1.5 / GAIN * 0.999, 200), (0.1 * 1.5 / GAIN * 1.001, 100)])
def test_gain_of_rows(seconds, rows):
    """A page of twice the rows is kept if it and the one beside it bring so much more than two usual ones."""
    pace = RateController()
    came(pace, 100, 0.1)
    assert pace.next_rows() == 200
    came(pace, 200, seconds)
    assert pace.rows == rows


def test_rests_double():
    """Between trials that do not pay are 4, 8, 16 pages, and so on."""
    pace = trying_a_third()
    came(pace, 100, 1.0)
    rests = []
    for _ in range(3):
        pages = 0
        while pace.next_rows() == 100:
            came(pace, 100, 0.1)
            pages += 1
        rests.append(pages)
        came(pace, 200, 0.5)
        came(pace, 100, 1.0)
        assert pace.width == 2
    assert rests == [4, 8, 16]


def test_lost_trials_end_after_so_many_pages():
    """A larger page that was dropped is waited for during 16 pages."""
    pace = RateController()
    came(pace, 100, 0.1)
    assert pace.next_rows() == 200
    for _ in range(15):
        came(pace, 100, 0.1)
    assert pace.width == 2
    came(pace, 100, 0.1)
    assert pace.width == 3


def test_half_the_speed_is_not_slow():
    """Exactly half the usual speed is borne."""
    pace = RateController(800, 4)
    came(pace, 800, 0.25)
    came(pace, 800, 0.5)
    came(pace, 800, 0.5)
    assert (pace.rows, pace.width) == (800, 4)


def test_slow_pages_apart():
    """Slow pages count if they come in a row; a usual one between them starts the count again."""
    pace = trying_a_third()
    came(pace, 100, 1.0)  # now is a rest of four pages
    for seconds in (0.3, 0.1, 0.3):
        came(pace, 100, seconds)
    assert (pace.rows, pace.width) == (100, 2)


def test_page_of_unknown_size():
    """A page of unknown size says nothing of how heavy rows are."""
    pace = RateController()
    came(pace, 100, 10.0, size=100 * PAGE_BYTES)
    for _ in range(8):
        pace.record_page(Page([], [], 1, None, 0.1), asked=1, more=True, started=math.inf, now=1000.0)
        assert pace.next_rows() == 1


def test_pages_that_tell_nothing():
    """The last page, an empty one, one of unknown time and one from before a change leave the pace as it is."""
    pace = RateController(800, 4)
    came(pace, 800, 0.1)
    for _ in range(3):
        came(pace, 10, 5.0, asked=800, more=False)
        came(pace, 0, 5.0, asked=800)
        came(pace, 800, 0)
        came(pace, 700, 5.0)
        pace.record_page(Page([], [], 800, None, 5.0), asked=800, more=True, started=999.9, now=1000.0)
    assert (pace.rows, pace.width) == (800, 4)
    came(pace, 800, 5.0, more=False)  # a full last page tells as much as others
    came(pace, 800, 5.0, more=False)
    assert (pace.rows, pace.width) == (400, 3)


@pytest.mark.parametrize(("most", "tried"), [(150, 150), (149, 100)])
def test_no_trial_for_little(most, tried):
    """A page is tried if it can be at least half as large again."""
    pace = RateController()
    came(pace, 100, 0.1, size=PAGE_BYTES * 100 // most)
    assert pace.next_rows() == tried


@pytest.mark.parametrize(("pages", "seconds", "held"), [(65, 15.1, 30), (64, 15.1, 15), (65, 15.0, 15)])
def test_gap_after_another_rejection(pages, seconds, held):
    """A rejection costs 10 %; one of a settled pace doubles the time for which the gap is held."""
    pace = RateController(100, 1)
    pace.start(1.0)
    pace.end()
    pace.record_page(Page([], [], 100, None, 0.1), asked=100, more=True, started=1.0, now=1.1)
    pace.rejected(started=1.2, now=3.0)
    assert pace.gap == 1.0
    for _ in range(pages):
        pace.record_page(Page([], [], 100, None, 0.1), asked=100, more=True, started=3.0, now=3.1)
    now = 3.0 + seconds
    pace.rejected(started=now, now=now)
    assert pace.gap == pytest.approx(1.1)
    for _ in range(100):
        pace.record_page(Page([], [], 100, None, 0.1), asked=100, more=True, started=now, now=now + held)
    assert pace.gap == pytest.approx(1.1)
    pace.record_page(Page([], [], 100, None, 0.1), asked=100, more=True, started=now, now=now + held + 0.1)
    assert pace.gap < 1.1


def test_gap_shrinks_once_settled():
    """Until the pace is settled the gap stays; then it shrinks faster and faster."""
    pace = RateController(100, 1)
    pace.start(0.0)
    pace.end()
    pace.record_page(Page([], [], 100, None, 0.1), asked=100, more=True, started=0.0, now=0.1)
    pace.rejected(started=0.2, now=2.0)
    gaps = []
    for n in range(120):
        pace.record_page(Page([], [], 100, None, 0.1), asked=100, more=True, started=2.0, now=3.0 + n)
        gaps.append(pace.gap)
    assert gaps[63] == 1.0 > gaps[64]
    shares = [after / before for before, after in itertools.pairwise(gaps[64:])]
    assert shares == sorted(shares, reverse=True)
    assert gaps[64] == pytest.approx(1 - 1 / 5000)


def test_no_width_is_tried_soon_after_a_rejection():
    """One request more is tried only when the pace is settled, and not while a gap is what bounds it."""
    pace = RateController(100, 2)
    came(pace, 100, 0.1)
    pace.start(0.0)
    pace.rejected(started=2.0, now=2.0)
    assert pace.width == 1
    for _ in range(64):
        came(pace, 100, 0.1)
        assert pace.width == 1
    pace.gap = 0.11
    for _ in range(10):
        came(pace, 100, 0.1)
        assert pace.width == 1
    pace.gap = 0.09
    for _ in range(10):
        came(pace, 100, 0.1)
    assert pace.width == 2


def test_patience_doubles_with_each_raise_that_is_rejected():
    """One more in flight looks well until the server's second, or minute, is over: it is tried ever more seldom."""
    pace = RateController(100, 2)
    came(pace, 100, 0.1)
    now = 1000.0
    pace.start(now)
    for patience in (15, 30, 60):
        pace.rejected(started=now, now=now)
        assert pace.width == 1
        pace._accepted = 65
        assert not pace._is_settled(now + patience)
        assert pace._is_settled(now + patience + 1)
        now += patience + 1
        pace._advance("width", now)
        pace._judge(2 * pace._speed, 100, now)
        assert pace.width == 2
        # The next raise waits as long.
        assert not pace._is_settled(now + patience)
        now += 1


def test_raise_before_the_first_rejection():
    """What was raised while nothing had been rejected costs no patience."""
    pace = trying_a_third()
    pace.start(999.0)
    came(pace, 100, 0.1)
    assert pace.width == 4
    pace.rejected(started=1000.0, now=1000.0)
    for _ in range(65):
        came(pace, 100, 0.1)
    assert pace._is_settled(1015.1)


def test_size_that_failed_is_not_tried_again():
    """When a larger page than any before fails, as many rows are asked for as came before, and no more later."""
    pace = RateController()
    came(pace, 100, 0.1)
    assert pace.next_rows() == 200
    assert pace.shrink(200, 1, 1000.0) == 100
    for _ in range(100):
        came(pace, 100, 0.1)
        assert pace.next_rows() == 100
    assert pace.shrink(100, 1, 1000.0) == 25


def test_listing_that_is_closed_asks_for_nothing():
    """A page that waits for its turn is given up when the listing ends."""
    fetcher = _Fetcher(None, RateController(), lambda: 0.0)
    fetcher.close()
    with pytest.raises(CancelledError):
        fetcher.get(0, 0, 1)


def test_page_is_in_flight_until_it_came():
    """No other request starts as long as one is in flight, if that is the pace, and then the next one does."""
    pace, delays = RateController(100, 1), []

    def fetch(*page):
        delays.append(pace.delay(0.0))
        return Page([], [], 100, None)

    _Fetcher(fetch, pace, lambda: 0.0).get(0, 0, 100)
    assert (delays, pace.delay(0.0)) == ([math.inf], 0.0)


class Waiting:
    """A page that waits for its turn, since another is in flight; ``fetch`` gets them both."""

    def __init__(self, fetch):
        self.pace = RateController(100, 1)
        self.fetcher = _Fetcher(fetch, self.pace, self.clock)
        self.page = None
        self.thread = threading.Thread(target=self.get, daemon=True)
        self.has_looked = threading.Event()

    def clock(self):
        if threading.current_thread() is self.thread:
            self.has_looked.set()
        return 0.0

    def begin(self):
        """Return when the page waits, or is about to and keeps everybody else out until it does."""
        self.thread.start()
        assert self.has_looked.wait(10)

    def get(self):
        try:
            self.page = self.fetcher.get(7, 0, 100)
        except CancelledError:
            self.page = "cancelled"

    def end(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.page


def test_page_that_waits_comes_next():
    """The end of one request is the turn of one that waits."""
    page = Page([], [], 100, None)

    def fetch(since_id, *others):
        if since_id == 0:
            waiting.begin()
        return page

    waiting = Waiting(fetch)
    waiting.fetcher.get(0, 0, 100)
    assert waiting.end() == (page, 100)


def test_page_that_waits_is_given_up():
    """When the listing ends, a page stops waiting at once, whatever the one in flight does."""
    waiting = Waiting(None)
    waiting.pace.start(0.0)
    waiting.begin()
    waiting.fetcher.close()
    assert waiting.end() == "cancelled"


@pytest.mark.parametrize(("total", "rows"), [(None, 60), (261, 60), (260, 100)])
def test_short_page_that_is_not_the_last(total, rows):
    """A page with fewer rows than it was asked for shows the server's limit, unless the list ends with it."""
    pace = RateController()
    fetcher = _Fetcher(lambda *page: Page([], [], 60, total, 0.1), pace, lambda: 0.0)
    fetcher.get(0, 200, 100)
    assert pace.rows == rows


def test_server_that_gives_one_row_at_most():
    """Where a single row came, that is what is asked for when more than that fails."""
    asked = []

    def fetch(since_id, offset, limit, on_transient):
        asked.append(limit)
        if limit > 1:
            raise OneboxResponseError("broken")
        return Page([], [], 1, None)

    fetcher = _Fetcher(fetch, RateController(), lambda: 0.0)
    for limit in (1, 100, 2):
        assert fetcher.get(0, 0, limit)[1] == 1
    assert asked == [1, 100, 1, 2, 1]
