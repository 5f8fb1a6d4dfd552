"""How large pages are and when requests start, against simulated servers and a clock that nobody waits for."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from airflow_provider_onebox.api.pagination import Page, _Fetcher
from airflow_provider_onebox.api.rate import FIRST_ROWS, MAX_ROWS, PAGE_BYTES, RateController
from airflow_provider_onebox.api.turns import Turns
from airflow_provider_onebox.exceptions import OneboxResponseError, OneboxUnavailableError


class Fixed:
    """A page size and a number of requests in flight that never change."""

    def __init__(self, rows, width):
        self.rows, self.width, self.in_flight = rows, width, 0

    def delay(self, now):
        return math.inf if self.in_flight >= self.width else 0.0

    def start(self, now):
        self.in_flight += 1

    def end(self, now):
        self.in_flight -= 1

    def record_page(self, **page):
        pass


@dataclass
class Outcome:
    """A simulated listing."""

    seconds: float = 0.0
    most_in_flight: int = 0
    pages: list[tuple[float, int, int]] = field(default_factory=list)  # start, asked, received
    rejections: list[float] = field(default_factory=list)

    def speed(self, after=0.0):
        """Return the records a second after so much of the time, and the share of requests that were rejected."""
        begin = after * self.seconds
        pages = [page for page in self.pages if page[0] >= begin]
        rejected = sum(moment >= begin for moment in self.rejections)
        return sum(page[2] for page in pages) / (self.seconds - begin), rejected / (len(pages) + rejected)


def play(rate, server, rows, row_bytes=500):
    """List so many records from a server: a function of time and records to seconds, records or None, and a wait."""
    outcome, now, left = Outcome(), 0.0, rows
    head = asked = in_flight = 0
    done, events = set(), []

    def send(at, number, limit):
        seconds, received, wait = server(at, limit)
        heapq.heappush(events, (at + seconds, number, at, limit, received, wait))

    while left > 0 or events:
        # Records are given out in order, so few pages are asked for ahead of the first that is missing; at first, none.
        ahead = rate.width + (rate.width > 1) if done else 1
        delay = rate.delay(now) if left > 0 and asked - head < ahead else math.inf
        if not delay:
            limit = rate.rows
            rate.start(now)
            send(now, asked, limit)
            asked, left, in_flight = asked + 1, left - limit, in_flight + 1
            outcome.most_in_flight = max(outcome.most_in_flight, in_flight)
        elif events and events[0][0] <= now + delay:
            now, number, at, limit, received, wait = heapq.heappop(events)
            if received is None:
                outcome.rejections.append(now)
                rate.rejected(started=at, now=now, wait=wait)
                send(now + wait, number, limit)
                continue
            left += limit - received
            outcome.pages.append((at, limit, received))
            size = row_bytes * received
            rate.record_page(asked=limit, received=received, size=size, more=left > 0, started=at, now=now)
            rate.end(now)
            in_flight -= 1
            done.add(number)
            while head in done:
                head += 1
        else:
            now += delay
    outcome.seconds = now
    return outcome


def steady(latency, a_row, cap=math.inf):
    """A server with latency that takes so long for a record, and never gives more than its limit."""
    return lambda at, rows: (latency + a_row * min(rows, cap), min(rows, cap), 0)


def bent(at, rows):
    """A server that takes 0.2 s for 100 records and 2 s for 500."""
    return 0.2 * max(rows / 100, (rows / 100) ** 1.43), rows, 0


def bent_and_near(at, rows):
    """A server that takes a tenth of that."""
    return bent(at, rows)[0] / 10, rows, 0


class Serial:
    """A server that does one thing at a time."""

    def __init__(self, server):
        self.server, self.free = server, 0.0

    def __call__(self, at, rows):
        seconds, rows, wait = self.server(at, rows)
        self.free = max(at, self.free) + seconds
        return self.free - at, rows, wait


class Limited:
    """A server that serves so many requests in any span of so many seconds, and rejects all others.

    Where it does not say how long to wait, the client waits for one to two seconds.
    """

    def __init__(self, requests, span, wait, latency=0.02, late=(0.0,)):
        self.requests, self.span, self.wait, self.latency = requests, span, wait, latency
        self.served = deque()
        self.backoff = cycle((1.3, 1.9, 1.05, 1.6, 1.95))
        self.late = cycle(late)

    def __call__(self, at, rows):
        at += next(self.late)
        while self.served and self.served[0] <= at - self.span:
            self.served.popleft()
        if len(self.served) >= self.requests:
            return self.latency, None, self.wait or next(self.backoff)
        self.served.append(at)
        return self.latency + 0.001, min(rows, 100), 0


class Narrow:
    """A server that rejects what arrives while so many requests are in flight."""

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
    "near, slow for large pages": lambda: bent_and_near,
    "one at a time": lambda: Serial(steady(0.02, 1e-4)),
    "one at a time, slow for large pages": lambda: Serial(bent),
}


@pytest.mark.parametrize("name", SERVERS)
def test_never_slower_than_100_records_and_two_requests(name):
    """No server is slower to list than with small fixed pages; trials cost at most 5 % where nothing pays."""
    server = SERVERS[name]
    outcome = play(RateController(), server(), 20_000)
    assert outcome.seconds <= 1.05 * play(Fixed(100, 2), server(), 20_000).seconds
    assert outcome.most_in_flight <= 4


@pytest.mark.parametrize(
    ("name", "latency"), [("2 ms", 0.002), ("20 ms", 0.02), ("100 ms", 0.1), ("limit of 100", 0.02)]
)
def test_as_good_as_tuned(name, latency):
    """100,000 records take two round trips longer than with the best fixed size of pages, to find it."""
    server = SERVERS[name]
    best = min(play(Fixed(rows, 4), server(), 100_000).seconds for rows in (100, 400, 1600))
    assert play(RateController(), server(), 100_000).seconds <= best + 2.1 * latency


def test_slow_server_is_spared():
    """Where large pages are slow, few of them are tried, and none of more than twice the size that is kept."""
    rate = RateController()
    outcome = play(rate, Serial(bent), 10_000)
    assert rate.rows == FIRST_ROWS
    assert sum(asked > FIRST_ROWS for _, asked, _ in outcome.pages) <= 8
    assert max(asked for _, asked, _ in outcome.pages) == 2 * FIRST_ROWS


@pytest.mark.parametrize("cap", [1, 7, 99, 100, 150, 399, 1000])
def test_limit_of_the_server_is_learnt(cap):
    """What the server gives at most is what it is asked for; asking for more is rare."""
    outcome = play(RateController(), steady(0.02, 1e-6, cap), 400 * cap)
    assert sum(asked > received for _, asked, received in outcome.pages) <= 30
    assert sum(asked == cap for _, asked, _ in outcome.pages) >= 360


@pytest.mark.parametrize("wait", [1.0, 2.0, None])
@pytest.mark.parametrize("latency", [0.02, 0.1])
@pytest.mark.parametrize("limit", [2, 10, 25, 50, 100])
def test_limit_of_pages_a_second(limit, latency, wait):
    """At a limit of pages a second, 0.9 of it is reached, and few requests are rejected."""
    outcome = play(RateController(), Limited(limit, 1, wait, latency), 200_000)
    possible = 100 * min(limit, 4 / (latency + 0.001))
    speed, rejected = outcome.speed(0.5)
    # Each rejection costs the time to wait, which is a larger share of a faster listing.
    assert speed >= (0.9 if wait == 1 else 0.88) * possible
    assert rejected <= 0.02
    if 10 <= limit <= 50:
        speed, rejected = outcome.speed()
        assert speed >= (0.9 if wait == 1 else 0.88) * possible
        assert rejected <= 0.005


@pytest.mark.parametrize("limit", [10, 25, 50])
def test_limit_is_found_at_once(limit):
    """For a minute, nothing is rejected but the first burst, though some requests take 40 ms more to arrive."""
    server = Limited(limit, 1, None, late=[0.0] * 97 + [0.04, 0.02, 0.0, 0.03])
    outcome = play(RateController(), server, 5500 * limit)
    assert 55 < outcome.seconds < 63
    assert len(outcome.rejections) <= 4


@pytest.mark.parametrize(("pages", "seconds"), [(10, 0.1), (11, 2.0), (20, 3.0), (30, 4.2), (50, 8.0)])
def test_short_list_at_a_limit(pages, seconds):
    """A short list at a limit of 10 pages a second takes about two seconds longer than it must, for the rejection."""
    outcome = play(RateController(), Limited(10, 1, None), 100 * pages)
    assert outcome.seconds <= seconds
    assert len(outcome.rejections) <= 4


@pytest.mark.parametrize(("requests", "span", "share"), [(200, 10, 0.6), (600, 60, 0.6)])
def test_limit_of_a_longer_time(requests, span, share):
    """A limit that is counted over a longer time is approached too, though it is found out later."""
    assert play(RateController(), Limited(requests, span, 1.0), 400_000).speed(0.5)[0] >= share * 100 * requests / span


@pytest.mark.parametrize("width", [1, 2, 3])
def test_limit_of_requests_in_flight(width):
    """Where a limit is on requests in flight, they start so far apart that few are rejected."""
    speed, rejected = play(RateController(), Narrow(width), 100_000).speed()
    assert speed >= 0.6 * width * 100 / 0.05
    assert rejected <= 0.02


def test_what_was_passed_is_where_it_begins_and_ends():
    """A page size and a parallelism are the first and the most."""
    rate = RateController(300, 6)
    outcome = play(rate, steady(0.1, 1e-6), 100_000)
    assert {asked for _, asked, _ in outcome.pages} == {300}
    assert outcome.most_in_flight == rate.width == 6


@pytest.mark.parametrize(("row_bytes", "rows"), [(PAGE_BYTES // 4, 4), (2 * PAGE_BYTES, 1), (PAGE_BYTES // 250, 250)])
def test_bytes_bound_the_rows(row_bytes, rows):
    """Records that are large lead to pages of fewer, however fast they arrive."""
    rate = RateController()
    outcome = play(rate, steady(0.1, 1e-9), 5000, row_bytes)
    assert max(asked for _, asked, _ in outcome.pages[10:]) <= rows
    assert rate.rows >= rows * 0.6


class Clock:
    """Drives a controller by hand: one request at a time, or several."""

    def __init__(self, *arguments):
        self.rate, self.now = RateController(*arguments), 100.0

    def page(self, seconds, received=None, *, asked=None, size=0, more=True):
        """Let a page arrive, after so many seconds."""
        asked = asked or self.rate.rows
        received = asked if received is None else received
        started = self.now
        self.rate.start(started)
        self.now += seconds
        self.rate.record_page(asked=asked, received=received, size=size, more=more, started=started, now=self.now)
        self.rate.end(self.now)

    def reject(self, wait=0.0, started=None):
        """Reject a request."""
        self.rate.rejected(started=self.now if started is None else started, now=self.now, wait=wait)


def test_growth():
    """A quick page is followed by one of six times the records, any other by one of twice as many."""
    clock = Clock(None, 2)
    clock.now = 0.0
    clock.page(0.15)
    assert clock.rate.rows == 200
    clock = Clock(None, 2)
    clock.page(0.149)
    assert clock.rate.rows == 600
    clock.page(0.15)
    assert clock.rate.rows == 600  # two pages are one measurement
    clock.page(0.15)
    assert clock.rate.rows == 1200
    for _ in range(2):
        clock.page(0.1)
    assert clock.rate.rows == MAX_ROWS


@pytest.mark.parametrize(("seconds", "rows"), [(2 / 1.1501, 400), (2 / 1.1499, 100)])
def test_gain(seconds, rows):
    """A larger page is kept if records arrive faster by 15 %."""
    clock = Clock(None, 1)
    clock.page(1.0)
    assert clock.rate.rows == 200
    clock.page(seconds)
    assert clock.rate.rows == rows


@pytest.mark.parametrize(("seconds", "rows"), [(0.6 * 1.1499, 1600), (0.6 * 1.1501, 100)])
def test_quick_pages_may_be_a_little_slower(seconds, rows):
    """A larger page that is quick costs fewer requests, so it is kept unless records arrive slower by 15 %."""
    clock = Clock(None, 1)
    clock.page(0.1)
    clock.page(seconds - 0.14, asked=1, received=0, more=False)
    clock.page(0.14)
    assert clock.rate.rows == rows


@pytest.mark.parametrize(("seconds", "rows"), [(0.4599, 400), (0.4601, 100)])
def test_quickest_page_of_a_trial(seconds, rows):
    """Two larger pages at once are more records a second, but each record may not take longer by 15 %."""
    clock = Clock(None, 2)
    clock.page(0.2)
    rate, started = clock.rate, clock.now
    rate.start(started)
    rate.start(started)
    for later in (0.0, 0.02):
        now = started + seconds + later
        rate.record_page(asked=200, received=200, size=0, more=True, started=started, now=now)
        rate.end(now)
    assert rate.rows == rows


def test_all_records_count_in_a_measurement():
    """Pages of another size that arrive meanwhile belong to the speed, and are not counted as pages."""
    clock = Clock(None, 1)
    clock.page(1.0)
    clock.page(1.0, asked=100)
    clock.page(1.7, asked=200)
    assert clock.rate.rows == 100  # 300 records in 2.7 s
    clock = Clock(None, 1)
    clock.page(1.0)
    clock.page(0.5, asked=100)
    clock.page(1.5, asked=200)
    assert clock.rate.rows == 400  # 300 records in 2 s


def test_time_without_a_request_does_not_count():
    """A slow reader of the listing does not make pages look slow."""
    clock = Clock(None, 1)
    clock.page(1.0)
    clock.now += 1000
    clock.page(1.5)
    assert clock.rate.rows == 400


def test_rests():
    """After a trial that did not pay, the next one is 32 measurements later, then 64."""
    clock = Clock(None, 1)
    clock.page(1.0)
    rests = []
    for _ in range(2):
        clock.page(10.0)
        assert clock.rate.rows == 100
        pages = 0
        while clock.rate.rows == 100:
            clock.page(1.0)
            pages += 1
        rests.append(pages)
    assert rests == [32, 64]


def test_rows_grow_again_when_they_are_small():
    """A heavy page bounds the records of a page while they are heavy."""
    clock = Clock(None, 1)
    clock.page(0.1, size=100 * PAGE_BYTES)
    assert clock.rate.rows == 1
    play(clock.rate, steady(0.1, 1e-9), 100_000)
    assert clock.rate.rows == MAX_ROWS


def test_page_of_unknown_size():
    """A page of unknown size says nothing of how heavy records are."""
    clock = Clock(None, 1)
    clock.page(0.1, size=0)
    assert clock.rate.rows == 600


def test_pages_that_say_nothing():
    """An empty page, the last one, and one for which time stood still leave the size as it is."""
    clock = Clock(800, 1)
    clock.page(0.0)
    clock.page(1.0, 0)
    clock.page(1.0, 0, size=30)
    clock.page(1.0, 10, more=False)
    assert (clock.rate.rows, clock.rate.largest) == (800, 800)
    clock.page(1.0, 10)
    assert clock.rate.rows == 10


def test_shrink():
    """A page that did not arrive is asked for with a quarter of the records, down to the least."""
    rate = RateController(1000)
    assert rate.shrink(1000) == 250 == rate.rows
    assert rate.shrink(250) == 100 == rate.rows
    assert rate.shrink(100) == 100 == rate.rows
    assert rate.shrink(40) == 40 == rate.rows
    assert rate.shrink(40, is_too_large=True) == 10 == rate.rows
    assert rate.shrink(3, is_too_large=True) == 1 == rate.rows
    assert rate.shrink(1000, is_too_large=True) == 250
    assert rate.rows == 1


def test_size_that_failed_is_not_tried_again():
    """When a page larger than any before fails, as many records are asked for as arrived before, and never more."""
    clock = Clock(None, 1)
    clock.page(0.1)
    assert clock.rate.shrink(400, is_too_large=True) == 100
    for _ in range(100):
        clock.page(0.1)
        assert clock.rate.rows == 100
    assert clock.rate.shrink(100, is_too_large=True) == 25


def test_rejection_of_a_burst():
    """Many pages in less than a second: 5 % fewer a second are asked for, with those that were in flight."""
    clock = Clock(100, 4)
    for _ in range(19):
        clock.page(0.01)
    clock.rate.start(clock.now)
    clock.reject(wait=3.0)
    assert clock.rate.gap == pytest.approx(1.05 / 19)
    assert clock.rate.delay(clock.now) == pytest.approx(3 + 1.05 / 19)
    page = {"asked": 100, "received": 100, "size": 0, "more": True}
    clock.rate.record_page(**page, started=clock.now - 0.01, now=clock.now + 0.01)
    gap = 1.05 / 20
    assert clock.rate.gap == pytest.approx(gap)
    clock.rate.record_page(**page, started=clock.now, now=clock.now + 3)
    # Another rejection of the same moment only takes a turn for its retry, after the longest wait.
    for wait, delay in ((2.0, 3 + 1.05 / 19 + gap), (4.0, 4 + gap)):
        clock.reject(wait=wait, started=clock.now - 0.01)
        assert clock.rate.gap == pytest.approx(gap)
        assert clock.rate.delay(clock.now) == pytest.approx(delay)


@pytest.mark.parametrize(("pages", "seconds", "gap"), [(4, 0.01, 0.0105), (5, 0.01, 0.21), (5, 0.5, 0.525)])
def test_first_rejection(pages, seconds, gap):
    """After few pages or slow ones, requests start about as far apart as the pages arrived."""
    clock = Clock(100, 4)
    for _ in range(pages):
        clock.page(seconds)
    clock.reject()
    assert clock.rate.gap == pytest.approx(gap)


def test_rejections_after_the_first():
    """The distance grows by 5 %; by up to 20 %, if less was accepted since the first request after the last one."""
    clock = Clock(100, 2)
    clock.page(1.0)
    clock.reject(wait=2.0)
    assert clock.rate.gap == pytest.approx(1.05)
    clock.now += 2
    gap = 1.05
    for seconds, growth in ((0.5, 1.05), (1.05, 1.05), (1.1, 1.1), (1.19, 1.19), (1.21, 1.2), (5.0, 1.2)):
        clock.now += 7  # Until the next request starts, nothing can be accepted.
        for _ in range(3):
            clock.page(seconds * gap)
        clock.reject()
        gap *= growth
        assert clock.rate.gap == pytest.approx(gap)
    # What was sent before the next request says nothing about the new distance.
    clock.reject()
    assert clock.rate.gap == pytest.approx(gap)


def test_rejections_before_anything_arrived():
    """As long as no page arrives, there is nothing to learn but to wait."""
    clock = Clock(100, 1)
    clock.rate.start(clock.now)
    clock.reject(wait=5.0)
    assert clock.rate.gap == 0
    clock.rate.end(clock.now)
    assert clock.rate.delay(clock.now) == 5.0


def test_late_start_delays_the_next_a_little_less():
    """A request that starts late is followed by the next one after 0.03 s less than the distance at the most."""
    clock = Clock(100, 4)
    clock.page(1.0)
    clock.reject()
    rate, begun, gap = clock.rate, clock.now + 1.05, 1.05
    for late, delay in ((0.0, gap), (0.02, gap - 0.02), (0.0, gap), (3.0, gap - 0.03)):
        begun += late
        rate.start(begun)
        assert rate.delay(begun) == pytest.approx(delay)
        rate.end(begun)
        begun += delay
    rate.start(begun)
    assert rate.delay(begun) == pytest.approx(gap)


def test_distance_shrinks_after_a_minute():
    """A minute after a rejection, requests start closer together with each page, by half a percent."""
    clock = Clock(100, 1)
    clock.page(1.0)
    clock.reject()
    clock.page(60.0)
    assert clock.rate.gap == pytest.approx(1.05)
    for _ in range(2):
        clock.page(0.1)
    assert clock.rate.gap == pytest.approx(1.05 * 0.995**2)


def test_speed_is_measured_anew_after_a_rejection():
    """Waiting for a rejected request does not make pages look slow, and larger ones are tried again."""
    clock = Clock(None, 1)
    clock.page(1.0)
    clock.page(10.0)
    assert clock.rate.rows == 100
    clock.reject(wait=1.0)
    clock.page(50.0)
    assert clock.rate.rows == 100
    clock.page(200.0)
    assert clock.rate.rows == 100


class Rate(RateController):
    """Repeats what it gets."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = []

    def rejected(self, **facts):
        self.calls.append(facts)
        super().rejected(**facts)

    def record_page(self, **facts):
        self.calls.append(facts)
        super().record_page(**facts)


