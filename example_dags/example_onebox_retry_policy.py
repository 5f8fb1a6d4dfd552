"""Wait as long as Onebox says before the next try. Requires Airflow 3.3 or later."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, AirflowOptionalProviderFeatureException

from airflow_provider_onebox.operators.onebox import OneboxListOperator
from airflow_provider_onebox.retry_policy import OneboxRetryPolicy

try:
    policy = {"retry_policy": OneboxRetryPolicy(timezone="Asia/Jakarta")}
except AirflowOptionalProviderFeatureException:  # Tasks have no retry_policy before Airflow 3.3.
    policy = {}

with DAG("example_onebox_retry_policy", schedule=None, catchup=False, tags=["onebox"], doc_md=__doc__):
    OneboxListOperator(task_id="list_tickets", resource="ticketrz", max_records=5, retries=3, **policy)
