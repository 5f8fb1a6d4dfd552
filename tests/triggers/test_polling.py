"""What triggers share: one login, one request, one look-up, and threads that nobody else waits for."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import warnings
import weakref
from contextvars import ContextVar

import pytest
from support.polling import Gate, deaf_server, until
from support.processes import PATIENCE

from airflow_provider_onebox._airflow import masking
from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.listing import Listing
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.triggers import _polling as polling
from airflow_provider_onebox.triggers._polling import (
    MAX_BUSY,
    MAX_REQUESTS,
    POLL_SECONDS,
    THREADS,
    Onebox,
    is_tolerable,
    polled_connection,
    until_opening,
    until_tick,
)


@pytest.mark.parametrize(
    ("error", "failures", "silent", "goes_on"),
    [
        (OneboxUnavailableError("x"), 5, False, True),
        (OneboxUnavailableError("x"), 6, False, False),
        (OneboxUnavailableError("x"), 6, True, True),
        (OneboxUnavailableError("x", retryable=False), 1, False, False),
        (OneboxAuthError("x"), 1, True, False),
        (OneboxConfigError("x"), 1, True, False),
        (OneboxConfigError("a look-up", retryable=True), 5, False, True),
        (OneboxConfigError("a look-up", retryable=True), 6, False, False),
    ],
)
def test_is_tolerable(error, failures, silent, goes_on):
    """Sensor and trigger decide alike."""
    assert is_tolerable(error, failures, silent) is goes_on


@pytest.mark.parametrize(("interval", "tick"), [(3600, 1), (60, 1), (5, 0.5), (0.1, 0.01)])
def test_pauses_end_together(monkeypatch, interval, tick):
    """Triggers that begin within a second, or a tenth of their interval if that is less, wake up together."""
    ends = []
    for begin in (1000 + 0.01 * tick, 1000 + 0.5 * tick, 1000 + 0.99 * tick):
        monkeypatch.setattr(polling.time, "monotonic", lambda begin=begin: begin)
        ends.append(begin + until_tick(interval))
    assert ends == pytest.approx([1000 + interval + tick] * 3, abs=1e-6)


def test_pause_of_nothing():
    """An interval of nothing stays one."""
    assert 0 <= until_tick(0) <= 0.001


@pytest.mark.parametrize(
    ("known", "interval", "pause"),
    [
        (None, 60, 60),
        (5, 60, 5),
        (600, 60, 600),
        (9 * 3600, 60, 3600),
        (9 * 3600, 7200, 7200),
    ],
)
def test_until_opening(monkeypatch, known, interval, pause):
    """The next poll is at the opening if Onebox names it, an hour away at the most, else at the usual pace."""
    hours = "18:00 - 06:00"
    monkeypatch.setattr(
        "airflow_provider_onebox.api.service_hours.seconds_until_opening",
        lambda message: known if message == hours else None,
    )
    assert until_opening(OneboxServiceHoursError("x", server_message=hours), interval) == pause


def poll(connection, after=0, *, seconds=POLL_SECONDS, **filters):
    """Poll once for tickets."""
    return connection.ask(Onebox.count_together, "ticketrz", after, seconds=seconds, **filters)


def count(*after, conn_id="onebox_default", **filters):
    """Poll for several ids in the same moment."""

    async def ask():
        connection = polled_connection(conn_id, None)
        polls = (poll(connection, row_id, **filters) for row_id in after)
        return await asyncio.gather(*polls, return_exceptions=True)

    return asyncio.run(ask())


def test_polls_of_the_same_moment_are_one(connected):
    """One request serves all who have the newest record; each other trigger gets a separate count."""
    ids = [int(row_id) for row_id in connected.state.ids()]
    connected.state.add(2)
    new = [int(row_id) for row_id in connected.state.ids()][-2:]
    polls = connected.state.requests
    assert count(*range(new[-1], new[-1] + 50)) == [(0, None)] * 50
    assert polls["GET list"] == 1
    counts = count(new[-1], ids[-1], new[0], ids[-1], ids[-3], 0)
    assert counts == [(0, None), (2, new[1]), (1, new[1]), (2, new[1]), (4, new[1]), (252, new[1])]
    before = polls["GET list"]
    assert count(new[0], new[1]) == [(1, new[1]), (0, None)]
    assert polls["GET list"] == before + 1
    assert count(ids[-1], ids[-1], since="2099-01-01 00:00") == [(0, None), (0, None)]
    assert count(0, last_update="2099-01-01 00:00") == [(0, None)]


def test_question_that_is_in_flight(connected, monkeypatch):
    """Who asks while the same is being asked gets a later response; those who ask then share it."""
    gate = Gate(monkeypatch)

    async def ask():
        connection = polled_connection("onebox_default", None)
        early = asyncio.ensure_future(poll(connection))
        await gate.until_begun(1)
        late = [asyncio.ensure_future(poll(connection)) for _ in range(3)]
        await gate.until_begun(2)
        latest = asyncio.ensure_future(poll(connection))
        await gate.until_begun(3)
        gate.tickets.release(3)
        return await asyncio.gather(early, *late, latest)

    assert asyncio.run(ask()) == [(250, int(connected.state.ids()[-1]))] * 5
    assert gate.begun == 3


def test_failed_poll_reaches_all_who_asked(connected):
    """An error of the one request is everybody's, and there is one try: the next poll is the retry."""
    connected.state.fail("status", path="ticketrz", status=503)
    assert [type(error) for error in count(0, 1, 2)] == [OneboxUnavailableError] * 3
    assert connected.state.requests["GET list"] == 1


