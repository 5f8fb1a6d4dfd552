"""The triggers: the hook's own poll, off the event loop, with a deadline and no secret."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time

import pytest
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException
from airflow.triggers.base import BaseTrigger
from hypothesis import given, settings
from hypothesis import strategies as st
from support.airflow_home import AIRFLOW_3, AIRFLOW_VERSION
from support.polling import Log, deaf_server, first, until

from airflow_provider_onebox._airflow import compat
from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.triggers import _polling as polling
from airflow_provider_onebox.triggers import onebox
from airflow_provider_onebox.triggers._polling import MAX_FAILED_POLLS
from airflow_provider_onebox.triggers.onebox import OneboxNewRecordsTrigger, OneboxRecordTrigger

QUICK = {"poke_interval": 0.02, "onebox_conn_id": "onebox_default"}


@pytest.fixture
def logged(monkeypatch):
    """Collect what triggers log: level and line."""
    log = Log()
    monkeypatch.setattr(BaseTrigger, "log", log)
    return log.lines


def rebuilt(trigger):
    """Make a trigger anew from what Airflow stores of it, as another triggerer would."""
    row = Trigger.from_object(trigger)
    assert row.classpath == f"{type(trigger).__module__}.{type(trigger).__name__}"
    return type(trigger)(**row.kwargs)


class Plain(BaseTrigger):
    """A trigger that has what each one has."""

    def serialize(self):
        """Describe it."""

    def run(self):
        """Wait for nothing."""


def test_serialize():
    """What is stored makes the same trigger again, and holds no secret."""
    trigger = OneboxRecordTrigger("ticketrz", since_id=5, deadline=time.time() + 9, site_id="170", max_wait=7.0)
    assert vars(rebuilt(trigger)) == vars(trigger)
    assert vars(trigger).items() >= vars(Plain()).items()
    assert not {"token", "password"} & set(trigger.serialize()[1])


def test_defaults():
    """Without more said, one record is enough, and Onebox is asked once a minute at an even pace, without end."""
    stored = OneboxRecordTrigger("ticketrz").serialize()[1]
    assert (stored["min_count"], stored["poke_interval"], stored["exponential_backoff"]) == (1, 60, False)
    assert (stored["deadline"], stored["silent_fail"], stored["onebox_conn_id"]) == (None, False, "onebox_default")


def test_success(connected):
    """Records that are there already end the wait at once."""
    ids = connected.state.ids()
    event = asyncio.run(first(rebuilt(OneboxRecordTrigger("ticketrz", since_id=ids[9], **QUICK))))
    assert event == {"status": "success", "count": 240, "last_id": ids[-1]}


def test_wait_and_min_count(connected):
    """Records that come later end it when there are enough; polls share one login."""
    last = connected.state.ids()[-1]

    async def scenario():
        waiting = asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=last, min_count=2, **QUICK)))
        connected.state.add(1)
        polls = connected.state.requests["GET list"]
        await until(lambda: connected.state.requests["GET list"] > polls + 3)
        assert not waiting.done()
        connected.state.add(1)
        return await waiting

    assert asyncio.run(scenario())["count"] == 2
    assert connected.state.logins == 1


def test_deadline(connected):
    """The wait ends at an absolute time, also for a trigger that begins anew after it."""
    last = connected.state.ids()[-1]
    start = time.time()
    trigger = OneboxRecordTrigger("ticketrz", since_id=last, deadline=start + 0.3, **{**QUICK, "poke_interval": 60})
    assert asyncio.run(first(trigger)) == {"status": "timeout"}
    assert 0.3 <= time.time() - start < 5
    assert asyncio.run(first(rebuilt(trigger))) == {"status": "timeout"}


def test_deadline_of_a_hanging_connection(connect):
    """The wait ends at its deadline although the poll hangs, which with the defaults takes half a minute."""
    with deaf_server() as url:
        connect(url, timeout=3)
        start = time.time()
        event = asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, deadline=start + 0.3, **QUICK)))
        assert event == {"status": "timeout"}
        assert time.time() - start < 2


def pauses_of(monkeypatch, sandbox, trigger, polls):
    """List the pauses of a trigger, which finds a record after so many of them."""
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == polls:
            sandbox.state.add(1)

    monkeypatch.setattr(onebox.asyncio, "sleep", sleep)
    asyncio.run(first(trigger))
    return pauses


@pytest.mark.parametrize(
    ("exponential", "interval", "max_wait", "expected"),
    [
        (True, 1, 3, [1, 2, 3, 3]),
        (False, 1, 3, [1, 1, 1, 1]),
        (True, 1200, None, [1200, 2400, 3600, 3600]),
        (True, 7200, None, [7200, 7200, 7200, 7200]),
    ],
)
def test_pauses(connected, monkeypatch, exponential, interval, max_wait, expected):
    """With exponential back-off the pauses double, up to the most that is allowed; else they stay the same."""
    last = connected.state.ids()[-1]
    trigger = OneboxRecordTrigger(
        "ticketrz", since_id=last, poke_interval=interval, exponential_backoff=exponential, max_wait=max_wait
    )
    pauses = pauses_of(monkeypatch, connected, trigger, 4)
    # Each is lengthened by less than a tenth, to end together with those of other triggers.
    assert all(least <= pause <= 1.1 * least for least, pause in zip(expected, pauses, strict=True))


def test_loop_stays_free(connected):
    """While a poll waits for Onebox the event loop goes on."""
    connected.state.configure(latency=1)

    async def scenario():
        task = asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=0, **QUICK)))
        longest, last = 0.0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest, await task

    longest, event = asyncio.run(scenario())
    assert event["status"] == "success"
    assert longest < 0.9


def test_few_failed_polls_are_tolerated(connected):
    """Transient errors are waited out, as long as they are few in a row."""
    connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS, status=503)
    assert asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, **QUICK)))["status"] == "success"
    connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS + 1, status=503)
    event = asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, **QUICK)))
    assert (event["status"], event["error"]) == ("error", "OneboxUnavailableError")
    assert event["details"]["status"] == 503
    connected.state.fail("status", path="ticketrz", times=2 * MAX_FAILED_POLLS, status=404)
    event = asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, silent_fail=True, **QUICK)))
    assert event["status"] == "success"


def test_failed_polls_in_a_row(connected):
    """A poll that goes well begins the count of failed ones anew."""
    last = connected.state.ids()[-1]

    async def scenario():
        waiting = asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=last, **QUICK)))
        for _ in range(3):
            seen = connected.state.requests["GET list"] + MAX_FAILED_POLLS + 2
            connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS, status=503)
            await until(lambda seen=seen: connected.state.requests["GET list"] >= seen)
        connected.state.add(1)
        return await waiting

    assert asyncio.run(scenario())["status"] == "success"


def test_hopeless_poll(connected, connect):
    """A rejected password ends the wait at once, whatever the options."""
    connect(connected.url, login=connected.email, password="wrong password")
    event = asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, silent_fail=True, **QUICK)))
    assert event["error"] == "OneboxAuthError"
    assert connected.state.failed_logins == 1


@pytest.mark.parametrize("filters", [{"since": "2099-01-01 00:00"}, {"last_update": "2099-01-01 00:00"}])
def test_times_reach_the_server(connected, filters):
    """A wait for records after a time does not end by those before it."""
    trigger = OneboxRecordTrigger("ticketrz", deadline=time.time() + 0.2, **filters, **QUICK)
    assert asyncio.run(first(trigger)) == {"status": "timeout"}
    earlier = dict.fromkeys(filters, "2000-01-01 00:00")
    assert asyncio.run(first(OneboxRecordTrigger("ticketrz", **earlier, **QUICK)))["count"] == 250


def test_closed_quota(connected, monkeypatch, logged):
    """Outside of Onebox's hours a wait goes on, however often it has asked, to its deadline or until they begin."""
    monkeypatch.setattr(onebox, "until_opening", lambda error, interval: 0.02)
    connected.state.configure(outside_service_hours=True)
    trigger = OneboxRecordTrigger("ticketrz", since_id=0, deadline=time.time() + 1, poke_interval=60)
    assert asyncio.run(first(trigger)) == {"status": "timeout"}
    asked = connected.state.requests["GET list"]
    assert asked > 2 * MAX_FAILED_POLLS

    async def scenario():
        waiting = asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=0, poke_interval=60)))
        await until(lambda: connected.state.requests["GET list"] > asked + 2 * MAX_FAILED_POLLS)
        connected.state.configure(outside_service_hours=False)
        return await waiting

    assert asyncio.run(scenario())["count"] == 250
    assert {level for level, _ in logged} == {"info"}
    assert all(line.startswith("Onebox is closed, next poll in 0 s: Connection ") for _, line in logged)


