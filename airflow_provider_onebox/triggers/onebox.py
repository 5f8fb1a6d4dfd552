"""Triggers: the hook's own poll, off the event loop."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowOptionalProviderFeatureException
from airflow.triggers.base import BaseTrigger, TriggerEvent

try:
    from airflow.triggers.base import BaseEventTrigger
except ImportError:
    BaseEventTrigger = BaseTrigger  # type: ignore[misc,assignment]

from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxError
from airflow_provider_onebox.hooks.onebox import OneboxHook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable

    from airflow_provider_onebox.client import OneboxClient
    from airflow_provider_onebox.settings import Settings

MAX_FAILED_POLLS = 5
"""Polls that may fail in a row, each after the retries of its call, before the wait fails."""

MAX_POLL_INTERVAL = 3600.0
"""Seconds that waits between polls grow to at the most, with exponential back-off."""

EVENT_SETTLES = 5.0
"""Seconds after which Airflow has stored an event; until then the triggerer alone knows of it."""

TICK = 1.0
"""Seconds; triggers wake up on multiples of it, so that those who want to know the same ask together."""


def is_tolerable(error: OneboxError, failures: int, silent_fail: bool) -> bool:
    """Decide whether a wait goes on after a failed poll; the sensor asks this too.

    :param error: what the poll raised.
    :param failures: how many polls have failed in a row, this one included.
    :param silent_fail: the sensor's option.
    :return: whether to poll again.
    """
    if isinstance(error, AirflowFailException):
        return False
    return silent_fail or (error.retryable and failures <= MAX_FAILED_POLLS)


async def in_thread(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Run blocking code off the event loop, where it may still look up connections.

    :param function: what to run.
    :param args: its arguments.
    :param kwargs: its named arguments.
    :return: what it returns.
    """
    # asyncio.to_thread would do, but on Airflow 3.0 and 3.1 a look-up from a thread that asgiref has not made
    # ends the triggerer.
    from asgiref.sync import sync_to_async

    return await sync_to_async(function, thread_sensitive=False)(*args, **kwargs)


# What this process's triggers share: a login and its connections. A changed connection has other settings, and
# what no trigger waits with is gone.
_clients: WeakValueDictionary[Settings, OneboxClient] = WeakValueDictionary()
_lock = threading.Lock()


def shared_client(conn_id: str, site_id: str | int | None, refused: OneboxClient | None = None) -> OneboxClient:
    """Read the connection and find the client that the triggers with the same settings share.

    :param conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    :param refused: a client whose login was refused; it is returned if the connection is still the same, so that
        the same password is not tried again.
    :return: the client.
    :raises OneboxConfigError: if the connection can't work.
    """
    client = OneboxHook(conn_id, site_id=site_id).client
    if refused and refused.settings == client.settings:
        return refused
    with _lock:
        return _clients.setdefault(client.settings, client)


def count_records(client: OneboxClient, resource: str, **query: Any) -> tuple[int, int | None]:
    """Poll once; the arguments are those of ``OneboxHook.count_records``.

    :param client: the client; if its login is refused, it is shared with no further trigger.
    :param resource: what to count.
    :param query: which records count.
    :return: how many there are, and the id of the last one.
    :raises OneboxError: if Onebox can't be asked.
    """
    try:
        return client.count_records(resource, **query)
    except OneboxAuthError:
        with _lock:
            if _clients.get(client.settings) is client:
                del _clients[client.settings]
        raise


# What is asked in this turn of the event loop: the ids after which records count, and the answer for the least.
_polls: dict[Hashable, tuple[list[int], asyncio.Task[tuple[int, int, int | None]]]] = {}


async def count_together(
    client: OneboxClient, resource: str, since_id: int | str | None = None, **filters: str | None
) -> tuple[int, int | None]:
    """Poll once, together with the triggers that do so in the same moment.

    One request is made, after the least of their ids. Those that already have the newest record learn from it
    that there is none for them; only the others ask for themselves.

    :param client: the client.
    :param resource: what to count.
    :param since_id: only records with a greater id count.
    :param filters: ``since`` and ``last_update``.
    :return: how many there are, and the id of the last one.
    :raises OneboxError: if Onebox can't be asked.
    """
    from airflow_provider_onebox.listing import as_id

    after = as_id(since_id)
    key = (client, resource, *filters.items())

    async def ask() -> tuple[int, int, int | None]:
        ids, _ = _polls.pop(key)
        least = min(ids)
        return least, *await in_thread(count_records, client, resource, since_id=least, **filters)

    if key not in _polls or _polls[key][1].done():
        _polls[key] = [], asyncio.ensure_future(ask())
    ids, answer = _polls[key]
    ids.append(after)
    least, count, last_id = await asyncio.shield(answer)
    if after == least:
        return count, last_id
    if last_id is None or last_id <= after:
        return 0, None
    found: tuple[int, int | None] = await in_thread(count_records, client, resource, since_id=after, **filters)
    return found


def until_tick(interval: float) -> float:
    """Lengthen a pause a little, so that it ends together with those of other triggers.

    :param interval: seconds to wait at least.
    :return: up to :data:`TICK` or a tenth more.
    """
    tick = max(min(TICK, interval / 10), 0.001)
    now = time.monotonic()
    return math.ceil((now + interval) / tick) * tick - now