def test_failure_that_nobody_waits_for(connected, monkeypatch):
    """A poll that fails after its time is up is no complaint of the event loop in the triggerer's log."""

    def fail(*args, **kwargs):
        raise OneboxUnavailableError("too late")

    gate, complaints = Gate(monkeypatch, fail), []

    async def ask():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        connection = polled_connection("onebox_default", None)
        with pytest.raises(OneboxUnavailableError) as caught:
            await poll(connection, seconds=0.05)
        assert str(caught.value) == "Connection 'onebox_default': GET ticketrz: no response within 0 s."
        gate.tickets.release()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        gc.collect()

    asyncio.run(ask())
    assert complaints == []


@pytest.fixture
def new_threads(monkeypatch):
    """Begin and end without the provider's threads; of each kind there is one at most."""
    monkeypatch.setattr(polling, "THREADS", dict.fromkeys(THREADS, 1))
    polling._threads.cache_clear()
    yield
    polling._threads.cache_clear()


def test_threads_of_each_kind(new_threads):
    """Polls and look-ups have separate threads, as many as there may be."""
    release, begun = threading.Event(), []

    def work(kind):
        begun.append((kind, threading.current_thread().name))
        return release.wait(PATIENCE)

    async def ask():
        kinds = ["polls", "polls", "look-ups"]
        done = asyncio.gather(*(polling.in_thread(kind, work, kind) for kind in kinds))
        await until(lambda: len(begun) == 2)
        await asyncio.sleep(0.05)
        assert sorted(begun) == [("look-ups", "onebox look-ups_0"), ("polls", "onebox polls_0")]
        release.set()
        return await done

    assert asyncio.run(ask()) == [True] * 3


def test_fork(new_threads):
    """A forked process polls in new threads, because it does not have those of its parent."""

    async def ask():
        return await polling.in_thread("polls", int)

    asyncio.run(ask())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        child = os.fork()
    if not child:
        signal.alarm(PATIENCE)
        os._exit(asyncio.run(ask()))
    assert os.waitpid(child, 0)[1] == 0


