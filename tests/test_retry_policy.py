"""The retry policy: no retry where it can't help, and the wait that Onebox names where it can."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException
from airflow_home import AIRFLOW_VERSION

from airflow_provider_onebox import retry_policy
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxQuotaError,
    OneboxRequestError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
)
from airflow_provider_onebox.retry_policy import OneboxRetryPolicy

QUOTA = "time limit reached please try again tomorrow at 18:00 - 06:00"


def test_before_airflow_3_3(on_another_airflow):
    """Where tasks have no retry_policy, it says so; the module can be imported all the same."""
    older = on_another_airflow(retry_policy, without=["airflow.sdk"])
    with pytest.raises(AirflowOptionalProviderFeatureException, match=r"Airflow 3\.3"):
        older.OneboxRetryPolicy()


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="Airflow before 3.3 has no retry policies")
class TestPolicy:
    """The policy, on the versions that have such a thing."""

    @pytest.fixture
    def at(self, monkeypatch):
        """Set the clock to a time of day at the account's place."""

        def use(hour, minute=0):
            class Clock(datetime):
                @classmethod
                def now(cls, tz=None):
                    return datetime(2026, 11, 24, hour, minute, tzinfo=tz)

            monkeypatch.setattr(retry_policy, "datetime", Clock)

        return use

    def decide(self, exception):
        """Ask the policy about the first of four tries."""
        return OneboxRetryPolicy().evaluate(exception, 1, 3)

    @pytest.mark.parametrize("cls", [OneboxAuthError, OneboxConfigError, OneboxUncertainWriteError])
    def test_hopeless(self, cls):
        """Refused credentials and the like fail at once."""
        decision = self.decide(cls("no"))
        assert decision.action.value == "fail"
        assert cls.__name__ in decision.reason

    @pytest.mark.parametrize(
        ("hour", "minute", "hours"), [(7, 0, 11), (17, 59, 1 / 60), (18, 0, 24), (23, 0, 19), (0, 30, 17.5)]
    )
    def test_quota(self, at, hour, minute, hours):
        """The quota is waited out until its hours begin."""
        at(hour, minute)
        decision = self.decide(OneboxQuotaError("x", server_message=QUOTA))
        assert decision.action.value == "retry"
        assert decision.retry_delay == timedelta(hours=hours)

    def test_quota_without_hours(self):
        """A quota that names no hours is the task's own matter, unless it says how long to wait."""
        assert self.decide(OneboxQuotaError("x", server_message="time limit reached")).action.value == "default"
        assert self.decide(OneboxQuotaError("x")).action.value == "default"
        assert self.decide(OneboxQuotaError("x", retry_after=5)).retry_delay == timedelta(seconds=5)

    def test_retry_after(self):
        """A server that names a time is believed."""
        decision = self.decide(OneboxUnavailableError("x", retry_after=120.0))
        assert (decision.action.value, decision.retry_delay) == ("retry", timedelta(seconds=120))

    @pytest.mark.parametrize("exception", [OneboxUnavailableError("x"), OneboxRequestError("x"), ValueError("x")])
    def test_rest(self, exception):
        """Everything else is left to the task."""
        assert self.decide(exception).action.value == "default"

    def test_unknown_zone(self):
        """A time zone that does not exist is refused when the DAG is parsed."""
        with pytest.raises(Exception, match="Atlantis"):
            OneboxRetryPolicy(timezone="Atlantis/Capital")
