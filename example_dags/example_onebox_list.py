"""Every hour, write the tickets that are new since the last run to a file, and count them in another DAG."""

from __future__ import annotations

import gzip
import tempfile
from datetime import datetime, timezone
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_onebox.operators.onebox import OneboxListOperator

tickets = Asset("onebox_tickets")

with DAG(
    "example_onebox_list",
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
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
        # Without new tickets there is no event, and the DAG below does not run.
        skip_if_empty=True,
        outlets=[tickets],
    )

with DAG(
    "example_onebox_list_done",
    schedule=[tickets],
    # Airflow 2 asks for one.
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    tags=["onebox"],
    doc_md=__doc__,
):

    @task
    def count_tickets(triggering_asset_events: Any = None, triggering_dataset_events: Any = None) -> int:
        # Airflow 2 calls them datasets. One run can stand for several events.
        events = (triggering_asset_events or triggering_dataset_events).values()
        paths = [ObjectStoragePath(event.extra["path"]) for of_asset in events for event in of_asset]
        return sum(len(gzip.decompress(path.read_bytes()).splitlines()) for path in paths)

    count_tickets()