def test_failed_polls_around_a_closed_quota(connected, monkeypatch):
    """Outside of Onebox's hours the count of failed polls begins anew."""
    monkeypatch.setattr(onebox, "until_opening", lambda error, interval: 0.02)
    connected.state.configure(outside_service_hours=True)
    asked = connected.state.requests

    async def scenario():
        waiting = asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=0, **QUICK)))
        for _ in range(2):
            connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS, status=503)
            seen = asked["GET list"] + MAX_FAILED_POLLS + 2
            await until(lambda seen=seen: asked["GET list"] >= seen or waiting.done())
        connected.state.configure(outside_service_hours=False)
        return await waiting

    assert asyncio.run(scenario())["status"] == "success"


@pytest.mark.parametrize(("missing_for", "expected"), [(3, "success"), (MAX_FAILED_POLLS + 1, "error")])
def test_connection_that_goes_missing(connected, monkeypatch, logged, missing_for, expected):
    """A failed look-up is a failed poll: one line each, at the poll's pace, and the wait survives a few of them."""
    monkeypatch.setattr(polling, "LOOK_UP_INTERVAL", 0)
    last = connected.state.ids()[-1]
    defined = os.environ["AIRFLOW_CONN_ONEBOX_DEFAULT"]

    async def scenario():
        waiting = asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=last, **QUICK)))
        await until(lambda: connected.state.requests["GET list"])
        monkeypatch.delenv("AIRFLOW_CONN_ONEBOX_DEFAULT")
        await until(lambda: len(logged) >= missing_for or waiting.done())
        monkeypatch.setenv("AIRFLOW_CONN_ONEBOX_DEFAULT", defined)
        connected.state.add(1)
        return await waiting

    event = asyncio.run(scenario())
    assert event["status"] == expected
    if expected == "error":
        assert event["error"] == "OneboxConfigError"
        assert "Connection 'onebox_default' can't be found" in event["message"]
        assert len(logged) == MAX_FAILED_POLLS
    assert all(level == "warning" and line.count("can't be found") == 1 for level, line in logged)
    assert "Poll failed (3 in a row), continuing" in logged[2][1]