class OneboxRecordTrigger(BaseTrigger):
    """Wait until a resource has new records.

    Carries ids and an absolute deadline, and no secret, so that it can begin anew in another triggerer at any
    time. Its event holds ``status``: ``success`` with ``count`` and ``last_id``, ``timeout``, or ``error`` with the
    error's class, message and evidence.

    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
    :param since_id: only records with a greater id count.
    :param since: only records created after this time count, ``YYYY-MM-DD HH:MM`` in Onebox's own zone.
    :param last_update: only records changed after this time count, in the same form.
    :param min_count: how many there must be.
    :param poke_interval: seconds between polls, up to one more, so that triggers ask together.
    :param exponential_backoff: whether that time doubles with each poll.
    :param max_wait: seconds that it grows to at the most.
    :param silent_fail: whether to go on after any failed poll that does not rule out success.
    :param deadline: when to give up, in seconds of Unix time; ``None`` for never.
    :param onebox_conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    """

    def __init__(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        since: str | None = None,
        last_update: str | None = None,
        min_count: int = 1,
        poke_interval: float = 60.0,
        exponential_backoff: bool = False,
        max_wait: float | None = None,
        silent_fail: bool = False,
        deadline: float | None = None,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.resource = resource
        self.since_id = since_id
        self.since = since
        self.last_update = last_update
        self.min_count = min_count
        self.poke_interval = poke_interval
        self.exponential_backoff = exponential_backoff
        self.max_wait = max_wait
        self.silent_fail = silent_fail
        self.deadline = deadline
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Describe this trigger to Airflow.

        :return: the path of the class and the arguments to make it with.
        """
        names = (
            "resource since_id since last_update min_count poke_interval exponential_backoff max_wait silent_fail "
            "deadline onebox_conn_id site_id"
        )
        return _path(type(self)), {name: getattr(self, name) for name in names.split()}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until there are enough new records, time is up, or polling is hopeless.

        :return: one event.
        """
        client = None
        failures, interval = 0, self.poke_interval
        while True:
            try:
                client = client or await in_thread(shared_client, self.onebox_conn_id, self.site_id)
                count, last_id = await count_together(
                    client, self.resource, self.since_id, since=self.since, last_update=self.last_update
                )
                failures = 0
                if count >= self.min_count:
                    yield TriggerEvent({"status": "success", "count": count, "last_id": _text(last_id)})
                    return
            except OneboxError as error:
                failures += 1
                if not is_tolerable(error, failures, self.silent_fail):
                    yield TriggerEvent({"status": "error", **describe(error)})
                    return
                self.log.warning("Poll failed (%d in a row), going on: %s", failures, error)
            left = float("inf") if self.deadline is None else self.deadline - time.time()
            if left <= 0:
                yield TriggerEvent({"status": "timeout"})
                return
            await asyncio.sleep(min(until_tick(interval), left))
            if self.exponential_backoff:
                interval = min(interval * 2, self.max_wait or MAX_POLL_INTERVAL)


def describe(error: OneboxError) -> dict[str, Any]:
    """Put an error into an event, so that the task raises the same.

    :param error: the error.
    :return: its class, message and evidence, as JSON has it.
    """
    return {"error": type(error).__name__, "message": str(error), "evidence": vars(error)}


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _text(record_id: int | None) -> str | None:
    return None if record_id is None else str(record_id)


class OneboxNewRecordsTrigger(BaseEventTrigger):
    """Watch a resource for an asset: each time there are new records, an event says which.

    For use with ``AssetWatcher``. The event's payload is ``{"resource", "count", "since_id", "last_id"}``: records
    with ids greater than ``since_id`` up to ``last_id``, so a DAG that it schedules knows what to list. An event can
    come twice after a restart of the triggerer, and none is left out; on Airflow 3.0 to 3.2, which keep no
    state for watchers, a restart begins again at ``since_id``, or at the present if there is none.

    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
    :param since_id: where to begin the first time; at the present if ``None``.
    :param poll_interval: seconds between polls.
    :param onebox_conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    :raises AirflowOptionalProviderFeatureException: on Airflow 2.11.
    """

    def __init__(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        poll_interval: float = 60.0,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
    ) -> None:
        if BaseEventTrigger is BaseTrigger:
            raise AirflowOptionalProviderFeatureException(
                "OneboxNewRecordsTrigger schedules DAGs by events, which Airflow has from 3.0 on. On Airflow 2.11 use "
                "OneboxRecordSensor at the start of a scheduled DAG."
            )
        super().__init__()  # type: ignore[no-untyped-call]
        self.resource = resource
        self.since_id = since_id
        self.poll_interval = poll_interval
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Describe this trigger to Airflow.

        :return: the path of the class and the arguments to make it with.
        """
        names = "resource since_id poll_interval onebox_conn_id site_id"
        return _path(type(self)), {name: getattr(self, name) for name in names.split()}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for ever; a failed poll is logged, and the next one goes on from the same place.

        :return: an event for each time that there are new records.
        """
        client = refused = None
        store = getattr(self, "asset_state_store", None)
        key = f"onebox_mark.{self.onebox_conn_id}.{self.site_id or ''}.{self.resource}"
        after: Any = None if store is None else await store.aget(key)
        after = self.since_id if after is None else after
        while True:
            try:
                client = client or await in_thread(shared_client, self.onebox_conn_id, self.site_id, refused)
                if after is None:
                    _, after = await count_together(client, self.resource)
                    after = after or 0
                    if store is not None:
                        await store.aset(key, after)
                count, last_id = await count_together(client, self.resource, after)
            except OneboxError as error:
                if isinstance(error, OneboxAuthError):
                    client, refused = None, client
                self.log.error("Poll for new %s records failed, going on: %s", self.resource, error)
                count, last_id = 0, None
            if last_id is not None:
                payload = {
                    "resource": self.resource,
                    "count": count,
                    "since_id": str(after),
                    "last_id": str(last_id),
                }
                yield TriggerEvent(payload)
                # A mark that moves too late lets an event come twice; one that moves too early, never.
                await asyncio.sleep(EVENT_SETTLES)
                after = last_id
                if store is not None:
                    await store.aset(key, after)
            await asyncio.sleep(until_tick(self.poll_interval))
