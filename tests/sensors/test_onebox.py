"""The sensor: the same verdicts here and in the triggerer."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException, TaskDeferred

from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxUnavailableError,
)
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.sensors.onebox import BACKSTOP, OneboxRecordSensor
from airflow_provider_onebox.triggers.onebox import MAX_FAILED_POLLS


def make(**options):
    """Make a sensor that polls quickly."""
    return OneboxRecordSensor(
        **{"task_id": "t", "resource": "ticketrz", "poke_interval": 0.02, "timeout": 0.3, **options}
    )


def wait(deferrable, **options):
    """Wait in either mode; in the deferrable one, through the trigger as Airflow drives it."""
    sensor = make(deferrable=deferrable, **options)
    try:
        return sensor.execute({})
    except TaskDeferred as deferred:
        trigger, method = deferred.trigger, deferred.method_name
    trigger = type(trigger)(**trigger.serialize()[1])

    async def events():
        return [event.payload async for event in trigger.run()]

    (payload,) = asyncio.run(events())
    return make(deferrable=True, **options).resume_execution(method, {"event": payload}, {})


both = pytest.mark.parametrize("deferrable", [False, True])


@both
def test_found_at_once(connected, deferrable):
    """Records that are there end the wait with their number and last id."""
    ids = connected.state.ids()
    assert wait(deferrable, since_id=ids[4], min_count=245) == {"count": 245, "last_id": ids[-1]}
    assert wait(deferrable, since="2000-01-01 00:00")["count"] == 250
    assert wait(deferrable, last_update=datetime(2000, 1, 1))["count"] == 250


@both
def test_timeout(connected, deferrable):
    """Too few records in time fail the sensor, or skip it where it is soft."""
    last = connected.state.ids()[-1]
    with pytest.raises(AirflowSensorTimeout, match="timed out"):
        wait(deferrable, since_id=last)
    with pytest.raises(AirflowSkipException):
        wait(deferrable, since_id=last, soft_fail=True)


@both
def test_found_later(connected, deferrable):
    """Records that come while it waits end it."""
    connected.state.configure(grow=1)
    last = connected.state.ids()[-1]
    assert wait(deferrable, since_id=last, min_count=3, timeout=30)["count"] >= 3


@both
def test_errors_are_the_same(connected, connect, deferrable):
    """A hopeless error comes out as itself, with its evidence; soft_fail skips those that fail at once alone."""
    connected.state.fail("envelope_200", path="ticketrz", times=99, code="404", message="no such thing")
    with pytest.raises(OneboxRequestError, match="no such thing") as caught:
        wait(deferrable, since_id=0)
    assert caught.value.code == "404"
    with pytest.raises(OneboxRequestError):
        wait(deferrable, since_id=0, soft_fail=True)
    with pytest.raises(AirflowSkipException):
        wait(deferrable, since_id=0, never_fail=True)
    connected.state.calm()
    connect(connected.url, login=connected.email, password="wrong password")
    with pytest.raises(OneboxAuthError):
        wait(deferrable, since_id=0)
    with pytest.raises(AirflowSkipException):
        wait(deferrable, since_id=0, soft_fail=True)


@both
def test_passing_faults(connected, connect, deferrable):
    """A few failed polls in a row are waited out, more of them fail the sensor, and silent_fail waits on."""
    connect(connected.url, login=connected.email, password=connected.password, max_retries=0)
    connected.state.fail("status", path="ticketrz", times=MAX_FAILED_POLLS - 1, status=503)
    assert wait(deferrable, since_id=0, timeout=30)["count"] == 250
    connected.state.fail("status", path="ticketrz", times=99, status=503)
    with pytest.raises(OneboxUnavailableError):
        wait(deferrable, since_id=0, timeout=30)
    with pytest.raises(AirflowSensorTimeout):
        wait(deferrable, since_id=0, silent_fail=True)


def test_reference_point_is_required(connected):
    """Without a reference point nothing is new, and nothing is sent."""
    with pytest.raises(OneboxConfigError, match="since_id, since or last_update"):
        wait(False)
    assert not connected.state.requests


def test_bad_min_count():
    """A number that can't be reached or is reached at once is refused when the DAG is parsed."""
    with pytest.raises(ValueError, match="min_count"):
        make(min_count=0)


def test_what_is_deferred(connected):
    """The trigger gets ids, the site and the deadline, and Airflow a backstop behind that; no token."""
    token = OneboxHook(site_id="170").get_token()
    last = connected.state.ids(site="170")[-1]
    options = {"poke_interval": 7, "exponential_backoff": True, "max_wait": timedelta(seconds=9), "timeout": 100}
    with pytest.raises(TaskDeferred) as caught:
        make(deferrable=True, since_id=last, since="2026-01-01T08:00", token=token, **options).execute({})
    kwargs = caught.value.trigger.serialize()[1]
    assert token not in str(kwargs)
    assert (kwargs["site_id"], kwargs["since"]) == ("170", "2026-01-01 08:00")
    assert (kwargs["poke_interval"], kwargs["exponential_backoff"], kwargs["max_wait"]) == (7, True, 9)
    assert caught.value.timeout == timedelta(seconds=100) + BACKSTOP
    assert connected.state.logins == 1


@pytest.mark.parametrize("event", [None, {}, [], "success", {"status": "unknown"}])
def test_unexpected_event_fails(event):
    """An event that is missing or makes no sense never passes the task."""
    with pytest.raises(OneboxError, match="makes no sense"):
        make(since_id=0, deferrable=True).resume_execution("execute_complete", {"event": event}, {})
    with pytest.raises(OneboxError, match="gone wrong"):
        make(deferrable=True).execute_complete({}, {"status": "error", "error": "Unheard", "message": "gone wrong"})


def test_skip_stays_a_skip(monkeypatch):
    """A poll that skips the task skips it."""
    sensor = make(since_id=0, deferrable=True)

    def skip(context):
        raise AirflowSkipException("not today")

    monkeypatch.setattr(sensor, "poke", skip)
    with pytest.raises(AirflowSkipException, match="not today"):
        sensor.execute({})


@pytest.mark.parametrize(("words", "error"), [("Trigger timeout", AirflowSensorTimeout), ("Trigger failure", None)])
def test_backstop(words, error):
    """A wait that Airflow ends is a time-out like any other; a trigger that fails is a failure."""
    sensor = make(since_id=0, deferrable=True)
    with pytest.raises(error or Exception, match=r"(?i)timed out|failure") as caught:
        sensor.resume_execution("__fail__", {"error": words}, {})
    assert isinstance(caught.value, AirflowSensorTimeout) is (error is not None)


@pytest.mark.parametrize("default", ["True", "False"])
def test_default_deferrable(monkeypatch, default):
    """The deployment's default counts where the DAG says nothing."""
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", default)
    assert make(since_id=0).deferrable is (default == "True")
    assert make(since_id=0, deferrable=True).deferrable is True
    assert make(since_id=0, deferrable=False).deferrable is False
