"""Starts requests when a rate controller allows it, from several threads."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_onebox.api.rate import RateController
    from airflow_provider_onebox.exceptions import OneboxError


class Turns:
    """The turns of requests that share a rate controller; safe to share between threads.

    :param rate: decides when a request starts.
    :param abandoned: set when nobody waits for the requests any more.
    :param clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        rate: RateController,
        abandoned: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self.clock = clock
        self.changed = threading.Condition()
        self._abandoned = abandoned or threading.Event()

    def close(self) -> None:
        """Start no more requests."""
        with self.changed:
            self._abandoned.set()
            self.changed.notify_all()

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Wait until a request may start; it ends with the block.

        :return: the turn.
        :raises CancelledError: if nobody waits for the request any more.
        """
        rate, changed = self.rate, self.changed
        with changed:
            while (delay := rate.delay(self.clock())) and not self._abandoned.is_set():
                changed.wait(None if delay == math.inf else delay)
            if self._abandoned.is_set():
                raise CancelledError
            turn = Turn(self)
            rate.start(turn.started)
        try:
            yield turn
        finally:
            with changed:
                rate.end(self.clock())
                changed.notify_all()

    def take(self, call: Callable[..., Any]) -> Any:
        """Make a call when its turn has come.

        :param call: makes it, given ``on_transient`` as :meth:`OneboxClient._call` takes it.
        :return: what it returns.
        """
        with self.turn() as turn:

            def on_transient(error: OneboxError) -> None:
                turn.is_rejected(error)

            result = call(on_transient=on_transient)
            turn.arrived(asked=1, received=1, size=0, more=True)
            return result


class Turn:
    """The turn of one request.

    :param turns: those that it is one of.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.started = turns.clock()

    def is_rejected(self, error: OneboxError) -> bool:
        """Note an error after which the request is sent again.

        :param error: the error; its ``retry_after`` is the time until then.
        :return: whether Onebox asks to slow down; then the other requests wait, too.
        """
        is_rejected = bool({str(error.status), error.code} & {"429", "503"})
        with self._turns.changed:
            now, wait = self._turns.clock(), error.retry_after or 0
            if is_rejected:
                self._turns.rate.rejected(started=self.started, now=now, wait=wait)
            self.started = now + wait
        return is_rejected

    def arrived(self, **page: Any) -> None:
        """Note the response.

        :param page: what :meth:`RateController.record_page` learns from, without the times.
        """
        with self._turns.changed:
            self._turns.rate.record_page(**page, started=self.started, now=self._turns.clock())
