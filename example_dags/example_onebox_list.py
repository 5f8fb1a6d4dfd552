"""Write the tickets that are new since the last run to a gzip file of the run's own."""

from __future__ import annotations

import tempfile

from airflow.providers.common.compat.sdk import DAG, Asset

from airflow_provider_onebox.operators.onebox import OneboxListOperator

with DAG(
    "example_onebox_list",
    schedule=None,
    catchup=False,
    params={"folder": f"{tempfile.gettempdir()}/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    OneboxListOperator(
        task_id="list_tickets",
        resource="ticketrz",
        incremental=True,
        # Not ts_nodash: on Airflow 3, runs that the API or an asset starts have no logical date.
        output_path="{{ params.folder }}/tickets_{{ run_id }}.jsonl.gz",
        outlets=[Asset("onebox_tickets")],
    )
