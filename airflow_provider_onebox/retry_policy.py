"""A retry policy for tasks that call Onebox; needs Airflow 3.3."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException

from airflow_provider_onebox._airflow.compat import HAS_RESCHEDULE, HAS_RETRY_POLICIES, RetryDecision, RetryPolicy
from airflow_provider_onebox.api.service_hours import TIMEZONE, seconds_until_opening
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, OneboxServiceHoursError, sanitize

MAX_WAIT = timedelta(days=1)
"""The longest time that a server's ``Retry-After`` can delay a retry."""


class OneboxRetryPolicy(RetryPolicy):
    """Fail at once if a retry can't help; otherwise wait as long as Onebox says.

    - The error's ``retryable`` is false: no retry.
    - Outside service hours: retry one minute after the hours that Onebox names begin. From Airflow 3.4 on, that uses up
      no retry.
    - ``Retry-After``: retry after that time, at most :data:`MAX_WAIT`.
    - Anything else: the task's own ``retries`` and ``retry_delay`` apply.

    Use it as a task's ``retry_policy``, on Airflow 3.3 and later. It does not change the number of retries.

    :param timezone: the time zone of the hours that Onebox names.
    :param service_hours_timeout: on Airflow 3.4, for how long after a try's first wait the service hours use up no
        retry.
    :raises AirflowOptionalProviderFeatureException: on an older Airflow.
    :raises OneboxConfigError: if there is no such time zone, or ``service_hours_timeout`` is not positive.
    """

    def __init__(self, timezone: str = TIMEZONE, *, service_hours_timeout: timedelta = timedelta(days=1)) -> None:
        if not HAS_RETRY_POLICIES:
            raise AirflowOptionalProviderFeatureException(
                "OneboxRetryPolicy needs Airflow 3.3, where tasks have retry_policy. On an older Airflow, leave it "
                "out: rejected credentials fail a task at once there too."
            )
        super().__init__()
        try:
            ZoneInfo(timezone)
        except (KeyError, ValueError, TypeError, OSError):
            raise OneboxConfigError(
                f"timezone={sanitize(timezone)!r} is not a time zone: pass a name such as 'Asia/Jakarta'."
            ) from None
        if not isinstance(service_hours_timeout, timedelta) or service_hours_timeout <= timedelta(0):
            raise OneboxConfigError(
                f"service_hours_timeout={sanitize(service_hours_timeout)!r} is not a timedelta greater than 0."
            )
        self.timezone = timezone
        self.service_hours_timeout = service_hours_timeout

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002 - the signature of every policy
        max_tries: int,  # noqa: ARG002
        context: Any = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Decide what happens after a failed try.

        :param exception: what the task raised.
        :param try_number: the number of the try.
        :param max_tries: how many there may be.
        :param context: the task's context.
        :return: the decision; its reason says when the task runs again.
        """
        if not isinstance(exception, OneboxError):
            return RetryDecision.default()
        name = type(exception).__name__
        if not exception.retryable:
            return RetryDecision.fail(reason=f"{name}: a retry can't help")
        seconds = None
        if isinstance(exception, OneboxServiceHoursError):
            seconds = seconds_until_opening(exception.server_message, self.timezone)
        if seconds is None and exception.retry_after is not None:
            seconds = min(exception.retry_after, MAX_WAIT.total_seconds())
        if seconds is None:
            return RetryDecision.default()
        delay = timedelta(seconds=seconds)
        until = datetime.now(ZoneInfo(self.timezone)) + delay
        reason = f"{name}: Onebox asks to wait, so the task runs again at {until:%Y-%m-%d %H:%M %Z}"
        if HAS_RESCHEDULE and isinstance(exception, OneboxServiceHoursError):
            decision: RetryDecision = RetryDecision.reschedule(  # type: ignore[attr-defined]
                delay, reschedule_timeout=self.service_hours_timeout, reason=reason
            )
            return decision
        return RetryDecision.retry(delay, reason)
