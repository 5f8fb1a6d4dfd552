"""Log in once, and let a downstream task list tickets with the token."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.onebox import OneboxAuthenticateOperator

with DAG("example_onebox_token", schedule=None, catchup=False, tags=["onebox"], doc_md=__doc__):
    authenticate = OneboxAuthenticateOperator(task_id="authenticate")

    @task
    def list_tickets(token: str) -> list[dict[str, Any]]:
        hook = OneboxHook(token=token)
        return list(hook.list_records("ticketrz", max_records=5))

    # By name: Airflow hides a rendered argument named token, but shows a positional one.
    list_tickets(token=authenticate.output)
