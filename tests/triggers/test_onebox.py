"""The triggers: the hook's own poll, off the event loop, with a deadline and no secret."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

import pytest
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException
from airflow.triggers.base import BaseTrigger
from support.airflow_home import AIRFLOW_3, AIRFLOW_VERSION
from support.polling import Gate, Log, add_late, deaf_server, first, until

from airflow_provider_onebox._airflow import compat
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxServiceHoursError, OneboxUnavailableError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.triggers import _polling as polling
from airflow_provider_onebox.triggers import onebox
from airflow_provider_onebox.triggers._polling import MAX_FAILED_POLLS
from airflow_provider_onebox.triggers.onebox import OneboxNewRecordsTrigger, OneboxRecordTrigger


@pytest.fixture
def logged(monkeypatch):
    """Collect what triggers log: level and line."""
    return Log.of(monkeypatch, BaseTrigger)


def record_trigger(**options):
    """Make a trigger that waits for tickets and polls quickly."""
    return OneboxRecordTrigger("ticketrz", **{"poke_interval": 0.02, **options})


def event_of(trigger):
    """Wait for a trigger's first event."""
    return asyncio.run(first(trigger))


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
    assert OneboxRecordTrigger("ticketrz").serialize()[1] == {
        "resource": "ticketrz",
        **dict.fromkeys(("since_id", "since", "last_update", "max_wait", "deadline", "site_id")),
        "min_count": 1,
        "poke_interval": 60,
        "exponential_backoff": False,
        "silent_fail": False,
        "onebox_conn_id": "onebox_default",
    }


def test_success(connected):
    """Existing records end the wait at once."""
    ids = connected.state.ids(site="170")
    event = event_of(rebuilt(record_trigger(since_id=ids[9], site_id="170")))
    assert event == {"status": "success", "count": 240, "last_id": ids[-1]}


def test_wait_and_min_count(connected):
    """Records that come later end it when there are enough; polls share one login."""
    last = connected.state.ids()[-1]

    async def scenario():
        waiting = asyncio.ensure_future(first(record_trigger(since_id=last, min_count=2)))
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
    start = time.time()
    trigger = record_trigger(since_id=connected.state.ids()[-1], deadline=start + 0.3, poke_interval=60)
    assert event_of(trigger) == {"status": "timeout"}
    assert time.time() - start >= 0.3
    assert event_of(rebuilt(trigger)) == {"status": "timeout"}


def test_deadline_of_a_hanging_connection(connect):
    """The wait ends at its deadline although the poll hangs."""
    with deaf_server() as server:
        connect(server.url, timeout=60)
        assert event_of(record_trigger(since_id=0, deadline=time.time() + 0.3)) == {"status": "timeout"}
        assert len(server.connections) == 1


def pauses_of(monkeypatch, sandbox, trigger, polls):
    """List the pauses of a trigger, which finds a record after so many of them."""
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == polls:
            sandbox.state.add(1)

    monkeypatch.setattr(onebox.asyncio, "sleep", sleep)
    event_of(trigger)
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
    trigger = record_trigger(since_id=last, poke_interval=interval, exponential_backoff=exponential, max_wait=max_wait)
    pauses = pauses_of(monkeypatch, connected, trigger, 4)
    # Each is lengthened by less than a tenth, to end together with those of other triggers.
    assert all(least <= pause <= 1.1 * least for least, pause in zip(expected, pauses, strict=True))


def test_failed_polls(connected, reconnect):
    """A few transient errors in a row are tolerated, with silent_fail any, but never a rejected password."""
    connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS, status=503)
    assert event_of(record_trigger(since_id=0))["status"] == "success"
    connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS + 1, status=503)
    event = event_of(record_trigger(since_id=0))
    assert (event["status"], event["error"], event["details"]["status"]) == ("error", "OneboxUnavailableError", 503)
    connected.state.fail("status", path="ticketrz", times=2 * MAX_FAILED_POLLS, status=404)
    assert event_of(record_trigger(since_id=0, silent_fail=True))["status"] == "success"
    reconnect(password="wrong password")
    assert event_of(record_trigger(since_id=0, silent_fail=True))["error"] == "OneboxAuthError"
    assert connected.state.failed_logins == 1


