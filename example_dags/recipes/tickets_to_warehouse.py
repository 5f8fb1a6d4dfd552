"""Every hour, write the new tickets to a Parquet file in S3, and load each file into PostgreSQL and DuckDB."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import datetime, timezone
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_onebox.operators.onebox import OneboxListOperator

FIELDS = ["Id", "Subject", "Status", "Priority", "Category", "CreateDate", "ModifyDate"]
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
# Its events carry the paths of the files.
new_tickets = Asset("onebox_new_tickets")

with DAG(
    "recipe_tickets_to_s3",
    schedule="@hourly",
    start_date=START,
    catchup=False,
    default_args={"retries": 3},
    # aws_default is the Airflow connection. For Google Cloud: gs://google_cloud_default@my-bucket/onebox
    params={"folder": "s3://aws_default@my-bucket/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    OneboxListOperator(
        task_id="list_tickets",
        resource="ticketrz",
        incremental=True,
        fields=FIELDS,
        # run_id holds : and +, which Hadoop, Spark and Snowflake don't take in names.
        output_path="{{ params.folder }}/tickets/{{ run_id | replace(':', '') | replace('+', '_') }}.parquet",
        skip_if_empty=True,
        outlets=[new_tickets],
    )


def new_files(events: dict[Any, Any]) -> list[str]:
    """Return the paths in a run's events; one run can stand for several files."""
    return [event.extra["path"] for of_asset in events.values() for event in of_asset]


# An id that the table has is updated: a file can be loaded twice, after a retry or a cleared run.
UPSERT = """
INSERT INTO tickets AS old (id, subject, status, priority, category, created, modified)
SELECT "Id", "Subject", "Status", "Priority", "Category",
       nullif("CreateDate", '')::timestamp, nullif("ModifyDate", '')::timestamp
FROM jsonb_to_recordset(%s) AS new("Id" bigint, "Subject" text, "Status" text, "Priority" text, "Category" text,
                                   "CreateDate" text, "ModifyDate" text)
ON CONFLICT (id) DO UPDATE SET
    subject = EXCLUDED.subject, status = EXCLUDED.status, priority = EXCLUDED.priority, category = EXCLUDED.category,
    created = EXCLUDED.created, modified = EXCLUDED.modified
WHERE old.modified IS NULL OR old.modified <= EXCLUDED.modified
"""

with DAG(
    "recipe_tickets_to_postgres",
    schedule=[new_tickets],
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3},
    tags=["onebox"],
    doc_md="Load new tickets into PostgreSQL.",
):

    @task
    def load_postgres(triggering_asset_events: Any = None, triggering_dataset_events: Any = None) -> int:
        import pyarrow.parquet
        from airflow.providers.postgres.hooks.postgres import PostgresHook

        count = 0
        with closing(PostgresHook("warehouse").get_conn()) as connection, connection.cursor() as cursor:
            # Airflow 2 calls assets datasets.
            for path in new_files(triggering_asset_events or triggering_dataset_events or {}):
                with ObjectStoragePath(path).open("rb") as file:
                    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(10_000):
                        cursor.execute(UPSERT, [json.dumps(batch.to_pylist())])
                        count += len(batch)
            # All files or none.
            connection.commit()
        return count

    load_postgres()

with DAG(
    "recipe_tickets_to_duckdb",
    schedule=[new_tickets],
    start_date=START,
    catchup=False,
    # DuckDB lets one process write at a time.
    max_active_runs=1,
    default_args={"retries": 3},
    params={"database": "/data/onebox.duckdb"},
    tags=["onebox"],
    doc_md="Load new tickets into DuckDB.",
):

    @task
    def load_duckdb(
        params: dict[str, Any], triggering_asset_events: Any = None, triggering_dataset_events: Any = None
    ) -> int:
        import duckdb
        import pyarrow.parquet

        count = 0
        with duckdb.connect(params["database"]) as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS tickets (id BIGINT PRIMARY KEY, subject TEXT, status TEXT, priority TEXT, "
                "category TEXT, created TIMESTAMP, modified TIMESTAMP)"
            )
            connection.begin()
            for path in new_files(triggering_asset_events or triggering_dataset_events or {}):
                with ObjectStoragePath(path).open("rb") as file:
                    new = pyarrow.parquet.read_table(file)
                connection.register("new", new)
                connection.execute(
                    'INSERT OR REPLACE INTO tickets SELECT "Id"::BIGINT, "Subject", "Status", "Priority", "Category", '
                    """nullif("CreateDate", '')::TIMESTAMP, nullif("ModifyDate", '')::TIMESTAMP FROM new"""
                )
                count += len(new)
            connection.commit()
        return count

    load_duckdb()
