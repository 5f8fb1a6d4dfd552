"""Open a ticket when a task fails. The task here always does."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_onebox.notifications.onebox import OneboxTicketNotifier

with DAG("example_onebox_notifier", schedule=None, catchup=False, tags=["onebox"], doc_md=__doc__):

    @task(
        on_failure_callback=OneboxTicketNotifier(
            full_name="Airflow", contact="data-team@example.com", category="Pipelines"
        )
    )
    def load() -> None:
        raise RuntimeError("This task fails so that a ticket is opened.")

    load()
