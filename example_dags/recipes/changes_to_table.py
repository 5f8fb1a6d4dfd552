"""Every night, bring a table of PostgreSQL up to date with the tickets that are new or changed."""

from __future__ import annotations

import gzip
from contextlib import closing
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_onebox.operators.onebox import OneboxListOperator

UPSERT = """
INSERT INTO tickets AS old (id, subject, status, priority, category, created, modified)
SELECT "Id", "Subject", "Status", "Priority", "Category",
       nullif("CreateDate", '')::timestamp, nullif("ModifyDate", '')::timestamp
FROM jsonb_to_recordset(%s) AS new("Id" bigint, "Subject" text, "Status" text, "Priority" text, "Category" text,
                                   "CreateDate" text, "ModifyDate" text)
ON CONFLICT (id) DO UPDATE SET
    subject = EXCLUDED.subject, status = EXCLUDED.status, priority = EXCLUDED.priority, category = EXCLUDED.category,
    created = EXCLUDED.created, modified = EXCLUDED.modified
-- A file that is loaded again later must not undo a newer change.
WHERE old.modified IS NULL OR old.modified <= EXCLUDED.modified
"""

with DAG(
    "recipe_changes_to_table",
    schedule="0 1 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 3},
    params={"folder": "s3://aws_default@my-bucket/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    changes = OneboxListOperator(
        task_id="list_changes",
        resource="ticketrz",
        incremental="changes",
        output_path="{{ params.folder }}/changes/{{ run_id | replace(':', '') | replace('+', '_') }}.jsonl.gz",
    )

    @task(outlets=[Asset("onebox_tickets_table")])
    def upsert(written: dict[str, Any]) -> int:
        from airflow.providers.postgres.hooks.postgres import PostgresHook

        count = 0
        with (
            closing(PostgresHook("warehouse").get_conn()) as connection,
            connection.cursor() as cursor,
            ObjectStoragePath(written["path"]).open("rb") as raw,
            gzip.open(raw, "rt", encoding="utf-8") as lines,
        ):
            while batch := list(islice(lines, 10_000)):
                cursor.execute(UPSERT, [f"[{','.join(batch)}]"])
                count += len(batch)
            connection.commit()
        return count

    upsert(changes.output)
