"""Every morning, count the open tickets by category with polars, and the contacts without an e-mail with pandas."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook

with DAG(
    "recipe_frames",
    schedule="0 6 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 3},
    tags=["onebox"],
    doc_md=__doc__,
):

    @task
    def open_by_category() -> list[dict[str, Any]]:
        import polars

        # The first 1,000 unless you set max_records. For more, read the Parquet file of a list operator.
        tickets: Any = OneboxHook().get_df("ticketrz", max_records=100_000, df_type="polars")
        counts = (
            tickets.filter(polars.col("Status") != "Closed")
            .group_by("Category")
            .agg(polars.len().alias("count"))
            .sort("count", "Category", descending=[True, False])
        )
        # An XCom is small, plain JSON: no frame.
        return list(counts.to_dicts())

    @task
    def without_mail() -> list[str]:
        contacts: Any = OneboxHook().get_df("contactrz", max_records=100_000, df_type="pandas")
        missing = contacts["Email"].isna() | (contacts["Email"] == "")
        return list(contacts.loc[missing, "Id"])[:100]

    open_by_category()
    without_mail()
