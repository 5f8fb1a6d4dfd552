"""The triggers: the hook's own poll, off the event loop, with a deadline and no secret."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException
from airflow.triggers.base import BaseTrigger
from airflow_home import AIRFLOW_3

from airflow_provider_onebox.exceptions import OneboxAuthError, OneboxUnavailableError
from airflow_provider_onebox.triggers import onebox
from airflow_provider_onebox.triggers.onebox import (
    MAX_FAILED_POLLS,
    OneboxNewRecordsTrigger,
    OneboxRecordTrigger,
    count_records,
    count_together,
    is_tolerable,
    shared_client,
)

QUICK = {"poke_interval": 0.02, "onebox_conn_id": "onebox_default"}


async def first(trigger):
    """Wait for a trigger's first event."""
    async for event in trigger.run():
        return event.payload
    raise AssertionError("no event")


def rebuilt(trigger):
    """Make a trigger anew from what Airflow stores of it, as another triggerer would."""
    path, kwargs = trigger.serialize()
    assert path == f"{type(trigger).__module__}.{type(trigger).__name__}"
    return type(trigger)(**kwargs)


def test_serialize():
    """What is stored makes the same trigger again, and holds no secret."""
    trigger = OneboxRecordTrigger("ticketrz", since_id=5, deadline=time.time() + 9, site_id="170", max_wait=7.0)
    assert vars(rebuilt(trigger)) == vars(trigger)
    assert not {"token", "password"} & set(trigger.serialize()[1])


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


def test_backoff(connected, monkeypatch):
    """With exponential back-off the pauses double, up to the most that is allowed."""
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 4:
            connected.state.add(1)

    monkeypatch.setattr(onebox.asyncio, "sleep", sleep)
    last = connected.state.ids()[-1]
    trigger = OneboxRecordTrigger("ticketrz", since_id=last, poke_interval=1, exponential_backoff=True, max_wait=3)
    assert asyncio.run(first(trigger))["count"] == 1
    # Each is lengthened by less than a tenth, to end together with those of other triggers.
    assert all(least <= pause <= 1.1 * least for least, pause in zip([1, 2, 3, 3], pauses, strict=True))


def test_pauses_end_together():
    """Triggers wake up on the same tick, whenever they began; an interval of nothing stays one."""
    ends = {round(time.monotonic() + onebox.until_tick(60), 3) for _ in range(50)}
    assert len(ends) <= 2
    assert 60 <= onebox.until_tick(60) <= 61
    assert 0 <= onebox.until_tick(0) <= 0.001


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


