"""Triggers: they poll Onebox as the hook does, outside the event loop."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
import traceback
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_onebox._airflow.compat import HAS_EVENT_TRIGGERS, BaseEventTrigger, SharedStreamProducer
from airflow_provider_onebox.api.arguments import as_id, parse_id, whole_number
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
    reason_of,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.triggers._polling import (
    MAX_POLL_INTERVAL,
    Onebox,
    is_tolerable,
    polled_connection,
    until_opening,
    until_tick,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence

    from airflow_provider_onebox.triggers._polling import PolledConnection

LAST_POLL_SECONDS = 1.0
"""Seconds that the poll at the deadline may take."""

OVERLAP = 100
"""How many ids behind the greatest one a watcher checks for late records, by default."""

MAX_OVERLAP = 10_000
"""The most ids to check, which bounds a watcher's state."""


class _OneboxTrigger(BaseTrigger):
    """Both triggers are stored as the arguments that they were made with."""

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
    time. It always ends with one event, which has a ``status``: ``success`` with ``count`` and ``last_id``,
    ``timeout``, or ``error`` with the error's class (``error``), ``message`` and attributes (``details``).

    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
    :param since_id: only records with a greater id count.
    :param since: only records created after this time count, ``YYYY-MM-DD HH:MM`` in Onebox's own zone, or followed
        by an offset if the connection has a time zone.
    :param last_update: only records changed after this time count, in the same form.
    :param min_count: how many there must be.
    :param poke_interval: seconds between polls, plus up to one, so that triggers poll together. Outside Onebox's
        service hours, the next poll waits until they begin.
    :param exponential_backoff: whether that time doubles with each poll.
    :param max_wait: the most seconds between polls, with ``exponential_backoff``.
    :param silent_fail: whether to tolerate any number of failed polls, except for an error that a retry can't fix.
    :param deadline: when the wait times out, in seconds of Unix time; ``None`` for never.
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
        """Poll until there are enough new records, time is up, or an error ends the wait.

        :return: one event.
        """
        try:
            payload = await self._wait()
        except Exception as error:  # noqa: BLE001 - a trigger that dies leaves its task without a reason
            payload = {"status": "error", **describe(error)}
        yield TriggerEvent(payload)

    async def _wait(self) -> dict[str, Any]:
        after = as_id("since_id", self.since_id)
        connection = polled_connection(self.onebox_conn_id, self.site_id)
        failures, interval = 0, self.poke_interval
        while True:
            pause = until_tick(interval)
            try:
                count, last_id = await connection.ask(
                    Onebox.count_together,
                    self.resource,
                    after,
                    self.since,
                    self.last_update,
                    seconds=max(self._left(), LAST_POLL_SECONDS),
                )
                failures = 0
                if count >= self.min_count:
                    return {"status": "success", "count": count, "last_id": None if last_id is None else str(last_id)}
            except OneboxServiceHoursError as error:
                failures, pause = 0, until_opening(error, pause)
                self.log.info("Outside service hours, next poll in %.0f s: %s", pause, error)
            except Exception as error:  # noqa: BLE001 - silent_fail tolerates each in poke mode too
                failure = as_onebox_error(error)
                failures += 1
                if not is_tolerable(failure, failures, self.silent_fail):
                    raise failure from None
                self.log.warning("Poll failed (%d in a row), continuing: %s", failures, failure)
            if self._left() <= 0:
                return {"status": "timeout"}
            await asyncio.sleep(min(pause, self._left()))
            if self.exponential_backoff:
                interval = min(interval * 2, self.max_wait or max(MAX_POLL_INTERVAL, self.poke_interval))

    def _left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.time()


def as_onebox_error(error: Exception) -> OneboxError:
    """Make an error of this provider of any error.

    :param error: the error.
    :return: the same if it is one, else one that says where it was raised, without its message: that of an
        unexpected error could hold a secret.
    """
    if isinstance(error, OneboxError):
        return error
    place = traceback.extract_tb(error.__traceback__)[-1]
    return OneboxError(
        f"The trigger failed with an unexpected {type(error).__name__} in {PurePath(place.filename).name}, line "
        f"{place.lineno}. If its arguments are right, this is a defect of the provider: please report it."
    )


