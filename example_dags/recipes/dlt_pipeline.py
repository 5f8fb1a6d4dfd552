"""Every hour, load new tickets with dlt, from the records that the hook yields."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook

if TYPE_CHECKING:
    from collections.abc import Iterator

with DAG(
    "recipe_dlt_pipeline",
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # dlt keeps its state in the destination: a run begins where the one before has ended.
    max_active_runs=1,
    default_args={"retries": 3},
    params={"database": "/data/onebox.duckdb"},
    tags=["onebox"],
    doc_md=__doc__,
):

    @task
    def load(params: dict[str, Any]) -> int:
        import tempfile

        import dlt

        # The last 1,000 ids are listed again and merged, because ids become visible a little out of order.
        new = dlt.sources.incremental("Id", initial_value=0, lag=1000)

        @dlt.resource(name="tickets", primary_key="Id", write_disposition="merge")
        def tickets(since: Any = new) -> Iterator[dict[str, Any]]:
            for ticket in OneboxHook().list_records("ticketrz", since_id=max(0, since.last_value)):
                # A number, because of two texts "9999" is greater than "12000".
                yield {**ticket, "Id": int(ticket["Id"])}

        with tempfile.TemporaryDirectory() as folder:
            pipeline = dlt.pipeline(
                "onebox",
                destination=dlt.destinations.duckdb(params["database"]),
                # Not the name of the file: DuckDB could not distinguish them.
                dataset_name="crm",
                pipelines_dir=folder,
            )
            pipeline.run(tickets())
            counts = pipeline.last_trace.last_normalize_info.row_counts
        return int(counts.get("tickets", 0))

    load()
