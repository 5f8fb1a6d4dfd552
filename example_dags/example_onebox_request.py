"""Make calls that have no operator, and keep only what is needed of the responses."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_onebox.operators.onebox import OneboxRequestOperator

with DAG("example_onebox_request", schedule=None, catchup=False, tags=["onebox"], doc_md=__doc__):
    worklist = OneboxRequestOperator(
        task_id="list_worklist",
        endpoint="VocWorklist",
        response_filter=lambda response: [row["Id"] for row in response["data"]],
    )
    news = OneboxRequestOperator(
        task_id="list_news",
        endpoint="news/get",
        query={"startdate": "01-11-2026", "enddate": "30-11-2026", "limit": 10},
    )
    worklist >> news