def test_changed_connection_is_picked_up(connected, connect, monkeypatch):
    """A wait that runs notices that its connection leads elsewhere now."""
    monkeypatch.setattr(polling, "LOOK_UP_INTERVAL", 0.1)
    last = connected.state.ids()[-1]
    with Sandbox(records=300) as other:

        async def scenario():
            waiting = asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=last, **QUICK)))
            await until(lambda: connected.state.requests["GET list"])
            connect(other.url, login=other.email, password=other.password)
            return await waiting

        assert asyncio.run(scenario())["last_id"] == other.state.ids()[-1]


def test_triggers_share_login_and_connections(connected, monkeypatch):
    """Many triggers for the same site log in once, also if they all come at once."""
    last = connected.state.ids()[-1]
    monkeypatch.setattr(onebox, "until_tick", lambda _: 60)

    async def scenario():
        waiting = [asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=last))) for _ in range(30)]
        waiting.append(asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=last, site_id="170"))))
        await until(lambda: connected.state.logins == 2 and connected.state.requests["GET list"] >= 2)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())
    assert connected.state.logins_by_site == {"169": 1, "170": 1}


def test_no_thread_is_left(connected):
    """Polls in one event loop after another do not add up threads."""
    before = threading.active_count()
    for _ in range(30):
        asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, **QUICK)))
    assert threading.active_count() <= before + 8


class Store(dict):
    """The state store of a watched asset, as Airflow 3.3 injects it."""

    written = 0

    async def aget(self, key):
        return self.get(key)

    async def aset(self, key, value):
        self.written += 1
        self[key] = value


async def watch(trigger, sandbox, rounds=(), events=0):
    """Take a watcher's events while records are added in rounds, each after the one before was noticed."""
    taken = []

    async def take():
        async for event in trigger.run():
            taken.append(event.payload)

    async def polls(more):
        seen = sandbox.state.requests["GET list"] + more
        await until(lambda: sandbox.state.requests["GET list"] >= seen)

    task = asyncio.ensure_future(take())
    await polls(3)
    for n, count in enumerate(rounds):
        sandbox.state.add(count)
        await until(lambda n=n: len(taken) > n)
    await polls(3)
    await until(lambda: len(taken) >= events)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return taken


