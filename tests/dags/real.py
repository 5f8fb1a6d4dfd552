"""DAGs that a real Airflow runs against the sandbox; each has its own site or account."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from datetime import timedelta

from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowOptionalProviderFeatureException,
    Asset,
    AssetAlias,
    task,
)

from airflow_provider_onebox.files import watermark
from airflow_provider_onebox.notifications.onebox import OneboxTicketNotifier
from airflow_provider_onebox.operators.onebox import OneboxListOperator
from airflow_provider_onebox.retry_policy import OneboxRetryPolicy
from airflow_provider_onebox.sensors import onebox as sensors
from airflow_provider_onebox.sensors.onebox import OneboxRecordSensor

PATH = os.environ.get("REAL_FOLDER", "") + "/{{ ti.task_id }}_{{ run_id }}.jsonl.gz"
RETRIES = {"retries": 2, "retry_delay": timedelta(0)}
WAIT = {"resource": "ticketrz", "since_id": "{{ dag_run.conf.since_id }}", "poke_interval": 1}
# Of two that wait for each other one fails within this many seconds, and not within a minute.
watermark.PATIENCE = 4
# The tests do something else meanwhile.
sensors.BACKSTOP = timedelta(hours=1)

with DAG("incremental", schedule=None, default_args=RETRIES):
    listing = {"resource": "ticketrz", "site_id": "171", "incremental": True, "output_path": PATH}
    OneboxListOperator(task_id="with_alias", outlets=[AssetAlias("real_alias")], **listing)
    OneboxListOperator(task_id="with_asset", outlets=[Asset("real_tickets")], **listing)

# Of two runs that wait for each other one fails, and has to stay away until the other has noticed.
with DAG("mapped", schedule=None, default_args={"retries": 5, "retry_delay": timedelta(seconds=5)}):
    listing = {
        "resource": "prospectrz",
        "incremental": True,
        "output_path": PATH.replace("_{{", "_{{ ti.map_index }}_{{"),
    }
    OneboxListOperator.partial(task_id="sites", **listing).expand(site_id=["172", "173"])

with DAG("killed", schedule=None, max_active_runs=1, default_args=RETRIES):
    OneboxListOperator(
        task_id="list", resource="contactrz", site_id="172", incremental=True, page_size=20, output_path=PATH
    )

with DAG("rejected", schedule=None):
    for name in ("number", "text"):
        OneboxListOperator(task_id=name, onebox_conn_id=f"onebox_{name}", resource="ticketrz", max_records=1)

with DAG("refused", schedule=None, default_args=RETRIES):
    OneboxRecordSensor(task_id="wait", onebox_conn_id="onebox_other", deferrable=True, **WAIT)

with DAG("rescheduled", schedule=None, default_args=RETRIES):
    for name, timeout in (("found", 600), ("late", 1)):
        # A poll that comes before the scheduler has heard of the end of the last one counts as failed.
        often = {**WAIT, "poke_interval": 6}
        OneboxRecordSensor(task_id=name, site_id="174", mode="reschedule", timeout=timeout, **often)

with DAG("late", schedule=None, default_args=RETRIES):
    OneboxRecordSensor(task_id="trigger", deferrable=True, timeout=20, site_id="175", **WAIT)


class BackstopSensor(OneboxRecordSensor):
    """A sensor that Airflow itself has to end."""

    def execute(self, context):
        """Wait, without grace for the trigger."""
        sensors.BACKSTOP = timedelta(0)
        return super().execute(context)


with DAG("backstop", schedule=None, default_args=RETRIES):
    BackstopSensor(task_id="wait", deferrable=True, timeout=3600, site_id="175", **WAIT)

WHO = {"full_name": "Airflow", "contact": "data-team@example.com", "category": "Pipelines"}

with DAG("failing", schedule=None, on_failure_callback=OneboxTicketNotifier(**WHO)):

    @task
    def check(n):
        """Fail for odd numbers."""
        if n % 2:
            raise ValueError(n)

    check.expand(n=[1, 2, 3])
    check.override(task_id="single")(5)

once = OneboxTicketNotifier(**WHO, once_per="run")

with DAG("failing_twice", schedule=None, default_args={"on_failure_callback": once}):
    check.override(task_id="first")(1) >> check.override(task_id="second", trigger_rule="all_done")(3)


class SoonPolicy(OneboxRetryPolicy):
    """Wait seconds in place of hours."""

    def evaluate(self, *args, **kwargs):
        """Decide as ever, but for the delay."""
        return dataclasses.replace(super().evaluate(*args, **kwargs), retry_delay=timedelta(seconds=6))


with suppress(AirflowOptionalProviderFeatureException), DAG("quota", schedule=None):
    patient = {"retries": 1, "retry_policy": SoonPolicy()}
    OneboxListOperator(task_id="patient", resource="prospectrz", max_records=1, **patient)
    bounded = {"retries": 0, "retry_policy": SoonPolicy(service_hours_timeout=timedelta(seconds=1))}
    OneboxListOperator(task_id="bounded", resource="contactrz", max_records=1, **bounded)
