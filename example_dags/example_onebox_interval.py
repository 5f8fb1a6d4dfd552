"""Every day, write the tickets that were created on the day before to that day's file; backfills work too."""

from __future__ import annotations

import tempfile
from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_onebox.operators.onebox import OneboxListOperator

with DAG(
    "example_onebox_interval",
    # On Airflow 3, runs of "@daily" would have empty intervals. The connection has to name Onebox's time zone.
    schedule=CronDataIntervalTimetable("@daily", timezone="Asia/Jakarta"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # Runs that the API or an asset starts have no interval if they have no logical date: give them one.
    params={"since": None, "until": None, "folder": f"{tempfile.gettempdir()}/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):
    OneboxListOperator(
        task_id="list_tickets",
        resource="ticketrz",
        since="{{ params.since or data_interval_start }}",
        until="{{ params.until or data_interval_end }}",
        # Named after the interval: whatever runs it again, a retry or a backfill, replaces the same file.
        output_path="{{ params.folder }}/tickets_{{ params.since or data_interval_start | ts_nodash }}.jsonl.gz",
    )