def test_few_failed_polls_are_tolerated(connected, connect):
    """Faults that pass are waited out, as long as they are few in a row."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS, status=503)
    assert asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, **QUICK)))["status"] == "success"
    connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS + 1, status=503)
    event = asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, **QUICK)))
    assert (event["status"], event["error"]) == ("error", "OneboxUnavailableError")
    assert event["evidence"]["status"] == 503
    connected.state.fail("status", path="ticketrz", times=2 * MAX_FAILED_POLLS, status=404)
    event = asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, silent_fail=True, **QUICK)))
    assert event["status"] == "success"


def test_hopeless_poll(connected, connect):
    """A refused password ends the wait at once, whatever the options."""
    connect(connected.url, login=connected.email, password="wrong password")
    event = asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, silent_fail=True, **QUICK)))
    assert event["error"] == "OneboxAuthError"
    assert connected.state.failed_logins == 1


def test_triggers_share_login_and_connections(connected, monkeypatch):
    """Many triggers for the same site sign in once, also if they all come at once."""
    last = connected.state.ids()[-1]
    monkeypatch.setattr(onebox, "until_tick", lambda _: 60)

    async def scenario():
        waiting = [asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=last))) for _ in range(30)]
        waiting.append(asyncio.ensure_future(first(OneboxRecordTrigger("ticketrz", since_id=last, site_id="170"))))
        await until(lambda: connected.state.logins == 2 and connected.state.requests["GET list"] >= 2)
        await asyncio.sleep(0.2)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())
    assert connected.state.logins_by_site == {"169": 1, "170": 1}
    gc.collect()
    assert not onebox._clients


def test_changed_connection_is_seen(connected, connect):
    """A trigger that comes after a change does not get the client of those that came before."""
    before = shared_client("onebox_default", None)
    assert shared_client("onebox_default", "169") is before
    connect(connected.url, login=connected.email, password=connected.password, timeout=7)
    assert shared_client("onebox_default", None).settings.timeout == 7


def test_refused_client_is_shared_no_further(connected, connect):
    """After a refusal the next trigger tries for itself, and those that wait keep asking nothing."""
    connect(connected.url, login=connected.email, password="wrong password")
    refused = shared_client("onebox_default", None)
    for _ in range(2):
        with pytest.raises(OneboxAuthError):
            count_records(refused, "ticketrz")
    assert connected.state.failed_logins == 1
    assert shared_client("onebox_default", None) is not refused
    assert shared_client("onebox_default", None, refused) is refused


def test_polls_of_the_same_moment_are_one(connected):
    """One request answers all who have the newest record; each other trigger gets its own count."""
    ids = [int(row_id) for row_id in connected.state.ids()]
    connected.state.add(2)
    new = [int(row_id) for row_id in connected.state.ids()][-2:]

    async def ask(*after, **filters):
        client = shared_client("onebox_default", None)
        return await asyncio.gather(*(count_together(client, "ticketrz", row_id, **filters) for row_id in after))

    polls = connected.state.requests
    assert asyncio.run(ask(*range(new[-1], new[-1] + 50))) == [(0, None)] * 50
    assert polls["GET list"] == 1
    answers = asyncio.run(ask(new[-1], ids[-1], str(new[0]), ids[-1], ids[-3], None))
    assert answers == [(0, None), (2, new[1]), (1, new[1]), (2, new[1]), (4, new[1]), (252, new[1])]
    assert asyncio.run(ask(ids[-1], ids[-1], since="2099-01-01 00:00")) == [(0, None), (0, None)]


def test_failed_poll_reaches_all_who_asked(connected, connect):
    """An error of the one request is everybody's."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    connected.state.fail("status", path="ticketrz", status=503)

    async def ask():
        client = shared_client("onebox_default", None)
        return await asyncio.gather(*(count_together(client, "ticketrz", n) for n in range(3)), return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(ask())] == [OneboxUnavailableError] * 3


@pytest.mark.parametrize(
    ("error", "failures", "silent", "goes_on"),
    [
        (OneboxUnavailableError("x"), MAX_FAILED_POLLS, False, True),
        (OneboxUnavailableError("x"), MAX_FAILED_POLLS + 1, False, False),
        (OneboxUnavailableError("x"), MAX_FAILED_POLLS + 1, True, True),
        (OneboxUnavailableError("x", retryable=False), 1, False, False),
        (OneboxAuthError("x"), 1, True, False),
    ],
)
def test_is_tolerable(error, failures, silent, goes_on):
    """Sensor and trigger decide alike."""
    assert is_tolerable(error, failures, silent) is goes_on


class Store(dict):
    """The state store of a watched asset, as Airflow 3.3 injects it."""

    async def aget(self, key):
        return self.get(key)

    async def aset(self, key, value):
        self[key] = value


async def until(done):
    """Wait until something is true."""
    for _ in range(1000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


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


async def watch_one(trigger):
    """Take one event, and let the watcher go on for a moment before it dies."""
    events = trigger.run()
    taken = [(await anext(events)).payload]
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(events), 0.2)
    return taken


def test_watcher_on_airflow_2(on_another_airflow):
    """Where there are no event triggers, it says what is lacking and what to use; all else can be imported."""
    older = on_another_airflow(onebox, without=["airflow.triggers.base:BaseEventTrigger"])
    assert issubclass(older.OneboxNewRecordsTrigger, BaseTrigger)
    with pytest.raises(AirflowOptionalProviderFeatureException, match="OneboxRecordSensor"):
        older.OneboxNewRecordsTrigger("ticketrz")