def test_watcher_on_airflow_2(on_another_airflow, monkeypatch):
    """Where there are no event triggers, it says what is lacking and what to use; all else can be imported."""
    monkeypatch.setattr(compat, "AIRFLOW_VERSION", (2, 11))
    monkeypatch.setattr(compat, "HAS_EVENT_TRIGGERS", False)
    older = on_another_airflow(onebox)
    assert issubclass(older.OneboxNewRecordsTrigger, BaseTrigger)
    with pytest.raises(AirflowOptionalProviderFeatureException, match="OneboxRecordSensor"):
        older.OneboxNewRecordsTrigger("ticketrz")


@pytest.mark.skipif(not AIRFLOW_3, reason="Airflow 2 has no event triggers")
class TestWatcher:
    """The watcher, on the versions that have event triggers."""

    def test_serialize(self):
        """What is stored makes the same trigger again."""
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id="5", site_id="170", poll_interval=7.0)
        assert vars(rebuilt(trigger)) == vars(trigger)
        assert vars(trigger).items() >= vars(Plain()).items()

    def test_events(self, connected):
        """It begins at the present and tells each set of new records once, with their range."""
        last = connected.state.ids()[-1]
        trigger = OneboxNewRecordsTrigger("ticketrz", poll_interval=0.02)
        events = asyncio.run(watch(trigger, connected, [2, 3]))
        ids = connected.state.ids()
        assert events == [
            {"resource": "ticketrz", "count": 2, "since_id": last, "last_id": ids[-4]},
            {"resource": "ticketrz", "count": 3, "since_id": ids[-4], "last_id": ids[-1]},
        ]

    def test_faults_do_not_end_it(self, connected):
        """A watcher outlives whatever Onebox does."""
        last = connected.state.ids()[-1]
        connected.state.fail("html", path="ticketrz", times=3)
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=last, poll_interval=0.02)
        assert [event["count"] for event in asyncio.run(watch(trigger, connected, [2]))] == [2]

    def test_mended_connection(self, connected, connect, logged):
        """A rejected password is not tried again, and a mended one is taken up without a restart."""
        connect(connected.url, login=connected.email, password="wrong password")
        last = connected.state.ids()[-1]
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=last, poll_interval=0.02)

        async def scenario():
            waiting = asyncio.ensure_future(first(trigger))
            await until(lambda: len(logged) > 5)
            connected.state.add(1)
            connect(connected.url, login=connected.email, password=connected.password)
            return await waiting

        assert asyncio.run(scenario())["count"] == 1
        assert connected.state.failed_logins == 1

    def test_missing_connection(self, connected, monkeypatch, logged):
        """A watcher of a connection that does not exist says so at its pace, and begins when there is one."""
        defined = os.environ["AIRFLOW_CONN_ONEBOX_DEFAULT"]
        monkeypatch.delenv("AIRFLOW_CONN_ONEBOX_DEFAULT")
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=connected.state.ids()[-2], poll_interval=0.02)

        async def scenario():
            waiting = asyncio.ensure_future(first(trigger))
            await until(lambda: len(logged) > MAX_FAILED_POLLS)
            monkeypatch.setenv("AIRFLOW_CONN_ONEBOX_DEFAULT", defined)
            return await waiting

        assert asyncio.run(scenario())["count"] == 1
        assert all(level == "error" and line.count("can't be found") == 1 for level, line in logged)

    def test_restart(self, connected):
        """Where Airflow keeps its state, a watcher goes on where it was, and writes what has changed alone."""
        store = Store()
        trigger = OneboxNewRecordsTrigger("ticketrz", poll_interval=0.02)
        trigger.asset_state_store = store
        assert [event["count"] for event in asyncio.run(watch(trigger, connected, [2]))] == [2]
        assert store.written == 2  # where it began, and where it is now
        connected.state.add(4)
        again = rebuilt(trigger)
        again.asset_state_store = store
        assert [event["count"] for event in asyncio.run(watch(again, connected, events=1))] == [4]
        assert store.written == 3
        empty = OneboxNewRecordsTrigger("prospectrz", poll_interval=0.02)
        empty.asset_state_store = store
        connected.state.delete(connected.state.ids("prospectrz"), "prospectrz")
        assert asyncio.run(watch(empty, connected)) == []
        assert store["onebox_mark.onebox_default..prospectrz"] == 0

    def test_watched_by_two_assets(self, connected, monkeypatch):
        """Airflow runs equal triggers as one: each asset has its watermark, and the least of them counts."""
        context = pytest.importorskip("airflow.sdk.execution_time.context")
        if not hasattr(context, "AssetStateStoreAccessors"):
            pytest.skip("Airflow keeps no state for watchers before 3.3")
        from airflow.sdk import Asset

        kept = {}

        async def aget(store, key, default=None):
            return kept.get((store._name, key), default)

        async def aset(store, key, value):
            kept[store._name, key] = value

        monkeypatch.setattr(context.AssetStateStoreAccessor, "aget", aget)
        monkeypatch.setattr(context.AssetStateStoreAccessor, "aset", aset)
        ids = connected.state.ids()
        key = "onebox_mark.onebox_default..ticketrz"
        kept.update({("a", key): int(ids[-3]), ("b", key): int(ids[-5])})
        trigger = OneboxNewRecordsTrigger("ticketrz", poll_interval=0.02)
        trigger.asset_state_store = context.AssetStateStoreAccessors([Asset("a", uri="x://a"), Asset("b", uri="x://b")])
        assert [event["count"] for event in asyncio.run(watch(trigger, connected))] == [4]
        assert kept == {("a", key): int(ids[-1]), ("b", key): int(ids[-1])}
        kept.pop(("b", key))
        again = OneboxNewRecordsTrigger("ticketrz", since_id=ids[-2], poll_interval=0.02)
        again.asset_state_store = trigger.asset_state_store
        assert [event["count"] for event in asyncio.run(watch(again, connected))] == [1]

    def test_state_store_that_fails(self, connected, logged):
        """An Airflow that does not answer is a failed poll like any other."""
        store = Store()
        fails = [RuntimeError("API_SERVER_ERROR")] * 3

        async def aget(key):
            if fails:
                raise fails.pop()

        store.aget = aget
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=connected.state.ids()[-2], poll_interval=0.02)
        trigger.asset_state_store = store
        assert [event["count"] for event in asyncio.run(watch(trigger, connected))] == [1]
        assert sum("state store does not answer: API_SERVER_ERROR" in line for _, line in logged) == len(logged) == 3

    def test_closed_quota(self, connected, logged):
        """Outside of Onebox's hours the watcher says so without alarm and goes on."""
        connected.state.configure(outside_service_hours=True)
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=connected.state.ids()[-1], poll_interval=0.02)

        async def scenario():
            waiting = asyncio.ensure_future(first(trigger))
            await until(lambda: connected.state.requests["GET list"] > 3)
            connected.state.configure(outside_service_hours=False)
            connected.state.add(1)
            return await waiting

        assert asyncio.run(scenario())["count"] == 1
        assert len(logged) > 2
        assert all(level == "info" and "Onebox is closed, continuing" in line for level, line in logged)

    @pytest.mark.parametrize(("options", "seconds"), [({"poll_interval": 40}, 40), ({}, 60)])
    def test_pause(self, connected, monkeypatch, options, seconds):
        """Polls are as far apart as the watcher says, a minute by default."""
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=connected.state.ids()[-1], **options)
        pauses = pauses_of(monkeypatch, connected, trigger, 3)
        assert len(pauses) == 3
        assert all(seconds <= pause <= seconds + 1 for pause in pauses)

    def test_pause_after_what_is_stored(self, monkeypatch):
        """On Airflow 3.3, too: when Airflow has stored what came of a poll, the next one is as far off."""
        producer = OneboxNewRecordsTrigger.create_shared_stream_producer({"poll_interval": 40})
        pauses = []

        async def sleep(seconds):
            pauses.append(seconds)

        async def scenario():
            turns = producer.open_stream()
            await anext(turns)
            assert pauses == []
            await producer.advance([])
            await anext(turns)
            await turns.aclose()

        monkeypatch.setattr(onebox.asyncio, "sleep", sleep)
        asyncio.run(scenario())
        assert len(pauses) == 1
        assert 40 <= pauses[0] <= 41

    @pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="Airflow acknowledges events from 3.3 on")
    def test_acknowledged(self, connected):
        """On Airflow 3.3 the watermark moves when Airflow has stored the event, and not before."""
        from airflow.triggers.shared_stream import SharedStreamManager

        store = Store()
        last = int(connected.state.ids()[-1])
        trigger = OneboxNewRecordsTrigger("ticketrz", poll_interval=0.02)
        trigger.asset_state_store = store
        key = trigger.shared_stream_key()
        assert key != OneboxNewRecordsTrigger("ticketrz", poll_interval=0.03).shared_stream_key()

        async def scenario():
            manager = SharedStreamManager()
            stream = manager.subscribe(trigger_id=1, trigger=trigger, key=key)
            taken, unconfirmed = [], []

            async def take():
                async for event in trigger.filter_shared_stream(stream):
                    unconfirmed.append(manager.bind_pending_event(trigger_id=1, key=key))
                    taken.append(event.payload)

            task = asyncio.ensure_future(take())
            await until(lambda: connected.state.requests["GET list"] > 4)
            assert set(store.values()) == {last}
            for n in range(3):
                before = dict(store)
                connected.state.add(2)
                await until(lambda n=n: len(taken) > n)
                polls = connected.state.requests["GET list"]
                await asyncio.sleep(0.2)
                assert store == before
                assert connected.state.requests["GET list"] == polls
                manager.confirm_persisted(unconfirmed)
                await until(lambda: set(store.values()) == {int(connected.state.ids()[-1])})
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await manager.stop_all()
            return taken

        assert [event["count"] for event in asyncio.run(scenario())] == [2, 2, 2]


