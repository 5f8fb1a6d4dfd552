"""Every hour, write the new tickets of twenty sites, each to its own file. A site that fails stops no other one."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG, Asset, Variable, task

from airflow_provider_onebox.operators.onebox import OneboxListOperator

with DAG(
    "recipe_twenty_sites",
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # Two runs at once would wait for each other's watermarks.
    max_active_runs=1,
    default_args={"retries": 3},
    params={"folder": "s3://aws_default@my-bucket/onebox"},
    tags=["onebox"],
    doc_md=__doc__,
):

    @task
    def sites() -> list[str]:
        # A Variable with ["169", "170", ...]: a new site needs no new code.
        found: list[str] = Variable.get("onebox_sites", deserialize_json=True)
        return found

    OneboxListOperator.partial(
        task_id="list_tickets",
        resource="ticketrz",
        incremental=True,
        output_path=(
            "{{ params.folder }}/tickets/site={{ task.site_id }}/"
            "{{ run_id | replace(':', '') | replace('+', '_') }}.jsonl.gz"
        ),
        # How many sites are listed at once, to leave room for other DAGs.
        max_active_tis_per_dagrun=5,
        map_index_template="site {{ task.site_id }}",
        # One event for each site that has new tickets, for a DAG that loads the files.
        skip_if_empty=True,
        outlets=[Asset("onebox_tickets_of_sites")],
    ).expand(site_id=sites())