def describe(error: Exception) -> dict[str, Any]:
    """Put an error into an event, so that the task raises the same.

    :param error: the error.
    :return: its class, message and details, as JSON has it.
    """
    error = as_onebox_error(error)
    return {"error": type(error).__name__, "message": str(error), "details": vars(error)}


class _Turns(SharedStreamProducer):
    """Lets a watcher poll again after Airflow has stored the event of its last poll. Airflow 3.3 runs it."""

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


class _Window(NamedTuple):
    """The ids that a watcher knows among those where late records can still appear.

    Ids do not always become visible in order: a transaction that commits late shows an id after greater ones.

    :param after: ids up to this one are no longer checked.
    :param last_id: the greatest id that was reported.
    :param known: the ids in between that exist.
    """

    after: int
    last_id: int
    known: frozenset[int] = frozenset()

    def to_json(self) -> dict[str, Any]:
        return {"after": self.after, "last_id": self.last_id, "known": sorted(self.known)}

    @classmethod
    def from_json(cls, key: str, stored: Any) -> _Window:
        try:
            after, last_id, *known = map(parse_id, (stored["after"], stored["last_id"], *stored["known"]))
        except (TypeError, KeyError):
            after, last_id, known = None, None, []
        if after is None or last_id is None or None in known:
            raise OneboxConfigError(
                f"Airflow's asset state store holds no state of a watcher under the key {key!r}: delete that key, and "
                "the watcher starts anew from since_id."
            )
        return cls(after, last_id, frozenset(filter(None, known)))

    @classmethod
    def common(cls, windows: Iterable[_Window]) -> _Window:
        """Combine the windows of several assets, so that none misses what the others have reported."""
        windows = list(windows)
        after, last_id = min(one.after for one in windows), min(one.last_id for one in windows)
        known = frozenset().union(*(one.known for one in windows))
        return cls(
            after,
            last_id,
            frozenset(n for n in known if n <= last_id and all(n in one.known or n <= one.after for one in windows)),
        )


