"""The sensor: the same results here and in the triggerer."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
    XComArg,
)
from support.airflow_home import AIRFLOW_3
from support.polling import Log
from support.processes import PATIENCE

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:
    from airflow.exceptions import AirflowRescheduleException
try:
    from airflow.sdk.execution_time.context import set_current_context
except ImportError:
    from airflow.models.taskinstance import set_current_context

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.sandbox import Sandbox
from airflow_provider_onebox.sensors.onebox import BACKSTOP, OneboxRecordSensor
from airflow_provider_onebox.triggers import _polling as polling
from airflow_provider_onebox.triggers._polling import MAX_FAILED_POLLS, MAX_POLL_INTERVAL


def make(**options):
    """Make a sensor that polls quickly."""
    return OneboxRecordSensor(
        **{"task_id": "t", "resource": "ticketrz", "poke_interval": 0.002, "timeout": 0.05, **options}
    )


def wait(mode, **options):
    """Wait in any mode; where Airflow takes part in it, do as it does."""
    if mode == "reschedule":
        began = datetime.now(timezone.utc)
        ti = {"get_first_reschedule_date": lambda context: began, "max_tries": 0, "map_index": -1}
        context = {"ti": SimpleNamespace(**ti, dag_id="d", task_id="t", run_id="r")}
        with pytest.MonkeyPatch.context() as patch:
            if not AIRFLOW_3:
                patch.setattr("airflow.sensors.base._orig_start_date", lambda **_: began)
            while True:
                try:
                    # Each poke is a new process of Airflow's.
                    return make(mode="reschedule", **options).execute(context)
                except AirflowRescheduleException as again:
                    time.sleep(max(0, (again.reschedule_date - datetime.now(timezone.utc)).total_seconds()))
    sensor = make(deferrable=mode == "deferrable", **options)
    try:
        return sensor.execute({})
    except TaskDeferred as deferred:
        trigger, method = deferred.trigger, deferred.method_name
    trigger = type(trigger)(**trigger.serialize()[1])

    async def events():
        return [event.payload async for event in trigger.run()]

    (payload,) = asyncio.run(events())
    return make(deferrable=True, **options).resume_execution(method, {"event": payload}, {})


OPENING = "airflow_provider_onebox.api.service_hours.seconds_until_opening"
every = pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])


@every
def test_found_at_once(connected, mode):
    """Existing records end the wait with their number and last id, without a trigger."""
    ids = connected.state.ids()
    assert make(since_id=ids[4], deferrable=True, min_count=245).execute({})["count"] == 245
    assert wait(mode, since_id=ids[4], min_count=245) == {"count": 245, "last_id": ids[-1]}
    assert wait(mode, since="2000-01-01 00:00")["count"] == 250
    assert wait(mode, last_update=datetime(2000, 1, 1))["count"] == 250
    for never in ({"since": "2099-01-01 00:00"}, {"last_update": "2099-01-01 00:00"}):
        with pytest.raises(AirflowSensorTimeout):
            wait(mode, **never)


OPTIONS = ({}, {"soft_fail": True}, {"never_fail": True}, {"silent_fail": True})
OUTCOMES = {
    # never_fail does not skip after a timeout, as Airflow's own sensors in poke mode.
    "no records": (AirflowSensorTimeout, AirflowSkipException, AirflowSensorTimeout, AirflowSensorTimeout),
    "outside service hours": (AirflowSensorTimeout, AirflowSkipException, AirflowSensorTimeout, AirflowSensorTimeout),
    "rejected call": (OneboxRequestError, OneboxRequestError, AirflowSkipException, AirflowSensorTimeout),
    "unavailable": (OneboxUnavailableError, OneboxUnavailableError, AirflowSkipException, AirflowSensorTimeout),
    "no Airflow": (OneboxUnavailableError, OneboxUnavailableError, AirflowSkipException, AirflowSensorTimeout),
    "rejected password": (OneboxAuthError, AirflowSkipException, AirflowSkipException, OneboxAuthError),
    "no connection": (OneboxConfigError, AirflowSkipException, AirflowSkipException, OneboxConfigError),
}
"""What becomes of a wait with each of OPTIONS."""


@every
@pytest.mark.parametrize("option", range(4), ids=["none", "soft_fail", "never_fail", "silent_fail"])
@pytest.mark.parametrize("trouble", OUTCOMES)
def test_options(connected, reconnect, monkeypatch, mode, option, trouble):
    """Each option has the same outcome in each mode, whatever the trouble; a rejected password is tried once."""

    def fail(conn_id):
        raise RuntimeError("API_SERVER_ERROR")

    expected, since_id = OUTCOMES[trouble][option], 0
    reconnect(max_retries=0)
    if trouble == "no records":
        since_id = connected.state.ids()[-1]
    elif trouble == "outside service hours":
        connected.state.configure(outside_service_hours=True)
        monkeypatch.setattr(OPENING, lambda message: 0.002)
    elif trouble == "rejected call":
        connected.state.fail("envelope_200", path="ticketrz", times=999, code="404", message="no such thing")
    elif trouble == "unavailable":
        connected.state.fail("status", path="ticketrz", times=999, status=503)
    elif trouble == "no Airflow":
        monkeypatch.setattr(OneboxHook, "get_connection", staticmethod(fail))
    elif trouble == "rejected password":
        reconnect(password="wrong password")
    else:
        monkeypatch.delenv("AIRFLOW_CONN_ONEBOX_DEFAULT")
    if OUTCOMES[trouble][0] is OneboxUnavailableError and mode == "reschedule":  # It can't count failed polls.
        expected = OUTCOMES["no records"][option]
    waits = AirflowSensorTimeout in (expected, OUTCOMES[trouble][0]) or mode == "reschedule"
    with pytest.raises(expected) as caught:
        wait(mode, since_id=since_id, timeout=0.05 if waits else PATIENCE, **OPTIONS[option])
    assert connected.state.failed_logins == (trouble == "rejected password")
    if expected is OneboxRequestError:
        assert "no such thing" in str(caught.value)
        assert (caught.value.code, caught.value.__cause__) == ("404", None)


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_back_off_of_weeks(monkeypatch, mode):
    """Pauses double up to max_wait, for however long a wait is; for those of deferrable mode see test_pauses."""
    monkeypatch.setattr(OneboxRecordSensor, "log", Log())
    sensor = make(since_id=0, mode=mode, poke_interval=2, exponential_backoff=True, max_wait=60, timeout=10**7)
    pauses = []
    for count in range(1, 3000):
        pauses.append(sensor._get_next_poke_interval(0, lambda: sum(pauses), count))
    assert all(2**n / 2 <= pause <= 2 * 2**n for n, pause in enumerate(pauses[:5]))
    assert set(pauses[10:]) == {60}


@every
def test_outside_service_hours(connected, monkeypatch, mode):
    """Outside service hours the wait goes on until they begin, however often it has polled."""
    connected.state.configure(outside_service_hours=True)

    def open_later(message):
        if connected.state.requests["GET list"] > 2 * MAX_FAILED_POLLS:
            connected.state.configure(outside_service_hours=False)
        return 0.002

    monkeypatch.setattr(OPENING, open_later)
    assert wait(mode, since_id=0, poke_interval=60, timeout=PATIENCE)["count"] == 250


@pytest.mark.parametrize(
    ("known", "timeout", "pause"), [(600, 9000, 600), (9 * 3600, 90000, MAX_POLL_INTERVAL), (600, 30, 30)]
)
def test_pause_outside_service_hours(connected, monkeypatch, known, timeout, pause):
    """In poke mode the next poll comes when the hours begin, an hour away at the most, or at the timeout."""
    monkeypatch.setattr(OPENING, lambda message: known)
    connected.state.configure(outside_service_hours=True)
    logged = Log.of(monkeypatch, OneboxRecordSensor)
    sensor = make(since_id=0, poke_interval=60, timeout=timeout)
    assert not sensor.poke({}).is_done
    ((level, line),) = logged
    assert level == "info"
    assert line.startswith("Outside service hours, continuing: Connection 'onebox_default'")
    assert sensor._get_next_poke_interval(0, lambda: 0, 1) == pause
    assert sensor._get_next_poke_interval(0, lambda: timeout + 5, 1) == 0
    connected.state.configure(outside_service_hours=False)
    sensor.poke({})
    assert logged[1:] == [("info", "Found 250 of 1 new ticketrz records.")]
    assert sensor._get_next_poke_interval(0, lambda: 0, 1) == 60


def test_failed_polls_around_service_hours(connected, reconnect, monkeypatch):
    """Outside service hours the count of failed polls begins anew."""
    reconnect(max_retries=0)
    connected.state.configure(outside_service_hours=True)
    logged = Log.of(monkeypatch, OneboxRecordSensor)
    sensor = make(since_id=0)
    for _ in range(2):
        connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS, status=503)
        assert not any(sensor.poke({}).is_done for _ in range(MAX_FAILED_POLLS + 1))
        for n, (level, line) in enumerate(logged[-MAX_FAILED_POLLS - 1 : -1], 1):
            assert level == "warning"
            assert line.startswith(f"Poll failed ({n} in a row), continuing: Connection 'onebox_default'")
    connected.state.configure(outside_service_hours=False)
    assert sensor.poke({}).is_done


@every
def test_failed_polls_in_a_row(connected, reconnect, mode):
    """A poll that goes well begins the count of failed ones anew."""
    reconnect(max_retries=0)
    last = connected.state.ids()[-1]
    connected.state.configure(grow=1)
    for n in range(2):
        connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS, after=n, status=503)
    assert wait(mode, since_id=last, min_count=2, timeout=PATIENCE)["count"] >= 2
    assert connected.state.requests["GET list"] > 2 * MAX_FAILED_POLLS


@pytest.mark.parametrize("trouble", ["none", "failed poll", "missing for a while"])
def test_changed_connection_is_picked_up(connected, connect, reconnect, monkeypatch, trouble):
    """A wait in poke mode notices that its connection leads elsewhere now: after a while, or after a failed poll.

    It does not look at each poll.
    """
    monkeypatch.setattr("airflow_provider_onebox.hooks.onebox._runs", {})
    monkeypatch.setattr(polling, "LOOK_UP_INTERVAL", -1 if trouble == "missing for a while" else 300)
    reconnect(max_retries=0)
    last = connected.state.ids()[-1]
    ti = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1)
    with Sandbox(records=300) as other, set_current_context({"ti": ti}):
        sensor = make(since_id=last)
        assert [sensor.poke({}).is_done for _ in range(3)] == [False] * 3
        assert connected.state.logins == 1
        if trouble == "missing for a while":
            with monkeypatch.context() as patch:
                patch.delenv("AIRFLOW_CONN_ONEBOX_DEFAULT")
                assert [sensor.poke({}).is_done for _ in range(MAX_FAILED_POLLS)] == [False] * MAX_FAILED_POLLS
                with pytest.raises(OneboxConfigError, match="can't be found"):
                    sensor.poke({})
        connect(other.url, login=other.email, password=other.password)
        if trouble == "none":
            assert not sensor.poke({}).is_done
            sensor._looked_up -= 301
        if trouble == "failed poll":
            connected.state.fail("status", path="ticketrz", status=503)
            assert not sensor.poke({}).is_done
        assert sensor.poke({}).xcom_value["last_id"] == other.state.ids()[-1]
        assert other.state.logins == 1
        if trouble != "missing for a while":
            monkeypatch.delenv("AIRFLOW_CONN_ONEBOX_DEFAULT")
            assert sensor.poke({}).is_done  # It was looked up just now.


def test_reference_point_is_required(connected):
    """Without a reference point nothing is new: an error when the DAG is parsed, or when templates render as none."""
    with pytest.raises(OneboxConfigError, match="since_id, since or last_update"):
        make()
    sensor = make(since_id="{{ none }}")
    sensor.since_id = None
    with pytest.raises(OneboxConfigError, match="since_id, since or last_update"):
        sensor.execute({})
    assert not connected.state.requests


@pytest.mark.parametrize(
    "argument",
    [
        *({"min_count": value} for value in (0, "0", "", None)),
        *({"since_id": value} for value in ("one", "")),
        {"since": "yesterday"},
        {"last_update": "1 pm"},
    ],
)
def test_bad_argument(connected, argument):
    """A wrong argument is an error when the DAG is parsed, or once it is rendered, and nothing is sent."""
    ((name, value),) = argument.items()
    with pytest.raises(OneboxConfigError, match=f"^{name}="):
        make(**{"since_id": 0, **argument})
    sensor = make(**{"since_id": 0, name: "{{ rendered }}"})
    setattr(sensor, name, value)
    with pytest.raises(OneboxConfigError, match=f"^{name}="):
        sensor.execute({})
    assert not connected.state.requests


@pytest.mark.parametrize("native", [False, True])
def test_templates(connected, native):
    """Every number can be a template or come from an upstream task, rendered as text or as what it is."""
    with DAG("d", schedule=None, render_template_as_native_obj=native):
        upstream = make(task_id="upstream", since_id=0)
        sensor = make(
            task_id="waits", since_id="{{ 3 + 2 }}", min_count="{{ 245 }}", site_id="{{ 169 }}", since="{{ none }}"
        )
        make(task_id="follows", since_id=XComArg(upstream, "last_id"), min_count=XComArg(upstream, "count"))
    sensor.render_template_fields({})
    assert sensor.min_count == (245 if native else "245")
    if not native:
        sensor.since = None
    sensor.since_id = type(sensor.since_id)(connected.state.ids()[4])
    assert sensor.execute({})["count"] == 245


@pytest.mark.parametrize("mode", ["poke", "deferrable"])
def test_time_with_an_offset(connected, reconnect, mode):
    """A time with an offset is read in the connection's zone, in the task and in the triggerer."""
    reconnect(timezone="Asia/Jakarta")
    assert wait(mode, since="2017-01-01T00:00:00+00:00")["count"] == 250
    assert connected.state.seen[-1].query.endswith("since=2017-01-01+07%3A00")
    with pytest.raises(TaskDeferred) as caught:
        make(deferrable=True, since="2099-01-01T00:00:00Z").execute({})
    assert caught.value.trigger.serialize()[1]["since"] == "2099-01-01 00:00+00:00"