@pytest.mark.skipif(not AIRFLOW_3, reason="Airflow 2 has no event triggers")
class TestWatcher:
    """The watcher, on the versions that have event triggers."""

    @pytest.fixture(autouse=True)
    def settles(self, monkeypatch):
        monkeypatch.setattr(onebox, "EVENT_SETTLES", 0)

    def test_serialize(self):
        """What is stored makes the same trigger again."""
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id="5", site_id="170", poll_interval=7.0)
        assert vars(rebuilt(trigger)) == vars(trigger)

    def test_events(self, connected):
        """It begins at the present and tells each set of new records once, with their range."""
        last = connected.state.ids()[-1]
        trigger = OneboxNewRecordsTrigger("ticketrz", poll_interval=0.02)
        events = asyncio.run(watch(trigger, connected, [2, 3]))
        ids = connected.state.ids()
        assert [event["count"] for event in events] == [2, 3]
        assert [event["since_id"] for event in events] == [last, ids[-4]]
        assert [event["last_id"] for event in events] == [ids[-4], ids[-1]]

    def test_faults_do_not_end_it(self, connected, connect):
        """A watcher outlives whatever Onebox does, and a wrong password."""
        connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
        last = connected.state.ids()[-1]
        connected.state.fail("html", path="ticketrz", times=3)
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=last, poll_interval=0.02)
        assert [event["count"] for event in asyncio.run(watch(trigger, connected, [2]))] == [2]

    def test_mended_connection(self, connected, connect):
        """A refused password is not tried again, and a mended one is taken up without a restart."""
        connect(connected.url, login=connected.email, password="wrong password")
        last = connected.state.ids()[-1]
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id=last, poll_interval=0.02)

        async def scenario():
            waiting = asyncio.ensure_future(first(trigger))
            await until(lambda: connected.state.failed_logins)
            await asyncio.sleep(0.2)
            connected.state.add(1)
            connect(connected.url, login=connected.email, password=connected.password)
            return await waiting

        assert asyncio.run(scenario())["count"] == 1
        assert connected.state.failed_logins == 1

    def test_restart(self, connected):
        """Where Airflow keeps its state, a watcher goes on where it was."""
        store = Store()
        trigger = OneboxNewRecordsTrigger("ticketrz", poll_interval=0.02)
        trigger.asset_state_store = store
        assert [event["count"] for event in asyncio.run(watch(trigger, connected, [2]))] == [2]
        connected.state.add(4)
        again = rebuilt(trigger)
        again.asset_state_store = store
        assert [event["count"] for event in asyncio.run(watch(again, connected, events=1))] == [4]
        empty = OneboxNewRecordsTrigger("prospectrz", poll_interval=0.02)
        empty.asset_state_store = store
        connected.state.delete(connected.state.ids("prospectrz"), "prospectrz")
        assert asyncio.run(watch(empty, connected)) == []
        assert store["onebox_mark.onebox_default..prospectrz"] == 0

    def test_death_with_an_unsettled_event(self, connected, monkeypatch):
        """An event that Airflow may not have stored yet comes again from the next triggerer."""
        monkeypatch.setattr(onebox, "EVENT_SETTLES", 60)
        store = Store()
        for _ in range(2):
            trigger = OneboxNewRecordsTrigger("ticketrz", since_id=connected.state.ids()[-3], poll_interval=0.02)
            trigger.asset_state_store = store
            assert [event["count"] for event in asyncio.run(watch_one(trigger))] == [2]


def test_no_thread_is_left(connected):
    """Polls leave no thread of their own behind."""
    before = threading.active_count()
    for _ in range(3):
        asyncio.run(first(OneboxRecordTrigger("ticketrz", since_id=0, **QUICK)))
    assert threading.active_count() <= before + 1
