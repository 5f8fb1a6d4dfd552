"""The sensor: wait until Onebox has new records."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseOperator,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_onebox import exceptions
from airflow_provider_onebox.api.arguments import as_id, format_time, parse_time, whole_number
from airflow_provider_onebox.exceptions import OneboxConfigError, OneboxError, OneboxServiceHoursError
from airflow_provider_onebox.hooks.onebox import OneboxHook

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow.providers.common.compat.sdk import Context

BACKSTOP = timedelta(minutes=5)
"""How much later than the trigger's deadline Airflow ends the wait if the trigger does not."""

MAX_DOUBLINGS = 64
"""Polls with exponential back-off after which the pause is longer than any wait."""


class OneboxRecordSensor(BaseSensorOperator):
    """Wait until a resource has new records; return ``{"count", "last_id"}``.

    Poke, reschedule and deferrable mode have the same options, timeout and errors. The sensor tolerates up to five
    transient errors in a row; in reschedule mode, which keeps no state between polls, any number until the timeout.
    With ``silent_fail``, it tolerates any number in each mode. An error that a retry can't fix, such as a rejected
    password or a missing connection, ends the wait at once. ``soft_fail`` skips the task after such an error or a
    timeout, and ``never_fail`` after any error except a timeout, as for every sensor in poke mode.

    Outside Onebox's service hours, the sensor keeps waiting, until its timeout. It polls again when the service hours
    that Onebox names begin, or after an hour if that is sooner.

    One of ``since_id``, ``since`` and ``last_update`` is required; with several, a record has to match all of them.

    API pages: List of tickets, contacts, prospects, messages, connections, ``GET {host}/api/<resource>``.

    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``. (templated)
    :param since_id: only records with a greater id count. (templated)
    :param since: only records created after this time count, to the minute. Without an offset, the time is in Onebox's
        own zone; with one, the connection needs a time zone. (templated)
    :param last_update: only records changed after this time count, in the same form. (templated)
    :param min_count: how many such records there must be, at least 1. (templated)
    :param deferrable: whether to wait in the triggerer; by default, the deployment's ``[operators]
        default_deferrable``.
    :param onebox_conn_id: the Airflow connection of type Onebox. (templated)
    :param site_id: a site to use in place of the connection's own. (templated)
    :param token: an upstream token, used until it expires; the trigger logs in by itself. (templated)
    :raises OneboxConfigError: if an argument without a template is invalid.
    """

    template_fields: Sequence[str] = (
        "onebox_conn_id",
        "site_id",
        "token",
        "resource",
        "since_id",
        "since",
        "last_update",
        "min_count",
    )
    ui_color = "#e5f3ff"

    def __init__(
        self,
        *,
        resource: str,
        since_id: int | str | None = None,
        since: datetime | str | None = None,
        last_update: datetime | str | None = None,
        min_count: int | str = 1,
        deferrable: bool | None = None,
        onebox_conn_id: str = OneboxHook.default_conn_name,
        site_id: str | int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.resource = resource
        self.since_id = since_id
        self.since = since
        self.last_update = last_update
        self.min_count = min_count
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = deferrable
        self.onebox_conn_id = onebox_conn_id
        self.site_id = site_id
        self.token = token
        self._failures = 0
        self._until_opening: float | None = None
        self._looked_up = time.monotonic()
        self._require_reference()
        checks: dict[str, Callable[[str, Any], Any]] = {
            "since_id": as_id,
            "since": parse_time,
            "last_update": parse_time,
            "min_count": lambda name, value: whole_number(name, value, 1),
        }
        for name, check in checks.items():
            value = getattr(self, name)
            # A template, or the result of an upstream task.
            is_unknown = "{" in value if isinstance(value, str) else hasattr(value, "resolve")
            if not is_unknown:
                check(name, value)

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002 - the signature of every sensor
        """Poll once.

        :param context: the task's context.
        :return: whether there are enough new records, and which.
        :raises OneboxError: if a retry can't help, or too many polls in a row have failed.
        """
        from airflow_provider_onebox.triggers._polling import LOOK_UP_INTERVAL, is_tolerable, until_opening

        self._require_reference()
        enough = whole_number("min_count", self.min_count, 1)
        hook = OneboxHook(self.onebox_conn_id, site_id=self.site_id, token=self.token)
        self._until_opening = None
        try:
            if self._failures or time.monotonic() - self._looked_up > LOOK_UP_INTERVAL:
                hook.look_up_again()
                self._looked_up = time.monotonic()
            count, last_id = hook.count_records(
                self.resource, since_id=self.since_id, since=self.since, last_update=self.last_update
            )
        except OneboxServiceHoursError as error:
            self._failures, self._until_opening = 0, until_opening(error, self.poke_interval)
            self.log.info("Outside service hours, continuing: %s", error)
            return PokeReturnValue(is_done=False)
        except OneboxError as error:
            self._failures += 1
            if not is_tolerable(error, self._failures, self.silent_fail):
                raise
            self.log.warning("Poll failed (%d in a row), continuing: %s", self._failures, error)
            return PokeReturnValue(is_done=False)
        self._failures = 0
        self.log.info("Found %d of %d new %s records.", count, enough, self.resource)
        return PokeReturnValue(count >= enough, {"count": count, "last_id": str(last_id)})

    def _require_reference(self) -> None:
        if self.since_id is None and self.since is None and self.last_update is None:
            raise OneboxConfigError("Nothing says which records are new: pass since_id, since or last_update.")

    def _get_next_poke_interval(self, started_at: Any, run_duration: Callable[[], float], poke_count: int) -> float:
        # Airflow calls this in poke and reschedule mode.
        if self._until_opening is None:
            # Airflow doubles a float with each poll, and at the 1,025th it overflows.
            return float(super()._get_next_poke_interval(started_at, run_duration, min(poke_count, MAX_DOUBLINGS)))
        return max(0.0, min(self._until_opening, self.timeout - run_duration()))

    def execute(self, context: Context) -> Any:
        """Wait, here or in the triggerer.

        :param context: the task's context.
        :return: ``{"count", "last_id"}``.
        :raises AirflowSensorTimeout: if there are not enough new records in time.
        :raises OneboxError: if a retry can't help, or too many polls in a row have failed.
        """
        if not self.deferrable:
            return super().execute(context)
        deadline = time.time() + self.timeout
        found = self._like_poke_mode(lambda: self.poke(context))
        if found.is_done:
            return found.xcom_value
        from airflow_provider_onebox.triggers.onebox import OneboxRecordTrigger

        # Only this process knows the site of an upstream token: the trigger does not get the token.
        site_id = OneboxHook(self.onebox_conn_id, site_id=self.site_id, token=self.token).token_site()
        return self.defer(
            trigger=OneboxRecordTrigger(
                self.resource,
                since_id=self.since_id,
                since=format_time(parse_time("since", self.since)),
                last_update=format_time(parse_time("last_update", self.last_update)),
                min_count=whole_number("min_count", self.min_count, 1),
                poke_interval=self.poke_interval,
                exponential_backoff=bool(self.exponential_backoff),
                max_wait=self.max_wait.total_seconds() if self.max_wait else None,
                silent_fail=self.silent_fail,
                deadline=deadline,
                onebox_conn_id=self.onebox_conn_id,
                site_id=site_id,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + BACKSTOP,
        )

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:  # noqa: ARG002
        """Turn the trigger's event into the task's result or error.

        :param context: the task's context.
        :param event: the trigger's event.
        :return: ``{"count", "last_id"}``.
        :raises AirflowSensorTimeout: if there were not enough new records in time.
        :raises OneboxError: the trigger's error, or that the event is missing, unknown or incomplete.
        """
        match event:
            case {"status": "success", "count": int(count), "last_id": str() | None as last_id}:
                return {"count": count, "last_id": last_id}
            case {"status": "timeout"}:
                raise AirflowSensorTimeout(
                    f"Sensor has timed out: there were fewer than {self.min_count} new {self.resource} records within "
                    f"{self.timeout} s."
                )
            case {"status": "error", "error": str(name), "message": str(message), "details": dict(details)}:
                cls: Any = getattr(exceptions, name, None)
                is_ours = isinstance(cls, type) and issubclass(cls, OneboxError)
                error: OneboxError = (cls if is_ours else OneboxError)(message)
                vars(error).update(details)
                raise error
        raise OneboxError(
            f"The trigger's event can't be used, so nothing is known of new records: {exceptions.sanitize(event)!r}. "
            "Usually the triggerer and the worker have different versions of this package: install the same one, and "
            "clear the task."
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after the wait; errors are treated as in poke mode.

        :param next_method: the method to call.
        :param next_kwargs: its arguments.
        :param context: the task's context.
        :return: what that method returns.
        """
        # The base class skips on every error with soft_fail, and differs from version to version.
        return self._like_poke_mode(lambda: BaseOperator.resume_execution(self, next_method, next_kwargs, context))

    def _like_poke_mode(self, step: Any) -> Any:
        try:
            return step()
        except AirflowSkipException:
            raise
        except Exception as error:
            failure: Exception = error
            if type(error).__name__.startswith("TaskDeferral") and "timeout" in str(error).lower():
                failure = AirflowSensorTimeout(f"Sensor has timed out: {error}")
            is_timeout = isinstance(failure, AirflowSensorTimeout)
            final = is_timeout or isinstance(failure, AirflowFailException)
            if (self.never_fail and not is_timeout) or (self.soft_fail and final):
                raise AirflowSkipException(f"Skipping instead of failing: {failure}") from error
            if failure is error:
                raise
            raise failure from error