def test_one_login_for_the_same_site(connected):
    """The connection's site, named or not, is one login; nothing is kept when nobody polls any more."""

    def clients():
        gc.collect()
        # Not isinstance: it asks lazy objects of other libraries for their class, which imports what is missing.
        return sum(type(thing) is OneboxClient for thing in gc.get_objects())

    async def ask():
        connections = [polled_connection("onebox_default", site) for site in (None, 169, "169", "170")]
        assert connections[1] is connections[2]
        await asyncio.gather(*(poll(connection) for connection in connections))
        return [weakref.ref(connection) for connection in connections]

    before = clients()
    for n in range(1, 9):
        connections = asyncio.run(ask())
        assert connected.state.logins_by_site == {"169": n, "170": n}
    # A thread that waits for work may still hold its last one.
    assert clients() <= before + 4
    assert [connection() for connection in connections] == [None] * 4


def test_looked_up_now_and_then(connected, monkeypatch):
    """A connection is looked up again after a while and after a failed poll, once for all who poll it.

    It logs as none of the triggers: Airflow 2 opens a file for each that logs, until it ends.
    """
    trigger, looked_up = ContextVar("trigger", default=None), []

    def look_up(hook, real=OneboxHook.look_up):
        looked_up.append(trigger.get())
        return real(hook)

    monkeypatch.setattr(OneboxHook, "look_up", look_up)

    async def ask():
        trigger.set("one")
        connection = polled_connection("onebox_default", None)
        for _ in range(3):
            await asyncio.gather(*(poll(connection, n) for n in range(20)))
        assert looked_up == [None]
        connected.state.fail("status", path="ticketrz", status=503)
        failed = await asyncio.gather(*(poll(connection) for _ in range(20)), return_exceptions=True)
        assert set(map(type, failed)) == {OneboxUnavailableError}
        await asyncio.gather(*(poll(connection) for _ in range(20)))
        assert looked_up == [None] * 2
        later = time.monotonic() + 301
        monkeypatch.setattr(polling.time, "monotonic", lambda: later)
        await poll(connection)
        assert looked_up == [None] * 3

    asyncio.run(ask())


def test_rejected_password_is_not_tried_again(connected, reconnect, monkeypatch):
    """Nobody who polls tries a rejected password again; who comes long afterwards tries it once for all."""
    reconnect(password="wrong password")

    async def ask():
        connections = [polled_connection("onebox_default", site) for site in (None, "169")]
        for _ in range(5):
            for connection in (*connections, polled_connection("onebox_default", None)):
                with pytest.raises(OneboxAuthError):
                    await poll(connection)
        assert connected.state.failed_logins == 1
        later = time.monotonic() + 301
        monkeypatch.setattr(polling.time, "monotonic", lambda: later)
        for connection in connections:
            with pytest.raises(OneboxAuthError):
                await poll(connection)
        assert connected.state.failed_logins == 1
        for _ in range(2):
            with pytest.raises(OneboxAuthError):
                await poll(polled_connection("onebox_default", "169"))
        assert connected.state.failed_logins == 2
        reconnect()
        for connection in connections:
            assert (await poll(connection))[0] == 250

    asyncio.run(ask())


@pytest.mark.parametrize("is_thread_safe", [False, True])
def test_masked_strings_do_not_grow(connected, monkeypatch, is_thread_safe):
    """However long triggers poll, renew tokens and look the connection up, Airflow gets the same few secrets."""
    masked = []
    monkeypatch.setattr(masking, "secret_masker", lambda local_only: masked.append)
    monkeypatch.setattr(masking, "_masked", set())
    monkeypatch.setattr(masking, "_unmasked", set())
    monkeypatch.setattr(polling, "LOOK_UP_INTERVAL", -1)
    monkeypatch.setattr(masking, "SUPERVISOR_IS_THREAD_SAFE", is_thread_safe)

    async def ask():
        await poll(polled_connection("onebox_default", None))
        before = list(masked)
        for _ in range(5):
            connected.state.revoke()
            await poll(polled_connection("onebox_default", None))
        return before

    assert asyncio.run(ask()) == masked
    assert connected.password in masked
    assert connected.state.logins > 5
    assert not set(masked) & set(connected.state.tokens)


