"""What the triggers of a process share: connections, logins, requests, threads, and the tick they wake up on."""

from __future__ import annotations

import asyncio
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import replace
from functools import cache, partial
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
"""Polls that may fail in a row before a wait fails; those outside Onebox's service hours don't count."""


MAX_POLL_INTERVAL = 3600.0
"""The most seconds between polls, with exponential back-off and outside Onebox's service hours."""


POLL_SECONDS = 120.0
"""Seconds after which a poll without a response has failed."""


LOOK_UP_INTERVAL = 300.0
"""Seconds after which a connection is looked up again; after a failed poll, the next poll does so."""


TICK = 1.0
"""Seconds; triggers wake up on multiples of it, so that those with the same question ask together."""


THREADS = {"polls": 256, "look-ups": 4, "notifications": 4}
"""The most threads of each kind. A Onebox that doesn't respond holds up to :data:`MAX_REQUESTS` of the first."""


MAX_REQUESTS = 4
"""The most requests in flight at once to one site of one Onebox."""


MAX_BUSY = 4
"""The most threads that may have begun their work within the last :data:`BUSY_SECONDS`. These use the processor, which
the event loop needs too; older ones wait for a response and delay nobody."""


BUSY_SECONDS = 0.01
"""The most seconds that a poll or a look-up uses the processor."""


def is_tolerable(error: OneboxError, failures: int, silent_fail: bool) -> bool:
    """Decide whether a wait goes on after a failed poll, in each mode of the sensor.

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
    """Compute how long to wait after a poll outside Onebox's service hours.

    :param error: what the poll raised.
    :param interval: the usual seconds between polls.
    :return: seconds until the service hours that Onebox names begin, :data:`MAX_POLL_INTERVAL` at most, in case they
        are in another time zone; ``interval`` if it names none.
    """
    from airflow_provider_onebox.api.service_hours import seconds_until_opening

    seconds = seconds_until_opening(error.server_message)
    return interval if seconds is None else min(seconds, max(MAX_POLL_INTERVAL, interval))


@cache
def _threads(kind: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS[kind], thread_name_prefix=f"onebox {kind}")


os.register_at_fork(after_in_child=_threads.cache_clear)


async def in_thread(kind: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run blocking code in one of the provider's threads, so that other providers' triggers keep theirs.

    :param kind: which of :data:`THREADS`; for ``polls``, the code must not call Airflow.
    :param function: what to run.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :return: what it returns.
    """
    # On Airflow 3.0 and 3.1, a look-up from a thread that asgiref does not know ends the triggerer.
    from asgiref.sync import sync_to_async

    loop = asyncio.get_running_loop()
    async with _find(_busy, loop, lambda: asyncio.Semaphore(MAX_BUSY)):
        run: Awaitable[T]
        if kind == "polls":
            # Half the processor time of asgiref's way.
            run = loop.run_in_executor(_threads(kind), partial(function, *args, **kwargs))
        else:
            run = sync_to_async(function, thread_sensitive=False, executor=_threads(kind))(*args, **kwargs)
        work = _shared(run)
        await asyncio.wait({work}, timeout=BUSY_SECONDS)
    return await work


def _shared(work: Awaitable[T]) -> asyncio.Future[T]:
    """Start work that several wait for, or nobody any more; its error is then no complaint of the event loop."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class Onebox:
    """One site of one Onebox, asked for all triggers of an event loop together.

    :param settings: the checked connection.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = self._new_client()
        self._rejected_at: float | None = None
        self._turn = asyncio.Semaphore(MAX_REQUESTS)
        # The next questions: the ids after which records count, and the result for the least of them.
        self._questions: dict[Hashable, tuple[list[int], asyncio.Future[tuple[int, int, int | None]]]] = {}

    def _new_client(self) -> OneboxClient:
        from airflow_provider_onebox.api.client import OneboxClient

        # The next poll is the retry: a thread that waits for one is missing elsewhere.
        return OneboxClient(replace(self._settings, max_retries=0))

    def note_rejection(self) -> None:
        """Remember when Onebox first rejected the password; the client does not send it again."""
        if self._rejected_at is None:
            self._rejected_at = time.monotonic()

    def forget_rejection(self) -> None:
        """Let the same password be tried again if its rejection is long ago: Onebox may accept it by now."""
        if self._rejected_at is not None and time.monotonic() - self._rejected_at > LOOK_UP_INTERVAL:
            self._client, self._rejected_at = self._new_client(), None

    async def count_together(
        self, resource: str, after: int, since: str | None = None, last_update: str | None = None
    ) -> tuple[int, int | None]:
        """Count records, with one request for all who ask at the same moment and have the newest record.

        :param resource: what to count.
        :param after: only records with a greater id count.
        :param since: only records created after this time count.
        :param last_update: only records changed after this time count.
        :return: how many there are, and the id of the last one, ``None`` if there is none.
        """
        filters = {"since": since, "last_update": last_update}
        key = (resource, *filters.items())
        if key not in self._questions:
            self._questions[key] = [], _shared(self._count_after_least(key, resource, filters))
        ids, result = self._questions[key]
        ids.append(after)
        least, count, last_id = await result
        if after == least:
            return count, last_id
        # For those who already have the newest record, this says that there is none for them.
        if last_id is None or last_id <= after:
            return 0, None
        async with self._turn:
            return await in_thread("polls", self._client.lists.count, resource, since_id=after, **filters)

    async def _count_after_least(
        self, key: Hashable, resource: str, filters: dict[str, str | None]
    ) -> tuple[int, int, int | None]:
        async with self._turn:
            # Later questions need a later result.
            ids, _ = self._questions.pop(key)
            least = min(ids)
            count = self._client.lists.count
            return least, *await in_thread("polls", count, resource, since_id=least, **filters)

    async def list_ids(self, resource: str, after: int, last_id: int) -> set[int]:
        """List which ids exist in a range.

        :param resource: what to list.
        :param after: only greater ids.
        :param last_id: the greatest id of the range, which bounds the rows that are fetched.
        :return: the ids.
        """

        def list_all() -> set[int]:
            most = last_id - after
            pages = self._client.lists.pages(resource, since_id=after, max_records=most, parallelism=1)
            return {number for page in pages for row in page.rows if (number := int(row["Id"])) <= last_id}

        async with self._turn:
            return await in_thread("polls", list_all)