class KilledError(BaseException):
    """The triggerer is gone."""


class World:
    """Onebox, the triggerer that dies at a given await, and what Airflow has stored, for a watcher."""

    def __init__(self, since_id):
        self.since_id = since_id
        self.last = 100
        self.watermarks = {}
        self.first_watermark = since_id
        self.stored = []
        self.left = 0

    async def step(self):
        self.left -= 1
        if self.left == 0:
            raise KilledError

    async def aget(self, key):
        await self.step()
        return self.watermarks.get(key)

    async def aset(self, key, value):
        await self.step()
        self.watermarks[key] = value
        if self.first_watermark is None:
            self.first_watermark = value
        await self.step()

    async def count(self, resource, after=None):
        await self.step()
        found = (0, None) if self.last <= (after or 0) else (self.last - (after or 0), self.last)
        await self.step()
        return found

    async def run(self, left, polls):
        """Run the watcher until it is killed, or for so many polls."""
        self.left = left
        sent = []

        async def turns():
            for _ in range(polls):
                yield
                # Airflow stores an event some time after it was sent, and then lets the watcher go on.
                await self.step()
                self.stored.extend(sent)
                sent.clear()
                await self.step()

        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=self.since_id)
        trigger.asset_state_store = self
        try:
            async for event in trigger._watch(turns()):
                sent.append(event.payload)
                await self.step()
        except KilledError:
            pass


