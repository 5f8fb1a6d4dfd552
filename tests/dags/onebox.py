"""DAGs for what the examples do not show."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, BaseOperator, task

from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.onebox import OneboxAuthenticateOperator


class CountTickets(BaseOperator):
    """Count tickets with a token from a template, as an operator of a user's own would."""

    template_fields = ("token",)

    def __init__(self, *, token: str, **kwargs):
        super().__init__(**kwargs)
        self.token = token

    def execute(self, context):
        """Ask for one ticket."""
        return OneboxHook(token=self.token).request("GET", "ticketrz", params={"limit": 1})["total"]


with DAG("onebox_template", schedule=None, params={"site": "170"}):
    authenticate = OneboxAuthenticateOperator(task_id="authenticate", site_id="{{ params.site }}")
    count = CountTickets(task_id="count", token="{{ ti.xcom_pull('authenticate') }}")
    authenticate >> count

    @task
    def when(ti=None):
        """Read what is published with the token."""
        return [ti.xcom_pull("authenticate", key=key) for key in ("expires_at", "site_id")]

    authenticate >> when()

with DAG("onebox_no_push", schedule=None):
    OneboxAuthenticateOperator(task_id="authenticate", do_xcom_push=False)

with DAG("onebox_refused", schedule=None):
    OneboxAuthenticateOperator(
        task_id="authenticate", onebox_conn_id="onebox_wrong", retries=2, retry_delay=timedelta(seconds=0)
    )

with DAG("onebox_rendered_nothing", schedule=None):
    CountTickets(task_id="count", token="{{ ti.xcom_pull('no_such_task') }}", retries=2)
