"""Write each day's new tickets to a file for that day. A run can be repeated, and a backfill fills in past days."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_onebox.operators.onebox import OneboxListOperator

# Onebox's own zone; the connection names it as its timezone, too.
ZONE = "Asia/Jakarta"

with DAG(
    "recipe_tickets_by_day",
    # Not "@daily": on Airflow 3, its runs have no interval.
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone=ZONE),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 3},
    params={"folder": "s3://aws_default@my-bucket/onebox"},
    user_defined_filters={"day": lambda time: time.in_timezone(ZONE).to_date_string()},
    tags=["onebox"],
    doc_md=__doc__,
):
    OneboxListOperator(
        task_id="list_tickets",
        resource="ticketrz",
        since="{{ data_interval_start }}",
        until="{{ data_interval_end }}",
        fields=["Id", "Subject", "Status", "Priority", "Category", "CreateDate", "ModifyDate"],
        # A run that is repeated replaces its day.
        output_path="{{ params.folder }}/tickets/day={{ data_interval_start | day }}/tickets.parquet",
    )