def test_few_requests_at_once(connected, monkeypatch):
    """However many different questions there are, a few are in flight at once to one site."""
    in_flight, most, barrier = [], [], threading.Barrier(MAX_REQUESTS)

    def count_records(*args, real=Listing.count, **kwargs):
        in_flight.append(1)
        barrier.wait(PATIENCE)
        most.append(len(in_flight))
        try:
            return real(*args, **kwargs)
        finally:
            in_flight.pop()

    monkeypatch.setattr(Listing, "count", count_records)

    async def ask():
        connection = polled_connection("onebox_default", None)
        return await asyncio.gather(*(poll(connection, since=f"2000-01-01 00:{n:02}") for n in range(20)))

    assert asyncio.run(ask()) == [(250, int(connected.state.ids()[-1]))] * 20
    assert max(most) == 4


def test_requests_of_one_moment_are_few_too(connected, monkeypatch):
    """Those who don't have the newest record, and those who list ids, wait for their turn as well."""
    ids = [int(row_id) for row_id in connected.state.ids()]
    gate = Gate(monkeypatch)

    async def ask():
        connection = polled_connection("onebox_default", None)
        polls = [asyncio.ensure_future(poll(connection, row_id)) for row_id in ids[:8]]
        await gate.until_begun(1)
        gate.tickets.release()
        await gate.until_begun(1 + MAX_REQUESTS)
        listed = asyncio.ensure_future(connection.ask(Onebox.list_ids, "ticketrz", ids[9], ids[12] + 1))
        await asyncio.sleep(0.05)
        assert (gate.begun, listed.done()) == (1 + MAX_REQUESTS, False)
        gate.tickets.release(7)
        return await asyncio.gather(*polls), await listed

    counts, listed = asyncio.run(ask())
    assert counts == [(249 - n, ids[-1]) for n in range(8)]
    assert listed == {row_id for row_id in ids[10:] if row_id <= ids[12] + 1}


@pytest.mark.parametrize(("seconds", "begun"), [(60, MAX_BUSY), (0.001, 8)])
def test_few_begin_at_once(monkeypatch, seconds, begun):
    """A few polls and look-ups of a process begin at once; those that wait for a response for a while don't count."""
    monkeypatch.setattr(polling, "BUSY_SECONDS", seconds)
    release, begun_work = threading.Event(), []

    def work():
        begun_work.append(1)
        return release.wait(PATIENCE)

    async def ask():
        done = asyncio.gather(*(polling.in_thread(kind, work) for kind in ("polls", "look-ups") * 4))
        await until(lambda: len(begun_work) == begun)
        await asyncio.sleep(0.05)
        at_once = len(begun_work)
        release.set()
        return at_once, await done

    assert asyncio.run(ask()) == (begun, [True] * 8)


def test_hanging_connections_delay_nobody(connected, connect):
    """40 connections that hang, with all the requests that each may have, hold up no other poll and no other thread."""
    deaf = [f"deaf_{n}" for n in range(40)]
    with deaf_server() as server:
        for name in deaf:
            connect(server.url, name, timeout=60)

        async def scenario():
            connections = [polled_connection(name, None) for name in deaf]
            times = [f"2000-01-01 00:0{n}" for n in range(MAX_REQUESTS)]
            polls = asyncio.gather(
                *(poll(one, since=time) for one in connections for time in times), return_exceptions=True
            )
            await until(lambda: len(server.connections) == 40)
            await until(lambda: sum(t.name.startswith("onebox polls") for t in threading.enumerate()) >= 160)
            assert await poll(polled_connection("onebox_default", None)) == (250, int(connected.state.ids()[-1]))
            assert await asyncio.to_thread(int) == 0
            assert not polls.done()
            server.close()
            return await polls

        assert {type(error) for error in asyncio.run(scenario())} == {OneboxUnavailableError}
