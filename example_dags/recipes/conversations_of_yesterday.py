"""Every night, write what was said about yesterday's tickets to a file, and their attachments to a folder."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_onebox.operators.messages import OneboxListConversationsOperator
from airflow_provider_onebox.operators.onebox import OneboxListOperator

# Onebox's own zone; the connection names it as its timezone, too.
ZONE = "Asia/Jakarta"
DAY = "{{ params.folder }}/conversations/day={{ data_interval_start | day }}"

with DAG(
    "recipe_conversations_of_yesterday",
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
    tickets = OneboxListOperator(
        task_id="list_tickets",
        resource="ticketrz",
        since="{{ data_interval_start }}",
        until="{{ data_interval_end }}",
        fields=["Id", "Subject"],
        output_path=f"{DAY}/tickets.jsonl.gz",
    )
    OneboxListConversationsOperator(
        task_id="list_conversations",
        tickets=tickets.output,
        output_path=f"{DAY}/messages.jsonl.gz",
        attachments_path=f"{DAY}/attachments",
        # Attachments on other hosts are skipped unless you name these.
        attachment_hosts=[],
        max_attachment_bytes=10 * 1024 * 1024,
    )