@pytest.mark.parametrize("is_outside", [False, True], ids=["within service hours", "outside"])
def test_failed_polls_in_a_row(connected, monkeypatch, is_outside):
    """A poll that goes well, or that is outside service hours, begins the count of failed ones anew."""
    monkeypatch.setattr(onebox, "until_opening", lambda error, interval: 0.02)
    connected.state.configure(outside_service_hours=is_outside)
    polls, last = connected.state.requests, connected.state.ids()[-1]

    async def scenario():
        waiting = asyncio.ensure_future(first(record_trigger(since_id=last)))
        for _ in range(2):
            connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS, status=503)
            seen = polls["GET list"] + MAX_FAILED_POLLS + 2
            await until(lambda seen=seen: polls["GET list"] >= seen or waiting.done())
        connected.state.configure(outside_service_hours=False)
        connected.state.add(1)
        return await waiting

    assert asyncio.run(scenario())["status"] == "success"


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ({"since_id": "one"}, "OneboxConfigError"),
        ({"since": "yesterday"}, "OneboxConfigError"),
        ({"poke_interval": "often"}, "OneboxError"),
        ({"deadline": "tomorrow"}, "OneboxError"),
    ],
)
def test_bad_argument(connected, argument, error):
    """A trigger with a wrong argument ends with an event, and nothing is sent."""
    event = event_of(record_trigger(silent_fail=True, **{"deadline": 0, **argument}))
    assert (event["status"], event["error"]) == ("error", error)
    assert not connected.state.requests


def test_unexpected_error(connected, monkeypatch, logged):
    """An error that nobody expected ends the wait with an event that says where it was raised, and no more."""

    def fail(hook):
        raise KeyError("sesame")

    monkeypatch.setattr(OneboxHook, "look_up", fail)
    line = fail.__code__.co_firstlineno + 1
    message = (
        f"The trigger failed with an unexpected KeyError in test_onebox.py, line {line}. If its arguments are right, "
        "this is a defect of the provider: please report it."
    )
    details = dict.fromkeys(("status", "code", "server_message", "retry_after"))
    assert event_of(record_trigger()) == {
        "status": "error",
        "error": "OneboxError",
        "message": message,
        "details": details,
    }
    assert logged == []
    assert event_of(record_trigger(silent_fail=True, deadline=0)) == {"status": "timeout"}
    assert logged == [("warning", f"Poll failed (1 in a row), continuing: {message}")]


