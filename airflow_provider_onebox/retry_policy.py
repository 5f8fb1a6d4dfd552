"""A retry policy for tasks that call Onebox; needs Airflow 3.3."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowOptionalProviderFeatureException

from airflow_provider_onebox.exceptions import OneboxError, OneboxQuotaError

try:
    from airflow.sdk import RetryDecision, RetryPolicy
except ImportError:
    RetryPolicy = object  # type: ignore[misc,assignment]

_OPENING = re.compile(r"\b([01]?[0-9]|2[0-3]):([0-5][0-9])\s*-")


class OneboxRetryPolicy(RetryPolicy):
    """Fail at once where a retry can't help, and wait as long as Onebox says where it can.

    - Refused credentials, a connection that can't work, a write in doubt: no retry.
    - The quota: retry when the hours that Onebox names begin.
    - ``Retry-After``: retry after that time.
    - Anything else: as the task's own ``retries`` and ``retry_delay`` say.

    For use as ``retry_policy=`` of a task, on Airflow 3.3 and later. The number of tries stays the task's.

    :param timezone: the time zone of the hours that Onebox names.
    :raises AirflowOptionalProviderFeatureException: on an older Airflow.
    """

    def __init__(self, timezone: str = "Asia/Jakarta") -> None:
        if RetryPolicy is object:
            raise AirflowOptionalProviderFeatureException(
                "OneboxRetryPolicy needs Airflow 3.3, where tasks have retry_policy. On an older one, leave it out: "
                "refused credentials fail a task at once there too."
            )
        super().__init__()
        self.timezone = ZoneInfo(timezone)

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002 - the signature of every policy
        max_tries: int,  # noqa: ARG002
        context: Any = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Decide what becomes of a failed try.

        :param exception: what the task raised.
        :param try_number: the number of the try.
        :param max_tries: how many there may be.
        :param context: the task's context.
        :return: the decision.
        """
        if isinstance(exception, OneboxError):
            if isinstance(exception, AirflowFailException):
                return RetryDecision.fail(reason=f"{type(exception).__name__}: a retry can't help")
            delay = exception.retry_after
            if isinstance(exception, OneboxQuotaError):
                delay = self._until_opening(exception.server_message or "") or delay
            if delay is not None:
                return RetryDecision.retry(delay=timedelta(seconds=delay), reason="Onebox says how long to wait")
        return RetryDecision.default()

    def _until_opening(self, words: str) -> float | None:
        """Seconds until the hours begin that Onebox names, as in ``tomorrow at 18:00 - 06:00``."""
        found = _OPENING.search(words)
        if not found:
            return None
        now = datetime.now(self.timezone)
        opening = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
        if opening <= now:
            opening += timedelta(days=1)
        return (opening - now).total_seconds()
