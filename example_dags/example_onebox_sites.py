"""Log in to several sites of one account by mapping, and count the tickets of each."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.onebox import OneboxAuthenticateOperator

with DAG("example_onebox_sites", schedule=None, catchup=False, tags=["onebox"], doc_md=__doc__):
    authenticate = OneboxAuthenticateOperator.partial(task_id="authenticate").expand(site_id=["169", "170"])

    @task
    def count_tickets(token: str) -> int:
        # The token knows its site, so there is nothing else to pass on.
        page = OneboxHook(token=token).request("GET", "ticketrz", params={"limit": 1})
        return int(page["total"])

    count_tickets.expand(token=authenticate.output)