def test_cancelled(connected, monkeypatch):
    """While a poll waits for Onebox the event loop goes on, and a cancelled trigger ends without an event."""
    gate = Gate(monkeypatch)

    async def scenario():
        task = asyncio.ensure_future(first(record_trigger()))
        await gate.until_begun(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.tickets.release()

    asyncio.run(scenario())


def test_outside_service_hours(connected, monkeypatch, logged):
    """Outside service hours a wait goes on, however often it has polled, to its deadline or until they begin."""
    monkeypatch.setattr(onebox, "until_opening", lambda error, interval: 0.02)
    connected.state.configure(outside_service_hours=True)

    async def scenario(opens):
        polls = connected.state.requests["GET list"]
        trigger = record_trigger(since_id=0, deadline=time.time() + 3600, poke_interval=60)
        waiting = asyncio.ensure_future(first(trigger))
        await until(lambda: connected.state.requests["GET list"] > polls + 2 * MAX_FAILED_POLLS)
        connected.state.configure(outside_service_hours=not opens)
        trigger.deadline = time.time() + (3600 if opens else 0)
        return await waiting

    assert asyncio.run(scenario(opens=False)) == {"status": "timeout"}
    assert asyncio.run(scenario(opens=True))["count"] == 250
    assert {level for level, _ in logged} == {"info"}
    assert all(line.startswith("Outside service hours, next poll in 0 s: Connection ") for _, line in logged)


@pytest.mark.parametrize(("missing_for", "expected"), [(3, "success"), (MAX_FAILED_POLLS + 1, "error")])
def test_connection_that_goes_missing(connected, reconnect, monkeypatch, logged, missing_for, expected):
    """A failed look-up is a failed poll: one line each, at the poll's pace, and the wait survives a few of them."""
    monkeypatch.setattr(polling, "LOOK_UP_INTERVAL", 0)
    last = connected.state.ids()[-1]

    async def scenario():
        waiting = asyncio.ensure_future(first(record_trigger(since_id=last)))
        await until(lambda: connected.state.requests["GET list"])
        monkeypatch.delenv("AIRFLOW_CONN_ONEBOX_DEFAULT")
        await until(lambda: len(logged) >= missing_for or waiting.done())
        reconnect()
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


def test_no_thread_is_left(connected):
    """Polls in one event loop after another do not add up threads."""
    before = threading.active_count()
    for _ in range(30):
        event_of(record_trigger(since_id=0))
    assert threading.active_count() <= before + 8


KEY = "onebox_watcher.onebox_default..ticketrz"


class Store(dict):
    """The state store of a watched asset, as Airflow 3.3 injects it."""

    written = 0

    async def aget(self, key):
        return self.get(key)

    async def aset(self, key, value):
        self.written += 1
        self[key] = value


def watcher(resource="ticketrz", *, store=None, **options):
    """Make a watcher that polls quickly and, if there is a store, keeps its state there."""
    trigger = OneboxNewRecordsTrigger(resource, **{"poll_interval": 0.02, **options})
    if store is not None:
        trigger.asset_state_store = store
    return trigger


def test_watcher_on_airflow_2(on_another_airflow, monkeypatch):
    """Where there are no event triggers, it says what is lacking and what to use; all else can be imported."""
    monkeypatch.setattr(compat, "AIRFLOW_VERSION", (2, 11))
    monkeypatch.setattr(compat, "HAS_EVENT_TRIGGERS", False)
    older = on_another_airflow(onebox)
    assert issubclass(older.OneboxNewRecordsTrigger, BaseTrigger)
    with pytest.raises(AirflowOptionalProviderFeatureException, match="OneboxRecordSensor"):
        older.OneboxNewRecordsTrigger("ticketrz")


class Records:
    """Onebox as a watcher polls it: ids that are visible, and ids of transactions that have not committed yet."""

    def __init__(self, *visible):
        self.visible, self.hidden, self.asked = set(visible), set(), []

    @property
    def last(self):
        return max(self.visible | self.hidden, default=0)

    def add(self, number=1):
        """Add records."""
        self.visible |= set(range(self.last + 1, self.last + 1 + number))

    def hide(self):
        """Take an id for a record that becomes visible later."""
        self.hidden.add(self.last + 1)

    def reveal(self):
        """Let the records become visible that have an id already."""
        self.visible |= self.hidden
        self.hidden = set()

    def count_together(self, resource, after):
        newer = {n for n in self.visible if n > after}
        return len(newer), max(newer, default=None)

    def list_ids(self, resource, after, last_id):
        return {n for n in self.visible if after < n <= last_id}

    async def ask(self, question, *args):
        """Respond in place of a connection."""
        await asyncio.sleep(0)
        self.asked.append((question.__name__, *args[1:]))
        response = getattr(self, question.__name__)(*args)
        await asyncio.sleep(0)
        return response


def ranges(events):
    """Return which ids events name."""
    return [n for event in events for n in range(int(event["since_id"]) + 1, int(event["last_id"]) + 1)]


@pytest.fixture
def polls(monkeypatch):
    """Return what makes a watcher poll before the first and after each further step, and returns its events."""

    def poll(records, *steps, store=None, **options):
        trigger = watcher(store=store, **options)
        monkeypatch.setattr(onebox, "polled_connection", lambda conn_id, site_id: records)

        async def turns():
            yield
            for step in steps:
                step()
                yield
            yield  # The state after the last event is saved in the turn after it.

        async def take():
            return [event.payload async for event in trigger.filter_shared_stream(turns())]

        events = asyncio.run(take())
        assert {event.pop("resource") for event in events} <= {"ticketrz"}
        return [(event["since_id"], event["last_id"], event["count"]) for event in events]

    return poll


@pytest.mark.skipif(not AIRFLOW_3, reason="Airflow 2 has no event triggers")
class TestWatcher:
    """The watcher, on the versions that have event triggers; records can become visible out of order."""

    def test_serialize(self):
        """What is stored makes the same trigger again; one that differs in an option has another stream."""
        trigger = OneboxNewRecordsTrigger("ticketrz", since_id="5", site_id="170", overlap=9, poll_interval=7.0)
        assert vars(rebuilt(trigger)) == vars(trigger)
        assert vars(trigger).items() >= vars(Plain()).items()
        stored = OneboxNewRecordsTrigger("ticketrz").serialize()[1]
        assert (stored["since_id"], stored["poll_interval"], stored["overlap"]) == (None, 60, 100)
        assert watcher(poll_interval=2).shared_stream_key() != watcher(poll_interval=3).shared_stream_key()

    def test_restart(self, polls):
        """Where Airflow keeps its state, a watcher goes on where it was, and writes only what has changed."""
        records, store = Records(*range(1, 251)), Store()
        assert polls(records, lambda: records.add(2), store=store) == [("250", "252", 2)]
        assert store.written == 2  # where it began, and where it is now
        records.add(4)
        assert polls(records, store=store) == [("252", "256", 4)]
        assert store.written == 3
        assert store == {KEY: {"after": 156, "last_id": 256, "known": list(range(157, 257))}}
        empty = Store()
        assert polls(Records(), store=empty) == []
        assert empty == {KEY: {"after": 0, "last_id": 0, "known": []}}

    def test_watched_by_two_assets(self, polls, monkeypatch):
        """Airflow runs equal triggers as one: each asset has its state, and what one of them lacks is reported."""
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
        kept["a", KEY] = {"after": 11, "last_id": 17, "known": [12, 13, 14, 15, 16, 17]}
        kept["b", KEY] = {"after": 10, "last_id": 15, "known": [11, 12, 14, 15]}
        store = context.AssetStateStoreAccessors([Asset("a", uri="x://a"), Asset("b", uri="x://b")])
        # b lacks 13, before its last one, and 16 and 17, which a has; 18 and 19 are new to both.
        records = Records(*range(1, 20))
        assert polls(records, store=store, overlap=8) == [("12", "19", 5)]
        state = {"after": 11, "last_id": 19, "known": list(range(12, 20))}
        assert kept == {("a", KEY): state, ("b", KEY): state}
        kept.pop(("b", KEY))
        assert polls(records, since_id=18, store=store) == [("18", "19", 1)]

    def test_pause(self, connected, monkeypatch):
        """Polls are as far apart as the watcher says."""
        trigger = watcher(since_id=connected.state.ids()[-1], poll_interval=40)
        assert [int(pause) for pause in pauses_of(monkeypatch, connected, trigger, 3)] == [40] * 3

    def test_pause_after_what_is_stored(self, monkeypatch):
        """On Airflow 3.3, too: when Airflow has stored the result of a poll, the next one is as far off."""
        producer = OneboxNewRecordsTrigger.create_shared_stream_producer({"poll_interval": 40})
        pauses = []

        async def sleep(seconds):
            pauses.append(seconds)

        async def scenario():
            turns = producer.open_stream()
            await anext(turns)
            for _ in range(2):
                following = asyncio.ensure_future(anext(turns))
                await asyncio.wait({following}, timeout=0.05)
                assert not following.done()
                await producer.advance([])
                await following
            await turns.aclose()

        monkeypatch.setattr(onebox.asyncio, "sleep", sleep)
        asyncio.run(scenario())
        assert [int(pause) for pause in pauses] == [40] * 2

    def test_late_record(self, polls):
        """A late record is reported by itself, and one that comes with newer ones extends their range backwards."""
        records = Records(*range(1, 9), 10)
        records.hidden = {9}
        later = [records.reveal, records.add, records.hide, records.add, lambda: records.reveal() or records.add(2)]
        assert polls(records, *later, since_id=0) == [
            ("0", "10", 9),
            ("8", "9", 1),
            ("10", "11", 1),
            ("11", "13", 1),
            ("11", "15", 3),
        ]

    def test_over_sockets(self, connected):
        """It begins at the present and reports each set of new records once, and a late one, with their range."""
        ids = [int(row_id) for row_id in connected.state.ids()]
        gap = next(n for n in range(ids[-1] - 1, 0, -1) if n not in ids)
        taken = []

        async def take():
            async for event in watcher().run():
                taken.append(event.payload)

        async def scenario():
            task = asyncio.ensure_future(take())
            # The start: its count and its list; and one whole poll.
            await until(lambda: connected.state.requests["GET list"] >= 5)
            connected.state.add(2)
            await until(lambda: len(taken) == 1)
            add_late(connected, gap)
            await until(lambda: len(taken) == 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(scenario())
        new = connected.state.ids()[-1]
        assert taken == [
            {"resource": "ticketrz", "count": 2, "since_id": str(ids[-1]), "last_id": new},
            {"resource": "ticketrz", "count": 1, "since_id": str(gap - 1), "last_id": str(gap)},
        ]

    def test_what_is_visible_at_the_start(self, polls):
        """What becomes visible after the start is new, whatever its id; what was visible is not."""
        records = Records(1, 2, 3, 5)
        records.hidden = {4}
        assert polls(records, records.reveal) == [("3", "4", 1)]
        assert records.asked[:2] == [("count_together", 0), ("list_ids", 0, 5)]

    def test_nothing_before_since_id(self, polls):
        """Ids up to since_id are never reported, and never asked for."""
        records = Records(1, 2, 4, 5)
        records.hidden = {3}
        assert polls(records, records.reveal, records.add, since_id=4) == [("4", "5", 1), ("5", "6", 1)]
        assert records.asked == [
            ("count_together", 4),
            ("list_ids", 4, 5),
            ("count_together", 4),
            ("count_together", 4),
            ("list_ids", 4, 5),
            ("list_ids", 5, 6),
            ("count_together", 4),
        ]

    @pytest.mark.parametrize(("overlap", "late"), [(3, [("7", "8", 1)]), (2, []), (0, [])])
    def test_overlap(self, polls, overlap, late):
        """Late records are reported as far behind the greatest id as the overlap goes, and the state is as small."""
        records, store = Records(*range(1, 8), 9, 10), Store()
        records.hidden = {8}
        assert polls(records, records.reveal, since_id=1, overlap=overlap, store=store) == [("1", "10", 8), *late]
        assert store[KEY]["after"] == 10 - overlap
        assert len(store[KEY]["known"]) == overlap

    def test_many_at_once(self, polls):
        """Of any number of new records, only those within the overlap are listed."""
        records = Records(*range(1, 100_001))
        assert polls(records, since_id=0, overlap=5) == [("0", "100000", 100_000)]
        assert records.asked[:2] == [("count_together", 0), ("list_ids", 99_995, 100_000)]

    def test_no_overlap(self, polls):
        """With no overlap nothing is listed, and each poll counts after the greatest id."""
        records = Records(1, 2, 3)
        assert polls(records, records.add, overlap=0) == [("3", "4", 1)]
        assert records.asked == [("count_together", n) for n in (0, 3, 3, 4)]

    def test_deleted_records(self, polls, logged):
        """Deleted records are no event; one that came in the same moment is reported with the next change."""
        records, store = Records(1, 2, 3, 5), Store()
        steps = [
            lambda: records.visible.remove(2),
            records.add,
            # The number stays the same, so that the late one is not noticed.
            lambda: records.visible.symmetric_difference_update({1, 4}),
            records.add,
            records.visible.clear,
            lambda: records.visible.add(8),
        ]
        assert polls(records, *steps, store=store) == [("5", "6", 1), ("3", "7", 2), ("7", "8", 1)]
        assert store[KEY] == {"after": 0, "last_id": 8, "known": [8]}
        assert logged == []

    def test_late_between_two_requests(self, polls, monkeypatch):
        """A record that appears after the count and before the list is counted, and reported once."""
        records = Records(1, 2, 5)
        listed = Records.list_ids

        def list_ids(records, resource, after, last_id):
            records.visible.add(3)
            return listed(records, resource, after, last_id)

        steps = [lambda: monkeypatch.setattr(Records, "list_ids", list_ids) or records.visible.remove(1)]
        assert polls(records, *steps) == [("2", "3", 1)]

    @pytest.mark.parametrize(
        "state",
        [
            5,
            [],
            {"after": 1, "last_id": 2},
            {"after": None, "last_id": 2, "known": []},
            {"after": 1, "last_id": "two", "known": []},
            {"after": 1, "last_id": 2, "known": [1.5]},
        ],
    )
    def test_state_that_is_none(self, polls, logged, state):
        """A state that a watcher can't have written is not guessed at: the log says what to do."""
        assert polls(Records(1, 2, 3), store=Store({KEY: state})) == []
        line = (
            "Poll for new ticketrz records failed, continuing: Airflow's asset state store holds no state of a watcher "
            f"under the key '{KEY}': delete that key, and the watcher starts anew from since_id."
        )
        assert logged == [("error", line)] * 2

    def test_failed_polls(self, polls, logged):
        """A failed poll is logged, and the next one goes on: a watcher never ends."""
        records, store = Records(1, 2, 3), Store()
        fails = [ValueError("sesame"), OneboxUnavailableError("gone"), OneboxServiceHoursError("closed")]
        fails_in_airflow = [RuntimeError("API_SERVER_ERROR")]

        async def ask(*args):
            if fails:
                raise fails.pop()
            return await Records.ask(records, *args)

        async def aget(key):
            if fails_in_airflow:
                raise fails_in_airflow.pop()

        records.ask, store.aget = ask, aget
        assert polls(records, *[records.add] * 5, since_id=3, store=store) == [("3", "7", 4), ("7", "8", 1)]
        failed = "Poll for new ticketrz records failed, continuing: "
        assert [(level, line.split(" in test_")[0]) for level, line in logged] == [
            ("error", f"{failed}Airflow's asset state store does not respond: API_SERVER_ERROR"),
            ("info", "Outside service hours, continuing: closed"),
            ("error", f"{failed}gone"),
            ("error", f"{failed}The trigger failed with an unexpected ValueError"),
        ]

    @pytest.mark.parametrize(
        "argument",
        [
            {"since_id": "new"},
            {"overlap": -1},
            {"overlap": 10_001},
            {"poll_interval": 0},
            {"poll_interval": "60"},
            {"poll_interval": float("inf")},
        ],
    )
    def test_bad_argument(self, argument):
        """A wrong argument is an error when the DAG is parsed."""
        ((name, value),) = argument.items()
        with pytest.raises(OneboxConfigError, match=f"^{name}=.?{value}.? is not an? "):
            OneboxNewRecordsTrigger("ticketrz", **argument)


class CountedAwaits:
    """Runs a coroutine and cancels its task at a given await, in Airflow's code too."""

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


class Triggerer(Records):
    """Airflow 3.3 around a watcher: its shared streams, its state stores, and the supervisor that stores events."""

    def __init__(self, since_id, assets):
        super().__init__(*range(81, 101))
        self.since_id, self.assets = since_id, assets
        self.arrivals, self.polls = [], 0
        self.database, self.stored = {}, []
        self.begin = since_id

    async def asend(self, message):
        """Respond in place of the supervisor, as Airflow's accessors ask it."""
        from airflow.sdk.execution_time import comms

        await asyncio.sleep(0)
        key = message.name, message.key
        response = None
        if isinstance(message, comms.SetAssetStateStoreByName):
            self.database[key] = message.value
            self.begin = message.value["last_id"] if self.begin is None else self.begin
        elif key in self.database:
            response = comms.AssetStateStoreResult(value=self.database[key])
        await asyncio.sleep(0)
        return response

    def count_together(self, resource, after):
        """Count, while records arrive."""
        self.polls += 1
        change = self.arrivals.pop(0) if self.arrivals else 0
        getattr(self, change)() if isinstance(change, str) else self.add(change)
        return super().count_together(resource, after)

    async def live(self, arrivals, dies_at, last_is_stored=True):
        """Run the watcher until it has seen all arrivals or dies; return the number of awaits that it had."""
        from airflow.sdk import Asset
        from airflow.sdk.execution_time.context import AssetStateStoreAccessors
        from airflow.triggers.shared_stream import SharedStreamManager

        store = AssetStateStoreAccessors([Asset(name, uri=f"x://{name}") for name in self.assets])
        trigger = watcher(since_id=self.since_id, poll_interval=0.001, store=store)
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
@pytest.mark.parametrize(("since_id", "assets"), [(None, "a"), (90, "ab")])
@pytest.mark.parametrize("last_is_stored", [True, False], ids=["stored", "lost"])
@pytest.mark.parametrize("arrivals", [[0, 2, 0, 3, 1], [0, 2, "hide", 2, "reveal"]], ids=["in order", "late"])
def test_cancelled_at_every_await(monkeypatch, since_id, assets, last_is_stored, arrivals):
    """In Airflow 3.3's own streams and stores, at whatever await it dies, once or twice: no record is lost.

    After one death, only the last event repeats.
    """
    from airflow.sdk.execution_time import task_runner

    monkeypatch.setattr(onebox, "until_tick", lambda _: 0)

    async def history(*deaths):
        world = Triggerer(since_id, assets)
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", world, raising=False)
        monkeypatch.setattr(onebox, "polled_connection", lambda conn_id, site_id: world)
        for dies_at in deaths:
            awaits = await world.live(arrivals, dies_at, last_is_stored)
        before = list(world.stored)
        world.reveal()
        world.add(2)
        await world.live([0, 0, 4], 10**6)
        return awaits, world, before

    is_in_order = "hide" not in arrivals
    awaits, world, before = asyncio.run(history(10**6))
    assert set(ranges(world.stored)) == set(range(world.begin + 1, world.last + 1))
    if is_in_order:
        assert len(ranges(world.stored)) == world.last - world.begin
        assert len(before) == (3 if since_id is None else 4)
    assert awaits > 30
    repeated = 0
    for dies_at in range(1, awaits):
        _, world, before = asyncio.run(history(dies_at))
        numbers = ranges(world.stored)
        assert set(numbers) == set(range(world.begin + 1, world.last + 1)), dies_at
        twice = {n for n in numbers if numbers.count(n) > 1}
        # A late record's range holds others that were reported before.
        assert twice <= set(ranges(before[-1:])) or not is_in_order, dies_at
        repeated += bool(twice)
        if dies_at % 3 == 0:
            _, world, _ = asyncio.run(history(dies_at, awaits - dies_at))
            assert set(ranges(world.stored)) == set(range(world.begin + 1, world.last + 1)), dies_at
    assert repeated