class OneboxNewRecordsTrigger(_OneboxTrigger, BaseEventTrigger):
    """Watch a resource for an asset: whenever there are new records, an event says which.

    For use with ``AssetWatcher``. The event's payload is ``{"resource", "count", "since_id", "last_id"}``: the new
    records are among those with ids greater than ``since_id``, up to and including ``last_id``, so a DAG that it
    schedules knows what to list. Usually they are all of these; a record that became visible late, after one with a
    greater id, extends the range backwards, over records that were reported before.

    On Airflow 3.3 and later, no event is lost: each asset's state store holds what was reported, and is written only
    after Airflow confirms that the event is stored. An event can come twice, after a restart of the triggerer or when
    the same trigger watches another asset, which has not had it yet. Airflow 3.0 to 3.2 keep no state for watchers and
    confirm nothing: after a restart, the watcher starts from ``since_id``, or from now if it is not set, and does not
    report records that arrived while the triggerer was down.

    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
    :param since_id: where to start the first time: only greater ids are reported. If ``None``, all records that become
        visible from now on.
    :param overlap: how many ids behind the greatest one to check for records that became visible late, 10,000 at most.
        A poll takes two small requests in place of one, and each event lists up to twice so many records. 0 turns the
        check off.
    :param poll_interval: seconds between polls.
    :param onebox_conn_id: the Airflow connection of type Onebox.
    :param site_id: a site to use in place of the connection's own.
    :raises AirflowOptionalProviderFeatureException: on Airflow 2.11.
    :raises OneboxConfigError: if an argument is invalid.
    """

    def __init__(
        self,
        resource: str,
        *,
        since_id: int | str | None = None,
        overlap: int = OVERLAP,
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
        as_id("since_id", since_id)
        if not isinstance(poll_interval, (int, float)) or not 0 < poll_interval < math.inf:
            raise OneboxConfigError(f"poll_interval={poll_interval!r} is not a number of seconds greater than 0.")
        self.resource = resource
        self.since_id = since_id
        self.overlap = whole_number("overlap", overlap, 0, MAX_OVERLAP)
        self.poll_interval = poll_interval
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id

    def shared_stream_key(self) -> str:
        """Have Airflow 3.3 run this trigger with acknowledgements, without other triggers.

        :return: a key that no other trigger has.
        """
        return str(self.serialize())

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Give Airflow 3.3 the stream whose elements it acknowledges.

        :param kwargs: the trigger's arguments.
        :return: the stream's producer, which lets the trigger poll.
        """
        return _Turns(kwargs["poll_interval"])

    def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Poll at each element; Airflow 3.3 calls this in place of :meth:`run`.

        :param shared_stream: has an element each time that the events of the one before are stored.
        :return: an event for each time that there are new records.
        """
        return self._watch(shared_stream)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for ever; a failed poll is logged, and the next one resumes from the same point.

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
        window: _Window | None = None
        is_saved = True
        async for _ in turns:
            try:
                if window is None:
                    window = await self._load()
                if window is None:
                    window, is_saved = await self._start_now(connection), False
                if not is_saved:
                    await self._save(window)
                    is_saved = True
                payload, found = await self._poll(connection, window)
            except OneboxServiceHoursError as error:
                self.log.info("Outside service hours, continuing: %s", error)
                continue
            except Exception as error:  # noqa: BLE001 - Airflow restarts a watcher that ends every two seconds
                failure = as_onebox_error(error)
                self.log.error("Poll for new %s records failed, continuing: %s", self.resource, failure)
                continue
            if payload:
                yield TriggerEvent(payload)
            # State that is saved too early loses an event: it is saved in the next turn.
            window, is_saved = found, is_saved and found == window

    async def _start_now(self, connection: PolledConnection) -> _Window:
        _, newest = await connection.ask(Onebox.count_together, self.resource, 0)
        last_id = newest or 0
        after = max(0, last_id - self.overlap)
        return _Window(after, last_id, frozenset(await self._list_ids(connection, after, last_id)))

    async def _poll(self, connection: PolledConnection, window: _Window) -> tuple[dict[str, Any] | None, _Window]:
        """Return the payload of an event, if there is one, and what is known after it."""
        count, newest = await connection.ask(Onebox.count_together, self.resource, window.after)
        last_id = max(newest or 0, window.last_id)
        if count == len(window.known) and last_id == window.last_id:
            return None, window
        existing = await self._list_ids(connection, window.after, window.last_id)
        late = existing - window.known
        after = max(window.after, last_id - self.overlap)
        existing_new = await self._list_ids(connection, max(after, window.last_id), last_id)
        found = _Window(after, last_id, frozenset(n for n in existing | existing_new if n > after))
        if last_id > window.last_id:
            until_id = last_id
        elif late:
            until_id = max(late)
        else:  # Records were deleted.
            return None, found
        payload = {
            "resource": self.resource,
            # A late record can appear after the count.
            "count": max(count - len(existing & window.known), len(late)),
            "since_id": str(min(late, default=window.last_id + 1) - 1),
            "last_id": str(until_id),
        }
        return payload, found

    async def _list_ids(self, connection: PolledConnection, after: int, last_id: int) -> set[int]:
        if after >= last_id:
            return set()
        return await connection.ask(Onebox.list_ids, self.resource, after, last_id)

    @property
    def _key(self) -> str:
        return f"onebox_watcher.{self.onebox_conn_id}.{self.site_id or ''}.{self.resource}"

    def _stores(self) -> list[Any]:
        """List the state stores of the assets that this trigger watches; none before Airflow 3.3."""
        stores = getattr(self, "asset_state_store", None)
        if stores is None:
            return []
        # No public API lists them, or which assets a trigger watches.
        return [*vars(stores).get("_by_name", {}).values()] or [stores]

    async def _load(self) -> _Window | None:
        since_id = as_id("since_id", self.since_id)
        start = [] if self.since_id is None else [_Window(since_id, since_id)]
        states = [await _in_store(store.aget(self._key)) for store in self._stores()] or [None]
        windows = [
            window for state in states for window in (start if state is None else [_Window.from_json(self._key, state)])
        ]
        return _Window.common(windows) if windows else None

    async def _save(self, window: _Window) -> None:
        for store in self._stores():
            await _in_store(store.aset(self._key, window.to_json()))


async def _in_store(access: Awaitable[Any]) -> Any:
    try:
        return await access
    except Exception as error:  # noqa: BLE001 - Airflow has errors of several kinds here
        raise OneboxUnavailableError(f"Airflow's asset state store does not respond: {reason_of(error)}") from None
