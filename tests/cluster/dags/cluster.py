"""Log in to every site, list its tickets with that token, and wait for messages at the first half of the sites.

The last site is listed by a worker of the edge executor.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_onebox.operators.onebox import OneboxAuthenticateOperator, OneboxListOperator
from airflow_provider_onebox.sensors.onebox import OneboxRecordSensor

SITES = [str(number) for number in range(1, int(os.environ["CLUSTER_SITES"]) + 1)]

with DAG(
    "cluster",
    schedule=None,
    max_active_tasks=64,
    default_args={"retries": 5, "retry_delay": timedelta(seconds=1), "onebox_conn_id": "crm"},
):
    authenticate = OneboxAuthenticateOperator.partial(task_id="authenticate").expand(site_id=SITES)
    OneboxListOperator.partial(
        task_id="list", resource="ticketrz", output_path="{{ dag_run.conf['folder'] }}/{{ ti.map_index }}.jsonl"
    ).expand(token=authenticate.output)
    OneboxRecordSensor.partial(
        task_id="wait",
        resource="message",
        since_id="{{ dag_run.conf['last'][ti.map_index] }}",
        deferrable=True,
        poke_interval=5,
        timeout=3600,
    ).expand(site_id=SITES[: len(SITES) // 2])
    OneboxListOperator(
        task_id="edge",
        resource="ticketrz",
        output_path=f"{{{{ dag_run.conf['folder'] }}}}/{len(SITES)}.jsonl",
        site_id=str(len(SITES) + 1),
        queue="edge",
        executor="EdgeExecutor",
    )