def test_what_is_deferred(connected):
    """The trigger gets ids, the site and the deadline, and Airflow a backstop behind that; no token."""
    token = OneboxHook(site_id="170").get_token()
    last = connected.state.ids(site="170")[-1]
    options = {"poke_interval": 7, "exponential_backoff": True, "max_wait": timedelta(seconds=9), "timeout": 100}
    with pytest.raises(TaskDeferred) as caught:
        make(deferrable=True, since_id=last, since="2026-01-01T08:00", min_count="7", token=token, **options).execute(
            {}
        )
    kwargs = caught.value.trigger.serialize()[1]
    assert token not in str(kwargs)
    assert kwargs["min_count"] == 7
    assert (kwargs["site_id"], kwargs["since"]) == ("170", "2026-01-01 08:00")
    assert (kwargs["poke_interval"], kwargs["exponential_backoff"], kwargs["max_wait"]) == (7, True, 9)
    assert caught.value.timeout == timedelta(seconds=100) + BACKSTOP
    assert connected.state.logins == 1


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        [],
        "success",
        {"status": "unknown"},
        {"status": "success"},
        {"status": "success", "count": "3", "last_id": "9"},
        {"status": "success", "count": 3, "last_id": 9},
        {"status": "error"},
        {"status": "error", "error": "OneboxError", "message": "x"},
        {"status": "error", "error": "OneboxError", "message": "x", "details": "y"},
        {"status": "error", "error": None, "message": "x", "details": {}},
    ],
)
def test_unusable_event_fails(event):
    """An event that is missing, unknown or incomplete never passes the task, and the error says what to do."""
    sensor = make(since_id=0, deferrable=True)
    with pytest.raises(OneboxError) as caught:
        sensor.resume_execution("execute_complete", {"event": event}, {})
    assert str(caught.value) == (
        f"The trigger's event can't be used, so nothing is known of new records: {str(event)!r}. Usually the triggerer "
        "and the worker have different versions of this package: install the same one, and clear the task."
    )
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        *((name, OneboxError) for name in ("Unheard", "sanitize", "MAX_SHOWN", "AirflowException", "OneboxError")),
        ("OneboxRequestError", OneboxRequestError),
    ],
)
def test_error_of_the_trigger(name, cls):
    """The trigger's error is raised as it was, with its details; one of an unknown class still fails the task."""
    event = {"status": "error", "error": name, "message": "gone wrong", "details": {"status": 404, "code": "7"}}
    with pytest.raises(OneboxError, match="gone wrong") as caught:
        make(since_id=0, deferrable=True).execute_complete({}, event)
    assert type(caught.value) is cls
    assert (caught.value.status, caught.value.code) == (404, "7")