@pytest.mark.skipif(not AIRFLOW_3, reason="Airflow 2 has no event triggers")
@given(
    since_id=st.sampled_from([None, 100, 90, 0]),
    lives=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 25)), max_size=12),
)
@settings(max_examples=500, deadline=None)
def test_no_event_is_lost_whatever_await_it_dies_at(since_id, lives):
    """Records come, the triggerer dies at any await, again and again: the stored events name every record."""
    world = World(since_id)

    async def history():
        for new, left in lives:
            world.last += new
            await world.run(left, 10)
        await world.run(10**6, 3)
        world.last += 2
        await world.run(10**6, 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onebox, "polled_connection", lambda conn_id, site_id: world)
        asyncio.run(history())
    told = {n for event in world.stored for n in range(int(event["since_id"]) + 1, int(event["last_id"]) + 1)}
    assert told == set(range(world.first_watermark + 1, world.last + 1))


class CountedAwaits:
    """Runs a coroutine and cancels its task at a given await, wherever that is, Airflow's own code included."""

    def __init__(self, coroutine, left):
        self.coroutine, self.left = coroutine, left

    def __await__(self):
        awaited = self.coroutine.__await__()
        step = functools.partial(awaited.send, None)
        while True:
            try:
                future = step()
            except StopIteration:
                return
            self.left -= 1
            if self.left == 0:
                asyncio.current_task().cancel()
            try:
                yield future
                step = functools.partial(awaited.send, None)
            except BaseException as error:  # noqa: BLE001 - the coroutine's to handle
                step = functools.partial(awaited.throw, error)


