"""What the triggers of a process share: connections, logins, requests, threads, and the tick they wake up on."""

from __future__ import annotations

import asyncio
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import Context
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from typing import TypeVar

    from airflow_provider_onebox.api.client import OneboxClient
    from airflow_provider_onebox.api.settings import Settings

    T = TypeVar("T")


MAX_FAILED_POLLS = 5
"""Polls that may fail in a row before a wait fails; those outside of Onebox's hours do not count."""


MAX_POLL_INTERVAL = 3600.0
"""Seconds between polls at the most, with exponential back-off and while Onebox is closed."""


POLL_SECONDS = 120.0
"""Seconds after which a poll has failed that has not been answered."""


LOOK_UP_INTERVAL = 300.0
"""Seconds after which a connection is looked up again; after a failed poll it is at once."""


TICK = 1.0
"""Seconds; triggers wake up on multiples of it, so that those who want to know the same ask together."""


THREADS = {"polls": 256, "slow polls": 64, "look-ups": 4}
"""The most threads of each kind: 64 Oneboxes that do not answer hold up nobody else. One that is known not to answer is
polled by the slow ones, one request at a time, so that it takes no thread from those that do."""


SLOW_SECONDS = 1.0
"""Seconds after which a failed poll was slow to fail: the Onebox does not answer. An error at once holds no thread."""


MAX_REQUESTS = 4
"""The most requests in flight at once to one site of one Onebox."""


MAX_BUSY = 4
"""The most threads at once that began to work less than :data:`BUSY_SECONDS` ago. They keep the processor busy, and the
event loop has to wait for its turn among them; older ones wait for an answer and disturb nobody."""


BUSY_SECONDS = 0.01
"""Seconds that a poll or a look-up is busy for at the most."""


def is_tolerable(error: OneboxError, failures: int, silent_fail: bool) -> bool:
    """Decide whether a wait goes on after a failed poll; the sensor asks this too.

    :param error: what the poll raised.
    :param failures: how many polls have failed in a row, this one included.
    :param silent_fail: the sensor's option.
    :return: whether to poll again.
    """
    if isinstance(error, AirflowFailException) and not error.retryable:
        return False
    return silent_fail or (error.retryable and failures <= MAX_FAILED_POLLS)


def until_tick(interval: float) -> float:
    """Lengthen a pause a little, so that it ends together with those of other triggers.

    :param interval: seconds to wait at least.
    :return: up to :data:`TICK` or a tenth more.
    """
    tick = max(min(TICK, interval / 10), 0.001)
    now = time.monotonic()
    return math.ceil((now + interval) / tick) * tick - now


def until_opening(error: OneboxServiceHoursError, interval: float) -> float:
    """Tell how long to wait after a poll outside of Onebox's hours.

    :param error: what the poll raised.
    :param interval: the usual seconds between polls.
    :return: seconds until the hours begin that Onebox names, :data:`MAX_POLL_INTERVAL` at the most, in case they are
        in another time zone; the usual ones if it names none.
    """
    from airflow_provider_onebox.api.service_hours import seconds_until_opening

    seconds = seconds_until_opening(error.server_message)
    return interval if seconds is None else min(seconds, max(MAX_POLL_INTERVAL, interval))


@cache
def _threads(kind: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS[kind], thread_name_prefix=f"onebox {kind}")


os.register_at_fork(after_in_child=_threads.cache_clear)


