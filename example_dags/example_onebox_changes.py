"""Write the tickets that are new or changed since the last run to one file per run, and find the deleted ones."""

from __future__ import annotations

import gzip
import json
import tempfile
from typing import Any

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Variable, task

from airflow_provider_onebox.operators.onebox import OneboxListOperator

with DAG(
    "example_onebox_changes",
    schedule=None,
    catchup=False,
    # The last listing is the one before this.
    max_active_runs=1,
    params={"folder": f"{tempfile.gettempdir()}/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    OneboxListOperator(
        task_id="list_changes",
        resource="ticketrz",
        incremental="changes",
        output_path="{{ params.folder }}/changes_{{ run_id }}.jsonl.gz",
    )

    # Onebox does not report what was deleted: it is what an earlier listing of all has and this one has not.
    everything = OneboxListOperator(
        task_id="list_all",
        resource="ticketrz",
        output_path="{{ params.folder }}/all_{{ run_id }}.jsonl.gz",
    )

    @task
    def find_deleted(listing: dict[str, Any]) -> list[str]:
        path = listing["path"]
        key = "onebox_listings"
        listings = Variable.get(key, None, deserialize_json=True) or {"last": None}
        if listings["last"] != path:
            # Before anything is compared, so that a retry compares the same two.
            listings = {"last": path, "before": listings["last"]}
            Variable.set(key, listings, serialize_json=True)
        if not listings["before"]:
            return []
        return sorted(read_ids(listings["before"]) - read_ids(path), key=int)

    def read_ids(path: str) -> set[str]:
        lines = gzip.decompress(ObjectStoragePath(path).read_bytes()).splitlines()
        return {json.loads(line)["Id"] for line in lines}

    find_deleted(everything.output)
