"""Wait in the triggerer until there are tickets after an id, then list those."""

from __future__ import annotations

import tempfile

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_onebox.operators.onebox import OneboxListOperator
from airflow_provider_onebox.sensors.onebox import OneboxRecordSensor

with DAG(
    "example_onebox_sensor",
    schedule=None,
    catchup=False,
    params={"since_id": "0", "folder": f"{tempfile.gettempdir()}/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    wait = OneboxRecordSensor(
        task_id="wait_for_tickets",
        resource="ticketrz",
        since_id="{{ params.since_id }}",
        deferrable=True,
        poke_interval=10,
        timeout=3600,
    )
    list_new = OneboxListOperator(
        task_id="list_tickets",
        resource="ticketrz",
        since_id="{{ params.since_id }}",
        output_path="{{ params.folder }}/tickets_after_{{ params.since_id }}.jsonl.gz",
    )
    wait >> list_new
