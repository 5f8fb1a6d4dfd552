"""The retry policy: no retry where it can't help, and the wait that Onebox names where it can."""

from __future__ import annotations

import copy
import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowOptionalProviderFeatureException
from support.airflow_home import AIRFLOW_VERSION

from airflow_provider_onebox import exceptions, retry_policy
from airflow_provider_onebox._airflow import compat
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxServiceHoursError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
)
from airflow_provider_onebox.retry_policy import OneboxRetryPolicy

HOURS = "time limit reached please try again tomorrow at 18:00 - 06:00"


def test_before_airflow_3_3(on_another_airflow, monkeypatch):
    """Where tasks have no retry_policy, it says so; the module can be imported all the same."""
    monkeypatch.setattr(compat, "AIRFLOW_VERSION", (3, 2))
    monkeypatch.setattr(compat, "HAS_RETRY_POLICIES", False)
    older = on_another_airflow(retry_policy)
    assert older.OneboxRetryPolicy.__base__ is object
    with pytest.raises(AirflowOptionalProviderFeatureException, match=r"Airflow 3\.3"):
        older.OneboxRetryPolicy()


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="Airflow before 3.3 has no retry policies")
class TestPolicy:
    """The policy, on the versions that have such a thing."""

    @pytest.fixture
    def at(self, monkeypatch):
        """Set the clock to a time of day at the account's place."""

        def use(hour, minute=0):
            now = datetime(2026, 11, 24, hour, minute, tzinfo=ZoneInfo("Asia/Jakarta"))

            class Clock(datetime):
                @classmethod
                def now(cls, tz=None):
                    return now.astimezone(tz)

            monkeypatch.setattr(retry_policy, "datetime", Clock)
            monkeypatch.setattr(time, "time", now.timestamp)

        return use

    def decide(self, exception, **options):
        """Ask the policy about the first of four tries."""
        return OneboxRetryPolicy(**options).evaluate(exception, 1, 3)

    @pytest.mark.parametrize(
        "error",
        [
            OneboxAuthError("no"),
            OneboxUncertainWriteError("no"),
            OneboxUnavailableError("no", retryable=False, retry_after=5),
        ],
    )
    def test_hopeless(self, error):
        """An error that a retry can't fix, such as rejected credentials, fails the task at once."""
        decision = self.decide(error)
        assert decision.action.value == "fail"
        assert decision.reason == f"{type(error).__name__}: a retry can't help"

    @pytest.mark.parametrize(
        ("hour", "minute", "hours", "until"),
        [
            (17, 59, 1 / 60, "2026-11-24 18:01 WIB"),
            (18, 1, 24 - 1 / 60, "2026-11-25 18:01 WIB"),
            (0, 30, 17.5, "2026-11-24 18:01 WIB"),
        ],
    )
    def test_service_hours(self, at, hour, minute, hours, until):
        """The service hours are waited for until they begin, and the reason says until when."""
        at(hour, minute)
        decision = self.decide(OneboxServiceHoursError("x", server_message=HOURS, retry_after=5))
        assert decision.action.value == ("retry" if AIRFLOW_VERSION < (3, 4) else "reschedule")
        assert decision.retry_delay == timedelta(hours=hours, minutes=1)
        assert decision.reason == f"OneboxServiceHoursError: Onebox asks to wait, so the task runs again at {until}"

    def test_service_hours_use_up_no_retry(self, at, monkeypatch):
        """Where Airflow can put off a task without using up a retry, the service hours do so, for a bounded time."""
        monkeypatch.setattr(retry_policy, "HAS_RESCHEDULE", True)
        if AIRFLOW_VERSION < (3, 4):
            monkeypatch.setattr(retry_policy.RetryDecision, "reschedule", lambda *a, **k: (a, k), raising=False)
        at(7)
        error = OneboxServiceHoursError("x", server_message=HOURS)
        reason = "OneboxServiceHoursError: Onebox asks to wait, so the task runs again at 2026-11-24 18:01 WIB"
        for days, options in ((1, {}), (3, {"service_hours_timeout": timedelta(days=3)})):
            assert self.decide(error, **options) == retry_policy.RetryDecision.reschedule(
                timedelta(hours=11, minutes=1), reschedule_timeout=timedelta(days=days), reason=reason
            )
        assert self.decide(OneboxUnavailableError("x", retry_after=5)).action.value == "retry"

    def test_zone(self, at):
        """The hours are those of the zone that is named; where Onebox names none, its Retry-After counts."""
        at(7)
        decision = self.decide(OneboxServiceHoursError("x", server_message=HOURS), timezone="UTC")
        assert decision.retry_delay == timedelta(hours=18, minutes=1)
        assert "2026-11-24 18:01 UTC" in decision.reason
        assert self.decide(OneboxServiceHoursError("x", retry_after=5)).retry_delay == timedelta(seconds=5)

    @pytest.mark.parametrize(
        ("retry_after", "delay", "until"),
        [
            (0.0, timedelta(0), "2026-11-24 07:00 WIB"),
            (86399.0, timedelta(seconds=86399), "2026-11-25 06:59 WIB"),
            (999999999999.0, timedelta(days=1), "2026-11-25 07:00 WIB"),
        ],
    )
    def test_retry_after(self, at, retry_after, delay, until):
        """A server that names a time is believed, for a day at the most."""
        at(7)
        decision = self.decide(OneboxUnavailableError("x", retry_after=retry_after))
        assert (decision.action.value, decision.retry_delay) == ("retry", delay)
        assert decision.reason == f"OneboxUnavailableError: Onebox asks to wait, so the task runs again at {until}"

    @pytest.mark.parametrize(
        "error",
        [
            OneboxUnavailableError("x"),
            OneboxConfigError("a look-up", retryable=True),
            OneboxServiceHoursError("x"),
            OneboxServiceHoursError("x", server_message="time limit reached"),
            ValueError("x"),
            AirflowFailException("x"),
        ],
    )
    def test_rest(self, error):
        """Everything else is left to the task."""
        assert self.decide(error).action.value == "default"

    @pytest.mark.parametrize("zone", ["Atlantis/Capital", "", "../etc", "x" * 5000, None])
    def test_unknown_zone(self, zone):
        """A time zone that does not exist is refused when the DAG is parsed, by the argument's name."""
        with pytest.raises(OneboxConfigError, match=r"timezone=.* is not a time zone") as caught:
            OneboxRetryPolicy(timezone=zone)
        assert str(zone)[:100] in str(caught.value)

    @pytest.mark.parametrize("value", [timedelta(0), 3600, None])
    def test_bad_timeout(self, value):
        """A time that is over before it begins would be met on the worker alone."""
        with pytest.raises(OneboxConfigError, match=r"service_hours_timeout=.* is not a timedelta greater than 0"):
            OneboxRetryPolicy(service_hours_timeout=value)

    def test_copy(self):
        """Airflow copies what a task's arguments hold."""
        policy = copy.deepcopy(OneboxRetryPolicy("UTC", service_hours_timeout=timedelta(seconds=1)))
        assert (policy.timezone, policy.service_hours_timeout) == ("UTC", timedelta(seconds=1))


def test_what_fails_at_once_is_not_retryable():
    """Airflow, the policy and the errors themselves never differ on whether a retry can help."""
    members = [cls for cls in vars(exceptions).values() if isinstance(cls, type) and issubclass(cls, OneboxError)]
    assert len(members) >= 8
    assert not [cls for cls in members if issubclass(cls, AirflowFailException) and cls.retryable]
