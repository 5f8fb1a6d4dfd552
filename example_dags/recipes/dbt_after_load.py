"""Run the dbt models that build on the tickets, whenever the table of tickets was brought up to date."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG, Asset, task

with DAG(
    "recipe_dbt_after_load",
    # What the task `upsert` of the DAG recipe_changes_to_table has as its outlet.
    schedule=[Asset("onebox_tickets_table")],
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    # dbt writes into its project's folder: two runs at once would disturb each other.
    max_active_runs=1,
    params={"project": "/opt/dbt/support"},
    tags=["onebox"],
    doc_md=__doc__,
):

    @task.bash(cwd="{{ params.project }}")
    def dbt_build() -> str:
        return "dbt build --select 'source:onebox+'"

    dbt_build()