def test_skip_stays_a_skip(monkeypatch):
    """A poll that skips the task skips it."""
    sensor = make(since_id=0, deferrable=True)

    def skip(context):
        raise AirflowSkipException("not today")

    monkeypatch.setattr(sensor, "poke", skip)
    with pytest.raises(AirflowSkipException, match="not today"):
        sensor.execute({})


@pytest.mark.parametrize(("message", "error"), [("Trigger timeout", AirflowSensorTimeout), ("Trigger failure", None)])
def test_backstop(message, error):
    """A wait that Airflow ends is a timeout like any other; a trigger that fails is a failure."""
    sensor = make(since_id=0, deferrable=True)
    with pytest.raises(error or Exception, match=r"(?i)timed out|failure") as caught:
        sensor.resume_execution("__fail__", {"error": message}, {})
    assert isinstance(caught.value, AirflowSensorTimeout) is (error is not None)


@pytest.mark.parametrize("default", ["True", "False"])
def test_default_deferrable(monkeypatch, default):
    """The deployment's default counts where the DAG says nothing; the colour is that of the provider's operators."""
    assert OneboxRecordSensor.ui_color == "#e5f3ff"
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", default)
    assert make(since_id=0).deferrable is (default == "True")
    assert make(since_id=0, deferrable=True).deferrable is True
    assert make(since_id=0, deferrable=False).deferrable is False


@pytest.mark.parametrize("last_id", ["9", None])
def test_result_of_the_trigger(last_id):
    """What downstream tasks read is what the trigger has found."""
    event = {"status": "success", "count": 3, "last_id": last_id}
    assert make(since_id=0, deferrable=True).execute_complete({}, event) == {"count": 3, "last_id": last_id}
