"""Open a ticket if the load is not done an hour after its run was queued. Requires Airflow 3.1."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_onebox.notifications.onebox import OneboxTicketNotifier
from airflow_provider_onebox.operators.onebox import OneboxListOperator

try:
    from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference
except ImportError:  # Before Airflow 3.1: this file holds no DAG then.
    DeadlineAlert = None

if DeadlineAlert:
    alert = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=1),
        # Runs in the triggerer. A SyncCallback could not read the connection.
        callback=AsyncCallback(
            OneboxTicketNotifier,
            kwargs={
                "full_name": "Airflow",
                "contact": "data-team@example.com",
                "category": "Pipelines",
                "subject": "The tickets of {{ dag_run.dag_id }} are late",
            },
        ),
    )
    with DAG(
        "recipe_deadline_ticket",
        schedule="@daily",
        start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
        catchup=False,
        deadline=alert,
        params={"folder": "s3://aws_default@my-bucket/onebox"},
        tags=["onebox"],
        doc_md=__doc__,
    ):
        OneboxListOperator(
            task_id="list_tickets",
            resource="ticketrz",
            output_path="{{ params.folder }}/all/{{ run_id | replace(':', '') | replace('+', '_') }}.jsonl.gz",
        )