async def in_thread(kind: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run blocking code in a thread of the provider's own, so that other providers' triggers keep theirs.

    :param kind: of which :data:`THREADS`.
    :param function: what to run.
    :param args: its arguments.
    :param kwargs: its named arguments.
    :return: what it returns.
    """
    # On Airflow 3.0 and 3.1 a look-up from a thread that asgiref does not know ends the triggerer.
    from asgiref.sync import sync_to_async

    run = sync_to_async(function, thread_sensitive=False, executor=_threads(kind))
    async with _find(_busy, asyncio.get_running_loop(), lambda: asyncio.Semaphore(MAX_BUSY)):
        work = _shared(run(*args, **kwargs))
        await asyncio.wait({work}, timeout=BUSY_SECONDS)
    return await work


async def _within(seconds: float, work: Awaitable[T], what: str) -> T:
    """Wait for work that others wait for too; it goes on when the time is up."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        raise OneboxUnavailableError(f"{what} within {seconds:.0f} s.")
    return task.result()


def _shared(work: Awaitable[T]) -> asyncio.Future[T]:
    """Start work whose outcome perhaps nobody waits for any more."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class _Onebox:
    """One site of one Onebox, asked for all triggers of an event loop together."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = self._new_client()
        self.is_slow = False
        self.rejected_at: float | None = None
        self._turn = asyncio.Semaphore(MAX_REQUESTS)
        self._alone = asyncio.Lock()
        # What will be asked next: the ids after which records count, and the answer for the least of them.
        self._questions: dict[Hashable, tuple[list[int], asyncio.Future[tuple[int, int, int | None]]]] = {}

    def _new_client(self) -> OneboxClient:
        from airflow_provider_onebox.api.client import OneboxClient

        # The next poll is the retry: a thread that waits for one is missing elsewhere.
        return OneboxClient(replace(self.settings, max_retries=0))

    def forget_rejection(self) -> None:
        """Let the same password be tried again if its rejection is long ago: perhaps Onebox knows it by now."""
        if self.rejected_at is not None and time.monotonic() - self.rejected_at > LOOK_UP_INTERVAL:
            self.client, self.rejected_at = self._new_client(), None

    async def count(self, resource: str, after: int, filters: dict[str, str | None]) -> tuple[int, int | None]:
        key = (resource, *filters.items())
        if key not in self._questions:
            self._questions[key] = [], _shared(self._ask_for_all(key, resource, filters))
        ids, answer = self._questions[key]
        ids.append(after)
        least, count, last_id = await answer
        if after == least:
            return count, last_id
        # Those who already have the newest record learn from it that there is none for them.
        if last_id is None or last_id <= after:
            return 0, None
        async with self._turn:
            return await self._ask(resource, after, filters)

    async def _ask_for_all(
        self, key: Hashable, resource: str, filters: dict[str, str | None]
    ) -> tuple[int, int, int | None]:
        async with self._turn:
            # Who comes from now on asks anew.
            ids, _ = self._questions.pop(key)
            least = min(ids)
            return least, *await self._ask(resource, least, filters)

    async def _ask(self, resource: str, after: int, filters: dict[str, str | None]) -> tuple[int, int | None]:
        async with self._alone if self.is_slow else nullcontext():
            kind = "slow polls" if self.is_slow else "polls"
            try:
                return await in_thread(kind, self._count, resource, since_id=after, **filters)
            except OneboxAuthError:
                if self.rejected_at is None:
                    self.rejected_at = time.monotonic()
                raise

    def _count(self, resource: str, **query: Any) -> tuple[int, int | None]:
        # Timed in the thread: how long a poll has waited for one says nothing about the Onebox.
        began, is_slow = time.monotonic(), False
        try:
            return self.client.count_records(resource, **query)
        except OneboxUnavailableError:
            is_slow = time.monotonic() - began > SLOW_SECONDS
            raise
        finally:
            self.is_slow = is_slow


def _look_up(hook: OneboxHook) -> Settings:
    # Takes long the first time; here it does not block the event loop, which needs it next.
    import airflow_provider_onebox.api.client  # noqa: F401

    return hook.look_up()


class PolledConnection:
    """A connection as triggers poll it: looked up now and then, so that a changed one is noticed.

    :param conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    """

    # Set by each look-up.
    _good_until: float

    def __init__(self, conn_id: str, site_id: str | int | None) -> None:
        self._hook = OneboxHook(conn_id, site_id=site_id)
        self._onebox: _Onebox | None = None
        self._look_up: asyncio.Future[Settings] | None = None

    async def count(
        self,
        resource: str,
        since_id: int | str | None = None,
        *,
        since: str | None = None,
        last_update: str | None = None,
        seconds: float = POLL_SECONDS,
    ) -> tuple[int, int | None]:
        """Poll once, together with the triggers that do so in the same moment.

        :param resource: what to count.
        :param since_id: only records with a greater id count.
        :param since: only records created after this time count.
        :param last_update: only records changed after this time count.
        :param seconds: how long to wait for the answer at the most.
        :return: how many there are, and the id of the last one.
        :raises OneboxError: if Onebox can't be asked. After a rejected login, nothing is sent until the connection
            has changed.
        """
        from airflow_provider_onebox.api.arguments import as_id

        after = as_id("since_id", since_id)
        poll = self._count(resource, after, {"since": since, "last_update": last_update})
        where = f"Connection {self._hook.onebox_conn_id!r}: GET {resource}: no answer"
        try:
            return await _within(min(seconds, POLL_SECONDS), _shared(poll), where)
        except OneboxError:
            self._good_until = 0.0
            raise

    async def _count(self, resource: str, after: int, filters: dict[str, str | None]) -> tuple[int, int | None]:
        if self._onebox is None or time.monotonic() > self._good_until:
            if self._look_up is None or self._look_up.done():
                # In a context of its own, for Airflow 2 opens a log file for each trigger that logs, and this logs.
                self._look_up = _shared(in_thread("look-ups", Context().run, _look_up, self._hook))
            try:
                settings = await self._look_up
            except OneboxConfigError as error:
                # Airflow says "not found" of a secrets backend that is away as well, and the connection was there
                # when the wait began.
                error.retryable = True
                raise
            self._onebox = _find(_oneboxes, (asyncio.get_running_loop(), settings), lambda: _Onebox(settings))
            self._good_until = time.monotonic() + LOOK_UP_INTERVAL
        return await self._onebox.count(resource, after, filters)


_connections: WeakValueDictionary[Hashable, PolledConnection] = WeakValueDictionary()


_oneboxes: WeakValueDictionary[Hashable, _Onebox] = WeakValueDictionary()


_busy: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()


def _find(among: WeakValueDictionary[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    return among.get(key) or among.setdefault(key, make())


def polled_connection(conn_id: str, site_id: str | int | None) -> PolledConnection:
    """Find the connection that the triggers of this event loop share, or make it.

    :param conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    :return: the connection; nothing is looked up yet.
    """
    key = (asyncio.get_running_loop(), conn_id, None if site_id is None else str(site_id))
    connection = _find(_connections, key, lambda: PolledConnection(conn_id, site_id))
    if connection._onebox is not None:
        connection._onebox.forget_rejection()
    return connection
