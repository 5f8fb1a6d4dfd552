"""Every night, list all contacts, and mark in a table which are new, changed or deleted."""

from __future__ import annotations

import gzip
from contextlib import closing
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task

from airflow_provider_onebox.operators.onebox import OneboxListOperator

SNAPSHOT = """
CREATE TEMPORARY TABLE snapshot (id bigint PRIMARY KEY, name text, email text, phone text, mobile text)
"""
COPY = """
INSERT INTO snapshot
SELECT * FROM jsonb_to_recordset(%s) AS new("Id" bigint, "Name" text, "Email" text, "Phone" text, "Mobile" text)
"""
# Only a contact that differs is updated, so that `changed` is the night of the last change.
UPSERT = """
INSERT INTO contacts AS old (id, name, email, phone, mobile, changed, deleted)
SELECT id, name, email, phone, mobile, now(), NULL FROM snapshot
ON CONFLICT (id) DO UPDATE SET
    name = EXCLUDED.name, email = EXCLUDED.email, phone = EXCLUDED.phone, mobile = EXCLUDED.mobile,
    changed = EXCLUDED.changed, deleted = NULL
WHERE (old.name, old.email, old.phone, old.mobile) IS DISTINCT FROM
      (EXCLUDED.name, EXCLUDED.email, EXCLUDED.phone, EXCLUDED.mobile)
   OR old.deleted IS NOT NULL
"""
DELETE = """
UPDATE contacts SET deleted = now()
WHERE deleted IS NULL AND NOT EXISTS (SELECT FROM snapshot WHERE snapshot.id = contacts.id)
"""

with DAG(
    "recipe_contacts_snapshot",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # An older snapshot must not be compared after a newer one.
    max_active_runs=1,
    default_args={"retries": 3},
    params={"folder": "s3://aws_default@my-bucket/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    # A listing never ends early in silence: what is missing in this file is deleted.
    snapshot = OneboxListOperator(
        task_id="list_contacts",
        resource="contactrz",
        output_path="{{ params.folder }}/contacts/{{ run_id | replace(':', '') | replace('+', '_') }}.jsonl.gz",
    )

    @task
    def compare(written: dict[str, Any]) -> dict[str, int]:
        from airflow.providers.postgres.hooks.postgres import PostgresHook

        with (
            closing(PostgresHook("warehouse").get_conn()) as connection,
            connection.cursor() as cursor,
            ObjectStoragePath(written["path"]).open("rb") as raw,
            gzip.open(raw, "rt", encoding="utf-8") as lines,
        ):
            cursor.execute(SNAPSHOT)
            while batch := list(islice(lines, 10_000)):
                cursor.execute(COPY, [f"[{','.join(batch)}]"])
            cursor.execute(UPSERT)
            changed = cursor.rowcount
            cursor.execute(DELETE)
            deleted = cursor.rowcount
            connection.commit()
        return {"changed": changed, "deleted": deleted}

    compare(snapshot.output)
