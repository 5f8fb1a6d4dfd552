"""Triggers: the hook's own poll, off the event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_onebox._airflow.compat import HAS_EVENT_TRIGGERS, BaseEventTrigger, SharedStreamProducer
from airflow_provider_onebox.exceptions import OneboxError, OneboxServiceHoursError, OneboxUnavailableError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.triggers._polling import (
    MAX_POLL_INTERVAL,
    is_tolerable,
    polled_connection,
    until_opening,
    until_tick,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

LAST_POLL_SECONDS = 1.0
"""Seconds that the poll at the deadline may take."""


class _OneboxTrigger(BaseTrigger):
    """What both triggers share: they are stored as the arguments that they were made with."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Describe this trigger to Airflow.

        :return: the path of the class and the arguments to make it with.
        """
        cls = type(self)
        names = inspect.signature(cls).parameters
        return f"{cls.__module__}.{cls.__qualname__}", {name: getattr(self, name) for name in names}


class OneboxRecordTrigger(_OneboxTrigger):
    """Wait until a resource has new records.

    Its arguments are ids and an absolute deadline, and no secret, so it can restart in another triggerer at any
    time. Its event has a ``status``: ``success`` with ``count`` and ``last_id``, ``timeout``, or ``error`` with the
    error's class, message and attributes.

    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
    :param since_id: only records with a greater id count.
    :param since: only records created after this time count, ``YYYY-MM-DD HH:MM`` in Onebox's own zone.
    :param last_update: only records changed after this time count, in the same form.
    :param min_count: how many there must be.
    :param poke_interval: seconds between polls, plus up to one, so that triggers poll together. Outside Onebox's
        hours, the next poll waits for them.
    :param exponential_backoff: whether that time doubles with each poll.
    :param max_wait: the most seconds between polls, with ``exponential_backoff``.
    :param silent_fail: whether to tolerate any number of failed polls, except for an error that a retry can't fix.
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

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until there are enough new records, time is up, or polling is hopeless.

        :return: one event.
        """
        connection = polled_connection(self.onebox_conn_id, self.site_id)
        failures, interval = 0, self.poke_interval
        while True:
            pause = until_tick(interval)
            try:
                count, last_id = await connection.count(
                    self.resource,
                    self.since_id,
                    since=self.since,
                    last_update=self.last_update,
                    seconds=max(self._left(), LAST_POLL_SECONDS),
                )
                failures = 0
                if count >= self.min_count:
                    last = None if last_id is None else str(last_id)
                    yield TriggerEvent({"status": "success", "count": count, "last_id": last})
                    return
            except OneboxServiceHoursError as error:
                failures, pause = 0, until_opening(error, pause)
                self.log.info("Onebox is closed, next poll in %.0f s: %s", pause, error)
            except OneboxError as error:
                failures += 1
                if not is_tolerable(error, failures, self.silent_fail):
                    yield TriggerEvent({"status": "error", **describe(error)})
                    return
                self.log.warning("Poll failed (%d in a row), continuing: %s", failures, error)
            if self._left() <= 0:
                yield TriggerEvent({"status": "timeout"})
                return
            await asyncio.sleep(min(pause, self._left()))
            if self.exponential_backoff:
                interval = min(interval * 2, self.max_wait or max(MAX_POLL_INTERVAL, self.poke_interval))

    def _left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.time()


def describe(error: OneboxError) -> dict[str, Any]:
    """Put an error into an event, so that the task raises the same.

    :param error: the error.
    :return: its class, message and details, as JSON has it.
    """
    return {"error": type(error).__name__, "message": str(error), "details": vars(error)}


class _Turns(SharedStreamProducer):
    """Lets a watcher poll, and again when Airflow has stored what came of it. Airflow 3.3 runs it."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._stored = asyncio.Event()

    async def open_stream(self) -> AsyncIterator[tuple[Any, Any]]:
        while True:
            yield None, None
            await self._stored.wait()
            self._stored.clear()
            await asyncio.sleep(until_tick(self._interval))

    async def advance(self, batch: Sequence[Any]) -> None:  # noqa: ARG002 - there is one turn at a time
        self._stored.set()


