"""Write five tickets to a file, and show them."""

from __future__ import annotations

import json
import tempfile
from typing import Any

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task

from airflow_provider_onebox.operators.onebox import OneboxListOperator

with DAG(
    "example_onebox_quick_start",
    schedule=None,
    catchup=False,
    params={"folder": f"{tempfile.gettempdir()}/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    tickets = OneboxListOperator(
        task_id="list_tickets",
        resource="ticketrz",
        max_records=5,
        fields=["Id", "Subject", "Status", "CreateDate"],
        # Each run has its own path: no run replaces the file of another.
        output_path="{{ params.folder }}/first_tickets_{{ run_id }}.jsonl",
    )

    @task
    def show(written: dict[str, Any]) -> list[dict[str, Any]]:
        """Read the file that the task above has written."""
        lines = ObjectStoragePath(written["path"]).read_text().splitlines()
        return [json.loads(line) for line in lines]

    show(tickets.output)
