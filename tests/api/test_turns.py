"""When requests start, and what the rate controller learns of them."""

from __future__ import annotations

import math
import threading
from concurrent.futures import CancelledError

import pytest

from airflow_provider_onebox.api.rate import RateController
from airflow_provider_onebox.api.turns import Turns
from airflow_provider_onebox.exceptions import OneboxResponseError, OneboxUnavailableError


class Rate(RateController):
    """Repeats what it gets."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = []

    def rejected(self, **details):
        self.calls.append(details)
        super().rejected(**details)

    def record_page(self, **details):
        self.calls.append(details)
        super().record_page(**details)


def turns_of(rate, clock=lambda: 0.0):
    return Turns(rate, clock=clock)


def test_no_turn_after_the_end():
    """Once nobody waits for requests, none starts."""
    turns = turns_of(RateController())
    turns.close()
    with pytest.raises(CancelledError), turns.turn():
        pytest.fail("a request started")


def test_request_is_in_flight_until_its_turn_ends():
    """No other request starts while one is in flight, if one is the most; then the next one does."""
    rate = RateController(1, 1)
    turns = turns_of(rate)

    def call(on_transient):
        assert rate.delay(0.0) == math.inf
        return "response"

    def fail(on_transient):
        raise OneboxResponseError("x")

    assert turns.take(call) == "response"
    with pytest.raises(OneboxResponseError):
        turns.take(fail)
    assert turns.take(call) == "response"


@pytest.mark.parametrize("status", [429, 503, 502])
def test_call(status):
    """A call that is rejected slows the others down, one that fails does not; the query stays as it is."""
    rate = Rate(1)

    def call(on_transient):
        assert on_transient(OneboxUnavailableError("x", status=status, retry_after=7.0)) is None
        assert on_transient(OneboxUnavailableError("x", status=status)) is None

    times = iter(range(10))
    turns_of(rate, lambda: float(next(times))).take(call)
    rejections = [{"started": 1.0, "now": 2.0, "wait": 7.0}, {"started": 9.0, "now": 3.0, "wait": 0}]
    page = {"asked": 1, "received": 1, "size": 0, "more": True, "started": 3.0, "now": 4.0}
    assert rate.calls == [*(rejections if status != 502 else []), page]


class Waiting:
    """A request that waits for its turn, since another is in flight."""

    def __init__(self):
        self.rate = RateController(1, 1)
        self.turns = turns_of(self.rate, self.clock)
        self.response = None
        self.thread = threading.Thread(target=self.get, daemon=True)
        self.has_looked = threading.Event()

    def clock(self):
        if threading.current_thread() is self.thread:
            self.has_looked.set()
        return 0.0

    def begin(self):
        """Return when the request waits, or is about to and keeps everybody else out until it does."""
        self.thread.start()
        assert self.has_looked.wait(10)

    def get(self):
        try:
            self.response = self.turns.take(lambda on_transient: "response")
        except CancelledError:
            self.response = "cancelled"

    def end(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.response


def test_request_that_waits_comes_next():
    """The end of one request is the turn of one that waits."""
    waiting = Waiting()
    with waiting.turns.turn():
        waiting.begin()
    assert waiting.end() == "response"


def test_request_that_waits_is_dropped():
    """When nobody waits any more, a request stops waiting at once, even while another is in flight."""
    waiting = Waiting()
    with waiting.turns.turn():
        waiting.begin()
        waiting.turns.close()
        assert waiting.end() == "cancelled"


def test_request_that_waits_for_a_time():
    """After a rejection, a request starts when the time is up, though nothing has ended meanwhile."""
    turns = Turns(RateController(1, 2))
    with turns.turn() as turn:
        assert turn.is_rejected(OneboxUnavailableError("x", status=502)) is False
        assert turn.is_rejected(OneboxUnavailableError("x", status=429, retry_after=0.2)) is True
        begun = turns.clock()
        turns.take(lambda on_transient: None)
        assert turns.clock() - begun > 0.15
