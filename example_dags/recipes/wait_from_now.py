"""Wait for the first ticket that is opened after the run has started, then go on. For runs that you start by hand."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.onebox import OneboxListOperator
from airflow_provider_onebox.sensors.onebox import OneboxRecordSensor

with DAG(
    "recipe_wait_from_now",
    schedule=None,
    catchup=False,
    default_args={"retries": 3},
    tags=["onebox"],
    doc_md=__doc__,
):

    @task
    def newest() -> str:
        # An id and not a time: no clocks have to agree. Without tickets, every id is new.
        _, last_id = OneboxHook().count_records("ticketrz")
        return str(last_id or 0)

    since_id = newest()
    wait = OneboxRecordSensor(
        task_id="wait",
        resource="ticketrz",
        since_id=since_id,
        deferrable=True,
        poke_interval=60,
        # Seconds; the task fails then, or is skipped with soft_fail=True.
        timeout=6 * 3600,
    )
    wait >> OneboxListOperator(task_id="list_tickets", resource="ticketrz", since_id=since_id)
