"""Create many contacts at once, and record the outcome of each."""

from __future__ import annotations

import tempfile

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.operators.bulk import OneboxBulkWriteOperator

with DAG(
    "example_onebox_bulk",
    schedule=None,
    catchup=False,
    params={"folder": f"{tempfile.gettempdir()}/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):

    @task
    def read_source() -> list[dict[str, str]]:
        return [{"name": f"Customer {n}", "email": f"customer{n}@example.com"} for n in range(10)]

    OneboxBulkWriteOperator(
        task_id="create_contacts",
        kind="contact",
        rows=read_source(),
        # On a volume that all workers share. The run's own: a cleared task finds there what is done already.
        results_path="{{ params.folder }}/contacts_{{ run_id }}.jsonl",
        # Up to a tenth of the rows may be rejected or uncertain.
        max_failed_share=0.1,
    )