def fetcher(fetch, rate, clock=lambda: 0.0):
    return _Fetcher(fetch, Turns(rate, clock=clock))


@pytest.mark.parametrize(("status", "code"), [(429, None), (503, None), (200, "429"), (500, "503"), (502, "502")])
def test_what_a_rejection_is(status, code):
    """Status or code asks to slow down; other errors lead to fewer records."""
    rate = Rate(1000, 1)

    def fetch(since_id, offset, limit, on_transient):
        assert on_transient(OneboxUnavailableError("x", status=status, code=code, retry_after=7.0)) == (
            250 if status == 502 else 1000
        )
        on_transient(OneboxUnavailableError("x", status=status, code=code))
        return Page([1], [], 1, 1, limit, 50)

    times = iter(range(10))
    fetcher(fetch, rate, lambda: float(next(times))).get(0, 0, 1000)
    rejections = [{"started": 1.0, "now": 2.0, "wait": 7.0}, {"started": 9.0, "now": 3.0, "wait": 0}]
    page = {"asked": 1000, "received": 1, "size": 50, "more": False, "started": 3.0, "now": 4.0}
    assert rate.calls == ([{**page, "asked": 100}] if status == 502 else [*rejections, page])


@pytest.mark.parametrize(("total", "rows"), [(None, 60), (261, 60), (260, 100)])
def test_short_page_that_is_not_the_last(total, rows):
    """A page with fewer records than it was asked for shows the server's limit, unless the list ends with it."""
    rate = RateController()
    fetcher(lambda *page: Page([], [], 60, total, 100), rate).get(0, 200, 100)
    assert rate.rows == rows


def test_server_that_gives_one_record_at_most():
    """Where a single record arrived, that is what is asked for when more than that fails."""
    asked = []

    def fetch(since_id, offset, limit, on_transient):
        asked.append(limit)
        if limit > 1:
            raise OneboxResponseError("broken")
        return Page([], [], 1, None, limit)

    pages = fetcher(fetch, RateController())
    for limit in (1, 100, 2):
        assert pages.get(0, 0, limit).asked == 1
    assert asked == [1, 100, 1, 2, 1]