class Triggerer:
    """Airflow 3.3 around a watcher: its shared streams, its state stores, and the supervisor that stores events."""

    def __init__(self, since_id, assets):
        self.since_id, self.assets = since_id, assets
        self.last, self.arrivals, self.polls = 100, [], 0
        self.database, self.stored = {}, []
        self.begin = since_id

    async def asend(self, message):
        """Answer for the supervisor, as Airflow's accessors ask it."""
        from airflow.sdk.execution_time import comms

        await asyncio.sleep(0)
        key = message.name, message.key
        answer = None
        if isinstance(message, comms.SetAssetStateStoreByName):
            self.database[key] = message.value
            self.begin = message.value if self.begin is None else self.begin
        elif key in self.database:
            answer = comms.AssetStateStoreResult(value=self.database[key])
        await asyncio.sleep(0)
        return answer

    async def count(self, resource, after=None):
        """Answer for Onebox, where records arrive while it is asked."""
        self.polls += 1
        await asyncio.sleep(0)
        self.last += self.arrivals.pop(0) if self.arrivals else 0
        found = (0, None) if self.last <= (after or 0) else (self.last - (after or 0), self.last)
        await asyncio.sleep(0)
        return found

    async def live(self, arrivals, dies_at, last_is_stored=True):
        """Run the watcher until it has seen all arrivals or dies; return the number of awaits that it had."""
        from airflow.sdk import Asset
        from airflow.sdk.execution_time.context import AssetStateStoreAccessors
        from airflow.triggers.shared_stream import SharedStreamManager

        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=self.since_id, poll_interval=0)
        trigger.asset_state_store = AssetStateStoreAccessors([Asset(name, uri=f"x://{name}") for name in self.assets])
        manager, key = SharedStreamManager(), trigger.shared_stream_key()
        self.polls, self.arrivals, sent = 0, list(arrivals), []

        async def run_trigger():
            async for event in trigger.filter_shared_stream(manager.subscribe(trigger_id=1, trigger=trigger, key=key)):
                await asyncio.sleep(0)
                sent.append((manager.bind_pending_event(trigger_id=1, key=key), event.payload))

        counted = CountedAwaits(run_trigger(), dies_at)
        task = asyncio.ensure_future(self._task(counted))
        # The turn after the last event saves what Airflow has stored.
        while not task.done() and (self.polls < len(arrivals) + 3):
            await asyncio.sleep(0)
            if sent:
                number, payload = sent.pop(0)
                self.stored.append(payload)
                await asyncio.sleep(0)
                manager.confirm_persisted([number])
        awaits = dies_at - counted.left
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await manager.unsubscribe(1, key)
        await manager.stop_all()
        if last_is_stored:
            self.stored.extend(payload for _, payload in sent)
        return awaits

    @staticmethod
    async def _task(counted):
        await counted


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="Airflow acknowledges events from 3.3 on")
@pytest.mark.parametrize("assets", ["a", "ab"])
@pytest.mark.parametrize("since_id", [None, 90])
@pytest.mark.parametrize("last_is_stored", [True, False], ids=["stored", "lost"])
def test_cancelled_at_every_await(monkeypatch, since_id, assets, last_is_stored):
    """In Airflow 3.3's own streams and stores, whatever await it dies at: no loss, and only the last event repeats."""
    from airflow.sdk.execution_time import task_runner

    monkeypatch.setattr(onebox, "until_tick", lambda _: 0)

    async def history(dies_at):
        world = Triggerer(since_id, assets)
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", world, raising=False)
        monkeypatch.setattr(onebox, "polled_connection", lambda conn_id, site_id: world)
        awaits = await world.live([0, 2, 0, 3, 1], dies_at, last_is_stored)
        before = list(world.stored)
        world.last += 2
        await world.live([0, 0, 4], 10**6)
        return awaits, world, before

    def told(events):
        return [n for event in events for n in range(int(event["since_id"]) + 1, int(event["last_id"]) + 1)]

    awaits, world, before = asyncio.run(history(10**6))
    assert told(world.stored) == list(range(world.begin + 1, world.last + 1))
    assert len(before) == (3 if since_id is None else 4)
    assert awaits > 30
    repeated = 0
    for dies_at in range(1, awaits):
        _, world, before = asyncio.run(history(dies_at))
        numbers = told(world.stored)
        assert set(numbers) == set(range(world.begin + 1, world.last + 1)), dies_at
        twice = {n for n in numbers if numbers.count(n) > 1}
        assert twice <= set(told(before[-1:])), dies_at
        repeated += bool(twice)
    assert repeated