def _look_up(hook: OneboxHook) -> Settings:
    # This import is slow the first time; here it does not block the event loop, which needs it next.
    import airflow_provider_onebox.api.client  # noqa: F401

    return hook.look_up()


class PolledConnection:
    """A connection as triggers poll it: looked up every few minutes, so that a change is noticed.

    :param conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    """

    # Set by each look-up.
    _good_until: float

    def __init__(self, conn_id: str, site_id: str | int | None) -> None:
        self._hook = OneboxHook(conn_id, site_id=site_id)
        self._onebox: Onebox | None = None
        self._look_up: asyncio.Future[Settings] | None = None

    async def ask(
        self,
        question: Callable[..., Awaitable[T]],
        resource: str,
        *args: Any,
        seconds: float = POLL_SECONDS,
        **kwargs: Any,
    ) -> T:
        """Poll once.

        :param question: a method of :class:`Onebox`.
        :param resource: its first argument.
        :param args: its further arguments.
        :param seconds: the most to wait for the result, :data:`POLL_SECONDS` or less.
        :param kwargs: its keyword arguments.
        :return: the result.
        :raises OneboxError: if there is none. After a rejected login, nothing is sent until the connection changes.
        """
        poll = _shared(self._look_up_and_ask(question, resource, *args, **kwargs))
        seconds = min(seconds, POLL_SECONDS)
        try:
            # The poll goes on when the time is up, because others may wait for it too.
            if not (await asyncio.wait({poll}, timeout=seconds))[0]:
                raise OneboxUnavailableError(
                    f"Connection {self._hook.onebox_conn_id!r}: GET {resource}: no response within {seconds:.0f} s."
                )
            return poll.result()
        except OneboxError:
            self._good_until = 0.0
            raise

    async def _look_up_and_ask(self, question: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        if self._onebox is None or time.monotonic() > self._good_until:
            if self._look_up is None or self._look_up.done():
                # In a new context: Airflow 2 opens a log file for each trigger that logs, and this logs.
                self._look_up = _shared(in_thread("look-ups", Context().run, _look_up, self._hook))
            try:
                settings = await self._look_up
            except OneboxConfigError as error:
                # Airflow also says "not found" while its secrets backend is down, and the connection existed when
                # the wait began.
                error.retryable = True
                raise
            self._onebox = _find(_oneboxes, (asyncio.get_running_loop(), settings), lambda: Onebox(settings))
            self._good_until = time.monotonic() + LOOK_UP_INTERVAL
        try:
            return await question(self._onebox, *args, **kwargs)
        except OneboxAuthError:
            self._onebox.note_rejection()
            raise

    def forget_rejection(self) -> None:
        """Let a password be tried again that Onebox rejected long ago."""
        if self._onebox is not None:
            self._onebox.forget_rejection()


_connections: WeakValueDictionary[Hashable, PolledConnection] = WeakValueDictionary()


_oneboxes: WeakValueDictionary[Hashable, Onebox] = WeakValueDictionary()


_busy: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()


def _find(among: WeakValueDictionary[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    return among.get(key) or among.setdefault(key, make())


def polled_connection(conn_id: str, site_id: str | int | None) -> PolledConnection:
    """Find the connection that the triggers of this event loop share, or make it.

    :param conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    :return: the connection; nothing is looked up yet.
    """
    key = (asyncio.get_running_loop(), str(conn_id), None if site_id is None else str(site_id))
    connection = _find(_connections, key, lambda: PolledConnection(conn_id, site_id))
    connection.forget_rejection()
    return connection