class OneboxNewRecordsTrigger(_OneboxTrigger, BaseEventTrigger):
    """Watch a resource for an asset: whenever there are new records, an event says which.

    For use with ``AssetWatcher``. The event's payload is ``{"resource", "count", "since_id", "last_id"}``: records
    with ids greater than ``since_id`` up to ``last_id``, so a DAG that it schedules knows what to list.

    On Airflow 3.3 and later, no event is lost: each asset has a watermark in its state store, which moves only after
    Airflow confirms that the event is stored. An event can come twice, after a restart of the triggerer or when the
    same trigger watches another asset: it then starts at the lower of their watermarks. Airflow 3.0 to 3.2 keep no
    state for watchers and confirm nothing: after a restart, the watcher starts from ``since_id``, or from now if it is
    not set, and does not report records that arrived while the triggerer was down.

    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
    :param since_id: where to start the first time; from now if ``None``.
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
        if not HAS_EVENT_TRIGGERS:
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

    def shared_stream_key(self) -> str:
        """Tell Airflow 3.3 to run this trigger with acknowledgements, by itself.

        :return: what no other trigger has.
        """
        return str(self.serialize())

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Give Airflow 3.3 what it acknowledges.

        :param kwargs: the trigger's arguments.
        :return: what lets the trigger poll.
        """
        return _Turns(kwargs["poll_interval"])

    def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Poll at each turn; Airflow 3.3 calls this in place of :meth:`run`.

        :param shared_stream: the turns, each of which comes when the events of the one before are stored.
        :return: an event for each time that there are new records.
        """
        return self._watch(shared_stream)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for ever; a failed poll is logged, and the next one goes on from the same place.

        :return: an event for each time that there are new records.
        """

        async def turns() -> AsyncIterator[None]:
            while True:
                yield
                await asyncio.sleep(until_tick(self.poll_interval))

        async for event in self._watch(turns()):
            yield event

    async def _watch(self, turns: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        connection = polled_connection(self.onebox_conn_id, self.site_id)
        after: int | None = None
        saved = True
        async for _ in turns:
            try:
                if after is None:
                    after = await self._load()
                if after is None:
                    _, newest = await connection.count(self.resource)
                    after, saved = newest or 0, False
                if not saved:
                    await self._save(after)
                    saved = True
                count, last_id = await connection.count(self.resource, after)
            except OneboxServiceHoursError as error:
                self.log.info("Onebox is closed, continuing: %s", error)
                continue
            except OneboxError as error:
                self.log.error("Poll for new %s records failed, continuing: %s", self.resource, error)
                continue
            if last_id is not None:
                payload = {"resource": self.resource, "count": count, "since_id": str(after), "last_id": str(last_id)}
                yield TriggerEvent(payload)
                # A watermark that moves too early loses an event: it is saved in the next turn.
                after, saved = last_id, False

    @property
    def _key(self) -> str:
        # As the first version wrote it.
        return f"onebox_mark.{self.onebox_conn_id}.{self.site_id or ''}.{self.resource}"

    def _stores(self) -> list[Any]:
        """List the state stores of the assets that this trigger watches; none before Airflow 3.3."""
        stores = getattr(self, "asset_state_store", None)
        if stores is None:
            return []
        # Nothing public lists them, and nothing tells a trigger which assets it watches.
        return [*vars(stores).get("_by_name", {}).values()] or [stores]

    async def _load(self) -> int | None:
        from airflow_provider_onebox.api.arguments import as_id

        watermarks = [await _ask(store.aget(self._key)) for store in self._stores()] or [None]
        begin = [self.since_id if watermark is None else watermark for watermark in watermarks]
        return min((as_id("since_id", record_id) for record_id in begin if record_id is not None), default=None)

    async def _save(self, watermark: int) -> None:
        for store in self._stores():
            await _ask(store.aset(self._key, watermark))


async def _ask(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except Exception as error:  # noqa: BLE001 - Airflow has errors of several kinds here
        raise OneboxUnavailableError(f"Airflow's asset state store does not answer: {error}") from None
